"""Conformance checks of a projection: it maps into its set, is idempotent, and is the identity on the set."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from robustbench_rkhs.testing.must import must

Projection = Callable[[nn.Module, int], object]


def check_projection(projection: Projection, within: Callable[[nn.Module], bool], close: float = 1e-5) -> None:
    """All checks of a projection on a small network. `within`: whether a model lies in the set, by a computation of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20)
    must(not within(model), "the check is empty: its model lies in the set from the start")
    projection(model, 0)
    must(within(model), "a projection must map into its set")
    once = copy.deepcopy(model.state_dict())
    projection(model, 0)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, once[name], rtol=close, atol=close, msg=f"projecting twice changes {name!r}")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-3)
    inside = copy.deepcopy(model.state_dict())
    projection(model, 0)
    for name, tensor in model.state_dict().items():
        must(torch.equal(tensor, inside[name]), f"a projection must leave {name!r} unchanged, which already lies in the set")
