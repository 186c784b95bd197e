"""Seconds that a standing image costs on VGG-11 and CIFAR-10, part by part, extrapolated from short runs of ours and theirs."""

import time
from typing import Any

import torch

from robustbench_rkhs.attacks import APGD, FAB, Ensemble, Square
from robustbench_rkhs.recipe import TrainRecipe

FULL = {"apgd-ce": 101, "apgd-t": 909, "fab-t": 900, "square": 5000}
"""Steps of each part of the standard battery on an image that stands."""


def measure(quick: bool) -> dict[str, Any]:
    """An untrained VGG-11, labels that are its own answers, an eps at which nothing falls: the time is that of a trained one."""
    torch.manual_seed(0)
    count, steps = (4, 2) if quick else (64, 5)
    recipe = TrainRecipe.parse({"data": {"name": "cifar10"}, "network": {"name": "vgg"}}, "vgg")
    test = recipe.data.test().sample(count, 0)
    model = recipe.network.build(test.shape, test.classes).eval()
    with torch.no_grad():
        y = model(test.x).argmax(1)
    ours = {
        "apgd-ce": (APGD(steps=steps), steps + 1),
        "apgd-t": (APGD(loss="targeted", steps=steps, targets=1), steps + 1),
        "fab-t": (FAB(targets=1, steps=steps), steps),
        "square": (Square(queries=4 * steps), 4 * steps),
    }
    rows: dict[str, dict[str, float]] = {"ours": {}, "autoattack": {}}
    for name, (attack, asked) in ours.items():
        started = time.process_time()
        Ensemble(version="custom", attacks=(attack,), eps=1e-6)(model, test.x, y, test.index)
        rows["ours"][name] = (time.process_time() - started) / asked * FULL[name] / count
        started = time.process_time()
        _theirs(model, test.x, y, name, steps)
        rows["autoattack"][name] = (time.process_time() - started) / asked * FULL[name] / count
    total = {who: sum(parts.values()) for who, parts in rows.items()}
    return {
        "vgg_seconds_an_image": {who: {part: round(value, 2) for part, value in parts.items()} for who, parts in rows.items()},
        "vgg_time_ratio_extrapolated": round(total["autoattack"] / total["ours"], 2),
        "vgg_extrapolated_from": {"images": count, "gradient_steps": steps, "queries": 4 * steps},
    }


def _theirs(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, part: str, steps: int) -> None:
    from pyautoattack import AutoAttack

    library = AutoAttack(model, norm="L2", eps=1e-6, seed=0, version="standard")
    library.attacks_to_run = [part]
    library.apgd.n_iter = library.apgd_targeted.n_iter = library.fab.n_iter = steps
    library.apgd_targeted.n_target_classes = library.fab.n_target_classes = 1
    library.square.n_queries = 4 * steps
    library.run_standard_evaluation(x, y, batch_size=256)
