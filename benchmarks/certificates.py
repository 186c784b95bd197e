"""What the certificates prove, how far that is from what attacks break, and what they cost.

    python benchmarks/certificates.py                   # every part, about 15 minutes on 2 cores
    python benchmarks/certificates.py --quick           # a sample of each
    python benchmarks/certificates.py --part digits     # one part; the file keeps the others' figures

digits: the shipped digits_gloro on its whole test set: the portfolio at eps 0.25 and 0.5, PGD and AutoAttack on what it leaves
open, the audit and a minimal-norm attack from ten starts around every certified image (violations must be none).
crown: linear bounds over l2 balls on a plain digits network, each image and eps; the figures of another implementation
(auto_LiRPA, which cannot be installed here) on another such network stand beside it.
resnet18: proven norms of all 20 convolutions of a CIFAR ResNet-18 (resnet18_norms.py), the plain way beside them.
smoothing: forward passes of early stopping against a fixed 100,000, at the same certified decisions (smoothing.py).
"""

import json
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import resnet18_norms
import smoothing
import torch
from common import ROOT, arguments, finish, machine
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import PGD, AutoAttack
from robustbench_rkhs.certificates import CrownCertificate
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.training.checkpoint import load
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe

PARTS = ("digits", "crown", "resnet18", "smoothing")
SOURCES = [
    *(f"benchmarks/{name}.py" for name in ("certificates", "resnet18_norms", "smoothing")),
    *sorted(
        str(path.relative_to(ROOT))
        for folder in ("certificates", "lipschitz", "relaxations")
        for path in (ROOT / "robustbench_rkhs" / folder).glob("*.py")
    ),
    "robustbench_rkhs/evaluation/certify_phase.py",
]


def digits(quick: bool) -> dict[str, Any]:
    loaded = load(ROOT / "checkpoints" / "digits_gloro")
    test = loaded.recipe.data.test()
    started = time.perf_counter()
    attacks = (PGD(),) if quick else (PGD(restarts=5, steps=100), AutoAttack())
    done = evaluate(loaded.model, test, eps=(0.25, 0.5), attacks=attacks, samples=60 if quick else None, name="digits_gloro")
    seconds = time.perf_counter() - started
    rows = verdicts.summary(done).set_index("eps")
    held = verdicts.images(done)
    broken = around(loaded.model, test, held, 2 if quick else 10)
    return {
        "portfolio_at_025": round(100 * rows.loc[0.25, "certified"], 2),
        "portfolio_at_05": round(100 * rows.loc[0.5, "certified"], 2),
        "attack_at_025": round(100 * rows.loc[0.25, "robust"], 2),
        "attack_at_05": round(100 * rows.loc[0.5, "robust"], 2),
        "gap_to_attack_at_05": round(100 * (rows.loc[0.5, "robust"] - rows.loc[0.5, "certified"]), 2),
        "clean": round(100 * rows.loc[0.5, "clean"], 2),
        "violations": len(done.about.breaches) + len(verdicts.breaches(done)) + broken,
        "digits_images": len(held),
        "digits_seconds": round(seconds, 1),
        "digits_weights": loaded.weights,
        "digits_data": test.digest,
        "digits_winners": held["certificate"].value_counts().to_dict(),
    }


def around(model: nn.Module, test: Any, held: Any, starts: int) -> int:
    """How many certified images one of `starts` attacks breaks inside the certified ball, in float64."""
    double = load(ROOT / "checkpoints" / "digits_gloro").model.double()
    where = {int(index): place for place, index in enumerate(test.index.tolist())}
    certified = held[held["certified"] > 0]
    at = torch.tensor([where[int(index)] for index in certified["index"]])
    x, y = test.x[at].double(), test.y[at]
    radius = torch.tensor(certified["certified"].to_numpy(), dtype=torch.float64).clamp_max(5.0).view(-1, 1, 1, 1)
    found = torch.zeros(len(x), dtype=torch.bool)
    for start in range(starts):
        generator = torch.Generator().manual_seed(start)
        way = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        delta = way / way.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * radius * torch.rand(1, generator=generator).item()
        for _ in range(40):
            delta.requires_grad_()
            logits = double(x + delta)
            gaps = logits - logits.gather(1, y[:, None])
            worst = gaps.scatter(1, y[:, None], -torch.inf).amax(1)
            found |= (worst.detach() >= 0) & (delta.detach().flatten(1).norm(dim=1) <= radius.flatten())
            (slope,) = torch.autograd.grad(worst.sum(), delta)
            with torch.no_grad():
                step = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, 1, 1, 1)
                delta = delta + 0.2 * radius * step
                length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                delta = delta * (radius / length).clamp_max(1.0) * (1 - 1e-15)
    return int(found.sum())


def crown(quick: bool) -> dict[str, Any]:
    """A plain network of the same shape, trained here; linear bounds over balls of 0.1, 0.25 and 0.5."""
    recipe = {
        "data": {"name": "digits", "validation": 97, "seed": 0},
        "network": TrainRecipe.read("digits_gloro").network.model_dump(mode="json"),
        "optimizer": {"name": "adam", "lr": 0.003},
        "epochs": 5 if quick else 60,
        "batch_size": 64,
    }
    folder = ROOT / "reports" / "benchmarks" / "plain_digits"
    one = TrainRecipe.parse(recipe, "plain digits")
    if quick or not (folder / "config.json").is_file():
        folder = Path(tempfile.mkdtemp()) if quick else folder
        train(one, folder, device="cpu", command="python benchmarks/certificates.py --part crown", fresh=True)
    model, test = load(folder).model, one.data.test()
    test = test.sample(50 if quick else 397, 0)
    right = (model(test.x).argmax(1) == test.y).double().mean().item()
    eps = (0.1, 0.25, 0.5)
    started = time.perf_counter()
    found = CrownCertificate(search=False)(model, test.x, test.y, test.index, eps).radius
    seconds = time.perf_counter() - started
    return {
        "crown_certified": {str(e): round(100 * (found >= e).double().mean().item(), 1) for e in eps},
        "crown_clean": round(100 * right, 1),
        "crown_seconds": round(seconds, 2),
        "crown_images": len(test),
        "crown_elsewhere": {"clean": 96.7, "0.1": 90.7, "0.25": 52.4, "0.5": 0.0, "seconds": "3.4 to 5.1", "images": 397},
    }


def main() -> None:
    given = arguments(__doc__ or "", PARTS)
    path = ROOT / "reports" / "benchmarks" / "certificates.json"
    kept: dict[str, Any] = json.loads(path.read_text()).get("figures", {}) if path.is_file() and not given.quick else {}
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "digits": lambda: digits(given.quick),
        "crown": lambda: crown(given.quick),
        "resnet18": lambda: resnet18_norms.measure(given.quick),
        "smoothing": lambda: smoothing.measure(given.quick, given.device),
    }
    for part in PARTS if given.part == "all" else [given.part]:
        kept[part] = work[part]() | {"machine": machine(given.device), "date": date.today().isoformat()}
        print(part, json.dumps(kept[part]), flush=True)
    keys = ("portfolio_at_025", "portfolio_at_05", "gap_to_attack_at_05", "violations", "resnet18_seconds", "resnet18_excess")
    flat = {key: value for part in kept.values() for key, value in part.items() if key not in ("machine", "date")}
    heads = {key: flat[key] for key in (*keys, "smoothing_forward_ratio") if key in flat}
    finish("certificates", heads | {"figures": kept}, given, SOURCES)


if __name__ == "__main__":
    main()
