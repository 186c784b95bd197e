"""Ranking quality of a score: auROC and auROC50."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.modes import evaluating


def auroc(scores: Float[np.ndarray, " images"], labels: Int[np.ndarray, " images"], first: int | None = None) -> float:
    r"""Area under the curve of true over false positives, up to the `first` false positives, as a share of its maximum.

    .. math:: \frac{1}{n P} \int_0^n TP(f) \, df, \qquad n = \min(\text{first}, N)

    for P members (label 1) and N others (label 0), by falling score. A group of equal scores counts as a straight line, which
    at n = N gives each tie a half (mid-ranks). Raises UserError without members or without others, and at NaN.
    """
    positive = labels == 1
    members, others = int(positive.sum()), int((~positive).sum())
    if not members or not others:
        raise UserError(f"auROC needs both labels, found {members} of label 1 and {others} of label 0")
    if np.isnan(scores).any():
        raise UserError("auROC: a score is NaN")
    values, group = np.unique(-scores, return_inverse=True)
    hits = np.concatenate([[0], np.cumsum(np.bincount(group[positive], minlength=len(values)))])
    misses = np.concatenate([[0], np.cumsum(np.bincount(group[~positive], minlength=len(values)))])
    last = others if first is None else min(first, others)
    start, end = np.minimum(misses[:-1], last), np.minimum(misses[1:], last)
    width = np.maximum(misses[1:] - misses[:-1], 1)
    rise = (hits[1:] - hits[:-1]) / width  # true positives for each false one within a group of ties
    middle = hits[:-1] + rise * ((start + end) / 2 - misses[:-1])
    return float((middle * (end - start)).sum() / (last * members))


@torch.no_grad()
def scores_of(model: nn.Module, x: Float[Tensor, "images *shape"], batch: int = 256) -> Float[np.ndarray, " images"]:
    """f_1 - f_0 of each input, in float64. Raises UserError where the model does not have two outputs."""
    parts = [model(part) for part in x.split(batch)]
    if any(part.dim() != 2 or part.shape[1] != 2 for part in parts):
        raise UserError(f"ranking needs a model of two classes, found outputs of shape {tuple(parts[0].shape[1:])}")
    logits = torch.cat(parts).double().cpu().numpy()
    result: np.ndarray = logits[:, 1] - logits[:, 0]
    return result


def rank_report(model: nn.Module, split: Split) -> dict[str, float | int]:
    """auROC and auROC50 of f_1 - f_0 on a split of task `ranking`, and its numbers of members and others.

    The model runs in eval mode and is restored afterwards. Raises UserError for a split of another task or a model without
    two outputs.
    """
    if split.task != "ranking":
        raise UserError(f"data set {split.data!r} is a {split.task}, and auROC is for a ranking")
    with evaluating(model):
        scores = scores_of(model, split.x)
    labels = split.y.cpu().numpy()
    return {
        "auroc": auroc(scores, labels),
        "auroc50": auroc(scores, labels, 50),
        "members": int((labels == 1).sum()),
        "others": int((labels == 0).sum()),
    }
