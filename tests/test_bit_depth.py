"""Adversarial images of 8 bits a pixel: on the grid, within their eps, confirmed, and near the optimum where that is known."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_rkhs import UserError, evaluate, verdicts
from robustbench_rkhs.attacks.bit_depth import grid, on_grid
from robustbench_rkhs.cli.evaluate import main as rkhs_eval
from robustbench_rkhs.reports.adversarial_figure import draw_nearest, nearest_first
from robustbench_rkhs.verdicts.adversarials import off_grid

LEVELS = 255
FAST: dict[str, Any] = {"attacks": "superdeepfool", "certificates": (), "diagnostics": False}


def linear(size: int = 64, classes: int = 2, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(size, classes)).eval()


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(40, 216, (count, 1, 8, 8), generator=generator).byte().float() / 255


def exact(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest adversarial image of a linear model of two classes, just beyond its boundary, and its distance."""
    weight, bias = model[1].weight.double(), model[1].bias.double()
    out = x.double().flatten(1) @ weight.T + bias
    rows = torch.arange(len(y))
    gap, normal = out[rows, y] - out[rows, 1 - y], weight[1 - y] - weight[y]
    away = gap / (normal.norm(dim=1) if norm == "l2" else normal.abs().sum(1))
    step = normal / normal.norm(dim=1, keepdim=True) if norm == "l2" else normal.sign()
    return (x.flatten(1) + 1.0001 * away[:, None] * step).float().view_as(x), away


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_images_on_the_boundary_of_a_linear_model_are_found_on_the_grid_near_it(norm: Any) -> None:
    model, x = linear(), pictures(40)
    y = model(x).argmax(1)
    given, away = (one.detach() for one in exact(model, x, y, norm))
    plain = grid(given, 8)
    found = on_grid(model, x, y, given, torch.full((40,), torch.inf, dtype=torch.float64), norm)
    assert found.found.all() and (model(found.images).argmax(1) != y).all()
    assert (model(plain).argmax(1) == y).sum() >= 8, "rounding alone undoes some"
    assert not off_grid(found.images.numpy(), np.full(40, 8)).any()
    distance = (found.images - x).double().flatten(1).norm(dim=1, p=2 if norm == "l2" else torch.inf)
    step = 1 / LEVELS
    assert (distance >= away * (1 - 1e-6)).all()
    assert (distance <= (away * 1.02 + 1.5 * step if norm == "l2" else away + 1.01 * step)).all()


def test_none_is_found_where_there_is_none_within_eps() -> None:
    model, x = linear(), pictures(40)
    y = model(x).argmax(1)
    given, away = (one.detach() for one in exact(model, x, y, "linf"))
    limit = (away * LEVELS).floor() / LEVELS  # the largest ball on the grid that holds no adversarial image
    found = on_grid(model, x, y, given, limit, "linf")
    assert not found.found.any() and torch.equal(found.images, given)
    roomy = on_grid(model, x, y, given, limit + 1.02 / LEVELS, "linf")
    assert roomy.found.all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_column_says_which_images_of_an_evaluation_are_8_bit(norm: Any, tmp_path: Any) -> None:
    model, x = linear(classes=4, seed=2), pictures(24, 3)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # one that is wrong as it is
    said: list[str] = []
    settings = {**FAST, "eps": (0.02, 0.1, 1.0), "norm": norm, "adversarials": tmp_path / "found.npz"}
    floats = evaluate(model, (x, y), **settings)
    done = evaluate(model, (x, y), bits=8, on_event=lambda event: said.append(str(event)), **settings)
    found, before = done.adversarials(), floats.adversarials()
    assert before.bits is None and verdicts.digest(done.table) == verdicts.digest(floats.table)
    rounded = found.bits == 8
    assert rounded.sum() >= 22 and (found.bits[~rounded] == 0).all()
    assert (model(found.images).argmax(1) == found.predictions).all() and (found.predictions != found.labels).all()
    assert torch.equal((found.images * 255).round().byte().float()[rounded] / 255, found.images[rounded])
    assert torch.equal(found.images[~rounded], before.images[~rounded])
    for eps in settings["eps"]:
        assert torch.equal(found.distances <= eps, before.distances <= eps)
    assert any(f"{int(rounded.sum()) - 1} of 23 adversarial images are saved in 8 bits" in line for line in said)
    stored = verdicts.read_adversarials(tmp_path / "found.npz")
    assert stored.bits is not None and stored.bits.tolist() == found.bits.tolist()
    places = nearest_first(stored, 4)
    assert draw_nearest(stored, x.numpy()[stored.index[places]], places, tmp_path / "drawn")


def test_an_image_without_an_8_bit_neighbour_is_saved_as_it_was_found() -> None:
    model, x = linear(seed=4), pictures(20, 5)
    y = model(x).argmax(1)
    _, away = exact(model, x, y, "linf")
    eps = float(away.median()) * 1.0001
    done = evaluate(model, (x, y), norm="linf", eps=eps, adversarials=True, bits=8, **{**FAST, "attacks": "fmn"})
    found = done.adversarials()
    alone = off_grid(found.images.numpy(), np.full(len(found.index), 8))
    assert (found.bits.numpy() == np.where(alone, 0, 8)).all() and 0 < alone.sum() < len(alone)
    assert (model(found.images).argmax(1) != found.labels).all()


def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path: Any) -> None:
    model, x = linear(), pictures(8)
    done = evaluate(model, (x, model(x).argmax(1)), eps=1.0, adversarials=tmp_path / "a.npz", bits=8, **FAST)
    assert done.nearest is not None
    forged = {**done.nearest.arrays, "images": done.nearest.images * np.float32(0.999)}
    with pytest.raises(UserError, match="bits says that pixels are"):
        verdicts.Adversarials.checked(done.nearest.about.plain(), forged)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"bits": 0}, "expected a whole number from 1 to 16"),
        ({"bits": "8"}, "expected a whole number from 1 to 16"),
        ({"bits": 8, "adversarials": False}, "adversarials=True, --save-adversarials"),
    ],
)
def test_what_cannot_be_rounded_is_one_line(more: dict[str, Any], line: str) -> None:
    model, x = linear(), pictures(4)
    with pytest.raises(UserError, match=line):
        evaluate(model, (x, model(x).argmax(1)), eps=1.0, **FAST, **more)


def test_the_command_needs_a_file_for_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["rkhs-eval", "--model", "digits_mlp", "--eps", "1", "--bits", "8"])
    with pytest.raises(SystemExit) as ended:
        rkhs_eval()
    assert ended.value.code == 2 and "--bits: expected 1 to 16, beside --save-adversarials" in capsys.readouterr().err
