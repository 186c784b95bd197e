"""The tightness report: ratio 1 where the bound is exact, the loose layer named, never a lower bound over a proven one."""

import json
import math

import numpy as np
import pytest
import torch
from oracles import affine, bent, dense
from test_cli import rkhs
from torch import nn

from robustbench_rkhs.audit import tightness
from robustbench_rkhs.audit.factors import Linearised, power
from robustbench_rkhs.audit.ratios import BOUNDS, krylov
from robustbench_rkhs.data import Split
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.lipschitz import Uncertifiable, convolution, gram_operator
from robustbench_rkhs.reports.tightness import console_tightness, findings, write_tightness
from robustbench_rkhs.rkhs_norm import Unsound


def split(x, y, classes):
    return Split("made", "test", x, y, torch.arange(len(x)), classes, "0" * 64)


def loose(seed=0):
    """Two exact linear layers and between them a 5x5 convolution at 4x4 pixels, whose torus bound is loose."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 2, 5, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(12, 1, 4, 4)
    return model.eval(), split(x, torch.arange(12) % 3, 3)


@pytest.mark.parametrize("classes, shape", [(10, (1, 4, 4)), (3, (3, 2, 2))])
def test_an_affine_model_loses_nothing(classes, shape):
    model, x, y, *_ = affine(classes=classes, shape=shape)
    found = tightness("affine", model, split(x, y, classes))
    assert all(row["ratio"] == pytest.approx(1, abs=1e-6) and row["share"] == 0 for row in found["layers"])
    assert found["waster"] is None and found["between"] == pytest.approx(0, abs=1e-6)
    pairs = next(row for row in found["network"] if row["bound"].startswith("pairs"))
    assert pairs["ratio"] == pytest.approx(1, abs=1e-6) and pairs["median_ratio"] == pytest.approx(1, abs=1e-6)
    assert "no layer loses" in findings(found)[0]


@pytest.fixture
def torus_alone(monkeypatch):
    """Without the exact norms of small operators, which leave no convolution loose."""
    monkeypatch.setattr(convolution, "DENSE_SIZE", 0)
    monkeypatch.setattr(gram_operator, "SIDE", 0)


def test_the_loose_layer_is_named(torus_alone):
    model, data = loose()
    found = tightness("loose", model, data)
    exact = float(torch.linalg.matrix_norm(dense(model[0].double(), (1, 4, 4)), 2))
    first = found["layers"][0]
    assert found["waster"] == first["layer"] == "0 (Conv2d)" and first["share"] > 0.99
    assert first["lower"] == pytest.approx(exact, rel=1e-9) and first["ratio"] == pytest.approx(first["upper"] / exact)
    assert first["ratio"] > 1.02 and found["lost"] == pytest.approx(math.log(first["ratio"]), rel=1e-5)
    assert all(row["ratio"] >= 1 - 1e-9 for row in found["network"])
    assert sum(row["share"] for row in found["layers"]) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
def test_lower_bounds_are_norms_of_dense_matrices(seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    assert krylov(conv, (2, 5, 5), seed) == pytest.approx(float(torch.linalg.matrix_norm(dense(conv, (2, 5, 5)), 2)), rel=1e-9)
    wide = nn.Linear(90, 80).double()  # more directions than the space has
    exact = float(torch.linalg.matrix_norm(wide.weight.detach(), 2))
    assert exact * 0.999 < krylov(wide, (90,), seed) <= exact * (1 + 1e-12)
    assert krylov(wide, (90,), seed, 5) >= float(
        power(Linearised(wide, torch.zeros(1, 90).double()), torch.randn(1, 90).double(), 0)
    )
    zero = nn.Linear(4, 4).double()
    nn.init.zeros_(zero.weight)
    assert krylov(zero, (4,)) == 0


def test_jacobian_norms_of_a_block_against_dense_jacobians():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Sigmoid(), nn.MaxPool2d(2, 1)).double().requires_grad_(False)
    x = torch.rand(3, 1, 3, 3, dtype=torch.float64)
    exact = [
        float(torch.linalg.matrix_norm(torch.autograd.functional.jacobian(lambda v: block(v).flatten(), image[None]).flatten(1), 2))
        for image in x
    ]
    start = torch.randn(3, 1, 3, 3, dtype=torch.float64)
    np.testing.assert_allclose(power(Linearised(block, x), start, 200), exact, rtol=1e-6)


def test_an_overlapping_pool_and_dead_layers():
    model = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    nn.init.constant_(model[2].bias, -1e3)  # no unit ever speaks at the images
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = tightness("dead", model, split(x, torch.arange(6) % 3, 3))
    assert found["layers"][0]["upper"] == pytest.approx(2) and 1 <= found["layers"][0]["lower"] <= 2
    assert found["layers"][3]["ratio"] is None and found["layers"][3]["share"] is None


def test_parts_without_a_proof_are_said_so():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Softmax(1), nn.Linear(8, 3)).eval()
    x = torch.rand(6, 1, 4, 4)
    found = tightness("odd", model, split(x, torch.arange(6) % 3, 3))
    assert [row["upper"] is None for row in found["layers"]] == [False, False, True, False]
    assert all(row["refused"] and row["ratio"] is None for row in found["network"]) and found["between"] is None
    assert "nothing is proved of the whole" in findings(found)[-1]
    bare = nn.Sequential(nn.Softmax(1), nn.Softmax(1)).eval()
    with pytest.raises(Uncertifiable, match="Softmax"):
        tightness("bare", bare, split(x.flatten(1), torch.arange(6) % 3, 16))


def test_further_bounds_join_and_an_unsound_one_stops_everything(monkeypatch):
    model, data = loose()
    names = [name for name, _ in BOUNDS]
    monkeypatch.setattr("robustbench_rkhs.audit.ratios.BOUNDS", [("far", lambda model, shape, k: torch.full((k, k), 1e3).double())])
    assert "far" in [row["bound"] for row in tightness("loose", model, data)["network"]] and "far" not in names
    monkeypatch.setattr(
        "robustbench_rkhs.audit.ratios.BOUNDS", [("near", lambda model, shape, k: torch.full((k, k), 1e-9).double())]
    )
    with pytest.raises(Unsound, match="near"):
        tightness("loose", model, data)


def test_the_model_is_only_read():
    model = bent(4, (1, 6, 6)).train()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.random.get_rng_state()
    x = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    tightness("bent", model, split(x, torch.arange(6) % 4, 4))
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_radii_over_broken_distances_where_verdicts_exist(tmp_path):
    model, x, y, *_ = affine(classes=3)
    data = split(x, y, 3)
    assert tightness("mine", model, data, folder=tmp_path)["images"] is None
    evaluate(model, data, eps=(0.01,), attacks=({"name": "foolbox", "attack": "deepfool"},), name="mine", folder=tmp_path)
    found = tightness("mine", model, data, folder=tmp_path)["images"]
    assert found["images"] > 0 and 0.9 < found["median"] <= 1 + 1e-9  # both are the exact distance


def test_report_files_are_byte_stable_and_say_where_they_come_from(tmp_path):
    model, data = loose()
    made = tightness("loose", model, data, command="rkhs-tightness x")
    assert json.loads(json.dumps(made)) == made
    first, second = write_tightness(made, tmp_path / "a"), write_tightness(made, tmp_path / "b")
    assert sorted(path.suffix for path in first) == [".csv", ".md", ".pdf", ".png", ".svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    for text in ((tmp_path / "a.md").read_text(), (tmp_path / "a.csv").read_text()):
        assert "rkhs-tightness x" in text and made["about"]["date"] in text and made["about"]["weights"][:12] in text
    assert [table.row_count for table in console_tightness(made)] == [6, len(made["network"])]


def test_the_command(tmp_path, torus_alone):
    x = np.random.default_rng(0).random((20, 1, 4, 4), dtype=np.float32)
    np.savez(tmp_path / "small.npz", x_train=x, y_train=np.arange(20) % 3, x_test=x, y_test=np.arange(20) % 3)
    (tmp_path / "tightnets.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 5, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))\n"
    )
    flags = ["--model", "tightnets:build", "--data", "small.npz"]
    out, err = rkhs("tightness", *flags, "--json", folder=tmp_path)
    found = json.loads(out)
    assert found["waster"] == "0 (Conv2d)" and found["about"]["samples"] == 20 and "loses most" in err
    assert all((tmp_path / path).stat().st_size > 100 for path in found["files"])
    _, err = rkhs("tightness", *flags, "--samples", "0", folder=tmp_path, code=2)
    assert "--samples" in err
