"""Compare methods fairly: every strength of every method trained on every seed, chosen on validation, then attacked on test.

    python benchmarks/compare.py models/comparisons/digits_methods.yaml
    python benchmarks/compare.py models/comparisons/digits_methods.yaml --quick     # two methods, one seed, few epochs

A comparison file names a base recipe, methods with one set of overrides for each strength, seeds and the radii of the
evaluation. Runs are ordinary trainings in OUT/runs (a finished one is never redone; a killed one goes on; `--only` lets
several processes share the methods), every number in the
table comes from reports/verdicts-like tables beside them. Writes OUT/runs.csv, OUT/table.csv, OUT/table.md, OUT/tradeoff.png.
"""

import argparse
import hashlib
import json
import shlex
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from common import machine

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import Node, UserError
from robustbench_rkhs.nodes.overrides import override
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.paths import find_recipe
from robustbench_rkhs.reports.figures import figure, save
from robustbench_rkhs.runtime.files import write_text
from robustbench_rkhs.training.checkpoint import load
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.run import Run
from robustbench_rkhs.training.validation import score
from robustbench_rkhs.verdicts.axes import PALETTE, percent


class Comparison:
    """The file, checked: a recipe for every (method, strength, seed)."""

    def __init__(self, path: Path, quick: bool) -> None:
        given = yaml.safe_load(path.read_text())
        self.title: str = given["title"]
        self.base: dict[str, Any] = yaml.safe_load(find_recipe(given["base"]).read_text())
        for key, value in given.get("settings", {}).items():
            override(self.base, key, yaml.safe_dump(value))
        self.methods: dict[str, list[dict[str, Any]]] = {
            name: strengths if isinstance(strengths, list) else [strengths] for name, strengths in given["methods"].items()
        }
        self.seeds: list[int] = given["seeds"]
        self.evaluation: dict[str, Any] = given["evaluation"]
        if quick:
            self.methods = {name: self.methods[name][:1] for name in list(self.methods)[:2]}
            self.seeds, self.base["epochs"], self.evaluation["samples"] = self.seeds[:1], 2, 20

    def place(self, out: Path, method: str) -> Path:
        """Where a method's figures are kept, by all they depend on but the code: delete them after changing that."""
        recipes = [told(self.recipe(method, n, seed)) for n in range(len(self.methods[method])) for seed in self.seeds]
        digest = hashlib.sha256(json.dumps([method, recipes, self.evaluation], sort_keys=True).encode()).hexdigest()[:16]
        return out / "runs" / "figures" / f"{digest}.json"

    def recipe(self, method: str, strength: int, seed: int) -> TrainRecipe:
        stored = json.loads(json.dumps(self.base))
        for key, value in self.methods[method][strength].items():
            override(stored, key, yaml.safe_dump(value))
        stored["seed"] = seed
        return TrainRecipe.parse(stored, f"{method}, strength {strength}")


def folder_of(out: Path, recipe: TrainRecipe) -> Path:
    """Named by what the recipe sets: a field that a later version adds, at its default, is the same run."""
    return out / "runs" / hashlib.sha256(json.dumps(told(recipe), sort_keys=True).encode()).hexdigest()[:16]


def told(value: Any) -> Any:
    """What is not at its default, and of which class it is."""
    if isinstance(value, Node):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        own = {name: told(one) for name, one in fields.items() if one != type(value).model_fields[name].default}
        return {"class": type(value).__name__, **own}
    if isinstance(value, (tuple, list)):
        return [told(one) for one in value]
    return {name: told(one) for name, one in value.items()} if isinstance(value, dict) else value


def trained(recipe: TrainRecipe, folder: Path, device: str) -> dict[str, Any]:
    """The best epoch's record, after training what is not trained yet."""
    if not (folder / "config.json").is_file():
        train(recipe, folder, device=device, command="benchmarks/compare.py")
    config = json.loads((folder / "config.json").read_text())
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "resume.pt").unlink(missing_ok=True)
    return records[config["epoch"]] | {"train_seconds": sum(record["seconds"] for record in records), "weights": config["weights"]}


