"""The page of a model, with the data that it draws and offers."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any

import pandas as pd

from robustbench_rkhs.reports.completion import made_by
from robustbench_rkhs.runtime.files import write_whole
from robustbench_rkhs.site import model_tables as tables
from robustbench_rkhs.site.charts import begin_still, curve_chart, typed_ticks
from robustbench_rkhs.site.markup import markdown
from robustbench_rkhs.site.model_data import image_table, model_data
from robustbench_rkhs.site.model_files import LARGEST, ModelFiles, tightness_grid
from robustbench_rkhs.site.on_boards import OnBoard
from robustbench_rkhs.site.pages import write_data, write_page
from robustbench_rkhs.site.site_models import SiteDomain, SiteModel
from robustbench_rkhs.site.training_facts import TrainingFacts
from robustbench_rkhs.verdicts import Evaluation, doubts
from robustbench_rkhs.verdicts.remembered import remembering

Finish = Callable[[], list[Path]]
"""What waits for a figure, and writes its files."""


def write_model(
    model: SiteModel, facts: TrainingFacts, files: ModelFiles, where: Mapping[str, list[OnBoard]], stem: Path
) -> list[Path]:
    """STEM.html and the files of the model in data/ and files/ beside its folder.

    where: by the stem of a domain, the boards it stands on. Raises UserError where a table is
    gone or a file cannot be written. Cost: 0.7 s for 200 images.
    """
    top, written, sections = stem.parent.parent, list[Path](), list[dict[str, Any]]()
    for domain in model.domains:
        evaluation = domain.evaluation()
        with remembering():
            table, spec = image_table(evaluation), _curve(evaluation)
            data = model_data(model, domain, evaluation, table)
            finish = _begin_still(top, model, domain, spec, data)  # drawn while the rest is made
            written += _write_data(top, domain, data, table)
            boards = where.get(domain.stem, [])
            refused = any(one.refused for one in boards)
            said = {"spec": spec, "boards": boards, "unranked": _unranked(boards), "refused": refused}
            sections.append(_section(domain, evaluation, table, refused) | said)
            written += finish()
    offered = []
    for one in files.files:
        whole = one.path.stat().st_size <= LARGEST
        copy = top / "files" / model.slug / one.path.name
        if whole:
            write_whole(copy, partial(copyfile, one.path))
            written.append(copy)
        offered.append({"name": one.path.name, "what": one.what, "check": one.check, "whole": whole})
    picture = None
    if files.picture is not None:
        picture = top / "files" / model.slug / files.picture.name
        write_whole(picture, partial(copyfile, files.picture))
        written.append(picture)
    page = write_page(
        stem.with_name(f"{stem.name}.html"),
        "model.html",
        "../",
        title=model.title,
        model=model,
        about=model.domains[0].brief.about,
        facts=facts,
        card=markdown(facts.card, 3) if facts.card else None,
        sections=sections,
        offered=offered,
        picture=picture.name if picture else None,
        tightness=tightness_grid(files.tightness),
        history=tables.history_grid(model.history),
    )
    return [page, *written]


def _section(domain: SiteDomain, evaluation: Evaluation, table: pd.DataFrame, refused: bool) -> dict[str, Any]:
    """What the page says of one data set, norm and box; where it is refused, what its methods found, without accuracies."""
    classes = None if refused else tables.class_grid(evaluation, table)
    grids = [classes, tables.attack_grid(evaluation), tables.certificate_grid(evaluation)]
    return {
        "stem": domain.stem,
        "title": domain.title,
        "command": made_by(domain.brief),
        "summary": tables.summary_grid(evaluation),
        "grids": [grid for grid in [*grids, tables.diagnosis_grid(evaluation)] if grid is not None and grid.rows],
        "nearest": tables.nearest_grid(evaluation, table),
        "doubts": doubts(evaluation, *domain.kin),
        "notes": tables.notes(evaluation),
        "images": len(table),
    }


def _unranked(boards: Sequence[OnBoard]) -> list[str]:
    """Why the model is not ranked, one line for each reason: what its page shows may not hold, or not beside others."""
    found: dict[str, list[str]] = {}
    for one in boards:
        if one.unranked:
            found.setdefault(one.unranked, []).append(one.eps)
    return [f"Not ranked at eps {', '.join(eps)}: {why}" for why, eps in found.items()]


def _curve(evaluation: Evaluation) -> dict[str, Any]:
    about = evaluation.about
    return curve_chart(about.norm, ticks=typed_ticks(about), largest=max(about.epsilons, default=1.0) or 1.0)


def _begin_still(top: Path, model: SiteModel, domain: SiteDomain, spec: dict[str, Any], data: dict[str, Any]) -> Finish:
    """Have the figure of a domain drawn, as svg and png."""
    named = {"model": model.title}
    steps = [dict(zip(("eps", "certified", "broken"), row, strict=True)) | named for row in data["steps"]]
    drawn = {"steps": steps, "points": [row | named for row in data["points"]]}
    return begin_still(spec, drawn, f"{model.title}: {domain.title}", top / "data" / domain.stem)


def _write_data(top: Path, domain: SiteDomain, data: dict[str, Any], table: pd.DataFrame) -> list[Path]:
    """The data script, and the per-image table as parquet."""
    stem = top / "data" / domain.stem
    parquet = stem.with_name(f"{stem.name}.parquet")
    write_whole(parquet, lambda temporary: table.to_parquet(temporary, index=False, compression="zstd"))
    return [write_data(stem.with_name(f"{stem.name}.js"), domain.stem, data), parquet]
