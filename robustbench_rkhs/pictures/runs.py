"""Pictures of runs over seeds: learning curves from metrics.jsonl, accuracy-versus-eps curves from verdict tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustbench_rkhs import verdicts
from robustbench_rkhs.nodes.documents import read_text, yaml_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.pictures.groups import each_once, folders, grouped, matching, stem, without_seed
from robustbench_rkhs.reports.curves import draw_curve
from robustbench_rkhs.reports.learning import draw_learning
from robustbench_rkhs.reports.seeds import draw_seed_curves
from robustbench_rkhs.reports.spread import Band
from robustbench_rkhs.runtime.seals import check_named
from robustbench_rkhs.verdicts import comparable


def learning_picture(models: Sequence[str], out: Path, name: str | None = None, band: Band = "range", note: str = "") -> list[Path]:
    """OUT/learning-NAME.*: loss and validation numbers over epochs, seeds of one recipe together.

    Raises UserError where a run is missing or its metrics are not readable.
    """
    runs = []
    for label, folder in folders(models, "metrics.jsonl"):
        runs.append((label, without_seed(folder.name, folder.parent.name), _recipe(folder), _records(folder)))
    groups = grouped(runs)
    return draw_learning(groups, stem(out, "learning", name, list(groups)), band, note)


def curves_picture(
    models: Sequence[str],
    out: Path,
    name: str | None = None,
    band: Band = "range",
    folder: Path = Path("reports/verdicts"),
    norm: str = "l2",
    note: str = "",
) -> list[Path]:
    """OUT/curves-NAME.*: accuracy over eps, empirical and certified, seeds together, from the verdict tables in `folder`.

    Models whose names differ only in a final `seed-N` are one group, and so are those of LABEL=GLOB. The strongest
    evaluations that can be compared are drawn (the same images, box, eps and attacks). Raises UserError where there are no verdicts
    of a model, or none that can be compared with the others'.
    """
    stored = [one for one in verdicts.read_all(folder) if one.about.norm == norm] if folder.is_dir() else []
    known = each_once(stored, lambda one: one.about.model)
    chosen = matching(models, known, f"{folder} (l2 or linf as --norm says, run rkhs-eval first)" if not known else str(folder))
    wanted = {model for _, model in chosen}
    found = comparable([verdicts.Brief.of(one) for one in stored if one.about.model in wanted], fewest=1)
    alike = {brief.about.model: brief.evaluation() for brief in found.chosen}
    apart = [one for one in found.apart if one.brief.about.model not in alike]
    if apart:
        raise UserError(f"--model: not comparable with the others: {'; '.join(map(str, apart))}")
    runs = [(label, without_seed(model), without_seed(model), alike[model]) for label, model in chosen]
    groups = grouped(runs)
    where = stem(out, "curves", name, list(groups))
    if all(len(group) == 1 for group in groups.values()):
        return draw_curve([one for group in groups.values() for one in group], where, list(groups), note)
    return draw_seed_curves(groups, where, band, note)


def _recipe(folder: Path) -> str:
    """The recipe without its seed, as text; the name of the folder if it has none."""
    path = folder / "recipe.yaml"
    stored = yaml_of(read_text(path), str(path)) if path.is_file() else str(folder)
    if isinstance(stored, dict):
        stored.pop("seed", None)
    return json.dumps(stored, sort_keys=True, default=str)


def _records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    try:
        check_named(path, folder / "config.json")
        records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable: {reason(error)}") from None
    if not records or not all(isinstance(record, dict) and "epoch" in record for record in records):
        raise UserError(f"{path}: expected an epoch in every line, found {len(records)} lines")
    return records
