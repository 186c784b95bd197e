"""Nothing that is read from a file imports what the file names: a canary in every kind of file."""

import importlib
import json
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from forger import resealed

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.submission.gate import check, submit, submit_adversarials
from robustbench_rkhs.sweep.description import Sweep
from robustbench_rkhs.sweep.plan import Plan
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.resume import stored_state
from robustbench_rkhs.verifier.check import verify
from robustbench_rkhs.zoo import hub, load_model

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


def forge(folder, field=None, stored=None):
    """Into the folder's recipe, the canary (or what is given) in this field; none where not given. Gives the recipe as it was."""
    stored = stored or yaml.safe_load((folder / "recipe.yaml").read_text())
    changed = stored | ({field: FIELDS[field]} if isinstance(field, str) else field or {})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(changed))
    resealed(folder)
    return stored


@pytest.mark.parametrize("field", FIELDS)
def test_a_recipe_of_a_checkpoint_folder_is_refused_by_name(cage, field):
    folder = folder_at(cage / "theirs")
    forge(folder, field)
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


def poisoned(path):
    """A file of torch.save whose pickle names the canary, as `class Boom` of a module that reading it would import."""
    torch.save({"weights": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w") as changed:
        for name, content in parts.items():
            changed.writestr(name, b"ccanary_module\nBoom\n." if name.endswith("data.pkl") else content)


def test_a_file_to_resume_from_is_not_unpickled(cage):
    recipe = TrainRecipe.parse({"data": {"name": "digits"}, "network": {"name": "mlp", "hidden": [2]}})
    poisoned(cage / "resume.pt")
    with pytest.raises(UserError, match=r"resume.pt is unreadable"):
        stored_state(recipe, cage, "cpu")
    stored = recipe.model_dump(mode="json") | {"loss": FIELDS["loss"]}
    torch.save({"recipe": yaml.safe_dump(stored), "where": [0, 0]}, cage / "resume.pt")
    with pytest.raises(UserError, match=CANARY):
        stored_state(recipe, cage, "cpu")


def test_weights_are_not_unpickled(cage):
    poisoned(cage / "weights.pth")
    with pytest.raises(UserError):
        load_model("digits_mlp", str(cage / "weights.pth"))
    folder = folder_at(cage / "theirs")
    poisoned(folder / "model.safetensors")
    with pytest.raises(UserError):
        checkpoint.load(folder)


@pytest.mark.parametrize("field", FIELDS)
def test_a_repository_of_the_hub_is_refused_by_name_and_no_code_of_it_is_fetched(cage, field, monkeypatch):
    folder, fetched = folder_at(cage / "theirs"), []
    shutil.copy(cage / "canary_module.py", folder / "modeling.py")
    forge(folder, field)

    def download(repository, file, revision):
        fetched.append(file)
        return str(folder / file)

    monkeypatch.setattr(hub, "_library", lambda: SimpleNamespace(hf_hub_download=download))
    with pytest.raises(UserError, match=CANARY):
        load_model("hf:them/theirs")
    assert set(fetched) <= set(hub.FILES) and not any(file.endswith(".py") for file in fetched)


def submitted(folder):
    """The gate's steps with this folder."""
    recipe = parse(EvalRecipe, {"eps": [0.1], "samples": 5}, "here")
    return list(submit(folder, recipe, sample=5, device="cpu", out=folder.parent / "out"))


@pytest.mark.parametrize("field", FIELDS)
def test_a_bundle_that_is_submitted_is_refused_by_name(cage, field):
    folder = folder_at(cage / "theirs")
    stored = forge(folder, field)
    with pytest.raises(UserError, match=CANARY):
        submitted(folder)
    forge(folder, stored=stored)
    for name in ("model.py", "weights.pkl"):
        poisoned(folder / name)
        with pytest.raises(UserError, match=f"unexpected file '{name}'"):
            submitted(folder)
        (folder / name).unlink()
    poisoned(folder / "resume.pt")  # allowed beside the weights, and never read
    check(folder)
    assert checkpoint.load(folder).model is not None


def test_what_a_package_announces_is_not_loaded_where_a_bundle_names_it(cage):
    info = cage / "canary-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: canary\nVersion: 1.0\n")
    kinds = ("losses", "networks", "data")
    (info / "entry_points.txt").write_text("".join(f"[robustbench_rkhs.{kind}]\nsinger = {CANARY}\n" for kind in kinds))
    folder = folder_at(cage / "theirs")
    stored = forge(folder)
    for field in ("loss", "network", "data"):
        forge(folder, {field: {"name": "singer"}}, stored)
        with pytest.raises(UserError, match="names code"):
            submitted(folder)


def test_tensors_name_nothing(cage):
    torch.save({CANARY: torch.zeros(1)}, cage / "weights.pth")
    with pytest.raises(UserError):
        load_model("digits_mlp", str(cage / "weights.pth"))
