"""Whether a forward runs the same operations in the model's own type as in float64, in which it is traced."""

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

ROUNDED = 1e-4
"""How far a number that the forward computes from weights may differ, relative to its size: it was rounded to float32."""


def same_operations(one: fx.Graph, other: fx.Graph, roots: tuple[Any, Any]) -> bool:
    """Whether two recordings of a forward have the same operations in the same order, up to the rounding of their numbers.

    A forward may ask a tensor of the model for its type, which leaves no trace in the graph.
    """
    if len(one.nodes) != len(other.nodes):
        return False
    partners = dict[fx.Node, fx.Node]()
    for left, right in zip(one.nodes, other.nodes, strict=True):
        partners[left] = right
        targets = left.target is right.target or left.target == right.target
        if left.op != right.op or not targets or not _same((left.args, left.kwargs), (right.args, right.kwargs), partners):
            return False
        if left.op == "get_attr" and not _same(_held(roots[0], str(left.target)), _held(roots[1], str(left.target)), partners):
            return False
    return True


def _held(root: Any, path: str) -> Any:
    for part in path.split("."):
        root = getattr(root, part)
    return root


def _same(left: Any, right: Any, partners: dict[fx.Node, fx.Node]) -> bool:
    if isinstance(left, fx.Node):
        return partners.get(left) is right
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        a, b = left.detach().to("cpu", torch.float64), right.detach().to("cpu", torch.float64)
        return a.shape == b.shape and torch.allclose(a, b, rtol=ROUNDED, atol=0, equal_nan=True)
    if isinstance(left, torch.dtype) and isinstance(right, torch.dtype):
        return left == right or (left.is_floating_point and right.is_floating_point)
    if type(left) is not type(right):
        return False
    if isinstance(left, slice):
        return all(_same(getattr(left, end), getattr(right, end), partners) for end in ("start", "stop", "step"))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key], partners) for key in left)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(_same(*pair, partners) for pair in zip(left, right, strict=True))
    if isinstance(left, float):
        return math.isclose(left, right, rel_tol=ROUNDED) or (math.isnan(left) and math.isnan(right))
    return bool(left == right) or isinstance(left, (torch.device, nn.Module))
