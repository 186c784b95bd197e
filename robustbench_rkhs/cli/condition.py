"""Conditions of `--require` on the results of an evaluation."""

import re
from collections.abc import Iterable
from typing import Any

from robustbench_rkhs.cli.number import number
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.radius_text import radius_text

QUANTITIES = ("clean", "robust", "certified")


class Condition:
    """`robust@1.0>=0.45`: a condition on the summary."""

    FORM = re.compile(rf"^\s*({'|'.join(QUANTITIES)})\s*(?:@\s*([0-9./e-]+))?\s*(>=|<=|>|<)\s*([0-9.e/-]+)\s*$")

    def __init__(self, text: str, quantity: str, eps: float, sign: str, bound: float) -> None:
        self.text, self.quantity, self.eps, self.sign, self.bound = text, quantity, eps, sign, bound

    @classmethod
    def read(cls, text: str) -> "Condition":
        """Parses a condition from the command line. Raises UserError where it is not one."""
        found = cls.FORM.match(text)
        if not found or (found[2] is None and found[1] != "clean"):
            form = "clean, certified@EPS or robust@EPS and a share, such as 'robust@1.0>=0.45'"
            word = re.match(r"[\s\w]*", text)[0].strip()  # type: ignore[index]  # it matches the empty text too
            hint = "" if word in QUANTITIES else f"; {did_you_mean(word, QUANTITIES)}"
            raise UserError(f"--require: expected {form}, found {text!r}{hint}")
        if not 0 <= (bound := number(found[4])) <= 1:
            raise UserError(f"--require: expected a share from 0 to 1, found {found[4]!r} in {text!r}")
        return cls(text, found[1], number(found[2] or "0"), found[3], bound)

    def answerable(self, epsilons: Iterable[float]) -> None:
        """Raises UserError where an evaluation at these eps cannot decide it; checked before the evaluation."""
        known = list(epsilons)
        if self.quantity == "robust" and self.eps not in known:
            asked = ", ".join(map(radius_text, known))
            raise UserError(f"--require {self.text!r}: eps {radius_text(self.eps)} is not evaluated, only {asked}; add it to --eps")

    def check(self, done: Any) -> tuple[bool | None, str]:
        """Whether it holds for this evaluation (None: not decided), and the line to print.

        Robust accuracy that is withheld lies between what is certified and what is not broken: it is decided where both agree.
        Raises UserError for an eps that was not evaluated.
        """
        from robustbench_rkhs import verdicts

        self.answerable(done.about.epsilons)
        row = verdicts.summary(done, [self.eps]).iloc[0]
        value = float(row[self.quantity])
        held: bool | None
        if why := verdicts.no_function(done):
            return None, f"required {self.text}: found {why}, so that every accuracy is withheld, IS NOT DECIDED"
        if value == value:
            held, found = self._holds(value), f"{value:.4f}"
        else:
            low, high = float(row["certified"]), float(row["not_broken"])
            held = self._holds(low) if self._holds(low) == self._holds(high) else None
            found = f"withheld (images are untested), between {low:.4f} and {high:.4f}"
        said = {True: "holds", False: "DOES NOT HOLD", None: "IS NOT DECIDED"}[held]
        return held, f"required {self.text}: found {found}, {said}"

    def _holds(self, value: float) -> bool:
        signs = {">=": value >= self.bound, "<=": value <= self.bound, ">": value > self.bound, "<": value < self.bound}
        return signs[self.sign]
