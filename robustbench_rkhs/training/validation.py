"""Validation: metrics for choosing an epoch, never published."""

import torch
from torch import nn

from robustbench_rkhs.attacks.counted import count
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.attacks.pgd import PGD
from robustbench_rkhs.bounds import pairs
from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.data import Split
from robustbench_rkhs.training.ranking import rank_report


def validate(
    model: nn.Module, split: Split, attack: PGD | None, batch: int = 256, certify_eps: float | None = None
) -> dict[str, float]:
    """The metrics of the task; empty without images.

    Classification: clean and, with an attack, robust accuracy, and the mean margin in logits. Ranking: these, auROC and
    auROC50 (both 0 if a class is missing among the images). Regression: the mean squared error.
    With certify_eps, also the share of images that the margin certificate proves at this l2 radius, and the largest of its
    proven bounds L_yj, computed by the code of the certificate, so that they equal those of an evaluation.
    """
    if not len(split):
        return {}
    model.eval()
    if split.task == "regression":
        return {"validation_mse": squared_error(model, split, batch)}
    clean, robust, margins = 0, 0, 0.0
    for x, y, keys in zip(split.x.split(batch), split.y.split(batch), split.index.split(batch), strict=True):
        with torch.no_grad():
            margin_of = margin(model(x), y)
        right = margin_of > 0
        clean += int(right.sum())
        margins += margin_of.double().sum().item()
        if attack and right.any():
            adversarial = attack.perturbed(model, x[right], y[right], keys[right])
            # the search stays in its box; images with noise lie outside [0, 1] already
            held = count(model, x[right], adversarial, norm=attack.norm, box="none", eps=attack.eps)
            robust += int((~held.misses(y[right])).sum())
    scores = {"validation_clean": clean / len(split), "validation_margin": margins / len(split)}
    if attack:
        scores["validation_robust"] = robust / len(split)
    if certify_eps is not None:
        radii = MarginCertificate().radii(model, split.x, split.y)
        scores["validation_certified"] = int((radii >= certify_eps).sum()) / len(split)
        scores["lipschitz"] = pairs(model, split.shape, split.classes).max().item()
    if split.task == "ranking":
        both = 0 < int(split.y.sum()) < len(split)
        found = rank_report(model, split) if both else {"auroc": 0.0, "auroc50": 0.0}
        scores |= {f"validation_{key}": float(found[key]) for key in ("auroc", "auroc50")}
    return scores


@torch.no_grad()
def squared_error(model: nn.Module, split: Split, batch: int = 256) -> float:
    """Mean squared error over inputs and outputs."""
    total = 0.0
    for x, y in zip(split.x.split(batch), split.y.split(batch), strict=True):
        total += (model(x).double() - y.double()).square().mean(1).sum().item()
    return total / len(split)


def score(record: dict[str, float]) -> tuple[float, float]:
    """The score that selects the best epoch: robust accuracy (certified if no attack is run), then clean; for a ranking auROC50,
    then auROC; for a regression -mse.
    """
    if "validation_mse" in record:
        return -record["validation_mse"], 0.0
    robust = record.get("validation_robust", record.get("validation_certified", -1.0))
    if "validation_auroc50" in record and robust < 0:
        return record["validation_auroc50"], record["validation_auroc"]
    return robust, record.get("validation_clean", -1.0)
