"""Per image: the largest certified radius, the nearest adversarial image, and the reason if nothing is proved."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from robustbench_rkhs.verdicts.image_states import Evidence, counted, proved
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verdicts.remembered import remembered

REASONS = ["timeout", "error", "unknown", "refused"]
"""Reasons why an image has no proof, the one most worth another try first."""
CLAIM = ["index", "radius", "state_reason", "seconds", "arithmetic"]
"""Columns of a certificate's rows that are summed up."""
IMAGES = [
    "index",
    "label",
    "predicted",
    "certified",
    "certified_l1",
    "certified_l2",
    "certified_linf",
    "certificate",
    "reason",
    "failure_probability",
    "arithmetic",
    "broken",
    "attack",
]


def images(evaluation: Record) -> pd.DataFrame:
    r"""One row per image: its certified radius and the radius at which it was broken, in the evaluation's norm.

    Columns: index, label, predicted; certified: the largest proved radius, 0 where nothing is proved; certified_l1, certified_l2,
    certified_linf: the radius of the largest ball of that norm inside the proved one (`implied`); certificate: the method
    that proved it, the first in the evaluation's order if several did; reason: why nothing is proved for a correctly classified
    image (timeout, error, unknown or refused, the first of these that any method gave; `none`: no certificate ran), else empty;
    failure_probability of the claim; arithmetic for which it holds (`float32 on CPU`: the rounding of the evaluated network is
    taken off); broken: distance of the nearest counted adversarial image, inf where none is
    known; attack: the method that found it, `clean` for an image that is misclassified without attack (broken at 0).
    """
    evidence, table, about = Evidence.of(evaluation), evaluation.table, evaluation.about
    norm, box = about.norm, about.box
    right, position = evidence.correct, pd.Index(evidence.index).get_indexer(pd.Index(table["index"]))
    own = _first(((table["kind"] == "certificate") & (table["method"] == "prediction")).to_numpy(), position)
    found = pd.DataFrame({name: table[name].to_numpy()[own] for name in ("index", "label", "predicted")})
    radius = table["radius"].to_numpy(dtype=np.float64)
    proofs = proved(table, norm, box) & (radius > 0) & (table["method"] != "prediction").to_numpy()
    order = {name: place for place, name in enumerate(about.certificates)}
    best = _first(proofs, position, -radius, _places(table["method"], lambda name: (order.get(name, len(order)), name)))
    found["certified"] = np.where(right, _taken(radius, best, 0.0), 0.0)
    for other in ("l1", "l2", "linf"):
        found[f"certified_{other}"] = implied(found["certified"].to_numpy(), norm, other, about.pixels)
    found["certificate"] = np.where(right, _taken(table["method"], best, ""), "")
    found["reason"] = np.where(right & (found["certified"] == 0), _reasons(evaluation, evidence), "")
    found["failure_probability"] = np.where(right, _taken(table["failure_probability"], best, 0.0), 0.0)
    found["arithmetic"] = np.where(right, _taken(table["arithmetic"], best, ""), "")
    distance = table[f"distance_{norm}"].to_numpy(dtype=np.float64)
    falls = _first(counted(table, norm, box), position, distance, _places(table["method"], str))
    found["broken"] = np.where(right, evidence.broken, 0.0)
    found["attack"] = np.where(right, _taken(table["method"], falls, ""), "clean")
    return found[IMAGES]


def _first(rows: np.ndarray, position: np.ndarray, *by: np.ndarray) -> np.ndarray:
    """For each image, the first of these rows by the given keys, then by place; -1 where it has none."""
    images, chosen = int(position.max(initial=-1)) + 1, np.flatnonzero(rows)
    order = np.lexsort([key[chosen] for key in (*by[::-1], position)]) if by else np.argsort(position[chosen], kind="stable")
    which, at = np.unique(position[chosen[order]], return_index=True)
    found = np.full(images, -1)
    found[which] = chosen[order[at]]
    return found


