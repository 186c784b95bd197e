"""The claim auditor: honest claims stand, and each known mistake is reproduced as it is defined and named where it was made."""

import json
import math

import numpy as np
import pytest
import torch
from oracles import affine, dense
from test_cli import rkhs
from torch import nn

from robustbench_rkhs.audit import MISTAKES, Claim, Scene, audit, parts, stale_layers
from robustbench_rkhs.audit import mistakes as known
from robustbench_rkhs.audit.factors import pairwise
from robustbench_rkhs.audit.scene import radii
from robustbench_rkhs.data import Split
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.layers import Normalize
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.reports.audit import console_audit, write_audit
from robustbench_rkhs.runtime.seals import read_record

RANDOM_ONCE = "power iteration, 1 from a random start"


def split(x, y, classes):
    return Split("made", "test", x, y, torch.arange(len(x)), classes, "0" * 64)


PLAIN = {"diagnostics": False, "rechecked": 0}
"""For what the re-enactment alone decides: no battery against hidden gradients, which a tie or a constant would call for."""


def one_part(module, shape):
    """The lone layer as the mistakes see it."""
    chain, _ = parts(nn.Sequential(module).eval(), shape)
    assert len(chain) == 1
    return chain[0]


def steep(images=40):
    """A network whose certificate is exact, steep along one direction that power iteration is slow to find; distances 0.2 to 0.6.

    f = (w . relu(W x + b), 0), every ReLU at work; W has singular value 8 along v and 5 elsewhere, and w is W v.
    """
    size = 64
    v = torch.tensor([1.0, -1.0]).repeat(size // 2) / 8
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 2))
    with torch.no_grad():
        model[1].weight.copy_(5 * torch.eye(size) + 3 * torch.outer(v, v))
        model[1].bias.fill_(20.0)
        model[3].weight.copy_(torch.stack([v, 0 * v]))
        model[3].bias.zero_()
        model[3].bias[0] = -model(torch.full((1, 1, 8, 8), 0.5))[0, 0]
    distance = torch.linspace(0.2, 0.6, images) * torch.tensor([1.0, -1.0]).repeat(images // 2)
    x = (0.5 + distance[:, None] * v).view(-1, 1, 8, 8)
    return model.eval(), x, (distance < 0).long(), distance.abs()


def test_an_honest_claim_is_upheld_and_a_claim_above_what_attacks_leave_is_refuted():
    model, x, y, l2, _ = affine(classes=3)
    eps = float(l2.median())
    honest = float((l2 >= eps * 1.0001).double().mean())
    found = audit(model, split(x, y, 3), [Claim.read(f"certified@{eps}={honest}"), Claim.read("clean=1")])
    assert [row["verdict"] for row in found["claims"]] == ["upheld", "upheld"]
    assert found["claims"][0]["causes"] == [] and found["breaches"] == 0 and found["stale"] == []
    far = float(l2.max() * 1.01)
    found = audit(model, split(x, y, 3), [Claim.read(f"certified@{far}=0.5"), Claim.read(f"robust@{far}=0.5")])
    assert [row["verdict"] for row in found["claims"]] == ["refuted", "refuted"]
    assert found["claims"][0]["standing"] == 0 and found["claims"][0]["causes"] == [] and not model.training


def test_power_iteration_is_named_and_its_certificates_are_broken(tmp_path):
    model, x, y, distance = steep()
    scene = Scene.of(model, x, y)
    radius = MISTAKES[RANDOM_ONCE](scene)
    assert (radius > 1.2 * distance).all()
    share = float((radius >= 0.4).double().mean())
    assert share > float((distance >= 0.4).double().mean()) + 0.15
    found = audit(model, split(x, y, 2), [Claim.read(f"certified@0.4={share}")], **PLAIN)
    claim, nearest = found["claims"][0], found["mistakes"][0]
    assert claim["measured"] == pytest.approx(0.5) and claim["standing"] == pytest.approx(0.5)
    assert claim["verdict"] == "refuted" and claim["nearest"] == RANDOM_ONCE and claim["causes"][0] == RANDOM_ONCE
    assert nearest["certified"] == share and nearest["reproduces"]
    assert nearest["broken_within_eps"] == round(40 * (share - 0.5))
    # the attack comes within a fifth of the exact distance, so that every overstated radius is contradicted
    assert nearest["broken_within_radius"] == nearest["certificates"] == round(40 * share)
    right = next(row for row in found["mistakes"] if row["mistake"] == "10-bit logits (TF32)")
    assert right["certified"] == pytest.approx(0.5) and not right["reproduces"]
    written = write_audit(found, tmp_path / "steep")
    assert [path.suffix for path in written] == [".json", ".csv", ".md"]
    text = (tmp_path / "steep.md").read_text()
    assert RANDOM_ONCE in text and "refuted" in text and f"40 of {len(x)}" not in text
    assert read_record(tmp_path / "steep.json", required=True) == json.loads(json.dumps(found))
    assert len(console_audit(found)) == 2


def test_what_lies_between_proof_and_attack_is_not_proved():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(36, 3)).eval()
    x = torch.rand(40, 1, 6, 6)
    recipe = parse(
        EvalRecipe, {"eps": (0.1,), "certificates": ("margin",), "effort": "quick"} | PLAIN, "test"
    )  # the others prove it
    found = audit(model, split(x, model(x).argmax(1), 3), [Claim.read("certified@0.1=0.9")], recipe)
    assert found["claims"][0]["verdict"] == "not proved"
    assert "overlapping max-pool counted as 1" in found["claims"][0]["causes"]


