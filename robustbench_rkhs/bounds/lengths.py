"""Python's questions about shapes while a forward is recorded: `len(x)` becomes an operation, an assertion on sizes is answered."""

import builtins
import operator
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustbench_rkhs.lipschitz.guard import foreign

COMPARED = frozenset({operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge})
"""Comparisons whose answer may depend on shapes."""
READ = COMPARED | {operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, len, getattr}
READ_METHODS = frozenset({"size", "dim"})


class Unknown(Exception):
    """The answer depends on the numbers of the images, or on how many there are."""


class Count:
    """The number of images: it answers no question."""

    def _refuse(self, *args: Any) -> Any:
        raise Unknown

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __int__ = __index__ = __hash__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse


def answer(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """What an operation on shapes gives; a tensor stands for itself. `values`: those of all operations. Raises Unknown."""
    if isinstance(values.get(node), Tensor):
        return values[node]
    target = node.target
    args = [answer(one, values) if isinstance(one, fx.Node) else one for one in node.args]
    if any(isinstance(one, fx.Node) for one in fx.node.map_arg(node.kwargs, lambda one: one).values()):
        raise Unknown
    first = args[0] if args else None
    if any(isinstance(one, Tensor) for one in args[1:]):
        raise Unknown
    if isinstance(first, Tensor):
        shape: Any = (Count(), *first.shape[1:])
        if target is getattr and args[1] in ("shape", "ndim"):
            return shape if args[1] == "shape" else first.dim()
        if target == "dim":
            return first.dim()
        if target == "size":
            return shape if len(args) == 1 else shape[args[1]]
        if target is len:
            return shape[0]
        raise Unknown
    if target in READ and callable(target) and target is not getattr:
        return target(*args)
    raise Unknown


def asserted(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """The answer to a comparison of sizes. Raises Unknown where it depends on the images' numbers, or on how many they are."""
    found = answer(node, values)
    if type(found) is not bool:
        raise Unknown
    return found


COUNTS = (*range(1, 258), *(10**power for power in range(3, 13)))
"""Numbers of images for which a size is computed: a size that grows with them, however slowly, differs for one of these."""


def steady(node: fx.Node, values: dict[fx.Node, Any], images: Container[fx.Node]) -> bool:
    """Whether what an operation reads of shapes is the number of images itself, or the same for any number of them.

    `images`: the values that hold one entry for each image.
    """
    try:
        found = [_counted(node, values, images, count) for count in COUNTS]
    except Exception:  # a size by which is divided may be zero, say
        return False
    if isinstance(found[0], tuple):
        whole = [(size[0] == count, *size[1:]) for size, count in zip(found, COUNTS, strict=True)]
        return all(one == whole[0] for one in whole)
    return all(one == found[0] for one in found) or found == list(COUNTS)


def _counted(node: fx.Node, values: dict[fx.Node, Any], images: Container[fx.Node], count: int) -> Any:
    """What an operation on shapes gives for another number of images."""
    if isinstance(values[node], Tensor):
        return torch.empty(count, *values[node].shape[1:], device="meta") if node in images else values[node]
    if not any(isinstance(one, fx.Node) for one in node.all_input_nodes):
        return values[node]
    args, keywords = fx.node.map_arg((node.args, node.kwargs), lambda one: _counted(one, values, images, count))
    target: Any = node.target
    return getattr(args[0], target)(*args[1:], **keywords) if isinstance(target, str) else target(*args, **keywords)


@contextmanager
def recording_lengths(model: nn.Module) -> Iterator[None]:
    """`len` of a symbol is recorded in the modules that define the forwards of this model, for as long as it is traced."""

    def length(value: Any) -> Any:
        if isinstance(value, fx.Proxy):
            return value.tracer.create_proxy("call_function", builtins.len, (value,), {})
        return builtins.len(value)

    rooms = {type(part).__module__ for part in model.modules() if foreign(part)}
    spaces = [vars(sys.modules[name]) for name in rooms if name in sys.modules]
    spaces += [part.forward.__func__.__globals__ for part in model.modules() if foreign(part) and hasattr(part.forward, "__func__")]
    changed = {id(space): space for space in spaces if "len" not in space and not str(space.get("__name__")).startswith("torch.")}
    for space in changed.values():
        space["len"] = length
    try:
        yield
    finally:
        for space in changed.values():
            del space["len"]
