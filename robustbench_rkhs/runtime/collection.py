"""How often Python looks for garbage in cycles: seldom, where many small objects are made that form none."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

SELDOM = (100_000, 20, 50)
"""Thresholds of the collector: of the default ones, a seventh of the time goes into looks that find nothing."""


@contextmanager
def seldom() -> Iterator[None]:
    """Context manager: the collector looks seldom, then as before. Cost: memory of cyclic garbage, some ten megabytes."""
    before = gc.get_threshold()
    gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def collect_seldom() -> None:
    """The same for the rest of a process; what it holds already is never looked at again."""
    gc.freeze()
    gc.set_threshold(*SELDOM)
