"""Global bounds of each pair of logits against dense recursions, closed forms, gradients, and steps that must not be believed."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import dense
from torch import nn

from robustbench_rkhs.bounds import eclipse_pairs, liplt_pairs, network, steps
from robustbench_rkhs.bounds import liplt as liplt_file
from robustbench_rkhs.bounds.eclipse import positive, proved
from robustbench_rkhs.bounds.liplt import liplt, slopes
from robustbench_rkhs.bounds.network import pair_bounds
from robustbench_rkhs.certificates import EclipseCertificate, LipLTCertificate, MarginCertificate
from robustbench_rkhs.certificates.base import FURTHEST
from robustbench_rkhs.layers import Concatenate, MaxMin
from robustbench_rkhs.layers.residual import Residual
from robustbench_rkhs.lipschitz import Uncertifiable

BOUNDS = {"liplt": liplt_pairs, "eclipse": eclipse_pairs}
table = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS.keys())
CLASSES = 4


def mlp(widths, activation=nn.ReLU, scale=1.0):
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
        nn.init.normal_(layers[-2].weight, std=scale / math.sqrt(inputs))
    return nn.Sequential(*layers[:-1]).double()


def block(features, activation=nn.ReLU):
    return Residual(nn.Sequential(nn.Linear(features, 6), activation(), nn.Linear(6, features)), nn.Identity())


NETWORKS = {
    "mlp": lambda: (mlp((5, 8, 8, CLASSES)), (5,)),
    "wide": lambda: (mlp((3, 20, 2, 9, CLASSES)), (3,)),
    "leaky": lambda: (mlp((5, 8, 8, CLASSES), lambda: nn.LeakyReLU(0.3)), (5,)),
    "steep": lambda: (mlp((5, 8, 8, CLASSES), lambda: nn.LeakyReLU(1.7)), (5,)),
    "falling": lambda: (mlp((5, 8, 8, CLASSES), lambda: nn.LeakyReLU(-0.6)), (5,)),
    "opposite": lambda: (mlp((5, 8, 8, CLASSES), lambda: nn.LeakyReLU(-1.0)), (5,)),
    "straight": lambda: (mlp((5, 8, 8, CLASSES), lambda: nn.LeakyReLU(1.0)), (5,)),
    "tanh": lambda: (mlp((5, 8, 8, CLASSES), nn.Tanh, 3), (5,)),
    "sigmoid": lambda: (mlp((5, 8, 8, CLASSES), nn.Sigmoid, 3), (5,)),
    "elu": lambda: (mlp((5, 8, 8, CLASSES), lambda: nn.ELU(1.4)), (5,)),
    "activation last": lambda: (nn.Sequential(mlp((5, 8, CLASSES)), nn.ReLU()), (5,)),
    "two in a row": lambda: (
        nn.Sequential(nn.Tanh(), nn.ReLU(), nn.Linear(5, 8), nn.ReLU(), nn.Tanh(), nn.Linear(8, CLASSES)),
        (5,),
    ),
    "maxmin": lambda: (nn.Sequential(mlp((5, 8, 8)), MaxMin(), mlp((8, 7, CLASSES))), (5,)),
    "maxmin after": lambda: (nn.Sequential(mlp((5, 8, 8)), nn.ReLU(), MaxMin(), nn.Linear(8, CLASSES)), (5,)),
    "strided": lambda: (
        nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)),
        (1, 9, 9),
    ),
    "pooled": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(3, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)
        ),
        (2, 9, 9),
    ),
    "residual": lambda: (nn.Sequential(nn.Linear(5, 8), block(8), nn.ReLU(), block(8, nn.Tanh), nn.Linear(8, CLASSES)), (5,)),
    "nested": lambda: (
        nn.Sequential(
            nn.Linear(5, 8), Residual(nn.Sequential(block(8), nn.ReLU(), block(8)), nn.Linear(8, 8)), nn.Linear(8, CLASSES)
        ),
        (5,),
    ),
    "residual maxmin": lambda: (nn.Sequential(nn.Linear(5, 8), block(8, MaxMin), nn.ReLU(), nn.Linear(8, CLASSES)), (5,)),
}


def steepest(model, shape, points=400):
    """The largest gradient norm of each difference of logits seen at random points: below any Lipschitz constant."""
    x = (3 * torch.randn(points, *shape, dtype=torch.float64)).requires_grad_()
    logits = model(x)
    rows = torch.stack([torch.autograd.grad(logits[:, j].sum(), x, retain_graph=True)[0].flatten(1) for j in range(CLASSES)])
    return (rows[:, None] - rows[None]).norm(dim=3).amax(2)


@table
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("seed", range(3))
def test_no_gradient_is_steeper_and_the_product_is_never_smaller(bound, build, seed):
    torch.manual_seed(seed)
    model, shape = build()
    model = model.double()
    chain = steps(model, shape)
    found, simple = bound(chain, shape, CLASSES), pair_bounds(chain, shape, CLASSES)
    assert (steepest(model, shape) <= found * (1 + 1e-12)).all()
    assert (found <= simple * (1 + 1e-9)).all() and (found.diagonal() == 0).all() and torch.equal(found, found.T)


@pytest.mark.parametrize("name", ["mlp", "leaky", "falling", "tanh", "strided", "residual", "nested", "maxmin"])
def test_liplt_is_truly_below_the_product(name):
    torch.manual_seed(0)
    model, shape = NETWORKS[name]()
    chain = steps(model, shape)
    assert (liplt_pairs(chain, shape, CLASSES) < 0.95 * pair_bounds(chain, shape, CLASSES) + torch.eye(CLASSES)).all()


def liplt_by_hand(matrices, low, high):
    """The recursion on dense matrices, w_y - w_j in place of the last, from its formula."""
    middle, rest = (low + high) / 2, (high - low) / 2
    last, result = matrices[-1], torch.zeros(len(matrices[-1]), len(matrices[-1]), dtype=torch.float64)
    for y in range(len(last)):
        for j in range(len(last)):
            ws, m = [*matrices[:-1], (last[y] - last[j])[None]], []
            for k in range(1, len(ws) + 1):
                total = abs(middle) ** (k - 1) * torch.linalg.matrix_norm(
                    torch.linalg.multi_dot([*ws[:k][::-1], torch.eye(ws[0].shape[1]).double()]), 2
                )
                for i in range(1, k):
                    factors = [*ws[i:k][::-1], torch.eye(ws[i].shape[1]).double()]
                    total += (
                        abs(middle) ** (k - i - 1) * rest * torch.linalg.matrix_norm(torch.linalg.multi_dot(factors), 2) * m[i - 1]
                    )
                m.append(total)
            result[y, j] = m[-1]
    return result


def eclipse_by_hand(matrices):
    """The published recursion (ReLU) on dense matrices."""
    form = torch.eye(matrices[0].shape[1], dtype=torch.float64)
    for weight in matrices[:-1]:
        through = weight @ torch.linalg.inv(form) @ weight.T
        scale = 2 / torch.linalg.eigvalsh(through)[-1]
        form = scale * torch.eye(len(weight)).double() - scale**2 / 4 * through
    rows = matrices[-1][:, None] - matrices[-1][None]
    return torch.einsum("yjn,nm,yjm->yj", rows, torch.linalg.inv(form), rows).sqrt()


def test_routes_of_dense_layers_are_multiplied_out_where_other_routes_are_not(monkeypatch):
    """Wider than `DENSE_SIDE`, up to `WIDE_SIDE`."""
    torch.manual_seed(0)
    widths = (9, 9, 9, 9, 3)
    model = mlp(widths)
    chain, matrices = steps(model, (9,)), [layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)]
    monkeypatch.setattr(network, "DENSE_SIDE", 8)
    monkeypatch.setattr(liplt_file, "DENSE_SIDE", 8)
    torch.testing.assert_close(liplt_pairs(chain, (9,), 3), liplt_by_hand(matrices, 0.0, 1.0), rtol=1e-7, atol=1e-12)
    monkeypatch.setattr(liplt_file, "WIDE_SIDE", 8)
    assert (liplt_pairs(chain, (9,), 3) > 1.01 * liplt_by_hand(matrices, 0.0, 1.0)).fill_diagonal_(True).all()


@settings(max_examples=15)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.9]))
def test_both_equal_their_recursions(widths, seed, slope):
    torch.manual_seed(seed)
    model = mlp((*widths, 3), lambda: nn.LeakyReLU(slope), 2)
    chain, matrices = steps(model, (widths[0],)), [layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)]
    simple = pair_bounds(chain, (widths[0],), 3)
    torch.testing.assert_close(liplt_pairs(chain, (widths[0],), 3), liplt_by_hand(matrices, slope, 1.0), rtol=1e-7, atol=1e-12)
    found = eclipse_pairs(chain, (widths[0],), 3)
    if slope == 0:
        truth = eclipse_by_hand(matrices)
        torch.testing.assert_close(found, torch.minimum(truth, simple), rtol=1e-6, atol=1e-12)
        assert (found >= torch.minimum(truth, simple) * (1 - 1e-12)).all()


@table
def test_affine_networks_are_exact(bound):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, CLASSES)).double()
    rows = dense(model, (1, 9, 9))
    found = bound(steps(model, (1, 9, 9)), (1, 9, 9), CLASSES)
    torch.testing.assert_close(found, (rows[:, None] - rows[None]).norm(dim=2), rtol=1e-8, atol=1e-12)


def test_two_layers_of_one_unit_are_exact():
    """|v| |w| for relu(w x) v: the linear path and the rest halve it, and add up again."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    model[0].weight.data[:], model[2].weight.data = torch.tensor(3.0), torch.tensor([[2.0], [-5.0]]).double()
    for bound in BOUNDS.values():
        assert bound(steps(model, (1,)), (1,), 2)[0, 1].item() == pytest.approx(21, rel=1e-6)


