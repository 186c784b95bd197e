"""The compare page: chosen models side by side, from the data scripts of their pages."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustbench_rkhs.reports.checks_ran import ChecksRan
from robustbench_rkhs.reports.entries import marks_of
from robustbench_rkhs.site.boards import Board
from robustbench_rkhs.site.charts import curve_chart, tradeoff_chart
from robustbench_rkhs.site.pages import write_data, write_page
from robustbench_rkhs.site.site_models import Identity, SiteDomain, SiteModel
from robustbench_rkhs.site.training_facts import TrainingFacts

DIGITS = 16
"""Digits of the digests of attacks and images: enough to tell those of one site apart."""


def write_compare(
    folder: Path, models: Mapping[Identity, SiteModel], facts: Mapping[Identity, TrainingFacts], ranked: Sequence[Board]
) -> list[Path]:
    """FOLDER/compare.html, and data/models.js, which names every model with its data file. Raises Unwritable."""
    places: dict[str, dict[str, Any]] = {}
    for who, model in models.items():
        for domain in model.domains:
            place = places.setdefault(
                domain.place, {"title": domain.title, "norm": domain.brief.about.norm, "models": [], "boards": []}
            )
            own = {"page": model.slug, "name": model.title, "stem": domain.stem, "images": domain.brief.images}
            own |= {"sample": domain.brief.sample[:DIGITS], "attacks": _digest(domain.brief.attacks), "checks": _checks(domain)}
            place["models"].append(own | {"parameters": facts[who].parameters, "cost": facts[who].seconds})
    for board in ranked:
        data, digest, norm, box, eps = board.section
        if (found := places.get("/".join([data, digest[:12], norm, box]))) is not None:
            keys = ("page", "clean", "robust", "certified")
            own = {"eps": eps, "text": board.eps, "rows": [[row[key] for key in keys] for row in board.rows]}
            found["boards"].append(own | {"aside": {row["page"]: row["status"] for row in board.aside}})
    page = write_page(folder / "compare.html", "compare.html", "", title="Compare models", boards=ranked)
    return [page, write_data(folder / "data" / "models.js", "models", {"places": places})]


def write_specs(path: Path, norms: Sequence[str]) -> list[Path]:
    """The compare page's charts, without their numbers. Raises Unwritable."""
    specs = {"curves": {norm: curve_chart(norm, several=True) for norm in norms}, "tradeoff": tradeoff_chart()}
    return [write_data(path, "specs", specs)]


def _checks(domain: SiteDomain) -> list[list[float | bool | None]]:
    """By eps, whether it went through the diagnosis and the audit: rows of eps, diagnosis, audit."""
    doubts = marks_of(domain.brief, domain.kin)
    ran = [(row["eps"], ChecksRan.of(domain.brief, doubts, row)) for row in domain.brief.rows]
    return [[eps, one.diagnosis, one.audit] for eps, one in ran]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