def step_ratio(recipe: TrainRecipe, plain: TrainRecipe, device: str, steps: int = 12) -> float:
    """Time of a training step over that of plain training, alternating in this run; median."""
    runs = []
    for one in (plain, recipe):
        splits = one.data.load()
        run = Run(one, splits.test, device)
        run.prepare(splits.train.to(device))
        run.epoch = one.epochs - 1  # ramps at their end
        runs.append((run, list(run.batches(splits.train.to(device)))))
    ratios = []
    for number in range(steps):
        took = []
        for run, batches in runs:
            step, x, y, keys = batches[number % (len(batches) - 1 or 1)]
            started = time.perf_counter()
            run.step(step, x, y, keys)
            took.append(time.perf_counter() - started)
        ratios.append(took[1] / took[0])
    return statistics.median(ratios[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="these methods alone")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    comparison = Comparison(given.comparison, given.quick)
    out = given.out or Path("reports/comparisons") / (given.comparison.stem + ("-quick" if given.quick else ""))
    out.mkdir(parents=True, exist_ok=True)
    methods = [name for name in comparison.methods if not given.only or name in given.only]
    for name in methods:  # all are valid before the first is trained
        for strength in range(len(comparison.methods[name])):
            comparison.recipe(name, strength, comparison.seeds[0])
    for name in methods:
        place = comparison.place(out, name)
        if not place.is_file():
            found = measured(comparison, name, out, given.device)
            write_text(place, json.dumps(found, indent=1) + "\n")
            print(json.dumps(found["result"]), flush=True)
    known = [comparison.place(out, name) for name in comparison.methods]
    records = [json.loads(place.read_text()) for place in known if place.is_file()]
    write(comparison, records, out, given)


def measured(comparison: Comparison, name: str, out: Path, device: str) -> dict[str, Any]:
    """Every strength and seed of a method trained, the best strength on validation evaluated on test."""
    rows, failed, scores = [], [], []
    for strength, overrides in enumerate(comparison.methods[name]):
        records = []
        for seed in comparison.seeds:
            recipe = comparison.recipe(name, strength, seed)
            try:
                record = trained(recipe, folder_of(out, recipe), device)
            except UserError as error:  # a training that does not stay finite is a result, too
                failed.append({"method": name, "strength": strength, "seed": seed, "reason": str(error)})
                continue
            records.append(record)
            kept = {key: record.get(key) for key in ("validation_clean", "validation_robust", "epoch", "weights")}
            rows.append({"method": name, "strength": strength, "overrides": json.dumps(overrides), "seed": seed, **kept})
            print(f"{name} [{strength}] seed {seed}: {kept}", flush=True)
        if records:
            means = [statistics.mean(pair) for pair in zip(*(score(record) for record in records), strict=True)]
            scores.append((means, strength))
    result = None
    if scores:
        means, strength = max(scores)
        result = {"method": name, "validation": means[0]} | evaluated(comparison, name, strength, out, device)
    return {"rows": rows, "failed": failed, "result": result, "machine": machine(device), "date": date.today().isoformat()}


def evaluated(comparison: Comparison, method: str, strength: int, out: Path, device: str) -> dict[str, Any]:
    """The chosen strength on test: mean over seeds, and the spread (largest minus smallest)."""
    settings = parse(EvalRecipe, comparison.evaluation, "evaluation")
    found: dict[str, list[float]] = {}
    for seed in comparison.seeds:
        recipe = comparison.recipe(method, strength, seed)
        folder = folder_of(out, recipe)
        if not (folder / "config.json").is_file():
            continue
        loaded = load(folder)
        place = out / "runs" / "verdicts"
        done = evaluate(loaded.model, recipe.data.test(), settings, name=folder.name, folder=place, device=device)
        if done.about.breaches:
            raise SystemExit(f"UNSOUND: {method}, seed {seed}: {done.about.breaches[:3]}")
        for _, row in verdicts.summary(done).iterrows():
            found.setdefault("clean", []).append(row["clean"])
            found.setdefault(f"robust@{row['eps']:g}", []).append(row["robust"])
            found.setdefault(f"certified@{row['eps']:g}", []).append(row["certified"])
    plain = comparison.recipe(next(iter(comparison.methods)), 0, comparison.seeds[0])
    result: dict[str, Any] = {"method": method, "chosen": json.dumps(comparison.methods[method][strength])}
    result["step_time"] = step_ratio(comparison.recipe(method, strength, comparison.seeds[0]), plain, device)
    for key, values in found.items():
        result[key], result[f"{key} spread"] = statistics.mean(values), max(values) - min(values)
    return result


def write(comparison: Comparison, records: list[dict[str, Any]], out: Path, given: Any) -> None:
    """Tables and the trade-off picture of all methods that are done."""
    failed = [one for record in records for one in record["failed"]]
    pd.DataFrame([row for record in records for row in record["rows"]]).to_csv(out / "runs.csv", index=False)
    table = pd.DataFrame([record["result"] for record in records if record["result"]])
    if not comparison.evaluation.get("certificates", True):  # nothing was proved, so nothing is said of it
        table = table[[key for key in table.columns if not key.startswith("certified@")]]
    table.to_csv(out / "table.csv", index=False)
    last = [key for key in table.columns if key.startswith("robust@") and not key.endswith("spread")][-1]
    shown = table.sort_values("validation", ascending=False)
    percent = [key for key in table.columns if key == "clean" or ("@" in key and not key.endswith("spread"))]
    lines = [f"# {comparison.title}", ""]
    data = next(iter(comparison.methods))
    recipe = comparison.recipe(data, 0, comparison.seeds[0])
    digest = recipe.data.test().digest
    lines += [
        f"Base recipe with {recipe.epochs} epochs; seeds {comparison.seeds}; mean over seeds, spread (largest minus smallest) in",
        "brackets. Each method's strength was chosen on validation, and the rows are in the order of that score (`validation`:",
        "robust accuracy on validation images, mean over seeds); test images were used once, for this table.",
        f"Evaluation: {json.dumps(comparison.evaluation)}. `step time`: a training step over a plain one, alternating, median.",
        "",
        "| method | validation | step time | " + " | ".join(percent) + " | chosen strength |",
        "|---|---|---|" + "---|" * len(percent) + "---|",
    ]
    for _, row in shown.iterrows():
        cells = [f"{row[key]:.1%} ({row[key + ' spread']:.1%})" for key in percent]
        lines.append(
            f"| {row['method']} | {row['validation']:.1%} | {row['step_time']:.2f}x | "
            + " | ".join(cells)
            + f" | `{row['chosen']}` |"
        )
    if failed:
        lines += ["", "Trainings that did not stay finite:", ""]
        lines += [f"- {one['method']} strength {one['strength']} seed {one['seed']}: {one['reason']}" for one in failed]
    command = shlex.join(["python", *sys.argv])
    when = ", ".join(sorted({f"{record['machine']}, {record['date']}" for record in records}))
    lines += ["", f"`{command}`, {when}, torch {torch.__version__}; test data {digest[:12]}"]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    draw(comparison, shown, last, out / "tradeoff")
    print(f"tables and picture: {out}")


def draw(comparison: Comparison, shown: pd.DataFrame, robust: str, stem: Path) -> None:
    """A line a method, best validation on top: clean, robust and certified accuracy, each with its range over seeds."""
    certified = robust.replace("robust", "certified")
    kinds = [("clean", "o", "clean", "#999999"), (robust, "s", "not broken", PALETTE[1])]
    if certified in shown and shown[certified].max() > 0:
        kinds.append((certified, "D", "certified", PALETTE[0]))
    with figure(7, 1.2 + 0.27 * len(shown)) as (drawn, axes):
        for key, marker, text, color in kinds:
            half = shown[f"{key} spread"] / 2
            axes.errorbar(shown[key], range(len(shown)), xerr=half, fmt=marker, color=color, ms=5, lw=1, label=text)
        axes.set_yticks(range(len(shown)), list(shown["method"]))
        axes.invert_yaxis()
        percent(axes, "x")
        eps = f"{comparison.evaluation['norm']} eps {robust.split('@')[1]}"
        axes.set_xlabel(f"test accuracy at {eps}; bars: width of the range over seeds")
        drawn.suptitle(comparison.title, x=0.01, ha="left", fontsize=9)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.6 / len(shown) - 0.06), ncols=3)
        save(drawn, stem)


if __name__ == "__main__":
    main()
