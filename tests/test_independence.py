"""Models whose answers depend on the batch, on earlier calls or on chance are named, and none of their accuracies is told."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_rkhs import UserError, attack, evaluate, robust_accuracy, verdicts
from robustbench_rkhs.cli.condition import Condition
from robustbench_rkhs.evaluation.independence import independence
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.reports import report
from robustbench_rkhs.reports.entries import board
from robustbench_rkhs.reports.tables import console, write_tables

X = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
FAST: dict[str, Any] = {"attacks": "superdeepfool", "certificates": (), "diagnostics": False}


class Net(nn.Module):
    """A small network between two changes."""

    def __init__(self, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Tensor] = lambda f: f) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
        self.before, self.after = before, after
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


class OwnStatistics(Net):
    """BatchNorm on the statistics of the batch, whatever mode the model is in."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net[1:](nn.functional.batch_norm(self.net[0](x), None, None, training=True))


class Remembers(Net):
    """Gives the answers of an earlier call to a batch of that size."""

    def forward(self, x: Tensor) -> Tensor:
        known = self.__dict__.setdefault("known", {})
        return known.setdefault((len(x), torch.is_grad_enabled()), self.net(x))


class Drifts(Net):
    """A running mean that goes on in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * getattr(self, "mean", torch.zeros(1)) + 0.1 * x.detach().mean()
        return self.net(x - self.mean)


FAILING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch statistics": (OwnStatistics, "batch_dependent"),
    "a mean over the batch": (lambda: Net(before=lambda x: x - x.mean(0)), "batch_dependent"),
    "a mean over all of it": (lambda: Net(before=lambda x: x - 0.1 * x.mean()), "batch_dependent"),
    "scaled by the largest": (lambda: Net(before=lambda x: x / x.amax()), "batch_dependent"),
    "logits of a neighbour": (lambda: Net(after=lambda f: f - 0.1 * f.roll(1, 0)), "batch_dependent"),
    "ranks among the batch": (lambda: Net(after=lambda f: f + 0.1 * f.argsort(0).float()), "batch_dependent"),
    "in large blocks alone": (lambda: Net(after=lambda f: f if len(f) < 20 else f.roll(1, 1)), "batch_dependent"),
    "a cache": (Remembers, "batch_dependent"),
    "a running mean": (Drifts, "randomised"),
    "noise": (lambda: Net(before=lambda x: x + 0.05 * torch.randn_like(x)), "randomised"),
}
HONEST: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "far from 0": lambda: Net(after=lambda f: f + 1e5),
    "large": lambda: Net(after=lambda f: f * 1e6),
    "bfloat16": lambda: Net().bfloat16(),
    "half": lambda: Net().half(),
    "BatchNorm in eval mode": lambda: Net(before=nn.BatchNorm2d(1).eval()),
    "its own mean": lambda: Net(before=lambda x: x - x.mean((1, 2, 3), keepdim=True)),
    "quantised": lambda: Net(before=lambda x: (x * 16).round() / 16),
    "constant": lambda: Net(after=lambda f: 0 * f + torch.tensor([1.0, 0, 0, 0])),
    "smoothed noise": lambda: Smoothed(Net(before=lambda x: x + 0.05 * torch.randn_like(x)), 0.1, votes=20),
}


def asked(model: nn.Module, count: int = 40, block: int = 100) -> verdicts.Diagnosis:
    x = X[:count].to(next(model.parameters()).dtype)
    with torch.no_grad():
        logits = model(x)
    return independence(model, x, logits, list(range(count)), 0, block)


@pytest.mark.parametrize(("make", "name"), FAILING.values(), ids=FAILING)
def test_an_answer_that_depends_on_anything_but_the_image_is_named(make: Callable[[], nn.Module], name: str) -> None:
    found = asked(make())
    assert found.tripped and found.name == name


@pytest.mark.parametrize("make", HONEST.values(), ids=HONEST)
def test_an_honest_model_is_not(make: Callable[[], nn.Module]) -> None:
    assert not asked(make()).tripped


@pytest.mark.parametrize("name", ["a mean over the batch", "batch statistics", "scaled by the largest"])
def test_one_image_is_enough_to_be_named(name: str) -> None:
    assert asked(FAILING[name][0](), 1).tripped
    assert not asked(Net(), 1).tripped


@pytest.mark.parametrize("block", [1, 7, 16, 100])
def test_the_block_of_the_evaluation_changes_no_finding(block: int) -> None:
    for make, name in FAILING.values():
        assert asked(make(), 30, block).name == name
    assert not asked(Net(), 30, block).tripped


@pytest.fixture(scope="module")
def done() -> verdicts.Evaluation:
    model = FAILING["a mean over the batch"][0]()
    return evaluate(model, (X, model(X).argmax(1)), eps=(0.05, 0.5), name="mixing", **FAST)


def test_no_accuracy_is_told_not_even_the_clean_one(done: verdicts.Evaluation) -> None:
    assert "batch_dependent" in done.about.marks and "undiagnosed" in verdicts.marks(done)
    row = done.summary(0.5).iloc[0]
    for share in ("clean", "robust", "certified", "open", "not_broken"):
        assert math.isnan(row[share])
    for question in (done.robust_accuracy, done.certified_accuracy, done.robust_range):
        with pytest.raises(UserError, match="every accuracy of 'mixing' is withheld: batch_dependent: asked alone"):
            question(0.5)
    held, line = Condition.read("clean>=0").check(done)
    assert held is None and "batch_dependent" in line


def test_it_is_named_in_table_board_figure_page_and_json(done: verdicts.Evaluation, tmp_path: Any) -> None:
    table = console(done)
    assert "batch_dependent" in str(table.title) + str(table.caption) and "%" not in "".join(map(str, table.columns[1].cells))
    for path in write_tables([done], tmp_path / "table"):
        text = path.read_text().replace("\\_", "_")  # as LaTeX writes it
        assert "batch_dependent" in text and "100.0" not in text
    (entries,) = [found for section, found in board([done]).items() if section[4] == 0.5]
    assert entries[0].status == "refused" and "batch_dependent" in entries[0].reason
    assert "batch_dependent" in done._repr_html_() and "nan" not in done._repr_html_()
    assert "batch_dependent" in done.plot().get_title(loc="left")
    assert "batch_dependent" in json.dumps(done.about.plain())
    stored = verdicts.read(verdicts.write(done, tmp_path / "mixing.parquet"))
    assert verdicts.no_function(stored) == verdicts.no_function(done)
    written = report([done], tmp_path / "reports")
    assert all(path.stat().st_size for paths in written.values() for path in paths)


def test_the_other_verbs_refuse_it_or_warn() -> None:
    model = FAILING["a mean over the batch"][0]()
    y = model(X).argmax(1)
    with pytest.raises(UserError, match="batch_dependent"):
        robust_accuracy(model, X, y, eps=0.1, **FAST)
    with pytest.warns(UserWarning, match="batch_dependent"):
        attack(model, X, y, eps=0.5)


def test_the_names_of_an_honest_model_are_as_before() -> None:
    model = Net()
    done = evaluate(model, (X, model(X).argmax(1)), eps=0.05, **FAST)
    assert verdicts.marks(done) == {verdicts.UNDIAGNOSED: verdicts.model_marks.UNKNOWN} and not verdicts.no_function(done)