def test_a_model_without_a_rule_is_audited_all_the_same():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.last = nn.Linear(16, 8), nn.Softmax(1), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(3 * self.act(self.first(x.flatten(1))))

    torch.manual_seed(0)
    model = Odd().eval()
    x = torch.rand(20, 1, 4, 4)
    found = audit(model, split(x, model(x).argmax(1), 2), [Claim.read("certified@0.01=1")], **PLAIN)
    assert found["refused"] and "count as 1" in found["notes"][0] and found["claims"][0]["measured"] == 0
    scene = Scene.of(model, x, model(x).argmax(1))
    first, last = model.first.weight.detach().double(), model.last.weight.detach()
    bound = float(torch.linalg.matrix_norm(first, 2) * (last[0] - last[1]).norm())
    logits = model.double()(x.double())
    expected = (logits[:, 0] - logits[:, 1]).abs() / bound
    torch.testing.assert_close(MISTAKES["layers without a rule counted as 1"](scene), expected.detach(), rtol=1e-6, atol=0)
    assert "layers without a rule counted as 1" in {row["mistake"] for row in found["mistakes"]}


@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_power_iteration_against_dense_matrices(iterations):
    torch.manual_seed(iterations)
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=True).double()
    matrix = dense(conv, (2, 4, 4))
    v = torch.ones(32, dtype=torch.float64)
    for _ in range(iterations):
        v = matrix.T @ (matrix @ v)
        v /= v.norm()
    found = known.power_factor(one_part(conv, (2, 4, 4)), iterations, "ones")
    assert found == pytest.approx(float((matrix @ v).norm()), rel=1e-9)
    random = known.power_factor(one_part(conv, (2, 4, 4)), iterations, "random")
    assert 0 < random <= float(torch.linalg.matrix_norm(matrix, 2)) * (1 + 1e-12)


def test_power_iteration_from_ones_never_sees_what_is_orthogonal_to_them():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0625, -3.9375], [-3.9375, 4.0625]]))  # 8 along (1, -1), 0.125 along (1, 1)
    assert known.power_factor(one_part(layer, (2,)), 100, "ones") == pytest.approx(0.125)
    assert known.power_factor(one_part(layer, (2,)), 100, "random") == pytest.approx(8)