def test_two_layers_in_closed_form():
    """W = diag(3, 1) and d = (0, 2): LipLT (|d W| + |d| |W|) / 2 = 4; ECLipsE: S = diag(9, 1), N = 1 - S / 18, l^2 = 9 / 2."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    model[0].weight.data = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double()
    model[2].weight.data = torch.tensor([[0.0, 1.0], [0.0, -1.0]]).double()
    chain = steps(model, (2,))
    assert pair_bounds(chain, (2,), 2)[0, 1].item() == pytest.approx(6, rel=1e-6)
    assert liplt_pairs(chain, (2,), 2)[0, 1].item() == pytest.approx(4, rel=1e-6)
    assert eclipse_pairs(chain, (2,), 2)[0, 1].item() == pytest.approx(math.sqrt(4.5 * 4 * 18 / 17), rel=1e-6)


def test_a_residual_block_in_closed_form():
    """x + V relu(W x) with V W = -1: the linear path is 1 - 1/2, the rest half of |V| |W|: 1, as the block's own bound."""
    body = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model = nn.Sequential(Residual(body, nn.Identity())).double()
    body[0].weight.data, body[2].weight.data = 2 * torch.eye(2).double(), -0.5 * torch.eye(2).double()
    chain = steps(model, (2,))
    assert chain[0].bound.value == pytest.approx(1) and liplt(chain) == pytest.approx(1, rel=1e-6)
    assert liplt_pairs(chain, (2,), 2)[0, 1].item() == pytest.approx(math.sqrt(2), rel=1e-6)


