"""The function norm at its published schedule: each cell with and without the norm, on distinct subsets of 300 MNIST images.

    python benchmarks/function_norm_published.py --cells net lenet --subsets 10     # goes on where it was stopped
    python benchmarks/function_norm_published.py --quick                            # one subset, one epoch a run

As published (arXiv 1710.06703 and its code): 9,990 steps (333 epochs; published 10,000) of batch 10 at lr 0.01 and momentum 0.5,
lambda 0.1 on 100 samples a step of a VAE trained for 10,000 steps on sigmoids of the normalised images, whose samples enter the
network unnormalised; BatchNorm takes part in the norm's pass (`contaminated`). `batch` and `split` treat it as we would.
Accuracy is that of the last step on all 10,000 test images, as published; nothing is chosen by it. What differs: subsets are
stratified and distinct (the published code draws its later ones after the same reset of the seed), samples are seeded.

A cell is a network with its companions: net, lenet, +dropout or +batch_norm, +decay (5e-4). Cells come in the order given, a
subset's runs together, so that what is there is always paired: the seed of a subset also gives the weights and the order. A
finished run is one line of reports/function_norm_published/runs.jsonl, found again by the digest of its recipe. From these:
table.md, table.csv.
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
from function_norm_grid import chosen, done, interval, spread

from robustbench_rkhs.data import Splits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.files import write_text
from robustbench_rkhs.training.penalties import FunctionNorm
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.run import Run
from robustbench_rkhs.training.validation import validate

IMAGES, BATCH, EPOCHS = 300, 10, 333
PUBLISHED = {
    "net": (87.33, 89.34),
    "lenet": (87.41, 90.25),
    "net+dropout": (91.67, 91.88),
    "lenet+batch_norm": (90.41, 87.41),
    "net+decay": (87.47, 89.73),
    "lenet+decay": (87.54, 90.59),
    "net+dropout+decay": (91.61, 91.93),
    "lenet+batch_norm+decay": (90.48, 87.75),
}
"""Mean test accuracy of 10 runs at iteration 10,000 without and with the norm, read off the published figures, to 0.03."""


def norms(cell: str) -> list[str]:
    """What a cell is trained with."""
    return ["none", "contaminated", "batch", "split"] if "batch_norm" in cell else ["none", "published"]


def recipe_of(cell: str, norm: str, subset: int, given: argparse.Namespace) -> TrainRecipe:
    """One run as a recipe of the package."""
    name, *beside = cell.split("+")
    sampler = {"name": "vae", "iterations": given.vae_iterations, "squashed": [0.1307, 0.3081]}
    penalty = {"name": "function_norm", "samples": 10, "sampler": sampler}
    if norm != "published":
        penalty["statistics"] = norm
    network: dict[str, Any] = {"name": {"net": "function_norm_net"}.get(name, name), "mean": [0.1307], "std": [0.3081]}
    network |= {option: True for option in beside if option != "decay"}
    return TrainRecipe.parse(
        {
            "data": {"name": "mnist", "train": IMAGES, "validation": 5000, "seed": subset},
            "network": network,
            "penalties": [penalty] if norm != "none" else [],
            "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.5, "weight_decay": 5e-4 if "decay" in beside else 0.0},
            "epochs": given.epochs,
            "batch_size": BATCH,
            "seed": subset,
            "channels_last": True,  # 1.4 to 1.7 times faster on the CPU that ran it
        }
    )


def trained(recipe: TrainRecipe, splits: Splits, prepared: FunctionNorm | None) -> dict[str, Any]:
    """One run of the package's own loop; test accuracy of its last step, none where it diverged."""
    run = Run(recipe, splits.test, "cpu")
    run.penalties = [prepared.model_copy(update=recipe.penalties[0].model_dump(include={"statistics"}))] if prepared else []
    nothing = splits.validation.take(torch.arange(0))
    try:
        while run.epoch < recipe.epochs:
            for step, x, y, keys in run.batches(splits.train):
                run.step(step, x, y, keys)
            run.finish_epoch(nothing)
    except UserError as diverged:  # a loss or gradient that is not finite, with its step
        return {"accuracy": None, "steps": run.taken, "loss": None, "diverged": str(diverged)}
    scores = validate(run.model, splits.test, None)
    return {"accuracy": scores["validation_clean"], "steps": run.taken, "loss": run.records[-1]["loss"]}


