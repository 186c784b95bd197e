"""The RKHS-norm report: exact where the model is affine, sound everywhere, honest about what it proves."""

import json
import math

import numpy as np
import pytest
import torch
from oracles import affine, bent, constant_model
from test_cli import rkhs
from torch import nn

from robustbench_rkhs.data import Deformations, Split
from robustbench_rkhs.data.deformations import deform
from robustbench_rkhs.networks import MLP
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.rkhs_norm import console_norms, write_norms
from robustbench_rkhs.rkhs_norm import Unsound, margin_bound, margins_of, norm_report, norms
from robustbench_rkhs.rkhs_norm.sides import check_sound, reshaped_product

FEW = Deformations(count=3)


def split(x, y, classes, part="test"):
    return Split("made", part, x, y, torch.arange(len(x)), classes, "0" * 64)


def random_split(shape=(1, 6, 6), classes=4, count=12, part="test"):
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    return split(x, torch.arange(count) % classes, classes, part)


@pytest.mark.parametrize("classes, shape", [(10, (1, 4, 4)), (2, (5,)), (3, (3, 2, 2))])
def test_an_affine_model_has_one_norm_from_below_and_above(classes, shape):
    model, x, y, *_ = affine(classes=classes, shape=shape)
    rows = model[1].weight.detach().double()
    found = norms(model, split(x, y, classes), eps=(0.3, 2.0), deformations=FEW)
    between = (rows[:, None] - rows).norm(dim=2)
    whole = float(torch.linalg.matrix_norm(rows, 2))
    tight = [found.upper, *(bound for name, bound in found.lower.items() if name != "deformation")]
    assert len(tight) == 5 and ("deformation" in found.lower) == (len(shape) == 3)
    for bound in tight:
        torch.testing.assert_close(bound.classes, rows.norm(dim=1), rtol=1e-6, atol=0)
        torch.testing.assert_close(bound.pairs, between, rtol=1e-6, atol=1e-12)
        assert math.isclose(bound.logits, whole, rel_tol=1e-6)
    assert isinstance(found.reshaped, float) and math.isclose(found.reshaped, whole, rel_tol=1e-6) and found.refusal == ""


