"""The model card of a checkpoint: network, training and validation numbers."""

from typing import Any

from robustbench_rkhs.nodes.counts import counted
from robustbench_rkhs.nodes.node import Node
from robustbench_rkhs.runtime.sinks import for_line, for_markdown, for_markdown_code
from robustbench_rkhs.training.recipe import TrainRecipe


def training_card(
    recipe: TrainRecipe,
    records: list[dict[str, Any]],
    best_epoch: int,
    trained: dict[str, Any],
    command: str,
    images: int,
    digest: str,
    half: bool = False,
) -> str:
    """Markdown. Validation numbers chose the epoch and are not results; results come from rkhs-eval."""
    best = records[best_epoch]
    forms = {"clean": ".1%", "robust": ".1%", "auroc": ".4f", "auroc50": ".4f", "mse": ".4g"}
    validation = [f"{key} {best['validation_' + key]:{form}}" for key, form in forms.items() if f"validation_{key}" in best]
    attack = "none"
    if recipe.attack:
        kept = recipe.attack.model_dump(include={"norm", "eps", "steps", "step_size", "loss", "box"})
        attack = "PGD " + ", ".join(f"{key} {value}" for key, value in kept.items())
        if recipe.attack_warmup:
            attack += f"; eps and step size rise from 0 over the first {recipe.attack_warmup:.0%} of the training"
    optimizer, schedule = recipe.optimizer.model_dump(), recipe.schedule.model_dump()
    named = [", ".join(f"{v}" if k == "name" else f"{k} {v}" for k, v in one.items()) for one in (optimizer, schedule)]
    lines = [
        f"# {for_markdown(recipe.about or recipe.network.label)}",
        "",
        f"- Network: {for_markdown_code(recipe.network.label)}; data: {for_markdown_code(recipe.data.label)}, "
        f"{images} training images (digest {digest[:12]})",
        f"- Loss: {_described(recipe.loss)}; adversarial training: {attack}",
        f"- Penalties: {'; '.join(_described(p) for p in recipe.penalties) or 'none'}; "
        f"projections: {', '.join(f'{p.name} ({p.operator}, tau {p.tau})' for p in recipe.projections) or 'none'}",
        f"- Optimizer: {named[0]}; schedule: {named[1]}; running mean of the weights: {recipe.ema or 'none'}",
        f"- {_length(recipe, records)}, batches of {recipe.batch_size}, {recipe.precision}, seed {recipe.seed}",
        f"- {_place(trained)}, {trained['seconds']} s of training, {trained['date']}, torch {trained['torch']}",
        f"- Epoch {best_epoch + 1} was the best on validation ({', '.join(validation)})"
        if validation
        else f"- Epoch {best_epoch + 1}, the last: no image was held out for validation",
    ]
    if recipe.noise:
        lines.append(f"- Gaussian noise of standard deviation {recipe.noise:g} on training and validation images")
    if recipe.start_from:
        first = trained.get("started_from", {})
        lines.append(f"- Started from the weights of {for_markdown(recipe.start_from)} ({first.get('weights', 'unknown')[:12]})")
    for one in recipe.adaptive:
        factor = records[-1].get(f"weight_{one.penalty}", 1.0)
        lines.append(
            f"- The weight of penalty {one.penalty} followed the {one.measure} (target {one.target:g}): x{factor:.3g} in the end"
        )
    if "tau_0" in records[-1]:
        lines.append(f"- tau in force at the end: {records[-1]['tau_0']:.4f}")
    meant = [p.of_epochs for p in recipe.projections if p.of_epochs and p.of_epochs > recipe.epochs]
    if meant:
        lines.append(f"- A short schedule: the recipe is meant for {meant[0]} epochs; kappa was shrunk in proportion")
    if half:
        lines.append("- Weights stored in half precision; every verdict is about the weights as stored")
    if command:
        lines += ["", "Made by", "", f"    {for_line(command)}"]
    chosen = "Validation numbers chose the epoch; they are not results. " if validation else ""
    lines += ["", f"{chosen}`recipe.yaml` holds every setting."]
    return "\n".join(lines) + "\n"


def _length(recipe: TrainRecipe, records: list[dict[str, Any]]) -> str:
    """How many epochs were trained, and the time limit where that decided."""
    if recipe.seconds is None:
        return counted(recipe.epochs, "epoch")
    return f"{counted(len(records), 'epoch')}: what a limit of {recipe.seconds:g} seconds allowed"


def _place(trained: dict[str, Any]) -> str:
    """The device; of a CPU the number of threads and why so many."""
    return f"CPU, {trained['threads']}" if "threads" in trained else str(trained["device"])


def _described(node: Node) -> str:
    """Name, and the fields with other values than their defaults."""
    kept = {key: value for key, value in node.model_dump(exclude_defaults=True).items() if key != "name"}
    return for_markdown(" ".join([node.label, *(f"{key} {value}" for key, value in kept.items())]))
