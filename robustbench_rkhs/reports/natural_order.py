"""Natural order: names with the numbers in them compared as numbers."""

import re
from fractions import Fraction

NUMBER = re.compile(r"\d+/\d+|\d+(?:\.\d+)?(?:e[+-]?\d+)?", re.IGNORECASE)


def natural(text: str) -> tuple[tuple[str, Fraction], ...]:
    """A sort key in which `width 10` comes after `width 2`, and `eps 8/255` before `eps 0.1`.

    >>> sorted(["w10", "w2", "w 0.5", "w 36/255"], key=natural)
    ['w2', 'w10', 'w 36/255', 'w 0.5']
    """
    parts, end = [], 0
    for found in NUMBER.finditer(text):
        parts.append((text[end : found.start()], _value(found[0])))
        end = found.end()
    return (*parts, (text[end:], Fraction(-1)))


def _value(word: str) -> Fraction:
    try:
        return Fraction(word)
    except ZeroDivisionError:
        return Fraction(0)
