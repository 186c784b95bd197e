"""Remote homology of proteins: the twelve families with and without the penalties, auROC and auROC50 of three seeds.

    python benchmarks/protein.py                                   # goes on where it was stopped, a few minutes a method on a core
    python benchmarks/protein.py --methods none gradient --seeds 3
    python benchmarks/protein.py --quick                           # one family, one epoch, every method

A convolution of 64 motifs of 9 residues (BLOSUM62 rows of length 1) with global max-pooling, 10 epochs of Adam on a one-cycle
schedule (`models/protein_1_1.yaml`); the epoch with the best auROC50 on 400 held-out training sequences is ranked on the test set.
Penalties have one strength each, chosen beforehand and not tuned: weight 0.01; perturbations of length 1 (exchanging a residue for
an unrelated one moves it by about sqrt 2) in two steps. A family's seed also draws its validation set, so that methods are paired.
`--precision bfloat16` is what this CPU does faster (9 ms a step against 23); ranking is in float32.

A finished run is one line of reports/protein/runs.jsonl, found again by the digest of its recipe; from these: table.md and
results.json. The test sets have 6 to 120 members, so a family's figure is coarse; the means over families are what to read.
"""

import argparse
import hashlib
import json
import shlex
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import ROOT, machine, machines
from function_norm_grid import done, interval

from robustbench_rkhs.data import Splits
from robustbench_rkhs.nodes.paths import find_recipe
from robustbench_rkhs.runtime.files import write_text
from robustbench_rkhs.training.ranking import rank_report
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.run import Run

FAMILIES = ["1.1", "1.34", "2.1", "2.8", "2.19", "2.31", "2.34", "2.41", "3.19", "3.25", "3.33", "3.50"]
GRADIENT = {"name": "gradient", "weight": 0.01}
SPECTRAL = {"name": "spectral_norm", "weight": 0.01}
METHODS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "gradient": [GRADIENT],
    "spectral_norm": [SPECTRAL],
    "gradient+spectral_norm": [GRADIENT, SPECTRAL],
    "loss_gradient": [{"name": "loss_gradient", "weight": 0.01}],
    "adversarial_perturbation": [{"name": "adversarial_perturbation", "weight": 0.01, "eps": 1.0, "steps": 2}],
}
MEASURES = ["auroc", "auroc50"]


def recipe_of(family: str, method: str, seed: int, given: argparse.Namespace) -> TrainRecipe:
    """One run as a recipe of the package."""
    base = TrainRecipe.read(find_recipe("protein_1_1")).model_dump(mode="json")
    base["data"] |= {"family": family, "seed": seed}
    base |= {"penalties": METHODS[method], "seed": seed, "precision": given.precision, "about": ""}
    return TrainRecipe.parse(base | ({"epochs": 1} if given.quick else {}))


def trained(recipe: TrainRecipe, splits: Splits, device: str) -> dict[str, Any]:
    """The test figures of the epoch that was best on validation."""
    run = Run(recipe, splits.test, device)
    train, validation = splits.train.to(device), splits.validation.to(device)
    run.prepare(train)
    while run.epoch < recipe.epochs:
        for step, x, y, keys in run.batches(train):
            run.step(step, x, y, keys)
        run.finish_epoch(validation)
    run.model.load_state_dict(run.best)
    return {"epoch": run.best_epoch, "validation_auroc50": run.best_score[0]} | rank_report(run.model, splits.test.to(device))


def fill(given: argparse.Namespace, runs: Path) -> list[dict[str, Any]]:
    """Run what is missing, whole methods first seed by seed; all records of this table."""
    runs.parent.mkdir(parents=True, exist_ok=True)
    known, wanted = done(runs), []
    splits: dict[tuple[str, int], Splits] = {}
    for method in METHODS:
        for seed in range(given.seeds):
            for family in given.families:
                recipe = recipe_of(family, method, seed, given)
                digest = hashlib.sha256(recipe.yaml().encode()).hexdigest()[:16]
                if digest not in known and method not in given.methods:
                    continue
                if digest not in known:
                    started, where = time.process_time(), (family, seed)
                    splits[where] = splits[where] if where in splits else recipe.data.load()
                    record = {"family": family, "method": method, "seed": seed, "recipe": digest}
                    record |= trained(recipe, splits[where], given.device)
                    record |= {
                        "cpu_seconds": round(time.process_time() - started, 1),
                        "machine": machine(given.device),
                        "torch": torch.__version__,
                        "date": date.today().isoformat(),
                        "data_digest": splits[where].test.digest,
                    }
                    with runs.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                    print(*(record[key] for key in ("method", "family", "seed", *MEASURES, "cpu_seconds")), flush=True)
                    known[digest] = record
                wanted.append(known[digest])
    return wanted