def _places(names: pd.Series, key: Callable[[str], Any]) -> np.ndarray:
    """The place of each name among all, sorted by `key`."""
    codes, known = pd.factorize(names)
    order = sorted(range(len(known)), key=lambda code: key(str(known[code])))
    places = np.empty(len(known), dtype=np.int64)
    places[order] = np.arange(len(known))
    return places[codes]


def _taken(column: pd.Series | np.ndarray, rows: np.ndarray, nothing: float | str) -> np.ndarray:
    """The values of these rows, and `nothing` where the row is -1."""
    there = rows >= 0
    found = np.full(len(rows), nothing, dtype=object if isinstance(nothing, str) else np.float64)
    found[there] = column.iloc[rows[there]].fillna(nothing).to_numpy() if isinstance(column, pd.Series) else column[rows[there]]
    return found


def implied(radius: np.ndarray, norm: str, other: str, pixels: int | None) -> np.ndarray:
    r"""Radius of the largest ball of another norm inside a ball of d pixels, rounded down; NaN where d is needed and unknown.

    .. math:: \lVert v \rVert_\infty \le \lVert v \rVert_2 \le \lVert v \rVert_1, \qquad
              \lVert v \rVert_2 \le \sqrt d \, \lVert v \rVert_\infty

    So a proof for l2 holds for l1 at the same radius and for linf at radius / sqrt(d); one for linf holds for l1 and l2 at the same
    radius. Each is tight: no larger ball of that norm lies inside.
    """
    if other == "linf" and norm == "l2":
        return np.nextafter(radius / np.sqrt(pixels), 0) * (1 - 2.0**-50) if pixels else np.full(len(radius), np.nan)
    return radius.copy()


def by_certificate(evaluation: Record) -> pd.DataFrame:
    """One row per certificate and eps: its results on the images that the earlier ones left open.

    Columns: certificate, eps; ran: correctly classified images that it was run on; certified: those that it proved at eps; won:
    images whose largest radius comes from it and reaches eps; unknown, timeout, refused, error: counts of correctly classified
    images without any proof, by reason; seconds: total time; arithmetic for which its radii hold.
    """
    evidence, table, about = Evidence.of(evaluation), evaluation.table, evaluation.about
    best = remembered(evaluation, ("images",), lambda: images(evaluation))
    right = evidence.index[evidence.correct]
    rows = []
    for name in about.certificates:
        own = table.loc[(table["kind"] == "certificate") & (table["method"] == name) & (table["norm"] == about.norm), CLAIM]
        here = own[own["index"].isin(right)].sort_values("radius", ascending=False).drop_duplicates("index")
        reasons = {reason: int((here["state_reason"] == reason).sum()) for reason in ("unknown", "timeout", "refused", "error")}
        ran = len(here) - reasons["timeout"] - reasons["refused"]
        for eps in sorted(set(about.epsilons)):
            certified = int((here["radius"] >= eps).sum()) if ran else 0
            won = int(((best["certificate"] == name) & (best["certified"] >= eps)).sum())
            held = " and ".join(sorted(here.loc[here["radius"] > 0, "arithmetic"].unique()))
            rows.append([name, eps, ran, certified, won, *reasons.values(), float(own["seconds"].sum()), held])
    columns = ["certificate", "eps", "ran", "certified", "won", "unknown", "timeout", "refused", "error", "seconds", "arithmetic"]
    return pd.DataFrame(rows, columns=columns)


def _reasons(evaluation: Record, evidence: Evidence) -> np.ndarray:
    """The first of REASONS that any certificate gave, per image."""
    table = evaluation.table
    rows = table.loc[(table["kind"] == "certificate") & (table["method"] != "prediction"), ["index", "state_reason"]]
    reasons = np.full(len(evidence.index), "none", dtype=object)
    for reason in reversed(REASONS):
        given = rows.loc[rows["state_reason"] == reason, "index"].to_numpy()
        reasons[np.isin(evidence.index, given)] = reason
    return reasons
