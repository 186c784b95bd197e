"""Values of a table that several figures need, computed once while they are drawn."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Value = TypeVar("Value")
_HELD: ContextVar[dict[tuple[Any, ...], tuple[object, Any]] | None] = ContextVar("held", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Within it, `remembered` computes each value once. Tables must not be changed meanwhile."""
    token = _HELD.set({} if _HELD.get() is None else _HELD.get())
    try:
        yield
    finally:
        _HELD.reset(token)


@contextmanager
def forgetting() -> Iterator[None]:
    """Within it, nothing is remembered, nor kept for what is around it: of many tables, each would stay in memory."""
    token = _HELD.set(None)
    try:
        yield
    finally:
        _HELD.reset(token)


def remembered(of: object, what: tuple[Any, ...], compute: Callable[[], Value]) -> Value:
    """The value of `what` of this object: computed now, or within `remembering` the one computed before."""
    held = _HELD.get()
    if held is None:
        return compute()
    key = id(of), *what
    if key not in held:
        held[key] = of, compute()  # the object is kept, so that no other takes its id
    found: Value = held[key][1]
    return found
