"""Lipschitz bounds of what enters each layer of a network as the relaxations take it apart."""

import math
from collections.abc import Mapping

from torch import nn

from robustbench_rkhs.certificates.pairwise import reach_of
from robustbench_rkhs.lipschitz import Uncertifiable, rule
from robustbench_rkhs.lipschitz.bounds import product
from robustbench_rkhs.relaxations.interval import Step, Trace, forked


def reach(model: nn.Module, shape: tuple[int, ...], sample: Trace) -> dict[str, float]:
    """Proven Lipschitz bounds, by path of the steps of `sample`, of the map from the image to what enters the step.

    By LipLT (`bounds.reached`); inside a layer that the relaxations write as several (a Sandwich), the bound at the layer times
    the norms of its parts so far. Infinite where there is no proof. Cost: that of `liplt`, once for each model.
    """
    try:
        known: Mapping[str, float] = reach_of(model, shape)
    except Uncertifiable:
        known = {}
    found: dict[str, float] = {}
    _visit(sample.steps, known, found)
    return found


def _visit(steps: list[Step], known: Mapping[str, float], found: dict[str, float], size: float = math.inf, whole: str = "") -> None:
    """`size`: the bound of what enters the next step, where that lies inside of the layer `whole`."""
    for step in steps:
        layer = next((path for path in _prefixes(step.path) if path in known), None)
        if layer == step.path:
            size, whole = known[step.path], step.path
        elif layer is not None and layer != whole:
            size, whole = known[layer], layer
        elif layer is None:
            size = math.inf
        found[step.path] = size
        for branch in step.branches:
            _visit(branch, known, found, size, whole)
        size = product([size, _norm(step)])


def _prefixes(path: str) -> list[str]:
    """The path, and those of what it is a part of, the nearest first."""
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)]


def _norm(step: Step) -> float:
    """Lipschitz bound of a part of a layer; infinite where it is not proved."""
    module = step.module
    if forked(module):
        return math.inf
    if isinstance(module, nn.Conv1d | nn.Conv2d) and (type(module) not in (nn.Conv1d, nn.Conv2d) or module.padding_mode != "zeros"):
        return math.inf  # its borders may be set by hand, which its rule does not read
    try:
        return rule(module, tuple(step.before.center.shape[1:])).value
    except Uncertifiable:
        return math.inf