def test_reshaped_norm_of_a_constant_kernel_is_three():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    part = one_part(conv, (1, 8, 8))
    assert known.reshaped_factor(part) == pytest.approx(3) and part.proven > 8
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scene = Scene.of(model, x, model(x).argmax(1))
    gap = (scene.logits[:, 0] - scene.logits[:, 1]).abs() / (model[3].weight[0] - model[3].weight[1]).double().norm()
    torch.testing.assert_close(MISTAKES["norm of the reshaped kernel"](scene), (gap / 3).detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("stride, kernel", [(1, 3), (2, 3), (2, 5), (3, 3)])
def test_circular_norm_against_the_dense_circulant(stride, kernel):
    torch.manual_seed(stride + kernel)
    conv = nn.Conv2d(2, 3, kernel, stride, kernel // 2, bias=False).double()
    whole = nn.Conv2d(2, 3, kernel, 1, kernel // 2, padding_mode="circular", bias=False).double()
    whole.weight.data.copy_(conv.weight)
    matrix = dense(whole, (2, 6, 6)).view(3, 6, 6, -1)[:, ::stride, ::stride].flatten(0, 2)
    found = known.circular_factor(one_part(conv, (2, 6, 6)))
    assert found == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-9)


def test_circular_norm_lies_below_zero_padding():
    conv = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3))
    part = one_part(conv, (1, 1, 6))
    exact = float(torch.linalg.matrix_norm(dense(conv.double(), (1, 1, 6)), 2))
    assert known.circular_factor(part) == pytest.approx(math.sqrt(3)) and exact == pytest.approx(1.8019, abs=1e-4)


def test_pools_normalisations_batch_norm_and_groups_by_their_closed_forms():
    assert known.pool_factor(one_part(nn.MaxPool2d(3, 2, 1), (1, 8, 8))) == 1
    assert one_part(nn.MaxPool2d(3, 2, 1), (1, 8, 8)).proven == pytest.approx(2)
    part = one_part(Normalize((0.5, 0.5), (0.25, 0.5)), (2, 3, 3))
    assert part.proven == pytest.approx(4) and known.largest_deviation_factor(part) == pytest.approx(2)
    assert known.normalisation_factor(part) == 1 and known.normalisation_factor(one_part(nn.ReLU(), (2,))) is None
    norm = nn.BatchNorm2d(2)
    norm.running_var.fill_(0.01)
    assert known.normalisation_factor(one_part(norm, (2, 3, 3))) == 1 and one_part(norm, (2, 3, 3)).proven > 9.9
    grouped = nn.Conv2d(2, 2, 1, groups=2, bias=False)
    with torch.no_grad():
        grouped.weight.copy_(torch.tensor([0.5, 0.25]).view(2, 1, 1, 1))
    part = one_part(grouped, (2, 4, 4))
    assert part.proven == pytest.approx(0.5) and known.groups_factor(part) == pytest.approx(0.125)


def test_overlapping_max_pool_doubles_every_radius():
    model = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    scene = Scene.of(model, x, model(x).argmax(1))
    honest = radii(scene.logits, scene.y, scene.bounds, (1, 8, 8))
    torch.testing.assert_close(MISTAKES["overlapping max-pool counted as 1"](scene), 2 * honest, rtol=1e-6, atol=0)
    assert MISTAKES["input normalisation dropped"](scene) is None and MISTAKES["groups multiplied"](scene) is None


