"""What could still be saved of the full ensemble at one eps: repeated queries, passes on images that break, overhead.

    python benchmarks/attack_floor.py           # a minute on one quiet core
    python benchmarks/attack_floor.py --quick   # 8 images, no file written

The network is `adv` of attacks.py on the 60 images of its part `single`. By part of the ensemble: passes; how many images it
breaks; CPU seconds, and those of the bare passes of the network in batches of 256, which no search can beat; and the share of its
queries that repeat an image of an earlier query of the same kind (with a gradient or without), in l2 and linf.
`spent_on_broken`: the share of all passes that images which break cost, more than any other order of the parts could save.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attack_networks import images, network
from common import ROOT, arguments, finish
from torch import Tensor, nn

from robustbench_rkhs.attacks import Ensemble
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.data import Split

EPS = {"l2": 0.65, "linf": 0.14}
BATCH = 256


class Counter:
    """Stands between the engine and the model: how many queried images were queried before."""

    def __init__(self, engine: Engine) -> None:
        self.read, self.seen, self.asked, self.again = engine.read, (set(), set()), 0, 0
        engine.read = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.read, name)

    def __call__(self, images: Tensor) -> Any:
        known: set[bytes] = self.seen[int(images.requires_grad)]
        for row in images.detach().flatten(1).numpy():
            told = row.tobytes()
            self.asked, self.again = self.asked + 1, self.again + (told in known)
            known.add(told)
        return self.read(images)


@contextmanager
def parts(model: nn.Module, test: Split, norm: Any) -> Iterator[tuple[Engine, list[Any]]]:
    """The engine of the standard ensemble, and its parts."""
    ensemble = Ensemble(norm=norm, eps=EPS[norm])
    with ensemble.engaged(model, test.x, test.y, test.index) as engine:
        shared = {"norm": norm, "seed": 0, "batch_size": ensemble.batch_size}
        yield engine, [part.model_copy(update=shared) for part in ensemble.parts]


def spent(engine: Engine) -> int:
    return int((engine.forwards + engine.backwards).sum())


def repeats(model: nn.Module, test: Split, norm: str) -> dict[str, Any]:
    """By part, the queries and the share that repeats one."""
    found = {}
    with parts(model, test, norm) as (engine, attacks):
        counter = Counter(engine)
        for part in attacks:
            asked, again = counter.asked, counter.again
            part.search(engine)
            asked, again = counter.asked - asked, counter.again - again
            found[part.label] = {"queries": asked, "repeated": round(again / max(asked, 1), 4)}
    return found


def bare(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """CPU seconds per image of a forward pass, and of one with the gradient of the image; the least of ten."""
    batch = x.repeat(1 + BATCH // len(x), 1, 1, 1)[:BATCH]
    leaf, forward, both = batch.clone().requires_grad_(), [], []
    for _ in range(10):
        started = time.process_time()
        with torch.no_grad():
            model(batch)
        forward.append(time.process_time() - started)
        started = time.process_time()
        torch.autograd.grad(model(leaf).sum(), leaf)
        both.append(time.process_time() - started)
    return min(forward[1:]) / BATCH, min(both[1:]) / BATCH


def costs(model: nn.Module, test: Split) -> dict[str, Any]:
    """By part, passes, images broken, CPU seconds, and the seconds of the bare passes."""
    rows: dict[str, Any] = {}
    with parts(model, test, "l2") as (engine, attacks):
        forward, both = bare(model, test.x)
        for part in attacks:
            before, gradients, stood, started = spent(engine), int(engine.backwards.sum()), len(engine.open()), time.process_time()
            part.search(engine)
            took, passes, pairs = time.process_time() - started, spent(engine) - before, int(engine.backwards.sum()) - gradients
            rows[part.label] = {
                "passes": passes,
                "broke": stood - len(engine.open()),
                "seconds": round(took, 2),
                "bare_seconds": round((passes - 2 * pairs) * forward + pairs * both, 2),
            }
        each = engine.forwards + engine.backwards
        open_ = engine.open()
        share = 1 - int(each[open_].sum()) / spent(engine)
    total = {key: round(sum(row[key] for row in rows.values()), 2) for key in ("passes", "seconds", "bare_seconds")}
    return {
        "parts": rows,
        "total": total,
        "survivors": len(open_),
        "passes_of_a_survivor": round(float(each[open_].double().mean())),
        "spent_on_broken": round(share, 4),
        "microseconds": {"forward": round(1e6 * forward, 1), "forward and backward": round(1e6 * both, 1)},
    }


def main() -> None:
    given = arguments(__doc__ or "", threads=1)
    model, test = network("adv"), images(8 if given.quick else 60)
    figures = costs(model, test) | {"repeats": {norm: repeats(model, test, norm) for norm in EPS}, "images": len(test)}
    attacks = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "robustbench_rkhs" / "attacks").rglob("*.py"))
    finish("attack_floor", figures, given, ["benchmarks/attack_floor.py", "benchmarks/attack_networks.py", *attacks])


if __name__ == "__main__":
    main()
