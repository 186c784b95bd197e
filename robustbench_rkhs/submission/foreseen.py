"""Whether a model is better on the images of a board, which anyone can foresee, than on those that the gate draws."""

import math

from robustbench_rkhs import verdicts
from robustbench_rkhs.verdicts import Evaluation

FEWEST = 20
"""Drawn images, not of the board, from which the two are compared."""
LIMIT = 4.0
"""Standard errors: the drawn images are few."""


def foreseen(drawn: Evaluation, board: Evaluation) -> str:
    """Why the board's images may have been trained on: clean accuracy on them is more than LIMIT standard errors above that on
    drawn images that are not among them. Empty where it is not, or where the board takes all images."""
    one, other = (verdicts.states(evaluation, 0.0)["state"] != "wrong" for evaluation in (drawn, board))
    fresh = one[~one.index.isin(other.index)]
    if len(fresh) < FEWEST:
        return ""
    p, q = ((int(part.sum()) + 1) / (len(part) + 2) for part in (other, fresh))
    found = (p - q) / math.sqrt(p * (1 - p) / (len(other) + 2) + q * (1 - q) / (len(fresh) + 2))
    if found <= LIMIT:
        return ""
    words = f"clean accuracy is {other.mean():.1%} on the {len(other)} images of the board"
    return f"{words}, {fresh.mean():.1%} on {len(fresh)} drawn ones: {found:.1f} standard errors"
