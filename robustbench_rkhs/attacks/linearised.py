"""The model linearised at the images: the classes whose decision boundary is nearest."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.hyperplane import distance_in_box
from robustbench_rkhs.attacks.objective import likeliest_classes


class Near(NamedTuple):
    """Image positions, repeated once per chosen class, and the gap f_y - f_class there."""

    at: Int[Tensor, " rows"]
    classes: Int[Tensor, " rows"]
    gap: Float[Tensor, " rows"]
    gradient: Float[Tensor, "rows *image"]
    distance: Float[Tensor, " rows"]
    """Distance inside the box to the plane where the linearised gap is 0."""


def candidates(engine: Engine, at: Int[Tensor, " some"], count: int | None) -> Int[Tensor, "some few"]:
    """The `count` likeliest other classes of these images; without a count, the engine's own choice."""
    return engine.others(at) if count is None else likeliest_classes(engine.clean[at], engine.y[at], count)


def nearest_classes(engine: Engine, at: Int[Tensor, " some"], classes: Int[Tensor, "some few"], targets: int) -> Near:
    """The `targets` of these classes whose linearised boundary is nearest, nearest first.

    No more gradients are held than `targets` and one. Cost: one forward pass, and one backward pass for each of these classes.
    """
    x, several = engine.x[at], min(targets, classes.shape[1])
    distance = x.new_full((len(at), several), torch.inf)
    chosen, gaps = classes[:, :several].clone(), x.new_zeros(len(at), several)
    slopes = x.new_zeros(len(at), several, *x.shape[1:])
    for some, place, gap, slope, _ in engine.gap_slopes(at, x, classes):
        far = distance_in_box(x[some], gap, slope, engine.norm, engine.box)
        twice = ((far[:, None] == distance[some]) & (gap[:, None] == gaps[some])).any(1)  # a copy of a class is no further target
        far = torch.where(twice, torch.inf, far)
        farthest, slot = distance[some].max(1)
        if place < several:  # the first ones fill the places
            slot, new = torch.full_like(slot, place), torch.ones_like(twice)
        else:
            new = far < farthest
        rows = new.nonzero().flatten()
        into, slot = rows + (some.start or 0), slot[rows]
        distance[into, slot], gaps[into, slot], slopes[into, slot] = far[rows], gap[rows], slope[rows]
        chosen[into, slot] = classes[some][rows, place]
    order = distance.argsort(dim=1, stable=True)
    row = torch.arange(len(at), device=at.device)[:, None]
    several_of = (chosen[row, order], gaps[row, order], slopes[row, order], distance[row, order])
    return Near(at.repeat_interleave(order.shape[1]), *(values.flatten(0, 1) for values in several_of))
