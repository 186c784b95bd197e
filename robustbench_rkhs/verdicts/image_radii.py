"""Per image: the largest certified radius, the nearest adversarial image, and the reason if nothing is proved."""

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
    own = (table["kind"] == "certificate") & (table["method"] == "prediction")
    said = table.loc[own, ["index", "label", "predicted"]].drop_duplicates("index").set_index("index")
    found = said.loc[evidence.index].reset_index()
    order = {name: place for place, name in enumerate(about.certificates)}
    proofs = proved(table, norm, box) & (table["radius"] > 0) & (table["method"] != "prediction")
    claims = table.loc[proofs, ["index", "method", "radius", "failure_probability", "arithmetic"]]
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
    found["arithmetic"] = np.where(right, best["arithmetic"].fillna(""), "")
    distance = f"distance_{norm}"
    falls = table.loc[counted(table, norm, box), ["index", "method", distance]]
    falls = falls.sort_values([distance, "method"]).drop_duplicates("index")
    falls = falls.set_index("index").reindex(evidence.index)
    found["broken"] = np.where(right, evidence.broken, 0.0)
    found["attack"] = np.where(right, falls["method"].fillna(""), "clean")
    return found[IMAGES]


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
            held = " and ".join(sorted(set(here.loc[here["radius"] > 0, "arithmetic"])))
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
