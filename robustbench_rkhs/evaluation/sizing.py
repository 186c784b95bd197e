"""How many images a budget of time has room for: each must be asked about once before anything else."""

import time

import torch
from torch import nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.runtime.clock import Clock
from robustbench_rkhs.runtime.messages import Say

SHARE, ROOM = 0.25, 3.0
"""Predictions may take this share of the time left, and so many seconds more."""
TRIES = (1, 8, 64)
"""Images that the pace is tried on, one number after the other while they are cheap."""


def sized(model: nn.Module, split: Split, clock: Clock, seed: int, say: Say) -> Split:
    """The images that a budget has the time to ask about once, a seeded stratified subset; all of them where there is none."""
    if clock.budget is None or not len(split):
        return split
    allowed = SHARE * max(clock.left(), 0.0) + ROOM
    count = int(allowed / max(_pace(model, split, allowed), 1e-9))
    if count >= len(split):
        return split
    found = split.sample(max(count, 1), seed)
    say(f"budget of {clock.budget:g} s: time for {len(found)} of {len(split)} images, a stratified subset")
    return found


@torch.no_grad()
def _pace(model: nn.Module, split: Split, allowed: float) -> float:
    """Seconds that the model takes for an image, among as many as are tried in little of the time."""
    pace = 0.0
    for images in TRIES:
        begun = time.monotonic()
        try:
            model(split.x[:images])
        except Exception:  # what is wrong with the model its predictions say
            return 0.0
        took = time.monotonic() - begun
        pace = took / min(images, len(split))
        if images >= len(split) or pace * 8 * images > 0.02 * allowed:
            break
    return pace
