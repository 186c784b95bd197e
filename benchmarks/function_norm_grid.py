"""The 16 cells of the function-norm experiments, on ten distinct subsets, with error bars.

    python benchmarks/function_norm_grid.py            # about 25 minutes on one core; goes on where it was stopped
    python benchmarks/function_norm_grid.py --quick    # one subset of 100 images and 12 steps a run, within a minute

{function norm on, off} x {BatchNorm (LeNet) or dropout (Net) on, off} x {weight decay 0, 5e-4} x {LeNet, Net}, at 100 and 300
training images of MNIST. Where BatchNorm meets the norm, the samples are normalised by the training batch, by themselves (split),
or as published (contaminated); a run whose loss stops being finite counts as diverged and enters no mean. Subsets are stratified,
seeded 0 to 9 and checked to be distinct; the seed also gives the initial weights and the order, so that cells of one subset are
paired. Accuracy is that of the last step on validation images, cut from the training set; the test set is not used.

Published: 10,000 steps of batch 10 at lr 0.01 and momentum 0.5, 100 samples a step, a VAE of 10,000 steps, test accuracy. Here, to
fit into the time: 300 steps of batch 25 at lr 0.02 and momentum 0.9 (lr x steps / (1 - momentum): 60 here, 200 there; at lr 0.05
LeNet diverges without any norm), 25 samples a step, a VAE of 2,000 steps that the cells of one subset share.

The figures of 2026-11-21 there call the norm `clean`: with constant running statistics, which without BatchNorm is the same, and
with it diverged in 40 of 40 runs; that mode has been replaced by `batch`.

Each finished run is one line of reports/function_norm/runs.jsonl, found again by the digest of its recipe (delete the file after
changing code). From these: grid.csv, grid.md and grid_N.png, .pdf, .svg.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import ROOT, machine, machines
from matplotlib.ticker import MaxNLocator
from scipy import stats

from robustbench_rkhs.data import Split, Splits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.figures import figure, save
from robustbench_rkhs.runtime.files import write_text
from robustbench_rkhs.training.penalties import FunctionNorm
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.run import Run
from robustbench_rkhs.training.validation import validate
from robustbench_rkhs.verdicts.axes import MARKERS, PALETTE, percent

OPTIONS = {"lenet": "batch_norm", "function_norm_net": "dropout"}
"""What each network may have beside the norm."""
CELL = ["images", "network", "regularised", "weight_decay"]
NORMS = ["none", "batch", "split", "contaminated"]


def cells() -> list[dict[str, Any]]:
    """The 16 cells, the two with BatchNorm and the norm once for each kind of statistics."""
    found = []
    for network in OPTIONS:
        for regularised in (False, True):
            for weight_decay in (0.0, 5e-4):
                norms = NORMS if network == "lenet" and regularised else ["none", "batch"]
                found += [
                    {"network": network, "regularised": regularised, "weight_decay": weight_decay, "norm": norm} for norm in norms
                ]
    return found


def recipe_of(cell: dict[str, Any], images: int, subset: int, given: argparse.Namespace) -> TrainRecipe:
    """The cell as a recipe of the package."""
    penalty = {
        "name": "function_norm",
        "samples": 1,
        "statistics": cell["norm"],
        "sampler": {"name": "vae", "iterations": given.vae_iterations},
    }
    network = {"name": cell["network"], OPTIONS[cell["network"]]: cell["regularised"], "mean": [0.1307], "std": [0.3081]}
    stored = {
        "data": {"name": "mnist", "train": images, "validation": given.validation, "seed": subset},
        "network": network,
        "penalties": [penalty] if cell["norm"] != "none" else [],
        "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": cell["weight_decay"]},
        "epochs": max(1, round(given.iterations * 25 / images)),
        "batch_size": 25,
        "seed": subset,
    }
    return TrainRecipe.parse(stored)


def trained(recipe: TrainRecipe, splits: Splits, prepared: FunctionNorm | None, device: str) -> dict[str, Any]:
    """One run of the package's own loop, its norm's sampler trained before."""
    run = Run(recipe, splits.test, device)
    if prepared is not None:
        run.penalties = [recipe.penalties[0].model_copy()]
        run.penalties[0]._source = prepared._source
    train, nothing = splits.train.to(device), splits.validation.take(torch.arange(0)).to(device)
    try:
        while run.epoch < recipe.epochs:
            for step, x, y, keys in run.batches(train):
                run.step(step, x, y, keys)
            run.finish_epoch(nothing)
    except UserError as diverged:  # a loss or gradient that is not finite, with its step
        return {"accuracy": None, "steps": run.epoch * run.steps(train), "loss": None, "diverged": str(diverged)}
    steps = recipe.epochs * run.steps(train)
    scores = validate(run.evaluated(), splits.validation.to(device), None)
    return {"accuracy": scores["validation_clean"], "steps": steps, "loss": run.records[-1]["loss"]}


def done(path: Path) -> dict[str, dict[str, Any]]:
    """Finished runs by the digest of their recipe; a half-written last line does not count."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        found[record["recipe"]] = record
    return found


