"""jaxtyping's check of a tensor against `Float[Tensor, "batch *image"]`, several times quicker where it passes.

It says what jaxtyping says: what it does not know, and all that it would refuse, it leaves to jaxtyping.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import _array_types as theirs
from jaxtyping import _storage as storage

slow = theirs._MetaAbstractArray.__instancecheck__
KINDS: dict[Any, Callable[[Any], bool]] = {}
"""The check of each annotation that was met."""


def install() -> None:
    """Use the quick check in this process."""
    theirs._MetaAbstractArray.__instancecheck__ = quick


def quick(kind: Any, value: Any) -> bool:
    """Is the tensor of this dtype and shape? Letters are remembered until the call that opened a scope for them ends."""
    check = KINDS.get(kind)
    if check is None:
        check = KINDS[kind] = _made(kind)
    return check(value)


def _made(kind: Any) -> Callable[[Any], bool]:
    """A function that checks this annotation alone, without a loop."""
    if kind._skip_instancecheck or kind.array_type is not torch.Tensor or not all(map(_known, kind.dims)):
        return lambda value: slow(kind, value)
    at, count = kind.index_variadic, len(kind.dims)
    asked, kept = [f"len(shape) {'!=' if at is None else '<'} {count - (at is not None)}"], []
    for place, axis in enumerate(kind.dims):
        size, name = f"shape[{place if at is None or place < at else place - count}]", f"axis_{getattr(axis, 'name', '')}"
        if axis is theirs._anonymous_dim or axis is theirs._anonymous_variadic_dim:
            continue
        if type(axis) is theirs._FixedDim:
            asked.append(f"{size} != {axis.size}")
        elif axis in kind.dims[:place]:
            asked.append(f"{size} != {name}")
        elif type(axis) is theirs._NamedDim:
            asked.append(f"sizes.get({axis.name!r}, {name} := {size}) != {name}")
            kept.append(f"sizes[{axis.name!r}] = {name}")
        else:
            asked.append(f"groups.get({axis.name!r}, group := (False, shape[{at} : {at + 1 - count or None}])) != group")
            kept.append(f"groups[{axis.name!r}] = group")
    made: dict[str, Any] = {"slow": slow, "kind": kind, "allowed": _allowed(kind), "tensors": {torch.Tensor, torch.nn.Parameter}}
    made |= {"scopes": storage._shape_storage, "flattening": storage._treeflatten_storage}
    exec(CHECK.format(asked=" or ".join(asked), kept="; ".join(kept) or "pass"), made)
    return made["check"]  # type: ignore[no-any-return]


CHECK = """
def check(value):
    if type(value) not in tensors or value.dtype not in allowed or getattr(flattening, "value", False):
        return slow(kind, value)
    shape = value.shape
    try:
        sizes, groups, *_ = scopes.memo_stack[-1]
    except (AttributeError, IndexError):
        sizes, groups = {{}}, {{}}
    if {asked}:
        return slow(kind, value)
    {kept}
    return True
"""


def _known(axis: Any) -> bool:
    """An axis that has a name or a size, or neither, and nothing more."""
    if axis is theirs._anonymous_dim or axis is theirs._anonymous_variadic_dim:
        return True
    named = type(axis) in (theirs._NamedDim, theirs._NamedVariadicDim) and not axis.treepath
    return (named or type(axis) is theirs._FixedDim) and not axis.broadcastable


EVERY = {one: str(one).rpartition(".")[2] for one in vars(torch).values() if isinstance(one, torch.dtype)}


def _allowed(kind: Any) -> set[torch.dtype]:
    if kind.dtypes is theirs._any_dtype:
        return set(EVERY)
    patterns = [one if isinstance(one, re.Pattern) else re.compile(f"{re.escape(one)}$") for one in kind.dtypes]
    return {one for one, name in EVERY.items() if any(pattern.match(name) for pattern in patterns)}
