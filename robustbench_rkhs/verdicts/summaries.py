"""Summaries of the table: accuracies at each eps, each attack alone, accuracy versus eps."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from robustbench_rkhs.nodes.node import UserError, as_number
from robustbench_rkhs.verdicts.image_states import STATES, Evidence
from robustbench_rkhs.verdicts.model_marks import no_function
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verdicts.remembered import remembered
from robustbench_rkhs.verdicts.schema import ANSWERS
from robustbench_rkhs.verdicts.statistics import Proportion

MASKED = 0.05
"""An attack is called masked if it missed more than this share of its images that others broke."""
HANDFUL, FEWEST = 5, 2
"""Images that it ran on, and of these that it missed, from which on it may be called masked: one of four shows nothing."""


def accuracy_at(evaluation: Record, eps: float | str) -> Proportion:
    """Robust accuracy at eps: the share of images certified or survived. Raises UserError while any image is untested."""
    _refuse(evaluation)
    counts = _counts(*Evidence.of(evaluation).codes(eps))
    if counts["untested"]:
        raise UserError(
            f"robust accuracy at {evaluation.about.words(as_number(eps))} is withheld: {counts['untested']} images are untested"
        )
    return Proportion.of(counts["certified"] + counts["survived"], sum(counts[state] for state in STATES))


def _refuse(evaluation: Record) -> None:
    """Raises UserError where the model's answers are no function of the image."""
    if why := no_function(evaluation):
        raise UserError(f"every accuracy of {evaluation.about.model!r} is withheld: {why}")


def certified_at(evaluation: Record, eps: float | str) -> Proportion:
    """Certified accuracy at eps: the share of images right and proved robust there."""
    _refuse(evaluation)
    counts = _counts(*Evidence.of(evaluation).codes(eps))
    return Proportion.of(counts["certified"], sum(counts[state] for state in STATES))


def robust_range(evaluation: Record, eps: float | str) -> tuple[float, float]:
    """The shares certified and not known to be broken at eps; robust accuracy lies between them."""
    _refuse(evaluation)
    (row,) = summary_rows(evaluation, [eps])
    return float(row["certified"]), float(row["not_broken"])


def summary(evaluation: Record, epsilons: Iterable[float | str] | float | str | None = None) -> pd.DataFrame:
    """One row per eps (default: those of the evaluation): shares of images with 95% limits (`_low`, `_high`), and counts.

    Columns: eps; images; clean, robust, certified, open with limits; not_broken: the share that is right and not known to be
    broken, the upper end of what robust accuracy can be; count_wrong, count_broken, count_certified, count_survived,
    count_untested, count_inferred (survived at no budget of eps itself) and count_audited (certified images that an attack ran on).
    `open` = survived + untested: nothing is proved for them. `robust` is NaN while any image is untested, and every share, also
    `clean`, where the model's answers are no function of the image (`no_function`). At eps 0, robust and
    certified are clean accuracy: the closed ball is the image itself.
    """
    columns = ["eps", "images"]
    columns += [part + end for part in ("clean", "robust", "certified", "open") for end in ("", "_low", "_high")]
    columns += ["not_broken"]
    columns += [f"count_{state}" for state in [*STATES, "inferred", "audited"]]
    return pd.DataFrame(summary_rows(evaluation, epsilons), columns=columns)


def summary_rows(evaluation: Record, epsilons: Iterable[float | str] | float | str | None = None) -> list[dict[str, Any]]:
    """The rows of `summary`, by column."""
    evidence = Evidence.of(evaluation)
    asked = evaluation.about.epsilons if epsilons is None else epsilons
    looked, told = _attacked(evaluation, evidence), not no_function(evaluation)
    rows = []
    for eps in sorted({as_number(eps) for eps in ([asked] if isinstance(asked, (str, int, float)) else asked)}):
        rows.append(dict(remembered(evaluation, ("summary", eps), partial(_row, evidence, eps, looked, told))))
    return rows


def _row(evidence: Evidence, eps: float, looked: np.ndarray, told: bool) -> dict[str, Any]:
    """The summary at one eps. `looked`: images that an attack ran on; `told`: False withholds every share."""
    codes, inferred = evidence.codes(eps)
    counts = _counts(codes, inferred)
    images, survived, untested = len(codes), counts["survived"], counts["untested"]
    standing = counts["certified"] + survived
    row: dict[str, Any] = {"eps": eps, "images": images}
    row |= _limits("clean", images - counts["wrong"] if told else None, images)
    row |= _limits("robust", None if untested or not told else standing, images)
    row |= _limits("certified", counts["certified"] if told else None, images)
    row |= _limits("open", survived + untested if told else None, images)
    row["not_broken"] = (standing + untested) / images if images and told else float("nan")
    row |= {f"count_{name}": count for name, count in counts.items()}
    row["count_audited"] = int((looked & (codes == STATES.index("certified"))).sum())
    return row