def fill(given: argparse.Namespace, runs: Path) -> list[dict[str, Any]]:
    """Run what is missing; all records of this grid."""
    known, wanted, seen = done(runs), [], {}
    runs.parent.mkdir(parents=True, exist_ok=True)
    for images in given.images:
        for subset in range(given.subsets):
            splits: Splits | None = None
            prepared: FunctionNorm | None = None
            for cell in cells():
                recipe = recipe_of(cell, images, subset, given)
                digest = hashlib.sha256(recipe.yaml().encode()).hexdigest()[:16]
                if digest not in known:
                    splits = splits or recipe.data.load()
                    started = time.monotonic()
                    if recipe.penalties and prepared is None:
                        prepared = recipe.penalties[0].prepare(torch.nn.Identity(), splits.train.to(given.device), subset)
                    fitted = time.monotonic()
                    record = {"images": images, "subset": subset, **cell, "recipe": digest, "chosen": chosen(splits.train)}
                    record |= trained(recipe, splits, prepared if recipe.penalties else None, given.device)
                    record |= {
                        "seconds": round(time.monotonic() - fitted, 2),
                        "sampler_seconds": round(fitted - started, 2),
                        "machine": machine(given.device),
                        "torch": torch.__version__,
                    }
                    with runs.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                    print(*(record[key] for key in (*CELL, "norm", "subset", "accuracy", "seconds")), flush=True)
                    known[digest] = record
                wanted.append(known[digest])
                seen.setdefault((images, subset), set()).add(known[digest]["chosen"])
    subsets = [digest for found in seen.values() for digest in found]
    if len(set(subsets)) != len(seen):
        raise SystemExit(f"expected {len(seen)} distinct subsets, found {len(set(subsets))}")
    return wanted


def chosen(train: Split) -> str:
    """Digest of which images were trained on."""
    return hashlib.sha256(train.index.sort().values.cpu().numpy().tobytes()).hexdigest()[:16]


def interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean and 95% t-interval over subsets; no interval from one subset."""
    values = values.astype(float).dropna()
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5)
    return mean, mean - half, mean + half


def summary(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a cell: accuracy, and what the norm changed on the same subset, each with its interval."""
    table = pd.DataFrame(records)
    rows = []
    for keys, group in table.groupby([*CELL, "norm"], sort=False):
        row = dict(zip([*CELL, "norm"], keys, strict=True)) | {"subsets": len(group), "steps": int(group["steps"].max())}
        row["diverged"] = int(group["accuracy"].isna().sum())
        row |= dict(zip(["accuracy", "low", "high"], interval(group["accuracy"]), strict=True))
        same = table[(table[CELL] == pd.Series(dict(zip(CELL, keys[:-1], strict=True)))).all(axis=1) & (table["norm"] == "none")]
        if keys[-1] != "none":
            change = group.set_index("subset")["accuracy"].astype(float) - same.set_index("subset")["accuracy"].astype(float)
            row |= dict(zip(["change", "change_low", "change_high"], interval(change), strict=True))
        rows.append(row | {"seconds": float(group["seconds"].mean())})
    return pd.DataFrame(rows)


