"""What a table for a paper should show: `robust@0.5,1.0 certified@36/255`, one column per eps."""

from dataclasses import dataclass
from typing import Literal, get_args

from robustbench_rkhs.nodes.node import UserError, as_number, did_you_mean
from robustbench_rkhs.nodes.radius_text import TypedRadius

Quantity = Literal["clean", "robust", "certified"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
FORM = "clean, robust@EPS,... or certified@EPS,... such as 'clean robust@0.5,1.0 certified@36/255'"


@dataclass(frozen=True)
class Column:
    """One column: a share at an eps (0 for clean)."""

    quantity: Quantity
    eps: float
    text: str
    """The eps as it was typed; empty for clean."""

    @property
    def name(self) -> str:
        """`robust@0.5`."""
        return f"{self.quantity}@{self.text}" if self.text else self.quantity


def columns_of(text: str) -> list[Column]:
    """The columns in the order typed. Raises UserError, in one line, for anything else, and for a column asked for twice."""
    found: list[Column] = []
    for word in text.split():
        name, at, rest = word.partition("@")
        quantity = next((one for one in QUANTITIES if one == name), None)
        if quantity is None:
            raise UserError(f"--table {text!r}: unknown quantity {name!r}; {did_you_mean(name, QUANTITIES)}")
        if bool(at) == (quantity == "clean") or (at and not all(rest.split(","))):
            raise UserError(f"--table {text!r}: expected {FORM}, found {word!r}")
        found += [_column(quantity, one, text) for one in rest.split(",")] if at else [Column(quantity, 0.0, "")]
    if not found:
        raise UserError(f"--table: expected {FORM}, found nothing")
    again = [one.name for place, one in enumerate(found) if (one.quantity, one.eps) in {(o.quantity, o.eps) for o in found[:place]}]
    if again:
        raise UserError(f"--table {text!r}: {again[0]} is asked for twice")
    return found


def _column(quantity: Quantity, typed: str, text: str) -> Column:
    radius = TypedRadius(as_number(typed), typed)
    if not 0 < radius < float("inf"):
        raise UserError(f"--table {text!r}: expected an eps above 0, found {typed!r}")
    return Column(quantity, radius, radius.text)
