"""Seals: a file that was damaged is set aside, refused in a line, or gives what it gave before; never another value."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.pictures import runs
from robustbench_rkhs.reports import write_leaderboard
from robustbench_rkhs.runtime import seals
from robustbench_rkhs.runtime.seals import seal_of
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.verdicts import read_adversarials

EVERY = 53
"""Of the bits of a small file, which are flipped (a prime: all places of a byte, and of a word, come in turn)."""


def scene() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(4, 1, 4, 4)
    return model, x, model(x).argmax(1)


def evaluated(folder: Path, **more: Any) -> verdicts.Evaluation:
    model, x, y = scene()
    recipe: dict[str, Any] = {"eps": (0.1,), "attacks": [DDN(steps=2)], "certificates": ["margin"], "diagnostics": False}
    return evaluate(model, (x, y), folder=folder, **recipe, **more)


def flips(path: Path, every: int = EVERY):
    """The file with one bit flipped, again and again; whole afterwards. Yields which bit."""
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), every):
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        yield bit
    path.write_bytes(whole)


def unchanged_or_refused(path: Path, read: Callable[[], Any], every: int = EVERY) -> int:
    """Flips bits of a file: `read` must give what it gave before or refuse in a line. Returns how often it refused."""
    before, refused = read(), 0
    for bit in flips(path, every):
        try:
            assert read() == before, f"bit {bit} of {path.name} changed what is read"
        except UserError as line:
            refused += 1
            assert "\n" not in str(line) and path.name in str(line)
    assert read() == before
    return refused


def test_a_flipped_bit_of_a_table_is_refused(tmp_path):
    done = evaluated(tmp_path)

    def read() -> tuple[Any, ...]:
        found = verdicts.read(done.path)
        return verdicts.digest(found.table), found.about, found.sealed

    assert read()[2]
    assert unchanged_or_refused(done.path, read, 211) > 100


def test_a_flipped_bit_of_adversarial_images_is_refused(tmp_path):
    path = tmp_path / "found.npz"
    evaluated(tmp_path, adversarials=path)

    def read() -> tuple[Any, ...]:
        found = read_adversarials(path)
        return found.about, {name: array.tobytes() for name, array in found.arrays.items()}

    assert unchanged_or_refused(path, read) > 100


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_damaged_parts_are_set_aside_with_a_line_and_done_again(kind, tmp_path):
    first = evaluated(tmp_path, adversarials=True)
    parts = (path for path in (tmp_path / "model/parts").rglob(f"*.{kind}") if not path.name.startswith("answers-"))
    path = min(parts)  # not the known answers, which are asked for again without a word
    whole = path.read_bytes()
    for bit in range(7, 8 * len(whole), 8 * len(whole) // 5):
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        with pytest.warns(seals.SetAside, match="damaged.*set aside.*done again") as told:
            again = evaluated(tmp_path, adversarials=True)
        assert len(told) == 1 and "\n" not in str(told[0].message)
        assert verdicts.digest(again.table) == verdicts.digest(first.table)
        assert np.array_equal(again.nearest.images, first.nearest.images)
    assert list(path.parent.glob(".damaged-*")) and path.is_file()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluated(tmp_path, adversarials=True)  # once is enough: nothing is damaged now


def test_a_part_of_another_job_is_not_served(tmp_path):
    """Its seal is whole; its key is not that of its place."""
    first = evaluated(tmp_path)
    one, other = sorted(path for path in (tmp_path / "model/parts").rglob("*.parquet"))[:2]
    one.write_bytes(other.read_bytes())
    with pytest.warns(seals.SetAside, match="part of another job"):
        assert verdicts.digest(evaluated(tmp_path).table) == verdicts.digest(first.table)


def test_a_table_from_before_is_read_but_not_ranked(tmp_path):
    done = evaluated(tmp_path / "verdicts")
    unsealed(done.path)
    found = verdicts.read(done.path)
    assert not found.sealed and verdicts.digest(found.table) == verdicts.digest(done.table)
    write_leaderboard([found], tmp_path)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "### Unsealed" in text and "from before tables were sealed" in text and "| 1" not in text
    write_leaderboard([replace(found, about=found.about.but(key="", logits=())), done], tmp_path)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "### Unsealed" not in text and "| 1" in text  # it was evaluated again


def unsealed(path: Path) -> None:
    """The table as a version from before seals wrote it."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    kept = dict(table.schema.metadata)
    del kept[verdicts.store.SEAL]
    said = json.loads(kept[verdicts.store.METADATA])
    del said["format"]
    kept[verdicts.store.METADATA] = json.dumps(said).encode()
    pq.write_table(table.replace_schema_metadata(kept), path)


