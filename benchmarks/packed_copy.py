"""The search on a copy of robust_vgg, packed or in bfloat16, against the search on the network itself: CPU seconds, in one run.

    RKHS_DATA=... python benchmarks/packed_copy.py           # 1 minute on one quiet core
    RKHS_DATA=... python benchmarks/packed_copy.py --quick   # fewer rounds, no file written

passes: a forward pass, and one with the gradient of the images, at several batch sizes; all sides in turn, the least of rounds.
search: APGD towards one class and 400 queries of Square at an eps that breaks none, that is what a survivor costs; in turn.
Ratios are to the network itself. Where oneDNN does not convolve in bfloat16, that side is left out.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from attack_vgg import subject
from common import arguments, finish
from torch import Tensor, nn

from robustbench_rkhs.attacks import APGD, Ensemble, Square, engine_attack
from robustbench_rkhs.attacks.library_model import frozen
from robustbench_rkhs.attacks.packed_copy import packed_copy
from robustbench_rkhs.data import Split

SOURCES = [
    "benchmarks/packed_copy.py",
    *(f"robustbench_rkhs/attacks/{name}.py" for name in ("packed_copy", "near_misses", "engine", "engine_attack", "apgd")),
]
EPS = 0.02


def least(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of each side, in turn; the least of the rounds after a first that does not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, run in sides.items():
            started = time.process_time()
            run()
            times[name].append(time.process_time() - started)
    return {name: min(several[1:]) for name, several in times.items()}


def gradient(model: nn.Module, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(model(leaf).sum(), leaf)


@torch.no_grad()
def forward(model: nn.Module, x: Tensor) -> None:
    model(x)


def passes(networks: dict[str, nn.Module], x: Tensor, rounds: int) -> dict[str, Any]:
    rows = {}
    for images in (12, 32, 96):
        batch = x.repeat(1 + images // len(x), 1, 1, 1)[:images]
        for name, work in (("forward", forward), ("gradient", gradient)):
            sides = {side: partial(work, one, batch) for side, one in networks.items()}
            found = {side: 1e3 * seconds / images for side, seconds in least(sides, rounds).items()}
            rows[f"{name} of {images}"] = {side: round(value, 3) for side, value in found.items()} | ratios(found)
    return rows


def ratios(found: dict[str, float]) -> dict[str, float]:
    return {f"{side}_ratio": round(value / found["model"], 3) for side, value in found.items() if side != "model"}


def search(model: nn.Module, copies: dict[str, nn.Module | None], test: Split, rounds: int) -> dict[str, Any]:
    attack = Ensemble(eps=EPS, version="custom", attacks=(APGD(loss="targeted", targets=1), Square(queries=400)))

    def asking(copied: nn.Module | None) -> None:
        with mock.patch.object(engine_attack, "search_copy", lambda *given: copied):
            attack(model, test.x, test.y, test.index)

    found = least({side: partial(asking, one) for side, one in copies.items()}, rounds)
    return {side: round(seconds, 2) for side, seconds in found.items()} | ratios(found)


def main() -> None:
    given = arguments(__doc__ or "", threads=1)
    rounds = 1 if given.quick else 3
    model, test = subject(2 if given.quick else 8)
    with frozen(model):
        made = {"packed": packed_copy(model, test.x), "bfloat16": packed_copy(model, test.x, torch.bfloat16)}
        copies = {side: one for side, one in made.items() if one is not None}
        assert "packed" in copies, "expected a packed copy of robust_vgg"
        rows = passes({"model": model} | copies, test.x, rounds)
    found = search(model, {"model": None} | copies, test, 1)
    heads = {f"{side}_search_ratio": found[f"{side}_ratio"] for side in copies}
    finish("packed_copy", heads | {"passes_ms_per_image": rows, "search_seconds": found, "images": len(test)}, given, SOURCES)


if __name__ == "__main__":
    main()