def words(row: pd.Series) -> str:
    """A cell without its norm."""
    beside = {"lenet": "BatchNorm", "function_norm_net": "dropout"}[row["network"]]
    parts = [{"lenet": "LeNet", "function_norm_net": "Net"}[row["network"]]]
    parts += [beside] if row["regularised"] else []
    return " + ".join([*parts, *(["weight decay"] if row["weight_decay"] else [])])


def markdown(table: pd.DataFrame, records: list[dict[str, Any]], given: argparse.Namespace) -> str:
    """The grid as a page."""
    lines = ["# Function norm: the grid", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), ""]
    lines += [(__doc__ or "").split("\n\n")[3].replace("\n", " "), ""]
    lines += [
        f"{len(records)} runs, {given.subsets} subsets, {given.iterations} steps, {given.validation} validation images, "
        f"{sum(r['seconds'] + r['sampler_seconds'] for r in records) / 60:.1f} minutes on {machines(records)}. "
        "Mean and 95% t-interval over subsets; the change is paired by subset against the same cell without the norm.",
        "",
    ]
    for images, part in table.groupby("images"):
        lines += [f"## {images} training images", "", "| cell | norm | accuracy | change by the norm |", "|---|---|---|---|"]
        for _, row in part.iterrows():
            accuracy = spread(row, "accuracy", "") + diverged(row)
            lines.append(f"| {words(row)} | {row['norm']} | {accuracy} | {spread(row, 'change', 'change_')} |")
        lines.append("")
    return "\n".join(lines)


def diverged(row: pd.Series) -> str:
    """How many of the runs have no accuracy."""
    return f" ({row['diverged']} of {row['subsets']} diverged)" if row["diverged"] else ""


def spread(row: pd.Series, value: str, prefix: str) -> str:
    """`90.3% [89.1, 91.5]`, or nothing."""
    if value not in row or pd.isna(row[value]):
        return ""
    text = f"{100 * row[value]:+.1f}" if prefix else f"{100 * row[value]:.1f}%"
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return text if pd.isna(low) else f"{text} [{100 * low:.1f}, {100 * high:.1f}]"


def draw(table: pd.DataFrame, images: int, stem: Path) -> None:
    """Every cell a line, every kind of norm a marker with its interval."""
    part = table[table["images"] == images]
    names = list(dict.fromkeys(words(row) for _, row in part.iterrows()))
    with figure(7.5, 4.2) as (drawn, axes):
        for place, norm in enumerate(NORMS):
            rows = part[part["norm"] == norm]
            heights = [names.index(words(row)) + 0.22 * (place - 1) for _, row in rows.iterrows()]
            half = ((rows["high"] - rows["low"]) / 2).fillna(0)
            label = {
                "none": "none",
                "batch": "function norm",
                "split": "norm, split statistics",
                "contaminated": "norm, as published",
            }
            axes.errorbar(
                rows["accuracy"], heights, xerr=half, fmt=MARKERS[place], color=PALETTE[place], label=label[norm], capsize=2, ms=4
            )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(f"validation accuracy, {images} training images of MNIST (mean and 95% t-interval)")
        axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))  # whole percents
        percent(axes, "x")
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.12), ncols=3)
        save(drawn, stem)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one subset of 100 images, 12 steps a run; writes to mine_quick/")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=300, help="steps of each run")
    parser.add_argument("--vae-iterations", type=int, default=2000)
    parser.add_argument("--validation", type=int, default=2000)
    parser.add_argument("--subsets", type=int, default=10)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "function_norm")
    given = parser.parse_args()
    if given.quick:
        given.iterations, given.vae_iterations, given.validation, given.subsets, given.images = 12, 100, 500, 1, [100]
        given.out = given.out / "mine_quick"
    torch.set_num_threads(given.threads)
    records = fill(given, given.out / "runs.jsonl")
    table = summary(records)
    write_text(given.out / "grid.csv", table.to_csv(index=False, float_format="%.6g"))
    write_text(given.out / "grid.md", markdown(table, records, given))
    for images in given.images:
        draw(table, images, given.out / f"grid_{images}")
    seconds = sum(record["seconds"] + record["sampler_seconds"] for record in records)
    print(json.dumps({"name": "function_norm_grid", "runs": len(records), "seconds": round(seconds, 1), "out": str(given.out)}))


if __name__ == "__main__":
    main()