def test_deformation_quotients_against_brute_force():
    data = random_split()
    model = bent(4, (1, 6, 6)).eval()
    found = norms(model, data, eps=(0.5,), deformations=FEW)
    twin, x = bent(4, (1, 6, 6)).eval().double(), data.x.double()
    with torch.no_grad():
        quotients, changes = [], []
        for image in range(len(x)):
            for draw in range(3):
                moved = deform(x[image : image + 1], FEW(data.index[image : image + 1], 0, (1, 6, 6), draw).double())
                change = (twin(moved) - twin(x[image : image + 1]))[0]
                changes.append(change)
                quotients.append(change / (moved - x[image]).norm())
    for bound, all_ in ((found.lower["deformation"], torch.stack(quotients)), (found.changes, torch.stack(changes))):
        torch.testing.assert_close(bound.classes, all_.abs().amax(0))
        torch.testing.assert_close(bound.pairs, (all_[:, :, None] - all_[:, None]).abs().amax(0))
        assert math.isclose(bound.logits, float(all_.norm(dim=1).max()), rel_tol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_searches_find_at_least_the_gradient_and_never_more_than_is_proved(seed):
    torch.manual_seed(seed)
    model = MLP(hidden=(16,)).build((1, 6, 6), 4).eval()
    found = norms(model, random_split(), eps=(1e-3, 0.5), deformations=FEW, steps=10)
    gradient = found.lower["gradient"]
    for name in ("perturbation, eps 0.001", "empirical_lipschitz"):
        assert found.lower[name].logits > 0.99 * gradient.logits
        assert (found.lower[name].classes > 0.99 * gradient.classes).all()
    for bound in found.lower.values():
        assert (bound.classes <= found.upper.classes).all() and (bound.pairs <= found.upper.pairs + 1e-12).all()
        assert bound.logits <= found.upper.logits and torch.equal(bound.pairs, bound.pairs.T)


def test_a_lower_bound_over_a_proven_one_stops_everything(monkeypatch):
    model, x, y, *_ = affine(classes=3)
    found = norms(model, split(x, y, 3), eps=(0.5,), deformations=FEW)
    short = found.upper._replace(pairs=found.upper.pairs * 0.999)
    with pytest.raises(Unsound, match="'gradient' lies above the proven"):
        check_sound(found.lower, short)
    for field in ("classes", "logits"):
        with pytest.raises(Unsound):
            check_sound(found.lower, found.upper._replace(**{field: getattr(found.upper, field) * 0.999}))
    monkeypatch.setattr("robustbench_rkhs.rkhs_norm.sides.proven", lambda *_: short)
    with pytest.raises(Unsound):
        norms(model, split(x, y, 3), eps=(0.5,), deformations=FEW)


def test_what_is_not_proved_is_refused_in_words_and_a_constant_model_has_norm_zero():
    model = constant_model(4)
    found = norms(model, random_split(), eps=(0.5,), deformations=FEW)
    assert found.upper is None and "cannot be traced" in found.refusal and isinstance(found.reshaped, str)
    assert all(float(bound.classes.max()) == 0 == float(bound.pairs.max()) for bound in found.lower.values())
    loose = constant_model(4, attached=False)
    assert float(norms(loose, random_split(), eps=(0.5,), deformations=FEW).lower["gradient"].classes.max()) == 0
    assert "BatchNorm2d" in reshaped_product(bent())
    with pytest.raises(UserError, match="positive eps"):
        norms(model, random_split(), eps=(0.0,))


def test_the_model_is_only_read():
    model = bent(4, (1, 6, 6)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    norms(model, random_split(), eps=(0.5,), deformations=FEW)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_reshaped_product_of_a_constant_kernel_is_not_its_operator_norm():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    assert reshaped_product(nn.Sequential(conv)) == pytest.approx(3)  # the operator's norm tends to 9


def test_margin_bound_terms_are_their_definition():
    model, x, y, l2, _ = affine(classes=3)
    margins = margins_of(model, x, y)
    logits = model(x).detach()
    brute = [float(row[label] - max(row[j] for j in range(3) if j != label)) for row, label in zip(logits, y.tolist(), strict=True)]
    np.testing.assert_allclose(margins, brute, rtol=1e-6)
    rows = model[1].weight.detach().double()
    norm = float((rows[:, None] - rows).norm(dim=2).max())
    found = margin_bound(margins, 2.0, 400, norm, 0.01, [0.02, 0.5])
    for gamma, first, second in zip(found.gammas, found.first, found.complexity, strict=True):
        assert first == np.mean([m < gamma + 2 * 0.01 * norm for m in brute])
        assert second == pytest.approx(norm * 2.0 / (gamma * 20))
    assert found.normalised[2] == pytest.approx(np.quantile(np.array(brute) / norm, 0.5), rel=1e-5)
    assert (margins / norm <= l2 + 1e-6).all()  # over a proven norm, a normalised margin is a radius
    adversarial = float((l2 <= 0.01).double().mean())  # what the first term bounds on the training images themselves
    assert adversarial <= min(found.first)


def test_report_files_are_byte_stable_and_say_where_they_come_from(tmp_path):
    model, x, y, *_ = affine(classes=3)
    made = norm_report("mine", model, split(x, y, 3), split(x, y, 3, "train"), eps=(0.5,), deformations=FEW, command="rkhs-norms x")
    assert json.loads(json.dumps(made)) == made
    first, second = write_norms(made, tmp_path / "a"), write_norms(made, tmp_path / "b")
    assert sorted(path.suffix for path in first) == [".csv", ".json", ".md", ".pdf", ".png", ".svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    about = made["about"]
    for text in ((tmp_path / "a.md").read_text(), (tmp_path / "a.csv").read_text(), (tmp_path / "a.json").read_text()):
        assert "rkhs-norms x" in text and about["date"] in text and about["weights"][:12] in text and "0" * 12 in text
    assert "nothing is certified" in (tmp_path / "a.md").read_text()
    assert console_norms(made).row_count == len(made["bounds"]) + 1


def test_the_commands(tmp_path):
    x = np.random.default_rng(0).random((40, 1, 6, 6), dtype=np.float32)
    y = np.arange(40) % 3
    np.savez(tmp_path / "small.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "normnets.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def build():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))\n"
    )
    flags = ["--model", "normnets:build", "--data", "small.npz", "--samples", "10", "--eps", "1/2", "--json"]
    out, err = rkhs("norms", *flags, folder=tmp_path)
    found = json.loads(out)
    assert found["about"]["samples"] == 10 and found["about"]["eps"] == [0.5] and "proven Lipschitz bound" in err
    assert all((tmp_path / path).stat().st_size > 100 for path in found["files"])
    _, err = rkhs("norms", "--model", "digits_mpl", folder=tmp_path, code=2)
    assert "digits_mlp" in err
    out, _ = rkhs("pictures", "deformations", "--data", "digits", "--images", "2", folder=tmp_path)
    paths = [tmp_path / path for path in out.split("pictures:")[1].split()]
    before = [path.read_bytes() for path in paths]
    rkhs("pictures", "deformations", "--data", "digits", "--images", "2", folder=tmp_path)
    assert len(paths) == 3 and before == [path.read_bytes() for path in paths]
