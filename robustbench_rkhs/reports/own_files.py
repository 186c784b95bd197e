"""The files of one evaluation: its curve, its tables, and a row per image."""

from pathlib import Path

from robustbench_rkhs.nodes.names import file_word
from robustbench_rkhs.reports.curves import draw_curve
from robustbench_rkhs.reports.drawn import Drawn
from robustbench_rkhs.reports.tables import write_images, write_tables
from robustbench_rkhs.verdicts import About, Brief

Written = dict[str, list[Path]]
"""Paths by kind."""


def draw_own(one: Brief, name: str, drawn: Drawn) -> Written:
    """Curve, tables and rows per image of an evaluation, in the record's folder; made again only where it changed."""
    folder, inputs = drawn.folder, [one.content]
    return {
        "curves": drawn.once("curve", folder / "curves" / name, inputs, lambda stem: draw_curve([one.evaluation()], stem)),
        "tables": drawn.once("table", folder / "tables" / name, inputs, lambda stem: write_tables([one.evaluation()], stem)),
        "images": drawn.once(
            "images", folder / "tables" / f"{name}-images", inputs, lambda stem: [write_images(one.evaluation(), f"{stem}.csv")]
        ),
    }


def domain_stem(name: str, about: About) -> str:
    """A file name: model (or `all`), data, norm and, where there is none, the box."""
    words = [name, about.data, about.norm, *(["nobox"] if about.box == "none" else [])]
    return "-".join(file_word(word) for word in words)


def stems(briefs: list[Brief]) -> list[str]:
    """Distinct file names of evaluations: with the first digits of their content where models repeat."""
    plain = [domain_stem(one.about.model, one.about) for one in briefs]
    return [stem if plain.count(stem) == 1 else f"{stem}-{one.content[:8]}" for one, stem in zip(briefs, plain, strict=True)]


def merge_into(written: Written, more: Written) -> None:
    """Adds paths to those of their kind."""
    for kind, paths in more.items():
        written.setdefault(kind, []).extend(paths)
