"""The RKHS-norm report as a JSON object."""

import math
from collections.abc import Sequence
from datetime import date
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.data import Deformations, Split
from robustbench_rkhs.identity import key_of
from robustbench_rkhs.rkhs_norm.lower import Bounds
from robustbench_rkhs.rkhs_norm.margins import QUANTILES, margin_bound, margins_of
from robustbench_rkhs.rkhs_norm.sides import norms
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.runtime.events import PhaseStarted, emit

STEPS, RESTARTS = 20, 3
"""Steps and restarts of the perturbation search."""


def norm_report(
    name: str,
    model: nn.Module,
    test: Split,
    train: Split,
    *,
    eps: Sequence[float] = (0.1, 0.5, 1.0),
    samples: int | None = None,
    training_samples: int | None = None,
    deformations: Deformations | None = None,
    seed: int = 0,
    command: str = "",
) -> dict[str, Any]:
    """Bounds of the norm on test images and the margin bound on training images. Raises Unsound, UserError as `norms` does."""
    deformations = deformations or Deformations()
    images = test.sample(samples, seed)
    found = norms(model, images, eps=eps, deformations=deformations, steps=STEPS, restarts=RESTARTS, seed=seed)
    rows = [_row(name, "lower", bound) for name, bound in found.lower.items()]
    if found.upper is not None:
        rows.append(_row("proven Lipschitz bound", "upper", found.upper))
    if isinstance(found.reshaped, float):
        entry = {"bound": "reshaped product", "side": "not a bound of the operator", "class": None, "pair": None}
        rows.append(entry | {"logits": found.reshaped, "classes": None, "at_pair": None})
    seen = train.sample(min(len(train) if training_samples is None else training_samples, len(train)), seed)
    emit(PhaseStarted(phase=f"margins of {len(seen)} training images"))
    margins = margins_of(model, seen.x, seen.y)
    size = float(train.x.double().flatten(1).square().sum(1).mean().sqrt())
    bounds = [
        {"estimate": row["bound"], "side": row["side"], **margin_bound(margins, size, len(train), row["pair"], budget)._asdict()}
        for row in rows
        if row["pair"] is not None
        for budget in eps
    ]
    return {
        "about": {
            "model": name,
            "weights": weights_digest(model.state_dict()),
            "key": key_of(model),
            "data": test.data,
            "test_digest": test.digest,
            "train_digest": train.digest,
            "samples": len(images),
            "training_images": len(train),
            "margins_of": len(seen),
            "eps": list(eps),
            "seed": seed,
            "command": command,
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "arithmetic": "bounds float64 on CPU; training margins float32 on CPU",
            "search": {"steps": STEPS, "restarts": RESTARTS},
            "deformations": deformations.model_dump() if len(test.shape) == 3 else None,
        },
        "bounds": rows,
        "deformation_changes": None
        if found.changes is None
        else _row("largest change under a deformation", "measured", found.changes),
        "refusals": {
            "proven": found.refusal,
            "reshaped": found.reshaped if isinstance(found.reshaped, str) else "",
        },
        "margins": {
            "quantiles": list(QUANTILES),
            "plain": torch.quantile(margins, torch.tensor(QUANTILES, dtype=margins.dtype)).tolist(),
            "B": size,
            "bounds": bounds,
        },
    }


def _row(name: str, side: str, bound: Bounds) -> dict[str, Any]:
    pair: Tensor = bound.pairs
    best = int(pair.argmax())
    return {
        "bound": name,
        "side": side,
        "class": _finite(float(bound.classes.max())),
        "pair": _finite(float(pair.max())),
        "logits": _finite(bound.logits),
        "classes": [_finite(value) for value in bound.classes.tolist()],
        "at_pair": [best // len(pair), best % len(pair)],
    }


def _finite(value: float) -> float:
    """The value, or the largest float if it overflowed, as JSON has no infinity."""
    return value if math.isfinite(value) else 1.7976931348623157e308
