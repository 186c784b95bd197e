"""Proven norms against dense singular values; differentiable ones above them, falling, with the right slopes."""

import json
import math
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import dense
from torch import nn

from robustbench_rkhs.bounds import pairs, steps, upper
from robustbench_rkhs.bounds.differentiable import gram_norm, gram_pairs, iterate
from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.layers import Normalize, Residual, SandwichLinear
from robustbench_rkhs.lipschitz import Uncertifiable, convolution, verified_norm
from robustbench_rkhs.lipschitz.bounds import spectral
from robustbench_rkhs.lipschitz.convolution import conv_axes
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.losses import Gloro
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.validation import score, validate

UNIT = 2.0**-53


def largest(matrix):
    """The largest singular value by LAPACK's own decomposition: what the proof does not use."""
    return float(np.linalg.svd(matrix.detach().numpy(), compute_uv=False).max())


def residual_bound(matrix):
    """Another proof: A = U S V^* up to a residual, with U and V nearly orthonormal; slack for the rounding of all three."""
    u, s, v = np.linalg.svd(matrix.numpy(), full_matrices=False)
    slack = 8 * max(matrix.shape) ** 2 * UNIT

    def defect(q):
        return np.linalg.norm(q.conj().T @ q - np.eye(q.shape[1])) + slack

    rest = np.linalg.norm(matrix.numpy() - (u * s) @ v) + slack * s[0]
    return s[0] * math.sqrt((1 + defect(u)) * (1 + defect(v.conj().T))) + rest


def random(seed, *shape, complex_=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex128 if complex_ else torch.float64, generator=generator)


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(-300, 300), st.integers(0, 99))
def test_a_verified_norm_is_above_the_singular_value_and_next_to_it(batch, rows, columns, complex_, exponent, seed):
    matrices = random(seed, batch, rows, columns, complex_=complex_)
    truth = max(largest(one) for one in matrices)
    other = max(residual_bound(one) for one in matrices)
    scaled = matrices * 2.0**exponent
    found = verified_norm.norm(scaled) / 2.0**exponent
    assert truth * (1 - 1e-14) <= found <= truth * (1 + 1e-12) and found <= other * (1 + 1e-12)
    assert verified_norm.proves(scaled, 2.0**exponent * truth * (1 + 1e-11))
    assert not verified_norm.proves(scaled, 2.0**exponent * truth * (1 - 1e-6))
    assert not verified_norm.proves(scaled, 2.0**exponent * truth * (1 - 1e-13))
    with_floor = verified_norm.norm(scaled, 2.0**exponent * truth * 0.9) / 2.0**exponent
    assert truth * (1 - 1e-14) <= with_floor <= truth * (1 + 1e-12)
    assert verified_norm.norm(scaled, 2.0**exponent * truth * 1.1) == 2.0**exponent * truth * 1.1


@pytest.mark.parametrize("size", [(100, 100), (64, 300)])
def test_larger_matrices_and_repeated_singular_values(size):
    for matrices in (
        random(0, 3, *size, complex_=True),
        torch.eye(*size, dtype=torch.float64)[None].repeat(9, 1, 1),
        random(1, size[0], 1) @ random(2, 1, size[1]),
    ):
        truth = max(largest(one) for one in matrices.reshape(-1, *size))
        assert truth * (1 - 1e-14) <= verified_norm.norm(matrices) <= truth * (1 + 1e-10)
        assert verified_norm.proves(matrices, truth * (1 + 1e-9)) and not verified_norm.proves(matrices, truth * (1 - 1e-6))


def test_what_is_no_number_or_nothing():
    zeros = torch.zeros(2, 3, 4, dtype=torch.float64)
    assert verified_norm.norm(zeros) == 0 and verified_norm.norm(zeros, 2.0) == 2 and verified_norm.proves(zeros, 0.0)
    one = torch.eye(3, dtype=torch.float64)
    for bad in (math.nan, -1.0, 0.0):
        assert not verified_norm.proves(one, bad)
    assert verified_norm.proves(one, math.inf) and verified_norm.proves(one, 1e300) and not verified_norm.proves(one, 1e-300)
    for poison in (math.nan, math.inf):
        broken = one.clone()
        broken[2, 0] = poison
        assert not verified_norm.proves(broken, 1e9)
        with pytest.raises(ValueError, match="finite"):
            verified_norm.norm(broken)
    subnormal = torch.full((2, 2), 5e-324, dtype=torch.float64)
    assert (
        verified_norm.proves(subnormal, 1.5e-323)
        and not verified_norm.proves(subnormal, 5e-324)
        and verified_norm.norm(subnormal) >= 1e-323
    )
    huge = torch.full((2, 2), 1e308, dtype=torch.float64)
    assert verified_norm.norm(huge) == math.inf and not verified_norm.proves(huge, 1.9e307)


