"""Nothing that is read from a file imports what the file names: a canary in every kind of file."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from forger import resealed

from robustbench_rkhs import verdicts
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.submission.gate import check, submit_adversarials
from robustbench_rkhs.sweep.description import Sweep
from robustbench_rkhs.sweep.plan import Plan
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.verifier.check import verify
from robustbench_rkhs.zoo import load_model

CANARY = "canary_module:Boom"
FIELDS = {
    "network": {"name": CANARY},
    "loss": {"name": CANARY},
    "penalties": [{"name": CANARY}],
    "data": {"name": CANARY},
    "attack": {"name": CANARY},
    "validate_with": {"name": CANARY},
    "projections": [{"name": CANARY}],
    "optimizer": {"name": CANARY},
    "schedule": {"name": CANARY},
}


@pytest.fixture
def cage(tmp_path, monkeypatch):
    """A working directory with the canary, which leaves a file where it is imported."""
    song = "import pathlib\npathlib.Path(__file__).with_name('sung').touch()\nclass Boom: pass\n"
    (tmp_path / "canary_module.py").write_text(song)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    assert not (tmp_path / "sung").exists()
    importlib.import_module("canary_module")
    del sys.modules["canary_module"]
    assert (tmp_path / "sung").exists()  # it would have sung


def folder_at(place):
    """A finished checkpoint folder."""
    recipe = TrainRecipe.parse({"data": {"name": "digits"}, "network": {"name": "mlp", "hidden": [2]}})
    test = recipe.data.test()
    checkpoint.save(place, recipe, test, checkpoint.build(recipe, test.shape, test.classes).state_dict(), "a card")
    return place


@pytest.mark.parametrize("field", FIELDS)
def test_a_recipe_of_a_checkpoint_folder_is_refused_by_name(cage, field):
    folder = folder_at(cage / "theirs")
    stored = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(stored | {field: FIELDS[field]}))
    resealed(folder)
    for read in (checkpoint.load, lambda path: load_model(str(path)), lambda path: TrainRecipe.read(path / "recipe.yaml")):
        with pytest.raises(UserError) as refusal:
            read(folder)
        assert CANARY in str(refusal.value) and "\n" not in str(refusal.value)
    check(folder)  # the gate reads names of files alone here


def test_config_metrics_and_card_name_code_in_vain(cage):
    folder = folder_at(cage / "theirs")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"data": CANARY, "code": CANARY}))
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 0, "name": CANARY}) + "\n")
    (folder / "README.md").write_text(CANARY)
    resealed(folder)
    assert checkpoint.load(folder).model is not None
    (folder / "config.json").write_text(json.dumps(config | {"network": {"name": CANARY}}))
    resealed(folder)
    with pytest.raises(UserError, match="name different networks"):
        checkpoint.load(folder)


def test_a_table_with_code_in_its_metadata_is_data(cage):
    place = cage / "reports" / "verdicts" / "theirs" / "l2-0.parquet"
    place.parent.mkdir(parents=True)
    table = pa.Table.from_pandas(pd.DataFrame({"model": [CANARY]}))
    told = {"model": CANARY, "settings": {"attacks": [{"name": CANARY}], "certificates": [{"name": CANARY}]}}
    pq.write_table(table.replace_schema_metadata({b"about": json.dumps(told).encode(), b"rkhs": json.dumps(told).encode()}), place)
    with pytest.raises(UserError):
        verdicts.read(place)


def test_a_header_of_adversarial_images_and_a_proof_are_data(cage):
    header = {"model": CANARY, "weights": CANARY, "data": CANARY, "norm": "l2", "box": "unit"}
    np.savez(cage / "theirs.npz", header=np.array(json.dumps(header)), images=np.zeros((1, 1, 2, 2), dtype=np.float32))
    with pytest.raises(UserError):
        list(submit_adversarials(cage / "theirs.npz", device="cpu", out=cage / "out"))
    (cage / "proof").mkdir()
    (cage / "proof" / "proof.json").write_text(json.dumps({"format": 1, "layers": [{"kind": CANARY, "type": CANARY}]}))
    with pytest.raises(Exception) as refusal:
        verify(cage / "proof")
    assert not isinstance(refusal.value, ImportError)


def test_a_sweep_outside_of_models_imports_nothing(cage):
    (cage / "models").mkdir()
    base = {"data": {"name": "digits", "validation": 50}, "network": {"name": "mlp"}}
    (cage / "models" / "base.yaml").write_text(yaml.safe_dump(base))
    Path(cage / "sweep.yaml").write_text(
        yaml.safe_dump({"recipe": "base", "vary": {"loss.name": [CANARY]}, "eps": 0.1, "settings": {"network.name": CANARY}})
    )
    with pytest.raises(UserError):
        Plan(Sweep.read("sweep.yaml"))


def test_tensors_name_nothing(cage):
    torch.save({CANARY: torch.zeros(1)}, cage / "weights.pth")
    with pytest.raises(UserError):
        load_model("digits_mlp", str(cage / "weights.pth"))
