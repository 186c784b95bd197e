"""Per image: the best certificate, the nearest attack, and the reason where nothing is proved."""

import numpy as np
import pandas as pd

from robustbench_rkhs.verdicts.image_states import Evidence, counted, proved
from robustbench_rkhs.verdicts.record import Record

REASONS = ["timeout", "error", "unknown", "refused"]
"""Why an image has no proof, the one that most invites another try first."""
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
    "broken",
    "attack",
]


def images(evaluation: Record) -> pd.DataFrame:
    r"""One row an image: the radius it is proved robust up to and the one it was broken at, in the evaluation's norm.

    Columns: index, label, predicted; certified: the largest proved radius, 0 where nothing is proved; certified_l1, certified_l2,
    certified_linf: the radius of the largest ball of that norm inside the proved one (`implied`); certificate: the method
    that proved it, the earliest in the evaluation's order where several did; reason: why nothing is proved of an image that is
    right (timeout, error, unknown or refused, the first of these that any method gave; `none`: no certificate ran), empty
    elsewhere; failure_probability of the claim; broken: distance of the nearest counted adversarial image, inf where none is
    known; attack: the method that found it, `clean` where the image is wrong as it is (broken at 0).
    """
    evidence, table, about = Evidence.of(evaluation), evaluation.table, evaluation.about
    norm, box = about.norm, about.box
    said = table[(table["kind"] == "certificate") & (table["method"] == "prediction")].drop_duplicates("index").set_index("index")
    found = said.loc[evidence.index, ["label", "predicted"]].reset_index()
    order = {name: place for place, name in enumerate(about.certificates)}
    claims = table[proved(table, norm, box) & (table["radius"] > 0) & (table["method"] != "prediction")]
    claims = claims.assign(place=claims["method"].map(order).fillna(len(order)))
    best = claims.sort_values(["radius", "place", "method"], ascending=[False, True, True]).drop_duplicates("index")
    best = best.set_index("index").reindex(evidence.index)
    right = evidence.correct
    found["certified"] = np.where(right, best["radius"].fillna(0.0), 0.0)
    for other in ("l1", "l2", "linf"):
        found[f"certified_{other}"] = implied(found["certified"].to_numpy(), norm, other, about.pixels)
    found["certificate"] = np.where(right, best["method"].fillna(""), "")
    found["reason"] = np.where(right & (found["certified"] == 0), _reasons(evaluation, evidence), "")
    found["failure_probability"] = np.where(right, best["failure_probability"].fillna(0.0), 0.0)
    distance = f"distance_{norm}"
    falls = table[counted(table, norm, box)].sort_values([distance, "method"]).drop_duplicates("index")
    falls = falls.set_index("index").reindex(evidence.index)
    found["broken"] = np.where(right, evidence.broken, 0.0)
    found["attack"] = np.where(right, falls["method"].fillna(""), "clean")
    return found[IMAGES]


def implied(radius: np.ndarray, norm: str, other: str, pixels: int | None) -> np.ndarray:
    r"""Radius of the largest ball of another norm inside a ball of d pixels, rounded down; NaN where d is needed and unknown.

    .. math:: \lVert v \rVert_\infty \le \lVert v \rVert_2 \le \lVert v \rVert_1, \qquad
              \lVert v \rVert_2 \le \sqrt d \, \lVert v \rVert_\infty

    So a proof for l2 holds for l1 at the same radius and for linf at radius / sqrt(d); one for linf holds for l1 and l2 as it is.
    Each is attained: no larger ball of that norm lies inside.
    """
    if other == "linf" and norm == "l2":
        return np.nextafter(radius / np.sqrt(pixels), 0) * (1 - 2.0**-50) if pixels else np.full(len(radius), np.nan)
    return radius.copy()


def by_certificate(evaluation: Record) -> pd.DataFrame:
    """One row a certificate and eps: what it settled of the images that those before it had left open.

    Columns: certificate, eps; ran: right images it was run on; certified: those it proved at eps; won: images whose largest
    radius is its own and reaches eps; unknown, timeout, refused, error: right images by why it proved nothing at all; seconds:
    spent in all.
    """
    evidence, table, about = Evidence.of(evaluation), evaluation.table, evaluation.about
    best = images(evaluation)
    right = evidence.index[evidence.correct]
    rows = []
    for name in about.certificates:
        own = table[(table["kind"] == "certificate") & (table["method"] == name) & (table["norm"] == about.norm)]
        here = own[own["index"].isin(right)]
        reasons = {reason: int((here["state_reason"] == reason).sum()) for reason in ("unknown", "timeout", "refused", "error")}
        ran = len(here) - reasons["timeout"] - reasons["refused"]
        for eps in sorted(set(about.epsilons)):
            certified = int((here["radius"] >= eps).sum()) if ran else 0
            won = int(((best["certificate"] == name) & (best["certified"] >= eps)).sum())
            rows.append([name, eps, ran, certified, won, *reasons.values(), float(own["seconds"].sum())])
    columns = ["certificate", "eps", "ran", "certified", "won", "unknown", "timeout", "refused", "error", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def _reasons(evaluation: Record, evidence: Evidence) -> np.ndarray:
    """For each image the first of REASONS that any certificate gave."""
    table = evaluation.table
    rows = table[(table["kind"] == "certificate") & (table["method"] != "prediction")]
    reasons = np.full(len(evidence.index), "none", dtype=object)
    for reason in reversed(REASONS):
        given = rows.loc[rows["state_reason"] == reason, "index"].to_numpy()
        reasons[np.isin(evidence.index, given)] = reason
    return reasons
