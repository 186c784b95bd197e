"""Kills at random moments: commands are stopped by signals again and again, then run to their end and compared item by item."""

import csv
import hashlib
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fault_stage
from fault_child import Ended, child, command, typed
from fault_counts import Counts
from fault_fork import cheaply

from robustbench_rkhs import verdicts
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.training import checkpoint

IN_A_ROW = {"fork": 8, "typed": 2}
"""Kills of one run before it is left to end."""
TYPED_EVERY = 16
"""Turns, of which about one is of typed commands."""
SIGNALS, WEIGHTS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP), (7, 1, 1, 1)
CODES = (None, 0, 130)
"""How a command may end after a signal: killed, done before it, interrupted."""
TRAINED = "already holds this recipe, trained"
"""What a training says, and ends with 2, that was killed or done once all was stored: nothing is left to do."""
VOLATILE = ("seconds", "date", "command", "eta", "images_per_second", "train_seconds", "peak_memory")
"""Fields that differ between two honest runs."""


@dataclass(frozen=True)
class Scenario:
    """A command, what it starts from and how its result is read."""

    name: str
    words: tuple[str, ...]
    starts_with: tuple[str, ...]
    """Files and folders of the stage that it finds."""
    result: Callable[[Path], dict[str, str]]
    """Item by item, so that a lost or doubled one is seen."""


def tables(place: Path) -> dict[str, str]:
    """Every row of every verdict table under a folder, by its key."""
    rows: dict[str, str] = {}
    for found in verdicts.read_all(place / "reports" / "verdicts"):
        kept = found.table.drop(columns="seconds")
        for fields in kept.to_dict("records"):
            text = json.dumps(fields, sort_keys=True, default=str)
            key = f"{found.about.model} {fields['index']} {fields['kind']} {fields['method']} {fields['eps']} {fields['settings']}"
            while key in rows:
                key += " again"
            rows[key] = text
    return rows


def trained(place: Path) -> dict[str, str]:
    """The tensors and the line of each epoch."""
    loaded = checkpoint.load(place / "tiny")
    found = {"weights": weights_digest(loaded.model.state_dict())}
    for line in (place / "tiny" / "metrics.jsonl").read_text().splitlines():
        record = {key: value for key, value in json.loads(line).items() if key not in VOLATILE}
        key = f"epoch {record.get('epoch')}"
        while key in found:
            key += " again"
        found[key] = json.dumps(record, sort_keys=True)
    return found


def swept(place: Path) -> dict[str, str]:
    """The rows of the sweep's table by their setting."""
    found: dict[str, str] = {}
    with (place / "sweeps" / "sweep" / "results.csv").open() as stream:
        for row in csv.DictReader(stream):
            kept = {key: value for key, value in row.items() if key not in VOLATILE and "trial" not in key}
            setting = " ".join(f"{key}={value}" for key, value in kept.items() if "." in key) or json.dumps(kept)
            while setting in found:
                setting += " again"
            found[setting] = json.dumps(kept, sort_keys=True)
    return found


def reported(place: Path) -> dict[str, str]:
    """Every file of a report; of those in words also what they hold."""
    found = {}
    for path in sorted((place / "reports").rglob("*")):
        if path.is_file() and "verdicts" not in path.parts:
            words = path.suffix in (".csv", ".md", ".tex", ".json")
            found[str(path.relative_to(place))] = hashlib.sha256(path.read_bytes()).hexdigest() if words else "there"
    return found


def submitted(place: Path) -> dict[str, str]:
    """The rows of all tables, submitted images among them, and the board."""
    found = tables(place)
    for path in sorted((place / "reports" / "submitted").rglob("*.parquet")):
        for number, row in enumerate(verdicts.read(path).table.drop(columns="seconds").to_dict("records")):
            found[f"{path.name} {number}"] = json.dumps(row, sort_keys=True, default=str)
    return found


