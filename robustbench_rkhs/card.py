"""The card of a checkpoint: what it is, how it was made, what it scored on validation."""

from typing import Any

from robustbench_rkhs.recipe import TrainRecipe


def training_card(
    recipe: TrainRecipe,
    records: list[dict[str, Any]],
    best_epoch: int,
    trained: dict[str, Any],
    command: str,
    images: int,
    digest: str,
) -> str:
    """Markdown. Validation numbers chose the epoch and are not results; results come from rkhs-eval."""
    best = records[best_epoch]
    validation = [f"{key.removeprefix('validation_')} {best[key]:.1%}" for key in sorted(best) if "validation" in key]
    attack = "none"
    if recipe.attack:
        kept = recipe.attack.model_dump(include={"norm", "eps", "steps", "step_size", "loss", "box"})
        attack = "PGD " + ", ".join(f"{key} {value}" for key, value in kept.items())
    lines = [
        f"# {recipe.about or recipe.network.name}",
        "",
        f"- Network: `{recipe.network.name}`; data: `{recipe.data.name}`, {images} training images (digest {digest[:12]})",
        f"- Adversarial training: {attack}",
        f"- Penalties: {', '.join(p.name for p in recipe.penalties) or 'none'}; "
        f"projections: {', '.join(f'{p.name} ({p.operator}, tau {p.tau})' for p in recipe.projections) or 'none'}",
        f"- {recipe.epochs} epochs, batches of {recipe.batch_size}, {recipe.precision}, seed {recipe.seed}",
        f"- {trained['device']}, {trained['seconds']} s of training, {trained['date']}, torch {trained['torch']}",
        f"- Epoch {best_epoch + 1} was the best on validation ({', '.join(validation) or 'no validation split'})",
    ]
    if "tau_0" in records[-1]:
        lines.append(f"- tau in force at the end: {records[-1]['tau_0']:.4f}")
    if command:
        lines += ["", "Made by", "", f"    {command}"]
    lines += ["", "Validation numbers chose the epoch; they are not results. `recipe.yaml` holds every setting."]
    return "\n".join(lines) + "\n"
