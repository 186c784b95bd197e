"""Checkpoints: whole or refused, never unpickled."""

import json
import pickle
import shutil

import pytest
import torch
import yaml
from forger import resealed
from safetensors.torch import load_file, save_file

from robustbench_rkhs.identity import identity_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.seals import seal_of
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.zoo import load_model


@pytest.fixture
def sealed(tmp_path):
    recipe = TrainRecipe.read("digits_mlp")
    test = recipe.data.test()
    model = checkpoint.build(recipe, test.shape, test.classes)
    checkpoint.save(tmp_path / "mine", recipe, test, model.state_dict(), "# card\n", epoch=0)
    return tmp_path / "mine"


@pytest.fixture
def folder(sealed):
    """As a version wrote it that did not seal its files: nothing but the digest of the weights guards it."""
    state, recipe = load_file(sealed / "model.safetensors"), TrainRecipe.read(sealed / "recipe.yaml")
    save_file(state, sealed / "model.safetensors")
    (sealed / "recipe.yaml").write_text(recipe.yaml())
    alter_config(format=1)(sealed)
    config = json.loads((sealed / "config.json").read_text())
    (sealed / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in ("seal", "seals")}))
    return sealed


@pytest.mark.parametrize("kind", ["sealed", "folder"])
def test_round_trip(kind, request):
    folder = request.getfixturevalue(kind)
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
    "half-written": (lambda f: (f / "config.json").unlink(), "incomplete: config.json is missing; expected"),
    "cut weights": (cut("model.safetensors", 200), "not a readable safetensors file"),
    "cut config": (cut("config.json", 30), "config.json is not JSON"),
    "empty recipe": (cut("recipe.yaml", 0), "recipe.yaml is not a mapping"),
    "missing tensor": (alter_tensor(lambda s: s.pop("1.weight")), "'1.weight' is missing"),
    "extra tensor": (alter_tensor(lambda s: s.update(more=torch.zeros(1))), "unexpected tensor 'more'"),
    "wrong shape": (alter_tensor(lambda s: s.update({"1.bias": torch.zeros(3)})), r"shape \(3,\), expected \(128,\)"),
    "NaN": (alter_tensor(lambda s: s["1.bias"].fill_(torch.nan)), "holds NaN"),
    "foreign format": (alter_config(format=99), "expected format 2, found 99"),
    "giant shape": (alter_config(shape=[10**9]), "implausible shape"),
    "no shape": (alter_config(shape=None), "config.json lacks what it must say"),
}


@pytest.mark.parametrize("alter, line", ALTERED.values(), ids=ALTERED.keys())
def test_an_altered_folder_is_refused_in_one_line(folder, alter, line):
    alter(folder)
    with pytest.raises(UserError, match=line) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)


def test_a_sealed_folder_says_which_of_its_files_is_not_the_one_it_names(sealed, tmp_path):
    other = tmp_path / "other/mine"
    recipe = TrainRecipe.read("digits_mlp", {"seed": "7"})
    model = checkpoint.build(recipe, (1, 8, 8), 10)
    checkpoint.save(other, recipe, recipe.data.test(), model.state_dict(), "# card\n", epoch=0)
    for name in ("recipe.yaml", "model.safetensors"):  # each whole and sealed, but of another checkpoint
        whole = (sealed / name).read_bytes()
        (sealed / name).write_bytes((other / name).read_bytes())
        with pytest.raises(UserError, match=f"{name}: damaged: it is not the file that config.json names"):
            checkpoint.load(sealed)
        (sealed / name).write_bytes(whole)
    assert checkpoint.load(sealed)


def test_a_folder_from_before_is_sealed_as_it_is(folder):
    before = checkpoint.load(folder)
    checkpoint.seal(folder)
    after = checkpoint.load(folder)
    assert after.weights == before.weights and after.recipe == before.recipe and after.config["format"] == 2
    assert all(seal_of(folder / name, required=True) for name in ("config.json", "recipe.yaml", "model.safetensors"))
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    checkpoint.seal(folder)
    assert kept == {path.name: path.read_bytes() for path in folder.iterdir()}


def forged(folder, line, **config):
    """The recipe's line changed, and with it whatever of config.json a forger thinks of; all digests are whole."""
    stored = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(stored | {"network": stored["network"] | line}))
    alter_config(**config)(folder)
    resealed(folder)


@pytest.fixture
def bounded(tmp_path):
    recipe = TrainRecipe.read("digits_sandwich", {"network.hidden": "[8]"})
    test = recipe.data.test()
    checkpoint.save(tmp_path / "mine", recipe, test, checkpoint.build(recipe, test.shape, 10).state_dict(), "# card\n")
    return tmp_path / "mine"


def test_one_changed_line_of_a_recipe_is_another_network_and_refused(bounded):
    """The tensors are those of the digest: what differs is the function."""
    config = checkpoint.load(bounded).config
    forged(bounded, {"lipschitz": 10.0})
    with pytest.raises(UserError, match=r"name different networks \(lipschitz: 1 in config.json, 10 in recipe.yaml\)"):
        checkpoint.load(bounded)
    forged(bounded, {}, network=config["network"] | {"lipschitz": 10.0})
    with pytest.raises(UserError, match="logits on the fixed images differ"):
        checkpoint.load(bounded)
    forged(bounded, {}, logits=None)  # nothing is left that says what the function was: it is a model of its own
    assert identity_of(checkpoint.load(bounded).model, (1, 8, 8)).key != config["key"]


def test_a_network_as_an_older_version_wrote_it_is_the_same(bounded):
    config = checkpoint.load(bounded).config
    del config["network"]["learnable"]
    alter_config(**config)(bounded)
    resealed(bounded)
    assert checkpoint.load(bounded)


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
    for name, line in (("bomb.pth", "plain state dict"), ("raw.pth", "plain state dict"), ("list.pth", r"found \(list of 2\)")):
        with pytest.raises(UserError, match=line):
            load_model("digits_mlp", str(tmp_path / name))
    with pytest.raises(UserError, match="no weights file"):
        load_model("digits_mlp", str(tmp_path / "nowhere.pth"))
    with pytest.raises(UserError, match=r"expected weights as \.safetensors"):
        (tmp_path / "x.txt").write_bytes(b"")
        load_model("digits_mlp", str(tmp_path / "x.txt"))


def test_unknown_models_are_guessed():
    with pytest.raises(UserError, match="did you mean 'digits_mlp'"):
        load_model("digit_mlp")
    with pytest.raises(UserError, match="cannot import 'nopackage'"):
        load_model("nopackage:build", data="digits")
    with pytest.raises(UserError, match="add --data"):
        _ = load_model("torch.nn:Identity").test
    with pytest.raises(UserError, match="has no 'Linea'; did you mean 'Linear'"):
        load_model("torch.nn:Linea", data="digits")