def test_the_report_goes_on_past_a_file_it_cannot_read_and_names_it(tmp_path):
    one, _ = (evaluated(tmp_path / "verdicts", name=name) for name in ("one", "other"))
    one.path.write_bytes(one.path.read_bytes()[:-9])
    unread: list[str] = []
    found = verdicts.read_all(tmp_path / "verdicts", unread.append)
    assert [done.about.model for done in found] == ["other"] and len(unread) == 1 and one.path.name in unread[0]
    write_leaderboard(found, tmp_path, unread)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "| other" in text and "## Not read" in text and str(one.path) in text
    with pytest.raises(UserError, match=one.path.name):
        verdicts.read_all(tmp_path / "verdicts")


def test_records_lines_and_commented_text(tmp_path):
    path = tmp_path / "record.json"
    seals.write_record(path, {"a": 1.5, "b": ["c"]})
    assert seals.read_record(path, required=True) == {"a": 1.5, "b": ["c"]}
    assert unchanged_or_refused(path, lambda: seals.read_record(path), 7) > 100
    seals.write_commented(tmp_path / "x.yaml", "a: 1\n")
    assert len(seal_of(tmp_path / "x.yaml", required=True)) == 64
    (tmp_path / "plain.yaml").write_text("a: 1\n")
    assert seals.seal_of(tmp_path / "plain.yaml") == ""
    with pytest.raises(seals.Damaged, match="expected its seal, found none"):
        seals.seal_of(tmp_path / "plain.yaml", required=True)


@pytest.fixture
def trained(tmp_path):
    """A network that fits into a few kilobytes, trained for an epoch."""
    recipe = TrainRecipe.read("digits_mlp", {"epochs": "1", "network.hidden": "[2]", "data.train": "100", "data.validation": "20"})
    train(recipe, tmp_path / "m")
    return recipe, tmp_path / "m"


def test_a_flipped_bit_of_a_checkpoint_is_refused(trained):
    _, folder = trained

    def read() -> tuple[Any, ...]:
        found = checkpoint.load(folder)
        return found.weights, found.recipe, found.config

    for name in ("config.json", "recipe.yaml", "model.safetensors"):
        assert unchanged_or_refused(folder / name, read, 331) > 10
    last, metrics = folder / "last.safetensors", folder / "metrics.jsonl"
    assert unchanged_or_refused(last, lambda: {name: t.tolist() for name, t in checkpoint.read_safetensors(last).items()}, 331) > 10
    assert unchanged_or_refused(metrics, lambda: runs._records(folder), 331) > 4


def test_a_damaged_state_of_a_training_is_set_aside_and_the_training_done_again(trained):
    recipe, folder = trained
    state = folder / "resume.pt"
    whole = state.read_bytes()
    for at in (100, len(whole) // 2, len(whole) - 100):
        spoilt = bytearray(whole)
        spoilt[at] ^= 4
        state.write_bytes(spoilt)
        (folder / "config.json").unlink(missing_ok=True)
        with pytest.warns(seals.SetAside, match="resume.pt.*damaged.*set aside"):
            train(recipe, folder)
        assert checkpoint.load(folder).recipe == recipe
    assert len(list(folder.glob(".damaged-*"))) == 3


def test_words_that_read_like_a_seal_are_no_seal(tmp_path):
    """The command that made a table is in its metadata, and anybody may type anything."""
    done = evaluated(tmp_path, command=f"rkhs-eval --about {seals.BLANK}")
    assert verdicts.read(done.path).about.command == f"rkhs-eval --about {seals.BLANK}" and verdicts.read(done.path).sealed
    header = json.loads('"' + seals.unmarked(seals.BLANK) + '"')
    assert header == seals.BLANK


def test_a_seal_across_pieces_of_reading_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(seals, "CHUNK", 64)
    for before in (0, *range(60, 70), 128):
        for after in (0, 10, 99, 300):
            path, text = tmp_path / "x", b"x" * before + seals.BLANK.encode() + b"y" * after
            seals.write_sealed(path, lambda one, text=text: one.write_bytes(text), durable=False)
            assert seals.seal_of(path, required=True)