def test_a_solver_that_lies_or_fails_changes_nothing_but_the_tightness():
    """Guesses that are too low are found out by the factorisation; without any, the sure bound is left."""
    matrices = random(3, 4, 6, 8)
    truth = max(largest(one) for one in matrices)
    for lie in (0.5, 0.99, 1 - 1e-9):
        with mock.patch.object(torch.linalg, "eigvalsh", lambda gram, lie=lie: torch.linalg.svdvals(gram) * lie):
            assert verified_norm.norm(matrices) >= truth
    with mock.patch.object(torch.linalg, "eigvalsh", side_effect=torch.linalg.LinAlgError):
        sure = verified_norm.norm(matrices)
    wanted = max(math.sqrt(largest_sum(one, 0) * largest_sum(one, 1)) for one in matrices)
    assert sure == pytest.approx(wanted) and sure >= truth


def largest_sum(matrix, axis):
    return matrix.abs().sum(axis).max().item()


@pytest.mark.parametrize("order", [3, 40, 200])
@pytest.mark.parametrize("complex_", [False, True])
def test_this_library_factorises_within_the_error_that_the_proof_allows_it(order, complex_):
    """|R^* R - T| in Frobenius norm, measured, against the allowance n gamma c: with orders of magnitude to spare."""
    a = random(order, order, order + 5, complex_=complex_)
    tested = largest(a) ** 2 * (1 + 1e-12) * torch.eye(order, dtype=a.dtype) - a @ a.mH
    factor, info = torch.linalg.cholesky_ex(tested)
    measured = (factor @ factor.mH - tested).abs().square().sum().sqrt().item()
    assert info == 0 and measured < order * verified_norm.gamma(4 * (order + 4)) * largest(a) ** 2 / 4


def test_power_iteration_from_ones_sees_an_eighth_where_the_norm_is_eight():
    """A dyadic symmetric matrix, orthogonal to ones in its large direction: every product is exact."""
    ones = torch.ones(4, dtype=torch.float64) / 2
    steep = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64) / 2
    matrix = 8 * torch.outer(steep, steep) + 0.125 * torch.outer(ones, ones)
    vector = ones
    for _ in range(100):
        vector = matrix @ vector
        vector = vector / vector.norm()
    assert (matrix @ vector).norm() == 0.125
    linear = nn.Linear(4, 4).double()
    linear.weight.data = matrix
    assert upper(linear, (4,)).value == pytest.approx(8, rel=1e-12) and upper(linear, (4,)).value >= 8
    assert gram_norm(linear, (4,)).item() == pytest.approx(8, rel=1e-12)
    for proof in (pairs(linear, (4,), 4), gram_pairs(linear, (4,), 4)):
        torch.testing.assert_close(proof.detach(), (matrix[:, None] - matrix[None]).norm(dim=2), rtol=1e-8, atol=1e-12)


def test_a_kernel_of_two_components_has_the_norm_of_the_larger_not_of_a_local_maximum():
    """Rank-one parts a b c d on orthogonal channels: a search for the largest tensor norm may stop at the smaller."""
    down, across = torch.tensor([1.0, 1, 1], dtype=torch.float64), torch.tensor([1.0, 0, -1], dtype=torch.float64)
    kernel = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    for channel, (one, size) in enumerate(((down, 2.850), (across, 2.932))):
        part = torch.outer(one, across)
        kernel[channel, channel] = part * size / largest(dense(conv_of(part[None, None]), (1, 8, 8)))
    conv = conv_of(kernel)
    truth = largest(dense(conv, (2, 8, 8)))
    assert truth == pytest.approx(2.932)
    assert truth <= upper(conv, (2, 8, 8)).value <= truth * (1 + 1e-9)
    assert truth <= alone(conv, (2, 8, 8))[0] <= truth * 1.15 and truth <= gram_norm(conv, (2, 8, 8)).item() * (1 + 1e-12)