def test_a_concatenation_starts_anew():
    """sqrt 2 of relu(x) beside itself, then a row that reads both halves alike: exact."""
    both = Concatenate([nn.ReLU(), nn.ReLU()])
    last = nn.Linear(4, 2, bias=False)
    last.weight.data = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    chain = steps(nn.Sequential(both, last).double().eval(), (2,))
    assert liplt_pairs(chain, (2,), 2)[0, 1].item() == pytest.approx(2, rel=1e-6)
    assert eclipse_pairs(chain, (2,), 2)[0, 1].item() == pytest.approx(2, rel=1e-6)


@table
@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1e20, 1e100])
def test_scale_of_the_weights_scales_the_bound(bound, scale):
    torch.manual_seed(0)
    model = mlp((4, 8, 6, 3))
    before = bound(steps(model, (4,)), (4,), 3)
    model[0].weight.data *= scale
    torch.testing.assert_close(bound(steps(model, (4,)), (4,), 3) / scale, before, rtol=1e-6, atol=0)
    model[2].weight.data /= scale
    torch.testing.assert_close(bound(steps(model, (4,)), (4,), 3), before, rtol=1e-6, atol=0)


@table
def test_overflow_is_infinite_and_never_small(bound):
    model = mlp((4, 8, 6, 3))
    for layer in (0, 2, 4):
        model[layer].weight.data *= 1e200
    found = bound(steps(model, (4,)), (4,), 3)
    assert (found + torch.eye(3) == torch.inf).fill_diagonal_(True).all() and (found.diagonal() == 0).all()


@table
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_zero_layers_and_equal_rows_have_no_slope(bound, layer):
    torch.manual_seed(0)
    model = mlp((4, 8, 6, 3))
    model[4].weight.data[1] = model[4].weight.data[0]
    found = bound(steps(model, (4,)), (4,), 3)
    assert found[0, 1] == 0 and found[0, 2] > 0
    model[layer].weight.data.zero_()
    assert (bound(steps(model, (4,)), (4,), 3) == 0).all()