def test_normalisation_mistakes_scale_every_radius():
    model = nn.Sequential(Normalize((0.5, 0.5), (0.25, 0.5)), nn.Flatten(), nn.Linear(18, 3), nn.ReLU(), nn.Linear(3, 3)).eval()
    x = torch.rand(6, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    scene = Scene.of(model, x, model(x).argmax(1))
    honest = radii(scene.logits, scene.y, pairwise(scene.chain, 3), (2, 3, 3))
    torch.testing.assert_close(MISTAKES["input normalisation dropped"](scene), 4 * honest, rtol=1e-6, atol=0)
    torch.testing.assert_close(MISTAKES["1 / max std of the input normalisation"](scene), 2 * honest, rtol=1e-6, atol=0)


def test_margins_over_the_wrong_constant():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))  # unit rows two apart
    x = torch.tensor([[0.8, 0, 0, 0], [0.2, 0.5, 0, 0]]).view(2, 1, 2, 2)
    scene = Scene.of(model, x, torch.tensor([0, 0]))
    gap = torch.tensor([1.6, 0.4], dtype=torch.float64)
    torch.testing.assert_close(radii(scene.logits, scene.y, scene.bounds, (1, 2, 2)), gap / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(known.single_logits(scene), gap, rtol=1e-6, atol=0)
    torch.testing.assert_close(known.root_two(scene), gap / math.sqrt(2), rtol=1e-6, atol=0)
    in_linf = Scene.of(model, x, torch.tensor([0, 0]), "linf")
    torch.testing.assert_close(known.single_logits(in_linf), gap / 2, rtol=1e-6, atol=0)


def test_ties_count_as_certified_by_mistake_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
    x = torch.full((3, 1, 2, 2), 0.5)
    scene = Scene.of(model, x, torch.zeros(3, dtype=torch.long))
    assert (radii(scene.logits, scene.y, scene.bounds, (1, 2, 2)) == -1).all()
    torch.testing.assert_close(known.ties(scene), torch.full((3,), 0.5, dtype=torch.float64), rtol=1e-6, atol=0)
    found = audit(model, split(x, scene.y, 3), [Claim.read("certified@0.25=1")], **PLAIN)
    assert found["claims"][0]["causes"] == ["ties counted as certified"] and found["claims"][0]["measured"] == 0
    model, x, y, *_ = affine(classes=3)
    assert known.ties(Scene.of(model, x, y)) is None


def test_coarse_arithmetic_is_rounded_as_said():
    values = torch.tensor([1 + 2.0**-10, 1 + 2.0**-12, -3.0, 0.0, 1e30], dtype=torch.float64)
    rounded = known.ten_bits(values)
    assert rounded[:4].tolist() == [1 + 2.0**-10, 1.0, -3.0, 0.0] and abs(float(rounded[4]) / 1e30 - 1) < 2.0**-11
    model, x, y, *_ = affine(classes=3, margin_scale=0.01)
    scene = Scene.of(model, x, y)
    exact, coarse = (radii(logits, y, scene.bounds, (1, 4, 4)) for logits in (scene.logits, scene.given.bfloat16().double()))
    assert torch.equal(known.bfloat16(scene), coarse) and (known.bfloat16(scene) > exact * 1.0001).any()
    torch.testing.assert_close(known.float32(scene), exact, rtol=1e-2, atol=1e-5)


def test_batch_statistics_are_those_of_the_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.Flatten(), nn.Linear(16, 2, bias=False))
    model[0].running_var.fill_(1e-4)
    model.eval()
    x = torch.rand(12, 1, 4, 4)
    y = torch.zeros(12, dtype=torch.long)
    scene = Scene.of(model, x, y)
    whole = x.double()
    logits = ((whole - whole.mean()) / (whole.var(unbiased=False) + 1e-5).sqrt()).flatten(1) @ model[2].weight.double().T
    gap = logits[:, 0] - logits[:, 1]
    bound = (model[2].weight[0] - model[2].weight[1]).double().norm() / (whole.var() + 1e-5).sqrt()
    expected = torch.where(gap > 0, gap / bound, -1.0).detach()
    torch.testing.assert_close(known.batch_statistics(scene), expected, rtol=1e-6, atol=1e-12)
    assert model[0].running_var.item() == pytest.approx(1e-4) and not model[0].training