def by_attack(evaluation: Record) -> pd.DataFrame:
    """One row per attack of the protocol and eps: the accuracy that it would report alone, and whether it was masked.

    attacked: initially correct images that it ran on (to its end; with budget eps, none, or a larger one that decides eps). broken:
    those with its adversarial image within eps. alone: 1 - broken / attacked, NaN where it ran on none; images decided by others
    (already certified or broken) do not count. overstated: the share of `attacked` that it did not break, but any other row of
    the table broke within eps, so alone - overstated is the accuracy on those images; missed: the same as a count. masked:
    overstated > 0.05, from at least 5 images of which it missed at least 2.
    forwards, backwards: passes spent at that budget (the whole run of a minimal-norm attack, at every eps).
    """
    evidence = Evidence.of(evaluation)
    runs, columns = (
        evidence.runs,
        ["attack", "eps", "attacked", "broken", "alone", "missed", "overstated", "masked", "forwards", "backwards"],
    )
    budget, radius = runs["eps"].to_numpy(dtype=np.float64), runs["radius"].to_numpy(dtype=np.float64)
    position = runs["position"].to_numpy()
    rows = []
    for method in evidence.protocol:
        own = (runs["method"] == method).to_numpy()
        for eps in sorted(set(evaluation.about.epsilons)):
            found = own & (radius <= eps)
            answered = found | (own & (np.isnan(budget) | (budget == eps) | ((budget > eps) & np.isinf(radius))))
            ran, fell = np.zeros((2, len(evidence.index)), dtype=bool)
            ran[position[answered]] = True
            fell[position[found]] = True
            ran, fell = ran & evidence.correct, fell & evidence.correct
            attacked, broken = int(ran.sum()), int(fell.sum())
            others = int((ran & ~fell & (evidence.broken <= eps)).sum())
            overstated = others / attacked if attacked else 0.0
            spent = runs[own & ((budget == eps) | np.isnan(budget))]
            passes = [int(spent["forwards"].sum()), int(spent["backwards"].sum())]
            alone = 1 - broken / attacked if attacked else float("nan")
            masked = overstated > MASKED and attacked >= HANDFUL and others >= FEWEST
            rows.append([method, eps, attacked, broken, alone, others, overstated, masked, *passes])
    return pd.DataFrame(rows, columns=columns)


def curve(evaluation: Record, grid: Iterable[float] | None = None) -> pd.DataFrame:
    """Accuracy versus eps: columns eps, certified, robust (each with _low, _high), not_broken, tested, by eps.

    certified is a step function known at every eps. robust is known only where no image is untested (`tested`), NaN elsewhere.
    not_broken, the share of images right and not known to be broken within eps, is an upper bound of robust accuracy everywhere,
    but between the budgets of fixed-budget attacks a loose one: their images lie near the sphere of the budget.
    grid: 61 points from 0 to 1.25 times the largest eps where not given; the evaluation's eps are always in it.
    """
    evidence = Evidence.of(evaluation)
    asked, told = evaluation.about.epsilons, not no_function(evaluation)
    if grid is None:
        grid = [float(eps) for eps in np.linspace(0, 1.25 * max(asked, default=1.0) or 1.0, 61)]
    rows = []
    for eps in sorted({*(float(eps) for eps in grid), *asked}):
        counts = _counts(*evidence.codes(eps))
        images, untested = len(evidence.index), counts["untested"]
        standing = counts["certified"] + counts["survived"]
        row: dict[str, Any] = {"eps": eps}
        row |= _limits("certified", counts["certified"] if told else None, images)
        row |= _limits("robust", None if untested or not told else standing, images)
        row |= {
            "not_broken": (standing + untested) / images if images and told else float("nan"),
            "tested": images > 0 and not untested and told,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def protocol_failed(evaluation: Record) -> bool:
    """Whether attacks of the protocol ran and every one of them ended in an error, on every image."""
    table = evaluation.table
    own = table[(table["kind"] == "attack") & table["method"].isin(evaluation.about.protocol)]
    return len(own) > 0 and bool((own["state_reason"] == "error").all())


def robust_images(evaluation: Record, eps: float | str) -> pd.Series:
    """True for each image that is certified or survived at eps, by image index: what two models are compared on."""
    evidence = Evidence.of(evaluation)
    robust = [STATES.index(state) for state in ("certified", "survived")]
    return pd.Series(np.isin(evidence.codes(eps)[0], robust), index=pd.Index(evidence.index, name="index"), name="state")


def _counts(codes: np.ndarray, inferred: np.ndarray) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(STATES)).tolist()
    return dict(zip(STATES, counts, strict=True)) | {"inferred": int(inferred.sum())}


def _limits(name: str, successes: int | None, images: int) -> dict[str, float]:
    """A share and its limits under a name; all NaN where it is withheld."""
    if successes is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    share = Proportion.of(successes, images)
    return {name: share.share, f"{name}_low": share.low, f"{name}_high": share.high}


def _attacked(evaluation: Record, evidence: Evidence) -> np.ndarray:
    """Which images any attack, also an audit, ran on to its end."""
    table = evaluation.table
    ran = table.loc[(table["kind"] == "attack") & table["state_reason"].isin(ANSWERS), "index"]
    return np.isin(evidence.index, ran.to_numpy())