def conv_of(kernel, **options):
    outputs, inputs, height, width = kernel.shape
    groups = options.get("groups", 1)
    options = {"padding": (height // 2, width // 2)} | options
    conv = nn.Conv2d(inputs * groups, outputs, (height, width), bias=False, **options).double()
    conv.weight.data = kernel.clone()
    return conv


def alone(conv, shape):
    """The bound, and which it is, without the dense matrix."""
    with mock.patch.object(convolution, "DENSE_SIZE", 0):
        bound = steps(conv, shape)[0].bound
    return bound.value, bound.method


def test_groups_count_by_their_largest_not_by_their_product():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=3).double()
    with torch.no_grad():
        for part, size in zip(conv.weight.split(2), (0.3, 3.524, 0.4), strict=True):
            part *= size / largest(dense(conv_of(part), (2, 6, 6)))
    truth = largest(dense(conv, (6, 6, 6)))
    assert truth == pytest.approx(3.524)
    assert truth <= upper(conv, (6, 6, 6)).value <= truth * (1 + 1e-9)
    assert truth <= alone(conv, (6, 6, 6))[0] <= truth * 1.15
    assert truth * (1 - 1e-12) <= gram_norm(conv, (6, 6, 6), 12).item() <= truth * 1.15


convolutions = st.fixed_dictionaries(
    {
        "inputs": st.integers(1, 2),
        "outputs": st.integers(1, 3),
        "groups": st.integers(1, 2),
        "kernel": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": st.tuples(st.integers(1, 4), st.integers(1, 3)),
        "dilation": st.tuples(st.integers(1, 3), st.integers(1, 2)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "mode": st.sampled_from(["zeros", "zeros", "circular"]),
        "size": st.tuples(st.integers(1, 7), st.integers(1, 6)),
        "seed": st.integers(0, 10),
        "scale": st.sampled_from([1.0, 1.0, 1e-20, 1e20]),
    }
)


def drawn(options):
    """The convolution drawn, the shape of its images and its dense norm."""
    torch.manual_seed(options["seed"])
    groups = options["groups"]
    conv = nn.Conv2d(
        options["inputs"] * groups,
        options["outputs"] * groups,
        options["kernel"],
        options["stride"],
        options["padding"],
        options["dilation"],
        groups,
        padding_mode=options["mode"],
    ).double()
    conv.weight.data *= options["scale"]
    if options["seed"] == 0:
        nn.init.constant_(conv.weight, options["scale"])
    nn.init.zeros_(conv.bias)
    shape = (options["inputs"] * groups, *options["size"])
    try:
        matrix = dense(conv, shape)
    except RuntimeError:  # no output, or a wrap around more than once
        assume(False)
    return conv, shape, matrix


@settings(max_examples=60)
@given(convolutions)
def test_every_bound_is_above_the_dense_operator(options):
    conv, shape, matrix = drawn(options)
    truth = largest(matrix)
    axes = conv_axes(conv, shape[1:])
    kernel = conv.weight.detach().unflatten(0, (conv.groups, -1))
    for bound in (convolution.torus_norm, convolution.schur_norm, convolution.reshaped_norm):
        assert bound(kernel, axes) >= truth * (1 - 1e-12), bound
    least, method = convolution.operator_bound(kernel, axes)
    assert truth * (1 - 1e-12) <= least and method in ("dense", "torus", "schur", "reshaped")
    assert alone(conv, shape)[0] <= convolution.torus_norm(kernel, axes) * (1 + 1e-9)
    if options["mode"] == "zeros":
        assert method == "dense" and least <= truth * (1 + 1e-11)
        blocks = convolution.operator_matrix(kernel, axes)
        assert torch.equal(torch.block_diag(*blocks), matrix)


@settings(max_examples=30)
@given(convolutions, st.booleans())
def test_gram_iterations_fall_towards_the_operator_and_never_below(options, torus):
    conv, shape, matrix = drawn(options)
    truth = largest(matrix)
    with mock.patch("robustbench_rkhs.bounds.differentiable.DENSE", 0 if torus else 2**17):
        values = [gram_norm(conv, shape, n).item() for n in (0, 1, 2, 4, 8)]
    assert all(later <= sooner * (1 + 1e-12) for sooner, later in pairwise(values))
    assert values[-1] >= truth * (1 - 1e-12)
    assert torus or options["mode"] == "circular" or values[-1] <= truth * 1.02


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(4, 9))
def test_sequences_too(inputs, kernel, stride, dilation, padding, size):
    assume(dilation * (kernel - 1) + 1 <= size + 2 * padding)
    torch.manual_seed(size)
    conv = nn.Conv1d(inputs, 3, kernel, stride, padding, dilation).double()
    truth = largest(dense(conv, (inputs, size)))
    assert truth * (1 - 1e-12) <= alone(conv, (inputs, size))[0]
    assert truth * (1 - 1e-12) <= gram_norm(conv, (inputs, size), 8).item() <= truth * 1.02
    assert truth * (1 - 1e-12) <= steps(conv, (inputs, size))[0].bound.value <= truth * (1 + 1e-11)


def test_which_bound_wins():
    shape = (3, 40, 40)
    torch.manual_seed(0)
    assert alone(nn.Conv2d(3, 4, 3, padding=1), shape)[1] == "torus"
    assert alone(nn.Conv2d(3, 4, 2, 2), shape)[1] == "reshaped"  # no window overlaps another: exact, and cheaper
    patches = nn.Conv2d(3, 4, 2, 2)
    assert alone(patches, shape)[0] == pytest.approx(largest(patches.weight.detach().flatten(1)), rel=1e-6)
    flat = conv_of(torch.ones(1, 1, 3, 3, dtype=torch.float64))
    assert alone(flat, (1, 40, 40))[0] == pytest.approx(9) and steps(flat, (1, 4, 4))[0].bound.method == "dense"
    assert upper(conv_of(torch.zeros(2, 3, 3, 3, dtype=torch.float64)), shape).value == 0


@pytest.mark.parametrize("padding_mode, stride", [("zeros", 1), ("zeros", 2), ("circular", 1), ("circular", 2)])
def test_slopes_of_the_gram_norm_are_those_of_finite_differences(padding_mode, stride):
    torch.manual_seed(0)
    for torus in (False, True):
        conv = nn.Conv2d(4, 4, 3, stride, 1, groups=2, padding_mode=padding_mode, bias=False).double()

        def value(weight, conv=conv):
            return torch.func.functional_call(_Normed(conv, (4, 6, 6), 4), {"layer.weight": weight}, ())

        with mock.patch("robustbench_rkhs.bounds.differentiable.DENSE", 0 if torus else 2**17):
            assert torch.autograd.gradcheck(value, conv.weight.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda a: iterate(a, 5), random(0, 3, 4, 6).requires_grad_())


class _Normed(nn.Module):
    """The Gram norm as the output of a module, so that its weight can be exchanged."""

    def __init__(self, layer, shape, iterations):
        super().__init__()
        self.layer, self.shape, self.iterations = layer, shape, iterations

    def forward(self):
        return gram_norm(self.layer, self.shape, self.iterations)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scale_is_no_obstacle(scale, dtype):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, padding=1).to(dtype)
    before = gram_norm(conv, (2, 5, 5)).item(), alone(conv, (2, 5, 5))[0], upper(conv, (2, 5, 5)).value
    conv.weight.data *= scale
    norm = gram_norm(conv, (2, 5, 5))
    (slope,) = torch.autograd.grad(norm, conv.weight)
    after = norm.item(), alone(conv, (2, 5, 5))[0], upper(conv, (2, 5, 5)).value
    assert norm.dtype == dtype and after == pytest.approx([value * scale for value in before], rel=1e-5)
    # a norm grows by itself along the weights: Euler's identity
    assert (slope.double() * conv.weight.double()).sum().item() == pytest.approx(norm.item(), rel=1e-4)
    nn.init.zeros_(conv.weight)
    flat = gram_norm(conv, (2, 5, 5))
    assert flat == 0 and torch.autograd.grad(flat, conv.weight)[0].isfinite().all()


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
    return nn.Sequential(
        Normalize((0.5,), (0.25,)),
        nn.Conv2d(1, 3, 3, padding=1),
        nn.LeakyReLU(0.2),
        Residual(body, nn.Identity()),
        nn.MaxPool2d(3, 2, 1),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(27, 5),
        nn.Tanh(),
        nn.Linear(5, 4),
    ).double()


