"""A radius as text: as it was typed (`8/255`), in tables, figures and file names."""

from collections.abc import Callable, Iterable
from typing import Any

from robustbench_rkhs.nodes.node import as_number

DIGITS = 4
"""Significant digits of a radius of which nobody knows how it was typed."""
NEAR = 1e-12
"""Relative distance up to which a radius is read as k/255."""


class TypedRadius(float):
    """A radius with the text that it was typed as: equal to its number, and stored as that number."""

    text: str

    def __new__(cls, number: float, text: str) -> "TypedRadius":
        one = super().__new__(cls, number)
        one.text = "".join(text.split())
        return one

    def __reduce__(self) -> tuple[Any, ...]:
        return TypedRadius, (float(self), self.text)


def keep_text(given: Any, parse: Callable[[Any], float]) -> float:
    """A validator around another: the parsed number, which keeps the text where text was given."""
    text = given.text if isinstance(given, TypedRadius) else given
    return TypedRadius(parse(given), text) if isinstance(text, str) else parse(given)


def radius_text(radius: float) -> str:
    """The radius as it was typed; where that is not known, k/255 if it is one and no short decimal, else four digits.

    >>> radius_text(TypedRadius(0.5, "0.50")), radius_text(8 / 255), radius_text(0.2), radius_text(1.0)
    ('0.50', '8/255', '0.2', '1')
    """
    if isinstance(radius, TypedRadius):
        return radius.text
    short = f"{radius:.{DIGITS}g}"
    pixels = round(radius * 255) if 0 < radius < 100 else 0
    if float(short) != radius and pixels and abs(radius * 255 - pixels) <= NEAR * 255 * radius:
        return f"{pixels}/255"
    return short


def radius_words(radius: float, typed: Iterable[str]) -> str:
    """The same, with the texts that some radii were typed as."""
    return next((text for text in typed if as_number(text) == float(radius)), radius_text(radius))


def radius_file_word(text: str) -> str:
    """The text as a part of a file name: `8of255` for 8/255.

    >>> radius_file_word("36/255"), radius_file_word("0.5")
    ('36of255', '0.5')
    """
    return text.replace("/", "of")
