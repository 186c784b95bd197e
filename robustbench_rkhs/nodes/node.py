"""Base class of recipe nodes, numeric field types, and the error class for bad input."""

import difflib
import math
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class UserError(Exception):
    """Bad input, reported in one line: what was found, what was expected and, if it can be guessed, what was meant.

    The command line prints it and exits with code 2.
    """


FEW = 10
"""Longest list of names that is printed in full."""
NEAREST = 5
"""Number of nearest names printed from a longer list that a command can print in full."""


def did_you_mean(found: str, known: Iterable[str], before: str = "", listing: str = "") -> str:
    """A suggestion and the known names, as the end of an error line. `before`: prefix of each name, such as `--`.

    From a long list only the nearest names are printed. `listing`: the command that lists all of them.
    """
    names = sorted(known)
    close = _nearest(found, names, 1, 0.55)
    hint = f"did you mean {before + close[0]!r}? " if close else ""
    if len(names) > FEW:
        nearest = _nearest(found, names, NEAREST, 0.0)
        where = f"; all: {listing}" if listing else f", and {len(names) - len(nearest)} more"
        return f"{hint}nearest: {', '.join(before + name for name in nearest)}{where}"
    return f"{hint}known: {', '.join(before + name for name in names) or 'none'}"


def _nearest(found: str, names: list[str], count: int, cutoff: float) -> list[str]:
    """The most similar names, nearest first; upper-case input is compared without case (`MNIST`, `mnist`)."""
    if not found.isupper():
        return difflib.get_close_matches(found, names, n=count, cutoff=cutoff)
    small = {name.lower(): name for name in names}
    return [small[word] for word in difflib.get_close_matches(found.lower(), small, n=count, cutoff=cutoff)]


def real(value: Any) -> Any:
    """A number, or text that is one (`0.1`, `36/255`), as float; anything else unchanged for pydantic to refuse."""
    if isinstance(value, str):
        try:
            return float(Fraction(value.replace(" ", ""))) if "/" in value else float(value)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"expected a number or a fraction such as 36/255, found {value!r}") from None
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found {value!r}")
    return value


def as_number(value: Any) -> float:
    """A number, or text that is one (`36/255`). Raises UserError for anything else."""
    try:
        return float(real(value))
    except (TypeError, ValueError):
        raise UserError(f"expected a number or a fraction such as 36/255, found {value!r}") from None


def _finite(value: Any) -> Any:
    value = real(value)
    if isinstance(value, (int, float)) and not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {value!r}")
    return value


Real = Annotated[float, BeforeValidator(_finite)]
"""A finite float; fractions such as `36/255` are accepted."""


Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""Seed of the counter-based random numbers: an integer from 0, below 2^63."""
WIDEST = 1_000_000
"""Upper limit of widths and depths, beyond anything that fits into memory."""
Width = Annotated[int, Field(ge=1, le=WIDEST)]
"""Number of channels, features or blocks of a network."""


def seconds(value: Any) -> Any:
    """A time such as `90`, `90s`, `10min` or `2h` in seconds; anything else unchanged for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*([0-9.]+)\s*(s|min|h)?\s*", value)
    try:
        return float(found[1]) * {None: 1, "s": 1, "min": 60, "h": 3600}[found[2]] if found else float("")
    except ValueError:
        raise ValueError(f"expected a time such as 90, 90s, 10min or 2h, found {value!r}") from None


Seconds = Annotated[Real, BeforeValidator(seconds), Field(gt=0)]
"""A time in seconds; `90s`, `10min` and `2h` are accepted."""


class Node(BaseModel):
    """Base class of recipe nodes: frozen (hashable), strict (an unknown field is an error), one docstring per field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    not_shared: ClassVar[frozenset[str]] = frozenset()
    """Fields whose value is not carried over when another method of the union is chosen."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for key in given:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key {str(key)[:80]!r} of {cls.__name__}; {did_you_mean(str(key), cls.model_fields)}")
        return given

    @model_validator(mode="after")
    def _whole_numbers_fit(self) -> "Node":
        """Rejects integers of more than 63 bits."""
        for name, value in self.__dict__.items():
            if isinstance(value, tuple | int):
                for one in value if isinstance(value, tuple) else (value,):
                    if isinstance(one, int) and abs(one) >= 2**63:
                        raise ValueError(f"{name}: expected a whole number of at most 63 bits, found {str(one)[:40]}")
        return self

    @property
    def label(self) -> str:
        """Its name in tables and messages, or module and class if it has none."""
        kind = type(self)
        return str(getattr(self, "name", f"{kind.__module__}:{kind.__qualname__}"))

    @classmethod
    def card(cls) -> str:
        """The docstring: what it computes, the equation, cost and source."""
        return (cls.__doc__ or "").strip()
