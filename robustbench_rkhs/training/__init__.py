"""Training: TrainRecipe -> checkpoint."""
