"""Checkpoints: whole or refused, never unpickled."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.zoo import load_model


@pytest.fixture
def folder(tmp_path):
    recipe = TrainRecipe.read("digits_mlp")
    test = recipe.data.test()
    model = checkpoint.build(recipe, test.shape, test.classes)
    checkpoint.save(tmp_path / "mine", recipe, test, model.state_dict(), "# card\n", epoch=0)
    return tmp_path / "mine"


def test_round_trip(folder):
    loaded = checkpoint.load(folder)
    again = checkpoint.build(loaded.recipe, (1, 8, 8), 10)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in loaded.model.state_dict().items())
    assert loaded.weights == loaded.config["weights"] and not loaded.model.training
    assert load_model(str(folder)).name == "mine"


def test_half_precision_round_trip(folder, monkeypatch):
    loaded = checkpoint.load(folder)
    assert all(tensor.dtype == torch.float32 for tensor in checkpoint.halve(loaded.model.state_dict()).values())  # all small
    monkeypatch.setattr(checkpoint, "HALF_FROM", 64)
    half = checkpoint.halve(loaded.model.state_dict())
    checkpoint.save(folder, loaded.recipe, loaded.recipe.data.test(), half, "# card\n")
    again = checkpoint.load(folder)
    for name, tensor in again.model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, half[name].float())
        assert half[name].dtype == (torch.half if tensor.numel() >= 64 else torch.float32)
    assert {tensor.dtype for tensor in half.values()} == {torch.half, torch.float32}


def alter_tensor(change):
    def alter(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        config["weights"] = checkpoint.weights_digest(state)
        (folder / "config.json").write_text(json.dumps(config))

    return alter


def alter_config(**changes):
    def alter(folder):
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))

    return alter


def cut(name, keep):
    def alter(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:keep])

    return alter


def flip_a_bit(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))


ALTERED = {
    "flipped bit": (flip_a_bit, "weights have digest"),
    "half-written": (lambda f: (f / "config.json").unlink(), "half-written: config.json is missing"),
    "cut weights": (cut("model.safetensors", 200), "not a readable safetensors file"),
    "cut config": (cut("config.json", 30), "unreadable config.json"),
    "empty recipe": (cut("recipe.yaml", 0), "recipe.yaml is not a mapping"),
    "missing tensor": (alter_tensor(lambda s: s.pop("1.weight")), "'1.weight' is missing"),
    "extra tensor": (alter_tensor(lambda s: s.update(more=torch.zeros(1))), "unexpected tensor 'more'"),
    "wrong shape": (alter_tensor(lambda s: s.update({"1.bias": torch.zeros(3)})), r"shape \(3,\), expected \(128,\)"),
    "NaN": (alter_tensor(lambda s: s["1.bias"].fill_(torch.nan)), "holds NaN"),
    "foreign format": (alter_config(format=99), "expected format 1, found 99"),
    "giant shape": (alter_config(shape=[10**9]), "implausible shape"),
    "no shape": (alter_config(shape=None), "unreadable config.json"),
}


@pytest.mark.parametrize("alter, line", ALTERED.values(), ids=ALTERED.keys())
def test_an_altered_folder_is_refused_in_one_line(folder, alter, line):
    alter(folder)
    with pytest.raises(UserError, match=line) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self):
        return (shutil.rmtree, ("/nonexistent-bomb",))


def test_pth_files_are_never_unpickled(folder, tmp_path):
    state = checkpoint.load(folder).model.state_dict()
    torch.save(state, tmp_path / "plain.pth")
    named = load_model("digits_mlp", str(tmp_path / "plain.pth"))
    assert all(torch.equal(v, state[k]) for k, v in named.model.state_dict().items())
    torch.save({"state_dict": state, "bomb": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save([1, 2], tmp_path / "list.pth")
    for name, line in (("bomb.pth", "plain state dict"), ("raw.pth", "plain state dict"), ("list.pth", "found list")):
        with pytest.raises(UserError, match=line):
            load_model("digits_mlp", str(tmp_path / name))
    with pytest.raises(UserError, match="no weights file"):
        load_model("digits_mlp", str(tmp_path / "nowhere.pth"))
    with pytest.raises(UserError, match=r"expected weights as \.safetensors"):
        (tmp_path / "x.bin").write_bytes(b"")
        load_model("digits_mlp", str(tmp_path / "x.bin"))


def test_unknown_models_are_guessed():
    with pytest.raises(UserError, match="did you mean 'digits_mlp'"):
        load_model("digit_mlp")
    with pytest.raises(UserError, match="cannot import 'nopackage'"):
        load_model("nopackage:build", data="digits")
    with pytest.raises(UserError, match="add --data"):
        _ = load_model("torch.nn:Identity").test
    with pytest.raises(UserError, match="has no 'Linea'; did you mean 'Linear'"):
        load_model("torch.nn:Linea", data="digits")
