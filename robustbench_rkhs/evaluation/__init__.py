"""Evaluation: EvalRecipe -> predictions, certificates, attacks, diagnosis -> verdicts."""
