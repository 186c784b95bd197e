"""The adversarial images of an evaluation, rounded so that a picture file holds them, where they stay adversarial."""

from collections.abc import Sequence
from typing import Any

import torch

from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.bit_depth import on_grid
from robustbench_rkhs.evaluation.predictions import counting
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.runtime.events import Message, emit
from robustbench_rkhs.verdicts import Nearest


def check_bits(bits: Any, wanted: bool, box: str, smoothed: bool) -> None:
    """Raises UserError, before anything is computed, where images cannot be rounded."""
    if bits is None:
        return
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16:
        raise UserError(f"bits: expected a whole number from 1 to 16, found {bits!r}")
    if not wanted:
        raise UserError("bits: adversarial images that are kept are rounded, and none are: adversarials=True, --save-adversarials")
    if box != "unit":
        raise UserError("bits: images of k / (2^bits - 1) lie in [0, 1], which this data set does not")
    if smoothed:
        raise UserError("bits: a smoothed classifier's adversarial images are tested by votes, not rounded")


def round_nearest(subject: Subject, nearest: Nearest, norm: Norm, epsilons: Sequence[float], bits: int, block: int) -> None:
    """Rounds the images that were kept to k / (2^bits - 1), each within the smallest of the epsilons that it lies within."""
    index, images = nearest.held()
    rounded: dict[int, dict[str, object]] = {}
    for begin in range(0, len(index), block):
        part = index[begin : begin + block]
        rows = subject.positions(part)
        x, y = subject.split.x[rows], subject.split.y[rows]
        given = torch.from_numpy(images[begin : begin + block].copy()).to(x)
        away = distances(x, given, norm).tolist()
        limits = [min((eps for eps in epsilons if eps >= far), default=torch.inf) for far in away]
        found = on_grid(counting(subject.queried), x, y, given, torch.tensor(limits, dtype=torch.float64), norm, bits)
        far = {name: distances(x, found.images, name).tolist() for name in ("l2", "linf")}
        for place in found.found.nonzero().flatten().tolist():
            rounded[part[place]] = {
                "image": found.images[place].cpu().numpy().astype(images.dtype),
                "said": int(found.answer[place]),
                "distance_l2": far["l2"][place],
                "distance_linf": far["linf"][place],
            }
    nearest.round_to(bits, rounded)
    left = len(index) - len(rounded)
    line = f"{len(rounded)} of {len(index)} adversarial images are saved in {bits} bits a pixel, still adversarial"
    emit(Message(text=line + (f"; {left} as they were found, as no rounding of them within its eps was" if left else "")))
