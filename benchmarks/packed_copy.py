"""The search on a packed copy of robust_vgg against the search on the network itself: CPU seconds per image, in one run.

    RKHS_DATA=... python benchmarks/packed_copy.py           # 1 minute on one quiet core
    RKHS_DATA=... python benchmarks/packed_copy.py --quick   # fewer rounds, no file written

passes: a forward pass, and one with the gradient of the images, at several batch sizes; both sides in turn, the least of rounds.
search: APGD towards one class and 400 queries of Square at an eps that breaks none, that is what a survivor costs; both in turn.
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

SOURCES = ["benchmarks/packed_copy.py", *(f"robustbench_rkhs/attacks/{name}.py" for name in ("packed_copy", "engine", "apgd"))]
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


def passes(model: nn.Module, packed: nn.Module, x: Tensor, rounds: int) -> dict[str, Any]:
    rows = {}
    for images in (12, 32, 96):
        batch = x.repeat(1 + images // len(x), 1, 1, 1)[:images]
        for name, work in (("forward", forward), ("gradient", gradient)):
            sides = {side: partial(work, one, batch) for side, one in (("model", model), ("packed", packed))}
            found = {side: 1e3 * seconds / images for side, seconds in least(sides, rounds).items()}
            rows[f"{name} of {images}"] = {side: round(value, 3) for side, value in found.items()} | {
                "ratio": round(found["packed"] / found["model"], 3)
            }
    return rows


def search(model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, rounds: int) -> dict[str, Any]:
    attack = Ensemble(eps=EPS, version="custom", attacks=(APGD(loss="targeted", targets=1), Square(queries=400)))

    def plain() -> None:
        with mock.patch.object(engine_attack, "packed_copy", lambda *given: None):
            attack(model, x, y, keys)

    found = least({"model": plain, "packed": lambda: attack(model, x, y, keys)}, rounds)
    return {side: round(seconds, 2) for side, seconds in found.items()} | {"ratio": round(found["packed"] / found["model"], 3)}


def main() -> None:
    given = arguments(__doc__ or "", threads=1)
    rounds = 1 if given.quick else 3
    model, test = subject(2 if given.quick else 8)
    with frozen(model):
        packed = packed_copy(model, test.x)
        assert packed is not None, "expected a packed copy of robust_vgg"
        rows = passes(model, packed, test.x, rounds)
    found = search(model, test.x, test.y, test.index, 1)
    figures = {"packed_search_ratio": found["ratio"], "passes_ms_per_image": rows, "search_seconds": found, "images": len(test)}
    finish("packed_copy", figures, given, SOURCES)


if __name__ == "__main__":
    main()