def test_pairs_are_products_of_the_layers_and_rows_of_the_last():
    model = network().eval()
    with torch.no_grad():
        for buffer in (model[3].body[1].running_var,):
            buffer.copy_(torch.tensor([0.5, 1.0, 2.0]))
    conv, inner, hidden = (
        dense(layer, shape) for layer, shape in ((model[1], (1, 6, 6)), (model[3].body[0], (3, 6, 6)), (model[7], (27,)))
    )
    steepest = (model[3].body[1].running_var + model[3].body[1].eps).rsqrt().max().item()
    product = 4 * largest(conv) * (1 + largest(inner) * steepest) * 2 * largest(hidden)
    rows = model[9].weight.detach()
    wanted = product * (rows[:, None] - rows[None]).norm(dim=2)
    found = gram_pairs(model, (1, 6, 6), 4, 12)
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-2, atol=0)
    assert (found >= wanted * (1 - 1e-9)).all() and (found.diagonal() == 0).all()
    assert (pairs(model, (1, 6, 6), 4) <= found.detach() * (1 + 1e-9)).all()  # what is certified is no larger
    model.train()
    torch.testing.assert_close(gram_pairs(model, (1, 6, 6), 4, 12), found)
    slopes = torch.autograd.grad(found.sum(), [p for name, p in model.named_parameters() if name.endswith("weight")])
    assert all(slope.isfinite().all() and slope.any() for slope in slopes)
    short = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).double()
    torch.testing.assert_close(gram_pairs(short, (3,), 2, 14).detach(), pairs(short, (3,), 2), rtol=1e-3, atol=0)


