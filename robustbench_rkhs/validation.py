"""Validation: plain numbers to choose an epoch by, never published."""

import torch
from torch import nn

from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.attacks.pgd import PGD
from robustbench_rkhs.data import Split


def validate(model: nn.Module, split: Split, attack: PGD | None, batch: int = 256) -> dict[str, float]:
    """Clean and, with an attack, robust accuracy, and the mean margin in logits; empty without images."""
    if not len(split):
        return {}
    model.eval()
    clean, robust, margins = 0, 0, 0.0
    for x, y, keys in zip(split.x.split(batch), split.y.split(batch), split.index.split(batch), strict=True):
        with torch.no_grad():
            margin_of = margin(model(x), y)
        right = margin_of > 0
        clean += int(right.sum())
        margins += margin_of.double().sum().item()
        if attack and right.any():
            adversarial = attack(model, x[right], y[right], keys[right]).images
            with torch.no_grad():
                robust += int((margin(model(adversarial), y[right]) > 0).sum())
    scores = {"validation_clean": clean / len(split), "validation_margin": margins / len(split)}
    return scores | {"validation_robust": robust / len(split)} if attack else scores


def score(record: dict[str, float]) -> tuple[float, float]:
    """What the best epoch has most of: robust accuracy, then clean."""
    return record.get("validation_robust", -1.0), record.get("validation_clean", -1.0)
