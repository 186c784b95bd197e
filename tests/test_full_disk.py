"""A full disk: every writer says in one line which file could not be written, and leaves nothing half-written."""

import resource
import signal
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_norms import FEW, affine, split
from test_report import synthetic

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.proofs import write_proof
from robustbench_rkhs.reports import draw_curve, write_leaderboard, write_tables
from robustbench_rkhs.reports.rkhs_norm import write_norms
from robustbench_rkhs.rkhs_norm import norm_report
from robustbench_rkhs.runtime import seals
from robustbench_rkhs.runtime.events import EpochFinished, Event
from robustbench_rkhs.runtime.files import write_text
from robustbench_rkhs.sweep.sealed_log import SealedLog
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.verdicts.adversarials import write_arrays

ROOM = 400
"""Bytes that a file may have while the disk is full."""


@contextmanager
def full_disk():
    """No file may grow beyond ROOM: what a full disk does to a writer, at any point of its writing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def noise(count: int = 5000) -> np.ndarray:
    return np.random.default_rng(0).random(count)


def norms(folder: Path) -> None:
    write_norms(measured(), folder / "norms")


MODEL, X, Y, *_ = affine(classes=3)
DONE = synthetic("m")
SPLIT = split(X, Y, 3)


@cache
def measured() -> object:
    return norm_report("m", MODEL, SPLIT, split(X, Y, 3, "train"), eps=(0.5,), deformations=FEW, command="c")


@cache
def proved() -> verdicts.Evaluation:
    one = {"name": "pgd", "steps": 1}
    return evaluate(MODEL, SPLIT, eps=(0.05,), attacks=(one,), certificates=("margin",), diagnostics=False)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: write_text(folder / "text.txt", "x" * 5000),
    "record": lambda folder: seals.write_record(folder / "record.json", {"a": noise().tolist()}),
    "commented": lambda folder: seals.write_commented(folder / "text.yaml", "a: b\n" * 5000),
    "archive": lambda folder: write_arrays(folder / "arrays.npz", {"a": noise()}),
    "safetensors": lambda folder: checkpoint.write_safetensors(folder / "w.safetensors", {"a": torch.rand(5000)}),
    "torch": lambda folder: seals.write_archive(folder / "resume.pt", lambda path: torch.save({"a": torch.rand(5000)}, path)),
    "table": lambda folder: verdicts.write(DONE, folder / "t.parquet"),
    "tables": lambda folder: write_tables([DONE], folder / "t"),
    "board": lambda folder: write_leaderboard([DONE], folder),
    "figure": lambda folder: draw_curve([DONE], folder / "c"),
    "norms": norms,
    "proof": lambda folder: write_proof(MODEL, SPLIT, proved(), folder / "proof"),
    "journal": lambda folder: SealedLog(str(folder / "journal.log")).append_logs([{"a": 1}, {"a": noise(40).tolist()}]),
    "frame": lambda folder: write_text(folder / "f.csv", pd.DataFrame(noise()).to_csv()),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_names_the_file_and_leaves_what_was_there(tmp_path, name):
    WRITERS[name](tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert before
    with full_disk(), pytest.raises(UserError) as refused:
        WRITERS[name](tmp_path)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    line = str(refused.value)
    assert line.startswith("cannot write ") and "\n" not in line and any(str(path) in line for path in before), line
    assert set(after) == set(before)  # nothing half-written, under no name
    assert all(after[path] == before[path] or path.suffix in (".json", ".csv", ".md") for path in before)


def test_a_journal_holds_all_of_an_entry_or_nothing_and_others_write_on(tmp_path):
    """As another worker would, once there is room again."""
    log = SealedLog(str(tmp_path / "journal.log"))
    log.append_logs([{"a": 1}])
    with full_disk(), pytest.raises(UserError, match=r"cannot write .*journal\.log"):
        log.append_logs([{"a": 2}, {"a": noise(40).tolist()}])
    SealedLog(str(tmp_path / "journal.log")).append_logs([{"a": 3}])
    assert [entry["a"] for entry in SealedLog(str(tmp_path / "journal.log")).read_logs(0)] == [1, 3]


def test_an_evaluation_that_cannot_write_keeps_the_parts_it_wrote(tmp_path):
    x, y = torch.rand(12, 1, 4, 4), torch.arange(12) % 2
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
    given = {"eps": (0.05,), "attacks": ({"name": "pgd", "steps": 2},), "certificates": (), "diagnostics": False, "block": 4}
    whole = evaluate(model, (x, y), **given)
    with full_disk(), pytest.raises(UserError, match="cannot write"):
        evaluate(model, (x, y), folder=tmp_path, **given)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]
    done = evaluate(model, (x, y), folder=tmp_path, **given)
    assert verdicts.digest(done.table) == verdicts.digest(whole.table)


def test_a_training_that_cannot_write_goes_on_from_what_was_saved(tmp_path):
    tiny = {"data": {"name": "digits", "train": 60}, "network": {"name": "mlp", "hidden": [4]}, "epochs": 3, "batch_size": 20}
    straight = train(tiny, tmp_path / "straight")
    seen = []

    def fills(event: Event) -> None:
        seen.append(event)
        if isinstance(event, EpochFinished) and event.epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with pytest.raises(UserError, match="cannot write"):
            train(tiny, tmp_path / "full", save_seconds=0, on_event=fills)
    assert not (tmp_path / "full" / "config.json").exists()
    again = train(tiny, tmp_path / "full")
    assert {**again, "seconds": 0} == {**straight, "seconds": 0}
    assert checkpoint.load(tmp_path / "full").weights == checkpoint.load(tmp_path / "straight").weights
