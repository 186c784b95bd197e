"""Convolutions and pools along one axis: bounds against dense matrices; the sequence network and its certificate."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lipschitz import exact
from torch import nn

from robustbench_rkhs.bounds import steps, upper
from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.networks import SequenceConvolutional
from robustbench_rkhs.nodes.node import UserError

convolutions = st.fixed_dictionaries(
    {
        "inputs": st.integers(1, 3),
        "outputs": st.integers(1, 3),
        "groups": st.integers(1, 2),
        "kernel": st.integers(1, 5),
        "stride": st.integers(1, 4),
        "dilation": st.integers(1, 3),
        "padding": st.one_of(st.integers(0, 5), st.sampled_from(["same", "valid"])),
        "mode": st.sampled_from(["zeros", "zeros", "circular"]),
        "size": st.integers(1, 9),
        "seed": st.integers(0, 10),
    }
)


@settings(max_examples=300, deadline=None)
@given(convolutions)
def test_convolution_bounds_the_dense_operator(options):
    torch.manual_seed(options["seed"])
    groups, stride = options["groups"], 1 if options["padding"] == "same" else options["stride"]
    conv = nn.Conv1d(
        options["inputs"] * groups,
        options["outputs"] * groups,
        options["kernel"],
        stride,
        options["padding"],
        options["dilation"],
        groups,
        padding_mode=options["mode"],
    )
    if options["seed"] == 0:
        nn.init.ones_(conv.weight)
    shape = (options["inputs"] * groups, options["size"])
    try:
        truth = exact(conv, shape)
    except RuntimeError:  # torch cannot run it: no output, or a wrap around more than once
        with pytest.raises(Uncertifiable):
            upper(conv, shape)
        return
    torus = steps(conv, shape)[0].bound
    assert torus.shape == conv(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:]
    assert truth <= torus.value
    assert truth <= upper(conv, shape).value <= truth * (1 + 1e-6) + 1e-10


def test_the_torus_bound_is_close_on_long_sequences():
    torch.manual_seed(0)
    conv = nn.Conv1d(3, 5, 7, padding=3)
    assert steps(conv, (3, 120))[0].bound.value <= 1.02 * exact(conv, (3, 120))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(1, 9))
def test_average_pool_bounds_the_dense_operator(kernel, stride, padding, size):
    pool = nn.AvgPool1d(kernel, stride, min(padding, kernel // 2))
    try:
        truth = exact(pool, (2, size))
    except RuntimeError:
        with pytest.raises(Uncertifiable):
            upper(pool, (2, size))
        return
    bound = steps(pool, (2, size))[0].bound
    assert truth <= bound.value and bound.shape == pool(torch.zeros(1, 2, size)).shape[1:]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(1, 2), st.booleans(), st.integers(1, 9), st.integers(0, 5)
)
def test_max_pool_is_no_steeper_than_its_bound_and_reaches_it(kernel, stride, padding, dilation, ceil, size, seed):
    pool = nn.MaxPool1d(kernel, stride, min(padding, kernel // 2), dilation, ceil_mode=ceil)
    torch.manual_seed(seed)
    x = torch.rand(2, size, dtype=torch.float64)
    try:
        jacobian = torch.autograd.functional.jacobian(pool, x).reshape(-1, x.numel())
    except RuntimeError:
        return
    if dilation > 1 and pool.padding:
        with pytest.raises(Uncertifiable):
            upper(pool, (2, size))
        return
    bound = upper(pool, (2, size))
    assert bound.shape == pool(x[None]).shape[1:]
    assert torch.linalg.matrix_norm(jacobian, ord=2) <= bound.value
    peak = torch.zeros(size, dtype=torch.float64)
    reached = []
    for position in range(size):  # one peak is the maximum of every window that holds it
        at_peak = peak.clone()
        at_peak[position] = 1
        reached.append(pool(at_peak[None, None]).clamp_min(0).norm().item())
    if size > 2 * kernel * dilation and not ceil and not pool.padding:
        assert max(reached) == pytest.approx(bound.value)


def test_global_pools():
    assert upper(nn.AdaptiveAvgPool1d(1), (3, 7)).value == pytest.approx(1 / math.sqrt(7))
    assert upper(nn.AdaptiveAvgPool1d(1), (3, 7)).value >= exact(nn.AdaptiveAvgPool1d(1), (3, 7)) - 1e-15
    assert upper(nn.AdaptiveMaxPool1d(1), (3, 7))[:2] == (1.0, (3, 1))
    for pool in (nn.AdaptiveAvgPool1d(2), nn.AdaptiveMaxPool1d(2), nn.AdaptiveMaxPool1d(1, return_indices=True)):
        with pytest.raises(Uncertifiable, match="no proven Lipschitz bound"):
            upper(pool, (3, 7))


@pytest.mark.parametrize("layer, shape", [(nn.Conv1d(3, 2, 3), (2, 9)), (nn.Conv1d(3, 2, 3), (3, 9, 9)), (nn.AvgPool1d(2), (4,))])
def test_inputs_that_do_not_fit_are_refused(layer, shape):
    with pytest.raises(Uncertifiable, match="expected"):
        upper(layer, shape)


NETWORKS = {
    "max": SequenceConvolutional(channels=(6,), kernel=3),
    "average": SequenceConvolutional(channels=(6, 5), kernel=4, stride=2, pool="average", hidden=(7,)),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_network_is_no_steeper_than_its_bound(network):
    torch.manual_seed(0)
    model = network.build((4, 12), 3).double().eval()
    bound = upper(model, (4, 12))
    assert bound.shape == (3,)
    for _ in range(20):
        x = torch.randn(4, 12, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda at: model(at[None])[0], x).reshape(3, -1)
        assert torch.linalg.matrix_norm(jacobian, ord=2) <= bound.value


def test_certificate_of_an_affine_sequence_model_is_its_distance():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 5, 3, padding=1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 2)).eval()
    x = torch.randn(6, 4, 10)
    with torch.no_grad():
        y = model(x).argmax(1)
        double = model.double()
        flat = torch.eye(40, dtype=torch.float64).view(40, 4, 10)
        rows = (double(flat) - double(torch.zeros(1, 4, 10, dtype=torch.float64))).T
        logits = double(x.double())
    wanted = (logits[:, 0] - logits[:, 1]).abs() / (rows[0] - rows[1]).norm()
    found = MarginCertificate().radii(model.float(), x, y)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    assert (found <= wanted * (1 + 1e-6)).all()


@pytest.mark.parametrize("network, shape", [(SequenceConvolutional(), (3, 8, 8)), (SequenceConvolutional(kernel=10), (3, 1))])
def test_unfit_inputs_are_one_line(network, shape):
    with pytest.raises(UserError, match="sequence_convolutional"):
        network.build(shape, 2)
