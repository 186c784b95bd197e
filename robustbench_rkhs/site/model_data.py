"""A model's data for the browser: per image radii and states, its curve, and the points where every attack ran."""

from typing import Any

import numpy as np
import pandas as pd

from robustbench_rkhs.site.site_models import SiteDomain, SiteModel
from robustbench_rkhs.verdicts import AccuracySteps, Evaluation, accuracy_steps, images, states
from robustbench_rkhs.verdicts.remembered import remembered

DIGITS = 6
"""Significant digits of radii in the browser: certified ones rounded down, distances up. The parquet file holds all of them."""
LARGEST = 1e12
"""The largest certified radius in the browser."""
STEPS = 400
"""Most steps of a curve in the browser; between them the certified share is the lower one, the other the upper one."""
LETTERS = {"wrong": "w", "broken": "b", "certified": "c", "survived": "s", "untested": "u"}
"""States in short: one letter an image."""


def image_table(evaluation: Evaluation) -> pd.DataFrame:
    """One row per image: `verdicts.images`, and a column `state@EPS` for each eps."""
    found = remembered(evaluation, ("images",), lambda: images(evaluation)).copy()
    for eps in evaluation.about.epsilons:
        found[f"state@{evaluation.about.words(eps)}"] = states(evaluation, eps)["state"].array
    return found


def model_data(model: SiteModel, domain: SiteDomain, evaluation: Evaluation, table: pd.DataFrame) -> dict[str, Any]:
    """What the model and compare pages draw. Infinite distances are null."""
    about, steps = evaluation.about, accuracy_steps(evaluation)
    proved_by, certificates = pd.factorize(table["certificate"].to_numpy(dtype=object), sort=True)
    broken_by, attacks = pd.factorize(table["attack"].to_numpy(dtype=object), sort=True)
    said = {eps: _letters(table[f"state@{about.words(eps)}"]) for eps in sorted(set(about.epsilons))}
    return {
        "model": model.title,
        "page": model.slug,
        "place": domain.place,
        "sample": domain.brief.sample,
        "norm": about.norm,
        "eps": [[eps, about.words(eps)] for eps in sorted(set(about.epsilons))],
        "index": table["index"].tolist(),
        "label": table["label"].tolist(),
        "predicted": table["predicted"].tolist(),
        "certified": down(table["certified"].to_numpy(dtype=np.float64)),
        "broken": up(table["broken"].to_numpy(dtype=np.float64)),
        "certificates": certificates.tolist(),
        "proved_by": proved_by.tolist(),
        "attacks": attacks.tolist(),
        "broken_by": broken_by.tolist(),
        "states": {repr(eps): letters for eps, letters in said.items()},
        "steps": curve_rows(steps),
        "points": point_rows(steps, evaluation),
    }


def _letters(states: pd.Series) -> str:
    """The states of the images, a letter each."""
    places, found = pd.factorize(states)
    return "".join(np.array([LETTERS[state] for state in found])[places])


def curve_rows(steps: AccuracySteps) -> list[list[float]]:
    """Rows of eps, certified and not broken: each holds up to the next. Empty where every accuracy is withheld."""
    corners = np.unique(np.concatenate([steps.empirical.eps, steps.certified.eps, [steps.empirical.end]]))
    if len(corners) > STEPS:
        corners = np.unique(np.append(corners[:: -(-len(corners) // STEPS)], steps.empirical.end))
    following = np.append(corners[1:], steps.empirical.end)
    upper = steps.empirical.at(corners)
    inside = np.maximum(np.nextafter(following, 0), corners)  # a share falls just after its corner
    lower = np.minimum(steps.certified.at(corners), steps.certified.at(inside))
    if np.isnan(upper).any() or np.isnan(lower).any():
        return []
    rows: list[list[float]] = np.stack([corners, lower, upper], axis=1).tolist()
    return rows


def point_rows(steps: AccuracySteps, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The eps at which every attack ran, with robust and certified accuracy and their limits. At 0 there is nothing to attack."""
    keys = [part + end for part in ("robust", "certified") for end in ("", "_low", "_high")]
    tested = [row for row in steps.tested if row["eps"] > 0]
    return [{"eps": row["eps"], "text": evaluation.about.words(row["eps"]), **{key: row[key] for key in keys}} for row in tested]


def down(radii: np.ndarray) -> list[float]:
    """Rounded down to DIGITS significant digits; JSON has no infinity, so that LARGEST stands for it."""
    return _rounded(np.minimum(radii, LARGEST), -0.5)


def up(distances: np.ndarray) -> list[float | None]:
    """Rounded up; None where none is known."""
    found = _rounded(np.where(np.isfinite(distances), distances, 0.0), 0.5)
    return [one if known else None for one, known in zip(found, np.isfinite(distances).tolist(), strict=True)]


def _rounded(values: np.ndarray, way: float) -> list[float]:
    """Half a unit of the last digit up or down, then rounded to the nearest, where digits are lost: never on the other side."""
    with np.errstate(divide="ignore"):
        unit = np.where(values > 0, 10.0 ** (np.floor(np.log10(values)) - DIGITS + 1), 0.0)
    short = _nearest(values)
    found: list[float] = np.where(short == values, short, _nearest(values + way * unit)).tolist()
    return found


def _nearest(values: np.ndarray) -> np.ndarray:
    """Rounded to DIGITS significant digits."""
    words = " ".join([f"%.{DIGITS}g"] * len(values)) % tuple(values.tolist())
    return np.array(words.split(), dtype=np.float64)
