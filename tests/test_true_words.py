"""What is said of a model is so: outputs, training mode, denied falls, and which mistake explains a claim."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs import UserError, certify
from robustbench_rkhs.audit.mistakes import MISTAKES
from robustbench_rkhs.audit.scene import Scene
from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.evaluation.predictions import no_logits
from robustbench_rkhs.layers import Scale
from robustbench_rkhs.lipschitz import Uncertifiable

X = torch.rand(6, 2, 3, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (torch.randn(9, 4).softmax(1), "probabilities"),
        (functional.one_hot(torch.arange(9) % 4, 4).float(), "one-hot"),
        (torch.tensor([[0.25, 0.25, 0.5]]).repeat(9, 1), ""),
        (torch.randn(9, 4), ""),
        (torch.randn(1, 4).softmax(1), "probabilities"),
        (torch.zeros(0, 4), ""),
    ],
)
def test_outputs_are_called_what_they_are(outputs: Tensor, words: str) -> None:
    said = no_logits(outputs)
    assert words in said and bool(said) == bool(words)


class Stubborn(nn.Dropout):
    """Draws whatever mode it is told."""

    def train(self, mode: bool = True) -> "Stubborn":
        self.training = True
        return self


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.dropout(x.flatten(1)))


def around(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(18, 3))


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (around(Stubborn()), r"the train\(\) of Stubborn keeps it|overrides"),
        (around(nn.BatchNorm2d(2, track_running_stats=False)), "keeps no running statistics"),
        (Functional(), r"called without training=self.training"),
    ],
)
def test_a_model_in_eval_mode_is_not_told_to_call_eval(model: nn.Module, line: str) -> None:
    model.eval()
    with pytest.raises(UserError, match=line) as refused:
        certify(model, X, torch.zeros(6, dtype=torch.int64), certificates="margin")
    assert "eval()" not in str(refused.value)


def test_a_layer_left_in_training_mode_is_named_with_what_to_do() -> None:
    model = around(nn.BatchNorm2d(2)).eval()
    model[0].train()
    with pytest.raises(Uncertifiable, match=r"for 0 .*call eval\(\) of it"):
        MarginCertificate()(model, X, torch.zeros(6, dtype=torch.int64), torch.arange(6), ())


class ByHand(nn.Module):
    """A normalisation under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.tensor([0.5, 0.5]).view(2, 1, 1))
        self.register_buffer("spread", torch.tensor([0.25, 0.5]).view(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.centre) / self.spread


def normalised() -> nn.Module:
    norm = nn.BatchNorm2d(2, affine=False)
    norm.running_mean.fill_(0.5)
    norm.running_var.copy_(torch.tensor([0.25, 0.5]) ** 2)
    return norm


INPUT, INNER = "input normalisation dropped", "BatchNorm counted as 1"


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([normalised(), nn.Flatten(), nn.Linear(18, 3)], INPUT),
        ([nn.Conv2d(2, 2, 1), nn.ReLU(), normalised(), nn.Flatten(), nn.Linear(18, 3)], INNER),
        ([Scale(2.0), nn.Flatten(), nn.Linear(18, 3)], None),
        ([nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)], None),
    ],
    ids=["BatchNorm at the input", "BatchNorm behind weights", "a scale", "no normalisation"],
)
def test_a_normalisation_is_known_by_its_place_and_arithmetic(layers: list[nn.Module], named: str | None) -> None:
    model = nn.Sequential(*layers).eval()
    scene = Scene.of(model, X, model(X).argmax(1))
    found = {name for name in (INPUT, INNER) if MISTAKES[name](scene) is not None}
    assert found == ({named} if named else set())


def test_a_normalisation_written_by_hand_is_not_called_batch_norm() -> None:
    model = nn.Sequential(ByHand(), nn.Flatten(), nn.Linear(18, 3)).eval()
    scene = Scene.of(model, X, model(X).argmax(1))
    assert MISTAKES[INNER](scene) is None


def test_every_warning_about_training_mode_is_written_in_one_place() -> None:
    from pathlib import Path

    root: Any = Path(__file__).parent.parent / "robustbench_rkhs"
    assert not [path for path in root.rglob("*.py") if re.search(r"call model\.eval\(\) first", path.read_text())]
