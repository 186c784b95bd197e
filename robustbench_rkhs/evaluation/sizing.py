"""The number of images that a time budget allows: each must be classified once before anything else."""

import time

import torch
from torch import nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.runtime.clock import Clock
from robustbench_rkhs.runtime.events import Message, emit
from robustbench_rkhs.verifier.probes import RANGES

SHARE, ROOM = 0.25, 3.0
"""Predictions may take this share of the remaining time, plus this many seconds."""
LAST = 0.25
"""Share of the remaining time at most that is kept back for the answers to `fixed_images`, which come last."""
TRIES = (1, 8, 64)
"""Batch sizes for measuring the speed, tried in turn while they are cheap."""


def sized(model: nn.Module, split: Split, clock: Clock, seed: int) -> Split:
    """The images that a time budget allows to classify once, a seeded stratified subset; all without a budget.

    Time for the answers that are part of the model's identity is taken off the clock here: they are asked for at the end.
    """
    if clock.budget is None or not len(split):
        return split
    asked, allowed = clock.budget, SHARE * max(clock.left(), 0.0) + ROOM
    pace = _pace(model, split, allowed)
    clock.keep_back(min(len(RANGES) * pace, LAST * max(clock.left(), 0.0)))
    count = int(allowed / max(pace, 1e-9))
    if count >= len(split):
        return split
    found = split.sample(max(count, 1), seed)
    emit(Message(text=f"budget of {asked:g} s: time for {len(found)} of {len(split)} images, a stratified subset"))
    return found


@torch.no_grad()
def _pace(model: nn.Module, split: Split, allowed: float) -> float:
    """Seconds per image, measured on as many images as take little of the time."""
    pace = 0.0
    for images in TRIES:
        begun = time.monotonic()
        try:
            model(split.x[:images])
        except Exception:  # errors of the model are reported by its predictions
            return 0.0
        took = time.monotonic() - begun
        pace = took / min(images, len(split))
        if images >= len(split) or pace * 8 * images > 0.02 * allowed:
            break
    return pace
