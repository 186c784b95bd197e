"""Accuracy as a step function of eps: what is certified, and what is not broken, at every eps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from robustbench_rkhs.verdicts.image_states import Evidence
from robustbench_rkhs.verdicts.model_marks import no_function
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verdicts.summaries import summary_rows


class Steps(NamedTuple):
    """A step function: `share[k]` from `eps[k]` on, until the next one. Known up to `end`."""

    eps: Float[np.ndarray, " steps"]
    share: Float[np.ndarray, " steps"]
    end: float

    def at(self, eps: Sequence[float] | np.ndarray) -> Float[np.ndarray, " some"]:
        """The share at each of these eps; NaN beyond the end."""
        asked = np.asarray(eps, dtype=np.float64)
        return np.where(asked <= self.end, self.share[np.searchsorted(self.eps, asked, side="right") - 1], np.nan)

    def corners(self) -> tuple[Float[np.ndarray, " corners"], Float[np.ndarray, " corners"]]:
        """The eps and shares of its corners, for a line."""
        return np.append(np.repeat(self.eps, 2)[1:], self.end), np.repeat(self.share, 2)


class AccuracySteps(NamedTuple):
    """Both sides of one model's accuracy, for eps from 0 to the largest requested one."""

    empirical: Steps
    r"""The share of images that are right and have no known adversarial image within eps: at every eps an upper bound of robust
    accuracy. From each image's nearest adversarial image, over all attacks."""
    certified: Steps
    """The share of images that are proved robust at eps. Where radii were searched for, the true curve of what is proved; else
    between two requested eps the share at the larger one, which bounds it from below."""
    full: bool
    """Whether the certified radii were searched for, instead of stopping at requested eps."""
    points: list[dict[str, Any]]
    """The summary at 0 and the requested eps: where the whole protocol ran."""

    @property
    def tested(self) -> list[dict[str, Any]]:
        """The points at which robust accuracy is known."""
        return [row for row in self.points if row["robust"] == row["robust"]]


def accuracy_steps(evaluation: Record) -> AccuracySteps:
    r"""Both sides, from the table alone.

    .. math:: \text{certified}(e) = \#\{i : r_i \ge e\} / n, \qquad \text{empirical}(e) = \#\{i : d_i > e\} / n

    r_i, d_i: the proved radius and the nearest adversarial distance of the images that are right, n: all images. Balls are closed.
    """
    evidence, about = Evidence.of(evaluation), evaluation.about
    right, images = evidence.correct, max(len(evidence.index), 1)
    largest = float(max(about.epsilons, default=0.0))
    radii, distances = np.sort(evidence.certified[right]), np.sort(evidence.broken[right])
    falls = np.unique(np.append(distances[distances <= largest], 0.0))
    left = (len(distances) - np.searchsorted(distances, falls, side="right")) / images  # those above
    full = searched(evaluation)
    ends = radii if full else np.array(about.epsilons)
    ends = np.unique(np.append(ends[(ends > 0) & (ends < largest)], largest))  # each share holds up to its end
    proved = np.append(right.sum(), len(radii) - np.searchsorted(radii, ends, side="left")) / images  # those at or above
    begins = np.concatenate([[0.0], np.nextafter(np.concatenate([[0.0], ends[:-1]]), np.inf)])
    if no_function(evaluation):  # then no accuracy is told, at no eps
        left, proved = left * np.nan, proved * np.nan
    points = summary_rows(evaluation, [0.0, *about.epsilons])
    return AccuracySteps(Steps(falls, left, largest), Steps(begins, proved, largest), full, points)


def searched(evaluation: Record) -> bool:
    """Whether certified radii below the largest eps are the largest that its certificates prove, instead of stopping at asked eps.

    In tables that do not say it: no radius below the largest eps comes from a method that was told not to search.
    """
    about = evaluation.about
    if about.curve is not None:
        return about.curve
    settings = about.settings.get("certificates", [])
    stopping = {str(one.get("name")) for one in settings if one.get("search") is False or one.get("stopping", "fixed") != "fixed"}
    if not stopping:
        return True
    table = evaluation.table
    own = table["method"].str.split("#").str[0].isin(stopping) & (table["kind"] == "certificate")
    return not bool((own & (table["radius"] > 0)).any())
