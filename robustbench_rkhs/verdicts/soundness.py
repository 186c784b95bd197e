"""The soundness invariant: every certified radius is below the distance of every known adversarial image."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import TypeVar

import numpy as np
import pandas as pd

from robustbench_rkhs.verdicts.image_states import Evidence, counted, proved
from robustbench_rkhs.verdicts.kinship import same_function
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verdicts.schema import COLUMNS

Own = TypeVar("Own", bound=Record)

BREACH = ["index", "norm", "certificate", "radius", "attack", "distance"]


def breaches(evaluation: Record) -> pd.DataFrame:
    """Pairs of a certificate and an adversarial image that contradict: radius >= distance, same norm, initially correct image.

    Columns: index, norm, certificate (method), radius (certified), attack (method), distance. Certificates are claims
    about closed balls, so equality is a breach. Both norms are searched, and an attack counts only inside the
    certificate's domain. A radius of 0 claims nothing. Empty where the table is sound.
    """
    table, evidence = evaluation.table, Evidence.of(evaluation)
    right = table["index"].isin(evidence.index[evidence.correct]).to_numpy()
    found = []
    for norm, box in product(("l2", "linf"), ("unit", "none")):
        # a certificate of domain 'none' (everywhere) is tested by attacks in either box, one of 'unit' only by those in [0, 1]
        claims = right & (table["norm"] == norm).to_numpy() & (table["box"] == box).to_numpy()
        if not claims.any():
            continue
        claims = claims & proved(table, norm, box) & (table["radius"] > 0).to_numpy()
        if not claims.any():
            continue
        falls = right & counted(table, norm, box)
        claimed = table.loc[claims, ["index", "method", "radius"]].rename(columns={"method": "certificate"})
        attacked = table.loc[falls, ["index", "method", f"distance_{norm}"]]
        attacked = attacked.rename(columns={"method": "attack", f"distance_{norm}": "distance"})
        best = claimed.groupby("index")["radius"].max()
        attacked = attacked[attacked["distance"] <= attacked["index"].map(best)]  # fewer rows before forming pairs
        if not len(attacked):
            continue
        pairs = claimed.merge(attacked, on="index").query("radius >= distance")
        found.append(pairs.assign(norm=norm)[BREACH])
    found = [pairs for pairs in found if len(pairs)]
    if not found:
        return pd.DataFrame(columns=BREACH)
    result: pd.DataFrame = pd.concat(found).sort_values(BREACH, ignore_index=True)
    return result


def pooled(evaluation: Own, others: Sequence[Record]) -> Own:
    """The evaluation, with the adversarial images of other evaluations of the same function on the same images.

    They count as breaks and for soundness, in both norms, under the method name `check:` + name; the protocol stays that of the
    evaluation.
    """
    table = evaluation.table
    if not len(table):
        return evaluation
    same = ["data", "split", "index", "input_sha256"]
    own = table[same].drop_duplicates()
    extra = []
    for other in others:
        if other is not evaluation and same_function(evaluation.about, other.about):
            found = other.table[(other.table["kind"] == "attack") & np.isfinite(other.table["radius"])]
            found = found.merge(own, on=same)
            found = found.assign(method="check:" + found["method"].astype(str))
            found = found.assign(model=table["model"].iloc[0], weights=table["weights"].iloc[0])
            extra.append(found[COLUMNS])
    extra = [rows for rows in extra if len(rows)]
    return replace(evaluation, table=pd.concat([table, *extra], ignore_index=True)) if extra else evaluation
