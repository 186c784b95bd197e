"""A claimed accuracy, as typed."""

import re
from typing import NamedTuple

from robustbench_rkhs.nodes.node import UserError, did_you_mean, real

QUANTITIES = ("certified", "robust", "clean")
"""What can be claimed: a share of test images."""
FORM = "expected a claim such as certified@0.5=0.62, robust@36/255=0.7 or clean=0.95"


class Claim(NamedTuple):
    """`certified@0.5=0.62`: the quantity, its eps (0 for clean) and the share of images claimed."""

    text: str
    quantity: str
    eps: float
    share: float

    @classmethod
    def read(cls, text: str) -> "Claim":
        """Raises UserError, saying what was found and what was expected."""
        found = re.match(r"^\s*([a-z_]+)\s*(?:@\s*([^=\s]+))?\s*=\s*(\S+)\s*$", text)
        if not found:
            raise UserError(f"--claim: {FORM}, found {text!r}")
        quantity, eps, share = found.groups()
        if quantity not in QUANTITIES:
            raise UserError(f"--claim {text!r}: unknown quantity {quantity!r}; {did_you_mean(quantity, QUANTITIES)}; {FORM}")
        if (eps is None) != (quantity == "clean"):
            problem = "clean accuracy has no eps" if eps else f"{quantity} accuracy needs an eps"
            raise UserError(f"--claim {text!r}: {problem}; {FORM}")
        claimed, radius = _number(share, text), _number(eps or "0", text)
        if not 0 <= claimed <= 1:
            raise UserError(f"--claim {text!r}: expected a share of images from 0 to 1, found {share}; {FORM}")
        if eps is not None and not 0 < radius < float("inf"):
            raise UserError(f"--claim {text!r}: expected an eps above 0, found {eps}; {FORM}")
        return cls(text.strip(), quantity, radius, claimed)


def _number(word: str, text: str) -> float:
    try:
        return float(real(word))
    except ValueError:
        raise UserError(f"--claim {text!r}: expected a number or a fraction such as 36/255, found {word!r}; {FORM}") from None