def fill(given: argparse.Namespace, runs: Path) -> list[dict[str, Any]]:
    """Run what is missing; all records of the asked-for cells and subsets that there are."""
    runs.parent.mkdir(parents=True, exist_ok=True)
    known = done(runs)
    ready: dict[int, tuple[Splits, FunctionNorm]] = {}
    for cell in given.cells:
        for subset in range(given.subsets):
            for norm in norms(cell):
                recipe = recipe_of(cell, norm, subset, given)
                digest = hashlib.sha256(recipe.yaml().encode()).hexdigest()[:16]
                if digest in known:
                    continue
                if subset not in ready:
                    splits = recipe.data.load()
                    sampler = recipe_of("net", "published", subset, given).penalties[0]
                    ready[subset] = splits, sampler.prepare(torch.nn.Identity(), splits.train, subset)
                splits, prepared = ready[subset]
                started = time.process_time()
                record = {"cell": cell, "norm": norm, "subset": subset, "recipe": digest, "chosen": chosen(splits.train)}
                record |= trained(recipe, splits, prepared if norm != "none" else None)
                record |= {
                    "cpu_seconds": round(time.process_time() - started, 1),
                    "machine": machine("cpu"),
                    "torch": torch.__version__,
                    "date": date.today().isoformat(),
                    "data_digest": splits.test.digest,
                }
                with runs.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(*(record[key] for key in ("cell", "norm", "subset", "accuracy", "cpu_seconds")), flush=True)
    return list(done(runs).values())


def verdict(change: tuple[float, float, float], published: float) -> str:
    """The published change against the interval of ours."""
    mean, low, high = change
    if low != low:
        return "one subset decides nothing"
    if low <= 0 <= high:
        return "no certain effect" + ("; the published one is outside" if not low <= published / 100 <= high else "")
    return ("confirmed" if mean * published > 0 else "contradicted") + ("" if low <= published / 100 <= high else ", in sign only")


def summary(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row for each cell and norm, with its interval and what the norm changed on the same subsets."""
    table, rows = pd.DataFrame(records), []
    for (cell, norm), group in table.groupby(["cell", "norm"], sort=False):
        values = group.set_index("subset")["accuracy"].astype(float)
        row = {"cell": cell, "norm": norm, "subsets": len(group), "diverged": int(values.isna().sum())}
        row |= dict(zip(["accuracy", "low", "high"], interval(values), strict=True))
        row["published"] = PUBLISHED[cell][norm != "none"]
        if norm != "none":
            plain = table[(table["cell"] == cell) & (table["norm"] == "none")].set_index("subset")["accuracy"].astype(float)
            change = interval(values - plain)
            row |= dict(zip(["change", "change_low", "change_high"], change, strict=True))
            row["published_change"] = PUBLISHED[cell][1] - PUBLISHED[cell][0]
            row["verdict"] = verdict(change, row["published_change"])
        rows.append(row | {"cpu_seconds": float(group["cpu_seconds"].mean())})
    found = pd.DataFrame(rows)
    return found.sort_values("cell", key=lambda column: column.map([*PUBLISHED].index), kind="stable")


def markdown(table: pd.DataFrame, records: list[dict[str, Any]]) -> str:
    """The table as a page."""
    last = max(records, key=lambda record: record["date"])
    lines = ["# The function norm at its published schedule", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), ""]
    hours, data = sum(record["cpu_seconds"] for record in records) / 3600, last["data_digest"][:16]
    lines += [
        f"{len(records)} runs, {hours:.2f} CPU hours on {machines(records)}, last on {last['date']}; MNIST {data}. "
        "Mean and 95% t-interval over subsets; changes are paired by subset. Seeds 0 up, as many as there are subsets.",
        "",
        "| cell | norm | subsets | accuracy | published | change by the norm | published | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for _, row in table.iterrows():
        change = spread(row, "change", "change_") if row["norm"] != "none" else ""
        published = f"{row['published_change']:+.2f}" if change else ""
        count = f"{row['subsets']}" + (f" ({row['diverged']} diverged)" if row["diverged"] else "")
        cells = [row["cell"], row["norm"], count, spread(row, "accuracy", ""), f"{row['published']:.2f}%", change, published]
        lines.append("| " + " | ".join([*cells, row["verdict"] if change else ""]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one subset, one epoch a run; writes to mine_quick/")
    parser.add_argument("--cells", nargs="+", choices=PUBLISHED, default=[*PUBLISHED], metavar="CELL", help=", ".join(PUBLISHED))
    parser.add_argument("--subsets", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "function_norm_published")
    given = parser.parse_args()
    given.epochs, given.vae_iterations = EPOCHS, 10_000
    if given.quick:
        given.epochs, given.vae_iterations, given.subsets, given.out = 1, 50, 1, given.out / "mine_quick"
    torch.set_num_threads(given.threads)
    records = fill(given, given.out / "runs.jsonl")
    table = summary(records)
    write_text(given.out / "table.csv", table.to_csv(index=False, float_format="%.6g"))
    write_text(given.out / "table.md", markdown(table, records))
    print(json.dumps({"name": "function_norm_published", "runs": len(records), "command": shlex.join(["python", *sys.argv])}))


if __name__ == "__main__":
    main()
