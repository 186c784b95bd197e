"""The tables of a model page, as heads and rows of text."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustbench_rkhs.reports.tables import interval, limits, records
from robustbench_rkhs.site.diagnosis_words import in_words
from robustbench_rkhs.verdicts import Brief, Evaluation, by_attack, by_certificate, no_function, summary
from robustbench_rkhs.verdicts.image_states import counted

NEAREST = 25
"""Images that are shown without JavaScript: those nearest to falling."""


@dataclass(frozen=True)
class Grid:
    """A table of text. `numeric`: positions of its columns of numbers."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()

    @classmethod
    def of(cls, caption: str, head: list[str], rows: list[list[str]], texts: tuple[int, ...] = (0,)) -> "Grid":
        """A table whose columns are numbers, but those in `texts`."""
        numeric = tuple(place for place in range(len(head)) if place not in texts)
        return cls(caption, tuple(head), tuple(map(tuple, rows)), numeric)


def summary_grid(evaluation: Evaluation) -> Grid:
    """One row per eps: shares with 95% limits."""
    rows = []
    for row in records(summary(evaluation)):
        robust = interval(row) if row["count_untested"] else limits(row, "robust")
        shares = [limits(row, "clean"), robust, limits(row, "certified"), limits(row, "open")]
        rows.append([evaluation.about.words(row["eps"]), f"{row['images']:,}", *shares, str(row["count_untested"])])
    return Grid.of("Accuracy with 95% limits", ["eps", "images", "clean", "robust", "certified", "open", "untested images"], rows)


def class_grid(evaluation: Evaluation, table: pd.DataFrame) -> Grid | None:
    """One row per class: its images, and the shares that are right, robust and certified. None where accuracies are withheld."""
    if no_function(evaluation):
        return None
    about = evaluation.about
    words = [about.words(eps) for eps in sorted(set(about.epsilons))]
    head = ["class", "images", "clean", *(f"{part} at {word}" for word in words for part in ("robust", "certified"))]
    place, labels = pd.factorize(table["label"], sort=True)
    images = np.bincount(place, minlength=len(labels))
    columns = [[str(label) for label in labels], [f"{count:,}" for count in images]]
    columns.append(_shares(table["label"] == table["predicted"], place, images))
    for word in words:
        state = table[f"state@{word}"]
        robust = _shares(state.isin(["certified", "survived"]), place, images)
        unknown = np.bincount(place[state == "untested"], minlength=len(labels))
        columns.append([share if not count else "withheld" for share, count in zip(robust, unknown, strict=True)])
        columns.append(_shares(state == "certified", place, images))
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Grid.of("Classes", head, rows)


def attack_grid(evaluation: Evaluation) -> Grid:
    """What each attack of the protocol found, and what it cost."""
    own = evaluation.table.loc[evaluation.table["kind"] == "attack", ["method", "seconds"]]
    seconds = own.groupby("method")["seconds"].sum()
    rows = []
    for row in records(by_attack(evaluation)):
        missed = f"{row['overstated']:.1%}{' masked' if row['masked'] else ''}" if row["attacked"] else "-"
        alone = f"{row['alone']:.1%}" if row["attacked"] else "-"
        passes = f"{row['forwards'] + row['backwards']:,}"
        time = f"{seconds.get(row['attack'], 0.0):.1f} s"
        counts = [str(row["attacked"]), str(row["broken"])]
        rows.append([row["attack"], evaluation.about.words(row["eps"]), *counts, alone, missed, passes, time])
    rows += _beside(evaluation)
    head = ["attack", "eps", "images", "broken", "not broken", "missed", "passes", "time at all eps"]
    return Grid.of("Attacks, each on the images left to it; last, what broke images without being in the protocol", head, rows)


def _beside(evaluation: Evaluation) -> list[list[str]]:
    """Rows on the adversarial images from outside the protocol: of checks, of other evaluations, and those that others sent."""
    about, table = evaluation.about, evaluation.table
    right = table["label"] == table["predicted"]
    found = table[counted(table, about.norm, about.box) & right & ~table["method"].isin(about.protocol)]
    rows = []
    for method, own in found.groupby("method", sort=True):
        for eps in sorted(set(about.epsilons)):
            broken = own.loc[own[f"distance_{about.norm}"] <= eps, "index"].nunique()
            images = str(own["index"].nunique())
            rows += [[str(method), about.words(eps), images, str(broken), "-", "-", "-", "-"]] if broken else []
    return rows


