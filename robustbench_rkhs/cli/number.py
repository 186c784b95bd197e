"""Typed numbers: decimals and fractions."""

from collections.abc import Iterable

from robustbench_rkhs.nodes.node import Real, UserError, as_number
from robustbench_rkhs.nodes.radius_text import TypedRadius


def number(text: str) -> Real:
    """A number or a fraction. Raises UserError for anything else."""
    return as_number(text)


def radii(texts: Iterable[str], flag: str = "--eps") -> list[float]:
    """Radii, from 0 up and finite, which remember how they were typed. Raises UserError for anything else, and for none."""
    found: list[float] = [TypedRadius(number(text), text) for text in texts]
    if wrong := [text for text, value in zip(texts, found, strict=True) if not 0 <= value < float("inf")]:
        raise UserError(f"{flag}: expected a finite radius from 0 up, found {wrong[0]!r}")
    if not found:
        raise UserError(f"{flag}: expected at least one radius, found none")
    return found