def test_layers_without_a_differentiable_bound_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(SandwichLinear(4, 4)), nn.Linear(4, 3))
    with pytest.raises(Uncertifiable, match=r"1\.0 \(SandwichLinear\): no differentiable bound"):
        gram_pairs(model, (4,), 3)
    with pytest.raises(Uncertifiable, match="1 \\(GLU\\)"):
        gram_pairs(nn.Sequential(nn.Linear(4, 4), nn.GLU()), (4,), 4)
    with pytest.raises(Uncertifiable, match="expected 7 logits"):
        gram_pairs(nn.Linear(4, 3), (4,), 7)
    with pytest.raises(Uncertifiable, match="expected 4 features"):
        gram_pairs(nn.Linear(4, 3), (5,), 3)


def test_gloro_is_the_cross_entropy_with_one_more_logit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = torch.rand(8, 1, 2, 3, dtype=torch.float64), torch.arange(8) % 3
    first, last = model[1].weight.detach(), model[3].weight.detach()
    total, plain = 0.0, 0.0
    for image, label in zip(x, y, strict=True):
        logits = model(image[None])[0].detach()
        j = int(logits.argmax())
        slopes = largest(first) * (last - last[j]).norm(dim=1)
        bottom = max((logits[i] + 0.3 * slopes[i]).item() for i in range(3) if i != j)
        extended = torch.cat([logits, torch.tensor([bottom])])
        total += -extended.log_softmax(0)[label].item() / len(x)
        divergence = (logits.softmax(0) * (logits.log_softmax(0) - extended.log_softmax(0)[:3])).sum()
        plain += (2.5 * divergence - logits.log_softmax(0)[label]).item() / len(x)
    assert Gloro(eps=0.3, iterations=14)(model, x, y).item() == pytest.approx(total, rel=1e-4)
    assert Gloro(eps=0.3, iterations=14, beta=2.5)(model, x, y).item() == pytest.approx(plain, rel=1e-4)


GLORO = {
    "data": {"name": "digits", "train": 200, "validation": 80},
    "network": {"name": "convolutional", "channels": [2, 2], "hidden": [8]},
    "loss": {"name": "gloro", "eps": 0.2},
    "optimizer": {"name": "adam", "lr": 0.01},
    "epochs": 5,
    "certify_eps": 0.05,
}


def test_what_the_log_says_is_certified_is_what_the_checkpoint_certifies(tmp_path):
    recipe = TrainRecipe.parse(GLORO)
    train(recipe, tmp_path / "m")
    loaded, split = checkpoint.load(tmp_path / "m"), recipe.data.load().validation
    records = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    best = max(records, key=lambda r: (r["validation_certified"], r["validation_clean"], r["epoch"]))
    assert loaded.config["epoch"] == best["epoch"] and best["validation_certified"] > 0
    found = MarginCertificate()(loaded.model, split.x, split.y, split.index, (0.05,)).radius
    assert int((found >= 0.05).sum()) / len(split) == best["validation_certified"]
    assert pairs(loaded.model, split.shape, 10).max().item() == best["lipschitz"]
    assert validate(loaded.model, split, None, certify_eps=0.05) == {k: best[k] for k in best if k[:4] in ("vali", "lips")}


def test_what_the_best_epoch_has_most_of():
    assert score({"validation_robust": 0.5, "validation_certified": 0.9, "validation_clean": 1.0}) == (0.5, 1.0)
    assert score({"validation_certified": 0.3, "validation_clean": 1.0}) == (0.3, 1.0)


def test_slack_is_on_top_of_the_verified_norm():
    matrix = random(0, 5, 7)
    assert (
        verified_norm.norm(matrix)
        < spectral(matrix, 0.0)
        < spectral(matrix)
        == pytest.approx(verified_norm.norm(matrix) * (1 + 1e-9), rel=1e-15)
    )