def certificate_grid(evaluation: Evaluation) -> Grid:
    """What each certificate proved, and what it cost."""
    rows = []
    for row in records(by_certificate(evaluation)):
        nothing = ", ".join(f"{row[reason]} {reason}" for reason in ("unknown", "timeout", "refused", "error") if row[reason])
        nothing = nothing or ("-" if row["certified"] or not row["ran"] else "radii below eps")
        counts = [str(row[column]) for column in ("ran", "certified", "won")]
        words = evaluation.about.words(row["eps"])
        rows.append([row["certificate"], words, *counts, nothing, f"{row['seconds']:.1f} s", row["arithmetic"] or "-"])
    head = ["certificate", "eps", "images", "certified", "with the largest radius of all", "without a proof at eps"]
    head += ["time at all eps", "holds for"]
    return Grid.of("Certificates, each on the images left open to it", head, rows, texts=(0, 5, 7))


def nearest_grid(evaluation: Evaluation, table: pd.DataFrame) -> Grid:
    """The images nearest to falling: for pages without JavaScript."""
    own = table[table["label"] == table["predicted"]].sort_values(["broken", "certified"]).head(NEAREST)
    rows = [
        [str(row["index"]), str(row["label"]), _radius(row["certified"]), row["certificate"], _radius(row["broken"]), row["attack"]]
        for row in records(own)
    ]
    head = ["image", "class", "certified radius", "by", "broken at", "by"]
    return Grid.of(f"The {len(rows)} images nearest to falling", head, rows, texts=(3, 5))


def diagnosis_grid(evaluation: Evaluation) -> Grid:
    """The diagnoses, in their order."""
    rows = [
        [in_words(one.name), "tripped" if one.tripped else "passed", f"{one.value:.3g}", f"{one.threshold:.3g}", one.words]
        for one in evaluation.about.diagnostics
    ]
    return Grid.of(
        "Diagnoses: would attacks find what there is?", ["looks for", "result", "value", "limit", "found"], rows, (0, 1, 4)
    )


def history_grid(history: tuple[Brief, ...]) -> Grid:
    """Every evaluation of the function, the latest first."""
    rows = []
    for one in history:
        about = one.about
        if not about.epsilons:
            rows.append([about.date, about.model, f"{about.data}, {about.norm}", f"{one.images:,}", *_sent(one)])
            continue
        shares = [f"{about.words(row['eps'])}: {_percent(row['robust'])} / {_percent(row['certified'])}" for row in one.rows]
        state = "complete" if about.complete else "incomplete"
        state = f"{one.breaches} breaches" if one.breaches else state
        where = f"{about.data}, {about.norm}"
        rows.append([about.date, about.model, where, f"{one.images:,}", "; ".join(shares), ", ".join(about.protocol), state])
    head = ["date", "evaluated as", "on", "images", "eps: robust / certified", "attacks", "state"]
    return Grid.of("Evaluations of this function", head, rows, (0, 1, 2, 4, 5, 6))


def _sent(one: Brief) -> list[str]:
    """What a table without an eps of its own adds: adversarial images. Its shares, methods and state."""
    table = one.evaluation().table
    found = table[(table["kind"] == "attack") & np.isfinite(table["radius"])]
    count = found["index"].nunique()
    return [f"{count:,} adversarial images", ", ".join(sorted(found["method"].unique())), "accepted"]


def notes(evaluation: Evaluation) -> list[str]:
    """What went otherwise than asked: refusals, failures, what was left out."""
    about = evaluation.about
    found = [*about.refused, *(f"left out: {one}" for one in about.left_out), *about.failed]
    return found + [f"unsound: {breach}" for breach in about.breaches]


def _shares(mask: pd.Series, place: np.ndarray, images: np.ndarray) -> list[str]:
    """For each class, the share of its images in the mask. `place`: the class of each image; `images`: how many a class has."""
    found = np.bincount(place[mask.to_numpy()], minlength=len(images))
    return [f"{count / whole:.1%}" for count, whole in zip(found.tolist(), images.tolist(), strict=True)]


def _percent(share: float) -> str:
    return "withheld" if share != share else f"{share:.1%}"


def _radius(radius: float) -> str:
    return "none known" if np.isinf(radius) else f"{radius:.4g}"