def test_steps_that_do_not_hold_are_rejected():
    """The matrix inequality decides: a form too large, or a weight shrunk too little, is not proved."""
    torch.manual_seed(0)
    weight, identity = torch.randn(6, 5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    for interval in [(0.0, 1.0), (0.3, 1.0), (0.0, 0.25)]:
        low, high = interval
        scaled = weight / torch.linalg.matrix_norm(weight, 2) / high
        through = scaled @ torch.linalg.inv(identity + low * high * scaled.T @ scaled) @ scaled.T
        after = torch.eye(6).double() - ((low + high) / 2) ** 2 * (through + through.T) / 2
        assert proved(identity, scaled, 0.0, after - 1e-9 * torch.eye(6).double(), interval)
        assert not proved(identity, scaled, 0.0, after + 1e-9 * torch.eye(6).double(), interval)
        assert not proved(identity, scaled * 1.01, 0.0, after - 1e-9 * torch.eye(6).double(), interval)
        assert not proved(identity * 0.99, scaled, 0.0, after - 1e-9 * torch.eye(6).double(), interval)
        assert not proved(identity, scaled, 1e-3, after - 1e-9 * torch.eye(6).double(), interval)
        assert not proved(identity, scaled, 0.0, after * math.nan, interval)


@pytest.mark.parametrize("size", [2, 7, 40])
def test_positive_never_accepts_a_negative_eigenvalue(size):
    """Singular matrices whose smallest eigenvalue is pushed just below zero, as an exact rank-one deficit."""
    torch.manual_seed(size)
    flat = torch.ones(size, size).double()  # eigenvalues size and 0, exact in float64
    assert positive(flat + 1e-6 * torch.eye(size).double())
    assert not positive(flat) and not positive(flat - 1e-14 * torch.eye(size).double())
    assert not positive(flat, 1e-9) and positive(flat + 1e-6 * torch.eye(size).double(), 1e-9)


def test_a_wrong_recursion_costs_the_bound_not_the_proof(monkeypatch):
    """Half the width that the recursion asks for: nothing is proved, and the product remains."""
    from robustbench_rkhs.bounds import eclipse

    torch.manual_seed(0)
    model = mlp((5, 8, 8, CLASSES))
    chain = steps(model, (5,))
    simple, right, inner = pair_bounds(chain, (5,), CLASSES), eclipse_pairs(chain, (5,), CLASSES), eclipse._inner
    assert (right < simple).any()
    monkeypatch.setattr(eclipse, "_inner", lambda matrix, weight: inner(matrix, weight) / 4)
    assert torch.equal(eclipse_pairs(chain, (5,), CLASSES), simple)


def test_too_wide_is_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 4097), nn.ReLU(), nn.Linear(4097, 3))
    with pytest.raises(Uncertifiable, match=r"1 \(ReLU\).*too wide"):
        EclipseCertificate().radii(model, torch.rand(1, 3), torch.tensor([0]))
    assert LipLTCertificate().radii(model, torch.rand(1, 3), model(torch.rand(1, 3)).argmax(1)).isfinite().all()


def test_slopes_by_type():
    assert slopes(nn.ReLU()) == slopes(nn.Tanh()) == slopes(nn.ELU(0.5)) == (0, 1) and slopes(nn.Sigmoid()) == (0, 0.25)
    assert slopes(nn.LeakyReLU(-0.5)) == (-0.5, 1) and slopes(nn.LeakyReLU(2.0)) == (1, 2) and slopes(nn.ELU(-0.5)) == (-0.5, 1)
    assert slopes(MaxMin()) is slopes(nn.MaxPool2d(2)) is slopes(nn.Linear(2, 2)) is None


CERTIFICATES = pytest.mark.parametrize("certificate", [LipLTCertificate, EclipseCertificate])


@CERTIFICATES
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_planted_radius_is_never_exceeded_and_nearly_reached(certificate, norm):
    """f = (2 relu(x), 3) in one dimension: the label changes at x = 3/2, and one unit has an exact bound."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    model[0].weight.data[:], model[0].bias.data[:] = torch.tensor(1.0), torch.tensor(0.0)
    model[2].weight.data, model[2].bias.data = torch.tensor([[2.0], [0.0]]).double(), torch.tensor([0.0, 3.0]).double()
    x = torch.tensor([[1.6], [2.5], [10.0], [1.0], [0.2], [-4.0]]).double()
    truth = (x[:, 0] - 1.5).abs()
    found = certificate(norm=norm)(model, x, model(x).argmax(1), torch.arange(6), ()).radius
    assert (found < truth).all()
    torch.testing.assert_close(found[:5], truth[:5], rtol=1e-6, atol=0)  # beyond zero the second piece is flat: found[5] = 1.5
    assert found[5].item() == pytest.approx(1.5, rel=1e-6)


@CERTIFICATES
def test_radii_are_never_below_the_margin_certificates(certificate):
    for name, build in NETWORKS.items():
        torch.manual_seed(1)
        model, shape = build()
        x = torch.rand(20, *shape, dtype=torch.float64)
        y = model.double()(x).argmax(1)
        found, margin = certificate().radii(model, x, y), MarginCertificate().radii(model, x, y)
        assert (found >= margin).all(), name


@CERTIFICATES
def test_equal_logits_and_constant_ones(certificate):
    model = mlp((4, 6, 3))
    model[2].weight.data[1], model[2].weight.data[2] = model[2].weight.data[0], model[2].weight.data[0]
    model[2].bias.data[:] = torch.tensor([1.0, 0.5, 0.2])
    assert (certificate().radii(model, torch.rand(2, 4), torch.zeros(2, dtype=torch.long)) == FURTHEST).all()