class Caching(nn.Module):
    """Keeps the weight that its first evaluation worked out."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias, self.kept = nn.Parameter(torch.randn(3, 16)), nn.Parameter(torch.randn(3)), None

    def forward(self, x):
        if self.training or self.kept is None:
            self.kept = (self.weight / self.weight.norm()).detach()
        return nn.functional.linear(x, self.kept, self.bias)


@pytest.mark.parametrize("warm", [False, True])
def test_a_stale_cache_is_found_and_an_honest_layer_is_not(warm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), Caching()).eval()
    x = torch.rand(8, 1, 4, 4)
    if warm:
        model(x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert stale_layers(model, x) == ["3"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert stale_layers(model[:3], x) == []
    found = audit(model, split(x, model(x).argmax(1), 3), [Claim.read("certified@0.1=1")], **PLAIN)
    assert found["stale"] == ["3"] and "stale caches" in {row["mistake"] for row in found["mistakes"]}


def test_the_model_is_only_read():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).train()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.random.get_rng_state()
    x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    audit(model, split(x, torch.arange(8) % 3, 3), [Claim.read("certified@0.1=1")])
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "text, line",
    [
        ("certified=0.5", "needs an eps"),
        ("clean@0.5=0.5", "has no eps"),
        ("certified@half=0.5", "found 'half'"),
        ("certified@0.5=62%", "found '62%'"),
        ("certified@0.5=62", "share of images from 0 to 1"),
        ("certifed@0.5=0.6", "did you mean 'certified'"),
        ("certified@0=0.5", "eps above 0"),
        ("certified@-1=0.5", "eps above 0"),
        ("certified 0.5 0.6", "found 'certified 0.5 0.6'"),
        ("robust@nan=0.5", "robust@nan=0.5"),
    ],
)
def test_a_malformed_claim_is_one_line(text, line):
    with pytest.raises(UserError) as raised:
        Claim.read(text)
    said = str(raised.value)
    assert line in said and "certified@0.5=0.62" in said and "\n" not in said


def test_claims_read_fractions():
    assert Claim.read(" robust@36/255=7/10 ") == ("robust@36/255=7/10", "robust", 36 / 255, 0.7)
    assert Claim.read("clean=0.95").eps == 0


def test_the_command(tmp_path):
    model, x, y, _ = steep(20)
    np.savez(tmp_path / "steep.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    (tmp_path / "auditnets.py").write_text(
        "from torch import nn\n\n"
        "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))\n"
    )
    flags = ["--model", "auditnets:build", "--checkpoint", "theirs.pth", "--data", "steep.npz", "--attack", "pgd:steps=5"]
    out, err = rkhs("audit", *flags, "--claim", "certified@0.4=1.0", "clean=1", "--json", folder=tmp_path, code=1)
    found = json.loads(out)
    assert [row["verdict"] for row in found["claims"]] == ["refuted", "upheld"] and "refuted" in err
    assert all((tmp_path / path).stat().st_size > 100 for path in found["files"])
    out, _ = rkhs("audit", *flags, "--claim", "certified@0.4=0.5", folder=tmp_path)
    assert "upheld" in out and "audit: " in out
    _, err = rkhs("audit", *flags, "--claim", "certified@0.4", folder=tmp_path, code=2)
    assert err.startswith("error: ") and err.count("\n") == 1 and "certified@0.5=0.62" in err
    _, err = rkhs("audit", *flags, "--claim", "certified@99=0.1", folder=tmp_path, code=2)
    assert "above the data range" in err


def test_claims_in_linf_rest_on_the_same_radii():
    model, x, y, distance = steep(20)
    claim = Claim.read("certified@0.05=0.9")  # 0.4 / sqrt(64)
    found = audit(model, split(x, y, 2), [claim], norm="linf")
    assert found["claims"][0]["measured"] == pytest.approx(float((distance >= 0.4).double().mean()))
    radius = MISTAKES[RANDOM_ONCE](Scene.of(model, x, y)) / 8
    torch.testing.assert_close(MISTAKES[RANDOM_ONCE](Scene.of(model, x, y, "linf")), radius, rtol=1e-9, atol=0)
    named = next(row for row in found["mistakes"] if row["mistake"] == RANDOM_ONCE)
    assert named["certificates"] == int((radius >= 0.05).sum())


def test_a_model_that_runs_in_float32_alone_is_still_judged():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(16, 2)

        def forward(self, x):
            if x.dtype != torch.float32:
                raise RuntimeError("float32 images alone")
            return self.last(x.flatten(1))

    torch.manual_seed(0)
    model = Single().eval()
    x = torch.rand(10, 1, 4, 4)
    found = audit(model, split(x, model(x).argmax(1), 2), [Claim.read("certified@0.01=1")])
    assert found["mistakes"] == [] and found["claims"][0]["nearest"] == "" and "float64" in found["notes"][0]