EVALUATED = ("tiny", "tiny.yaml")
SCENARIOS = [
    Scenario("evaluate", (*fault_stage.EVAL, "--model", "tiny"), EVALUATED, tables),
    Scenario("evaluate with workers", (*fault_stage.EVAL, "--model", "tiny", "--workers", "2"), EVALUATED, tables),
    Scenario("train", tuple(fault_stage.TRAIN), ("tiny.yaml",), trained),
    Scenario("sweep", ("sweep", "--sweep", "sweep.yaml", "--device", "cpu"), ("tiny.yaml", "sweep.yaml"), swept),
    Scenario("report", ("report",), ("reports/verdicts",), reported),
    Scenario(
        "submit a checkpoint",
        ("submit", "checkpoint", "theirs", *fault_stage.SUBMIT, "--sample", "8", "--samples", "16", "--block", "8"),
        ("theirs",),
        submitted,
    ),
    Scenario(
        "submit adversarial images",
        ("submit", "adversarials", "found.npz", "--model", "tiny", "--device", "cpu"),
        ("tiny", "found.npz", "reports/verdicts"),
        submitted,
    ),
]


@contextmanager
def copy_of(stage: Path, kept: tuple[str, ...], scratch: Path) -> Iterator[Path]:
    """A folder with these of the stage, gone afterwards."""
    place = scratch / "run"
    shutil.rmtree(place, ignore_errors=True)
    for name in kept:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (stage / name).is_dir() else shutil.copy2
        copy(stage / name, place / name)
    yield place
    shutil.rmtree(place)


def kills(stage: Path, scratch: Path, count: int, seed: int, only: str | None = None) -> Counts:
    """About `count` kills, shared among the scenarios by turns: of typed commands in one turn of `TYPED_EVERY`, of
    forks in the others.

    A share of the signals can be caught: the command then has to end by itself, no more than `GRACE` later.
    """
    draw, counts = random.Random(seed), Counts()
    chosen = [scenario for scenario in SCENARIOS if only in (None, scenario.name)]
    turn = 0
    while sum(counts.tried.values()) < count:
        scenario = chosen[turn % len(chosen)]
        way = "typed" if draw.random() * TYPED_EVERY < 1 else "fork"
        turn += 1
        seconds, wanted = _undisturbed(stage, scratch, scenario, way)
        with copy_of(stage, scenario.starts_with, scratch) as place:
            moments = [draw.uniform(0.0, seconds) for _ in range(IN_A_ROW[way])]
            signals = draw.choices(SIGNALS, WEIGHTS, k=IN_A_ROW[way])
            where = f"{scenario.name}, {way}, turn {turn}, seed {seed}"
            for moment, how in zip(moments, signals, strict=True):
                ended = child(_run(scenario, way), place, fault_stage.LIMIT, moment, how)
                done = ended.code == 0 or TRAINED in ended.said
                said = f"{where}, {how.name} after {moment:.3f} s"
                if not done:
                    counts.tried[scenario.name] += 1
                    counts.ways[f"{way}, {how.name}"] += 1
                counts.fault("over_time", said, ended.late)
                counts.fault("orphans", said, ended.orphans)
                counts.fault("tracebacks", f"{said}: {ended.said[-300:]}", ended.traceback)
                counts.fault("stuck", f"{said}: exit code {ended.code}: {ended.said[-300:]}", not done and ended.code not in CODES)
                if done:
                    break
            ended = child(_run(scenario, way), place, fault_stage.LIMIT)
            counts.fault("tracebacks", f"{where}: {ended.said[-300:]}", ended.traceback)
            if ended.code != 0 and TRAINED not in ended.said:
                counts.fault("stuck", f"{where}: {ended.said[-300:]}")
                continue
            counts.compare(wanted, scenario.result(place), where)
    return counts


def _run(scenario: Scenario, way: str) -> Callable[[], None]:
    if way == "typed":
        return typed(scenario.words)
    return cheaply(command(scenario.words), figures=scenario.result is reported)


@cache
def _undisturbed(stage: Path, scratch: Path, scenario: Scenario, way: str) -> tuple[float, dict[str, str]]:
    """Seconds and result of a run that nothing stops. Raises SystemExit with what it printed where it fails."""
    with copy_of(stage, scenario.starts_with, scratch) as place:
        ended: Ended = child(_run(scenario, way), place, fault_stage.LIMIT)
        if ended.code != 0:
            raise SystemExit(f"{scenario.name} ended with {ended.code} undisturbed:\n{ended.said}")
        return ended.seconds, scenario.result(place)
