"""Rows of the boards in the forms of others: RobustBench's model_info and the Hugging Face Hub's .eval_results."""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from robustbench_rkhs.nodes.names import file_word
from robustbench_rkhs.reports.claimed import FOLDERS
from robustbench_rkhs.reports.entries import board
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.runtime.files import write_text
from robustbench_rkhs.site.boards import Board, boards
from robustbench_rkhs.site.site_models import site_models
from robustbench_rkhs.site.training_facts import Shelf

HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "mnist": "ylecun/mnist"}
"""Data sets of the Hub, by our names."""


def export(out: Path, folder: Path, unread: list[str]) -> list[Path]:
    """The ranked rows of all boards, as FOLDER/model_info/DATA/NORM/MODEL.json and FOLDER/MODEL/.eval_results/BOARD.yaml.

    Boards without the box [0, 1] are left out, as neither form knows them. `unread` gets a line on each table that cannot be read,
    and on each board that has no data set on the Hub.
    """
    places = Places(out)
    cache = places.cache()
    briefs = [*cache.read_all(places.verdicts, unread.append), *cache.read_all(places.submitted, unread.append)]
    models = site_models(briefs)
    shelf = Shelf(out)
    facts = {who: shelf.facts(model.domains[0].brief.about) for who, model in models.items()}
    ranked = boards(board(briefs, cache), models, facts)
    written = []
    for one in (one for one in ranked if one.section[3] == "unit"):
        place = folder / "model_info" / file_word(one.section[0]) / FOLDERS[one.section[2]]
        for info, name in model_info(one, ranked):
            written.append(_written(place / f"{name}.json", json.dumps(info, indent=1, allow_nan=False) + "\n"))
        if one.section[0] not in HUB:
            unread.append(f"{one.title}: no data set of the Hub is known for {one.section[0]!r}, so it has no .eval_results")
            continue
        for row in one.rows:
            text = yaml.safe_dump(eval_results(one, row), sort_keys=False, allow_unicode=True)
            written.append(_written(folder / file_word(row["page"] or row["model"]) / ".eval_results" / f"{one.slug}.yaml", text))
    return written


def model_info(one: Board, others: Sequence[Board]) -> Iterator[tuple[dict[str, Any], str]]:
    """RobustBench's fields of each ranked row, with ours beside them, and its file's name.

    `autoattack_acc` is said only where AutoAttack is in the protocol: it is then our robust accuracy, the worst case over all
    attacks, which is at most AutoAttack's. The file's name says the eps where boards of the same data and norm have several.
    """
    several = sum(other.section[0] == one.section[0] and other.section[2] == one.section[2] for other in others) > 1
    ensemble = "autoattack" in dict(one.protocol).get("Attacks", "")
    for row in one.rows:
        found: dict[str, Any] = {"link": "", "name": row["model"], "authors": "", "additional_data": _extra(row["extra"])}
        found |= {"number_forward_passes": 1, "dataset": one.section[0], "venue": "", "architecture": row["how"].partition(":")[0]}
        found |= {"eps": one.eps, "clean_acc": _percent(row["clean"]), "reported": _percent(row["robust"])}
        found |= {"autoattack_acc": _percent(row["robust"]) if ensemble else None, "unreliable": bool(row["doubts"])}
        found |= {"footnote": "; ".join(row["marks"]), "certified_acc": _percent(row["certified"])}
        found |= {key: row[key] for key in ("images", "attacks", "date", "weights", "key", "data_digest", "command")}
        found |= {"evaluated_by": f"robustbench_rkhs {version('robustbench_rkhs')}"}
        name = file_word(row["page"] or row["model"])
        yield found, f"{name}_eps{file_word(one.eps)}" if several else name


def eval_results(one: Board, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a row's .eval_results: clean, robust and certified accuracy, in percent.

    Written by huggingface_hub's own types where the installed version has them (extra `hub`); its form is the same without.
    """
    data, _, norm, _, _ = one.section
    entries = []
    for share in ("clean", "robust", "certified"):
        if row[share] is None:
            continue
        task = f"{share}_accuracy" if share == "clean" else f"{share}_accuracy_{norm}_{file_word(one.eps)}"
        limits = f"95% limits {_percent(row[f'{share}_low'])} to {_percent(row[f'{share}_high'])}"
        words = f"{row['images']} images, {limits}, {norm} eps {one.eps}, attacks {', '.join(row['attacks'])}, {row['command']}"
        entry = {"dataset_id": HUB[data], "task_id": task, "value": round(100 * row[share], 2)}
        entries.append(entry | {"date": row["date"], "notes": words})
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:
        return [_plain(**entry) for entry in entries]
    found: list[dict[str, Any]] = eval_result_entries_to_yaml([EvalResultEntry(**entry) for entry in entries])
    return found


def _plain(dataset_id: str, task_id: str, **rest: Any) -> dict[str, Any]:
    return {"dataset": {"id": dataset_id, "task_id": task_id}, "value": rest.pop("value"), **rest}


def _extra(said: str) -> bool | None:
    return None if not said else said != "none"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.2f}"


def _written(path: Path, text: str) -> Path:
    write_text(path, text)
    return path
