"""A training of the user's own network, layer, penalty, loss and data set; and nothing of strangers is imported."""

import doctest
import sys
from pathlib import Path

import pytest
import torch
import yaml
from forger import resealed
from torch import nn

from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.nodes.code_names import TYPED, allowed
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.sweep.description import Sweep
from robustbench_rkhs.sweep.plan import Plan
from robustbench_rkhs.training import checkpoint, losses, penalties
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.penalties import PenaltyNode
from robustbench_rkhs.training.recipe import TrainRecipe

MINE = '''
from typing import Literal

import numpy as np
import torch
from torch import nn

from robustbench_rkhs.data import DataSet
from robustbench_rkhs.lipschitz import Bound, rule
from robustbench_rkhs.training.losses import LossNode
from robustbench_rkhs.training.penalties import PenaltyNode


class Halved(nn.Module):
    """A layer of one's own."""

    def forward(self, x):
        return x / 2


@rule.register
def _(module: Halved, shape: tuple) -> Bound:
    return Bound(0.5, shape)


class Small(nn.Sequential):
    def __init__(self, classes, width=4):
        super().__init__(nn.Flatten(), Halved(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))


class Flat(PenaltyNode):
    """Small logits."""

    power: int = 2

    def __call__(self, model, x, y, keys=None):
        return self.weight * model(x).abs().pow(self.power).mean()


class Mean(LossNode):
    """The mean margin."""

    scale: float = 1.0

    def __call__(self, model, x, y, keys=None):
        return self.scale * torch.nn.functional.multi_margin_loss(model(x), y)


class Blobs(DataSet):
    """Random images of two classes."""

    name: Literal["blobs"] = "blobs"
    spread: float = 0.1

    def arrays(self):
        draw = np.random.default_rng(0)
        y = np.arange(24) % 2
        x = np.clip(0.3 + 0.4 * y[:, None, None, None] + self.spread * draw.normal(size=(24, 1, 8, 8)), 0, 1).astype(np.float32)
        return x[:16], y[:16], x[16:], y[16:]


net = Small(10, 3)


def number():
    return 3


def fails():
    raise RuntimeError("no such luck")
'''
CANARY = "from pathlib import Path\nPath('sung').write_text('imported')\n"
SMALL = {"data": {"name": "digits", "train": 16}, "network": {"name": "mlp", "hidden": [4]}, "epochs": 1, "batch_size": 8}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A working directory with code of one's own, a stranger's, and a models/ folder."""
    (tmp_path / "mynets.py").write_text(MINE)
    (tmp_path / "canary.py").write_text(CANARY)
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mynets", "canary"):
        sys.modules.pop(name, None)
    yield tmp_path
    for name in ("mynets", "canary"):
        sys.modules.pop(name, None)


OWN = {
    "data": {"name": "mynets:Blobs", "spread": 0.2},
    "network": {"name": "mynets:Small", "width": 5},
    "loss": {"name": "mynets:Mean", "scale": 0.5},
    "penalties": [{"name": "mynets:Flat", "power": 4, "schedule": {"weight": {"end": 0.5}}}, {"name": "gradient"}],
}


def test_a_recipe_of_ones_own_models_trains_ones_own_code(mine):
    (mine / "models/own.yaml").write_text(yaml.safe_dump(SMALL | OWN))
    recipe = TrainRecipe.read("own", {"network.width": "6"})
    train(recipe, mine / "m")
    stored = yaml.safe_load((mine / "m/recipe.yaml").read_text())
    assert stored["network"] == {"name": "mynets:Small", "mean": [], "std": [], "width": 6}
    assert stored["loss"] == {"name": "mynets:Mean", "scale": 0.5, "schedule": {}} and stored["penalties"][0]["power"] == 4
    with pytest.raises(UserError, match="already holds this recipe, trained"):
        train(recipe, mine / "m")
    with pytest.raises(UserError, match=r"another recipe \(network.width: 6 before, 5 now\)"):
        train(TrainRecipe.read("own"), mine / "m")
    with pytest.raises(UserError, match=r"'mynets:Blobs' names code.*--allow-code mynets"):
        checkpoint.load(mine / "m")
    loaded = checkpoint.load(mine / "m", allowed(["mynets"]))
    assert loaded.recipe == recipe and len(loaded.model[0][2].bias) == 6
    test = recipe.data.test()
    radii = MarginCertificate().radii(loaded.model, test.x, loaded.model(test.x).argmax(1))
    with torch.no_grad():
        worst = [torch.linalg.matrix_norm(loaded.model[0][part].weight, 2) for part in (2, 4)]
        margins = loaded.model(test.x).sort().values.diff(dim=1)[:, -1]
    least = margins / (2**0.5 * 0.5 * worst[0] * worst[1])  # the layer's factor of a half is in the proof
    assert (radii >= 0.99 * least).all() and radii.max() > 0


def test_the_command_line_names_code(mine, monkeypatch, capsys):
    from robustbench_rkhs.cli.train import main

    words = ["--network.name", "mynets.py:Small", "--network.width", "3", "--penalties", "[{name: mynets:Flat}]"]
    small = ["--epochs", "1", "--data.train", "16", "--device", "cpu", "--out", "m"]
    monkeypatch.setattr("sys.argv", ["rkhs-train", "--model", "digits_mlp", *words, *small])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0, capsys.readouterr().err
    assert checkpoint.load("m", allowed(["mynets", "mynets.py"])).recipe.network.label == "mynets.py:Small"


def test_commands_open_a_folder_of_ones_own_that_names_code(mine, monkeypatch, capsys):
    from robustbench_rkhs.cli import evaluate, norms, tightness

    train(TrainRecipe.parse(SMALL | OWN, "own", TYPED), mine / "m")
    cheap = ["--eps", "0.1", "--samples", "4", "--attack", "pgd:steps=1", "--certify", "none", "--no-diagnostics"]
    few = ["--samples", "2"]
    for command, words in ((evaluate, cheap), (tightness, few), (norms, [*few, "--training-samples", "4"])):
        for allowed_code, code in (((), 2), (("--allow-code", "mynets"), 0)):
            monkeypatch.setattr("sys.argv", ["rkhs", "--model", str(mine / "m"), *words, *allowed_code, "--out", str(mine / "out")])
            with pytest.raises(SystemExit) as left:
                command.main()
            said = capsys.readouterr().err
            assert (left.value.code or 0) == code, said
            assert code == 0 or "names code" in said


def test_python_takes_instances_and_mappings(mine):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = module[1].weight.detach().clone()

    class Own(PenaltyNode):
        def __call__(self, model, x, y, keys=None):
            return self.weight * model(x).square().mean()

    train(SMALL | {"network": module, "penalties": [Own(weight=0.5)]}, mine / "a")
    assert torch.equal(module[1].weight, before)  # a copy is trained
    stored = checkpoint.read_safetensors(mine / "a/model.safetensors")
    assert not torch.equal(stored["0.1.weight"], before)
    train(SMALL | {"network": {"name": "mynets:Small", "width": 3}}, mine / "b")
    train(SMALL | {"network": "mynets:net"}, mine / "c")
    assert TrainRecipe.parse(SMALL | {"network": "mynets:Small:width=3"}, code=TYPED).network.model_extra == {"width": 3}


MISTAKES = {
    "no such name": ("mynets:Smal", "did you mean 'Small'"),
    "no such module": ("nonets:Small", "cannot import 'nonets'"),
    "wrong argument": ("mynets:Small:depth=3", r"mynets:Small cannot be made: TypeError: .*depth"),
    "raises": ("mynets:fails", r"mynets:fails cannot be made: RuntimeError: no such luck \(mynets.py, line \d+\)"),
    "no module": ("mynets:number", "returned int, expected an nn.Module"),
    "other shape": ("torch.nn:Identity", r"gives \(2, 1, 8, 8\) for two images, expected logits of 10 classes"),
    "a penalty": ("mynets:Flat", "cannot be made|returned Flat"),
}


@pytest.mark.parametrize("name, line", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_own_code_is_one_line(mine, name, line):
    with pytest.raises(UserError, match=line) as caught:
        train(SMALL | {"network": name}, mine / "m")
    assert "\n" not in str(caught.value)


STRANGE = {
    "data": {"name": "canary:Data"},
    "network": {"name": "canary:Net"},
    "network as text": "canary:Net",
    "nested": {"name": "spectrally_normalised", "network": {"name": "canary:Net"}},
    "loss": {"name": "canary:Loss"},
    "penalties": [{"name": "canary:Penalty"}],
    "sampler": [{"name": "function_norm", "sampler": {"name": "canary.py:Sampler"}}],
    "optimizer": {"name": "canary:Optimizer"},
    "schedule": {"name": "canary:Schedule"},
}
PLACES = {"network as text": "network", "nested": "network", "sampler": "penalties"}


@pytest.mark.parametrize("place", STRANGE)
def test_nothing_in_a_file_of_strangers_is_imported(mine, place):
    field = PLACES.get(place, place)
    train(SMALL, mine / "m")
    (mine / "elsewhere").mkdir()
    foreign = yaml.safe_dump(SMALL | {field: STRANGE[place]})
    (mine / "elsewhere/recipe.yaml").write_text(foreign)
    (mine / "m/recipe.yaml").write_text(foreign)
    resealed(mine / "m")
    sweep = {"recipe": "elsewhere/recipe.yaml", "vary": {"epochs": [1]}, "eps": 0.1, "settings": {"data.validation": 4}}
    own = {"recipe": "digits_mlp", "vary": {"epochs": [1]}, "eps": 0.1, "settings": {field: STRANGE[place]}}
    readers = [
        lambda: checkpoint.load(mine / "m"),
        lambda: checkpoint.load(mine / "m", allowed(["mynets"])),
        lambda: train(TrainRecipe.parse(SMALL), mine / "m"),
        lambda: TrainRecipe.read("elsewhere/recipe.yaml"),
        lambda: TrainRecipe.read("models/../elsewhere/recipe.yaml"),
        lambda: TrainRecipe.read("elsewhere/recipe.yaml", {"loss.name": "mynets:Mean"} if field != "loss" else {"epochs": "1"}),
        lambda: Plan(Sweep.model_validate(sweep)),
        lambda: Plan(Sweep.model_validate(own)),
    ]
    for read in readers:
        with pytest.raises(UserError, match=r"names code, which is only imported from what you type"):
            read()
    assert "canary" not in sys.modules and not Path("sung").exists()
    if place == "network":  # the canary would sing
        with pytest.raises(UserError, match="has no 'Net'"):
            TrainRecipe.read("elsewhere/recipe.yaml", {"network.name": "canary:Net"})
        assert Path("sung").exists()


@pytest.mark.parametrize("module", [losses, penalties], ids=["losses", "penalties"])
def test_the_examples_of_a_loop_of_ones_own_run(module):
    found = doctest.testmod(module)
    assert found.attempted >= 7 and found.failed == 0


def test_one_penalty_is_typed_without_brackets():
    stored = {"network": "mlp", "data": "digits", "epochs": 1}
    assert TrainRecipe.parse(stored | {"penalties": "gradient:weight=0.5"}, "train").penalties[0].weight == 0.5