def means(records: list[dict[str, Any]]) -> pd.DataFrame:
    """Mean over seeds of each family and method, and the number of seeds."""
    table = pd.DataFrame(records).groupby(["method", "family"], sort=False)
    return table[MEASURES].mean().assign(seeds=table.size()).reset_index()


def summary(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over families of each method, and its change against no penalty, paired by family and seed."""
    table, rows = pd.DataFrame(records), []
    for method, group in table.groupby("method", sort=False):
        row: dict[str, Any] = {"method": method, "families": group["family"].nunique(), "runs": len(group)}
        plain = table[table["method"] == "none"].set_index(["family", "seed"])[MEASURES]
        for measure in MEASURES:
            row[measure] = float(group[measure].mean())
            change = (group.set_index(["family", "seed"])[measure] - plain[measure]).dropna().groupby("family").mean()
            row[f"{measure}_change"] = [v if v == v else None for v in interval(change)] if method != "none" else None
        rows.append(row | {"cpu_seconds": float(group["cpu_seconds"].mean())})
    return rows


def markdown(records: list[dict[str, Any]], given: argparse.Namespace) -> str:
    """The table as a page: auROC / auROC50."""
    found, last = means(records), max(records, key=lambda record: record["date"])
    methods = list(dict.fromkeys(found["method"]))
    lines = ["# Remote homology of proteins", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), ""]
    hours = sum(record["cpu_seconds"] for record in records) / 3600
    lines += [
        f"{len(records)} runs, {hours:.2f} CPU hours on {machines(records)}, {given.precision}, seeds 0 to {given.seeds - 1}, last "
        f"on {last['date']}. Each cell: auROC / auROC50, mean over seeds; in brackets the number of seeds where it is another.",
        "",
        "| family | " + " | ".join(methods) + " |",
        "|---" * (len(methods) + 1) + "|",
    ]
    for family in given.families:
        cells = []
        for method in methods:
            one = found[(found["family"] == family) & (found["method"] == method)]
            short = "" if one.empty or one["seeds"].item() == given.seeds else f" ({one['seeds'].item()})"
            cells.append("" if one.empty else f"{one['auroc'].item():.3f} / {one['auroc50'].item():.3f}{short}")
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    rows = summary(records)
    lines.append(
        "| mean (families) | " + " | ".join("{auroc:.3f} / {auroc50:.3f} ({families})".format(**row) for row in rows) + " |"
    )
    lines += ["", "Change against no penalty, paired by family and seed, with a 95% t-interval over families:", ""]
    lines += ["| method | families | auROC | auROC50 | CPU s a run |", "|---|---|---|---|---|"]
    for row in rows:
        changes = ["" if row[f"{m}_change"] is None else changed(*row[f"{m}_change"]) for m in MEASURES]
        lines.append(f"| {row['method']} | {row['families']} | " + " | ".join(changes) + f" | {row['cpu_seconds']:.0f} |")
    data = {r["family"]: r["data_digest"][:12] for r in records}
    return "\n".join([*lines, "", "Test sets: " + ", ".join(f"{family} {digest}" for family, digest in data.items()) + "."]) + "\n"


def changed(mean: float, low: float | None, high: float | None) -> str:
    """`+0.010 [-0.002, +0.022]`; no interval from one family."""
    return f"{mean:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one family, one seed, one epoch; writes to OUT-quick/")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES, metavar="FAMILY")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "protein")
    given = parser.parse_args()
    if given.quick:
        given.families, given.seeds, given.out = ["2.8"], 1, given.out.with_name(f"{given.out.name}-quick")
    torch.set_num_threads(given.threads)
    records = fill(given, given.out / "runs.jsonl")
    command = shlex.join(["python", *sys.argv])
    results = {"command": command, "methods": summary(records), "families": means(records).to_dict("records")}
    write_text(given.out / "results.json", json.dumps(results, indent=2) + "\n")
    write_text(given.out / "table.md", markdown(records, given))
    print(json.dumps({"name": "protein", "runs": len(records), "command": command}))


if __name__ == "__main__":
    main()
