"""Deformations are what they say: invertible, in the box, exact where there is a closed form; and so are their penalties."""

import math
import multiprocessing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import affine
from torch import distributed, nn
from torch.nn import functional

from robustbench_rkhs.data import Deformations, Digits
from robustbench_rkhs.data.deformations import STEEPEST, affine_fields, deform, elastic_fields, fields, steepness, tangents
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.training.penalties import Stability, Tangent

SMALL = Deformations(count=3, amplitude=0.7, smoothness=1.5)
KEYS = torch.tensor([3, 11, 2**33 + 5, 40])


def images(count=4, channels=1, height=8, width=7, seed=0, dtype=torch.float32):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def jacobian_determinants(field, points=4):
    """det D(u + tau(u)) inside every cell, of the bilinear interpolant, by its closed form at a grid of points."""
    a, b, c, d = field[:, :, :-1, :-1], field[:, :, :-1, 1:], field[:, :, 1:, :-1], field[:, :, 1:, 1:]
    found = []
    for s in torch.linspace(0, 1, points):
        for t in torch.linspace(0, 1, points):
            down, right = (1 - t) * (c - a) + t * (d - b), (1 - s) * (b - a) + s * (d - c)
            found.append((1 + down[:, 0]) * (1 + right[:, 1]) - right[:, 0] * down[:, 1])
    return torch.stack(found)


def test_identity_field_returns_the_image():
    x = images(channels=3)
    assert torch.equal(deform(x, torch.zeros(4, 2, 8, 7)), x)
    still = Deformations(degrees=0, scale=0, shear=0, translate=0, amplitude=0)
    field = still(KEYS, 0, (3, 8, 7))
    assert torch.equal(field, torch.zeros_like(field)) and torch.equal(deform(x, field), x)


@given(st.integers(-3, 3), st.integers(-3, 3))
def test_integer_translation_is_a_shifted_image_inside_and_repeats_the_edge_outside(down, right):
    x = images(channels=2)
    shift = torch.tensor([float(down), float(right)]).expand(4, 2)
    moved = deform(x, affine_fields(torch.eye(2).expand(4, 2, 2), shift, (8, 7)))
    rows, columns = (torch.arange(8) + down).clamp(0, 7), (torch.arange(7) + right).clamp(0, 6)
    assert torch.equal(moved, x[:, :, rows][..., columns])


@pytest.mark.parametrize("side", [7, 8])
def test_rotation_by_a_right_angle(side):
    x = images(height=side, width=side, dtype=torch.float64)
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64).expand(4, 2, 2)
    moved = deform(x, affine_fields(quarter, torch.zeros(4, 2, dtype=torch.float64), (side, side)))
    assert torch.equal(moved, x.rot90(-1, (2, 3)))  # row r, column c reads row -c, column r about the centre


def test_drawn_affine_fields_are_rotation_shear_scale_and_shift_within_the_limits():
    limits = dict(degrees=20.0, scale=0.3, shear=0.2, translate=1.5)
    keys = torch.arange(300)
    field = fields(keys, 1, (1, 5, 6), amplitude=0.0, **limits).double()
    matrix = torch.stack([(field[:, :, -1, 0] - field[:, :, 0, 0]) / 4, (field[:, :, 0, -1] - field[:, :, 0, 0]) / 5], 2)
    matrix = matrix + torch.eye(2)
    scale = matrix.det().sqrt()
    angle = torch.atan2(-matrix[:, 0, 1], matrix[:, 1, 1])
    shear = ((matrix[:, :, 0] * matrix[:, :, 1]).sum(1)) / scale**2  # columns R e_1 s + kappa R e_2 s and R e_2 s
    shift = field[:, :, [0, -1], [0, -1]].mean(2)  # of two corners opposite one another: the centre's displacement
    for found, limit in ((angle.rad2deg(), 20), (scale.log(), math.log(1.3)), (shear, 0.2), (shift, 1.5)):
        assert found.abs().max() <= limit * 1.0001 + 1e-5 and found.abs().max() > 0.9 * limit
        assert found.mean().abs() < limit / 5
    rotation = matrix @ torch.tensor([[1.0, 0], [0, 1]]).double() / scale[:, None, None]
    rebuilt = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2).double()
    sheared = torch.eye(2).double().repeat(300, 1, 1)
    sheared[:, 1, 0] = shear
    torch.testing.assert_close(rotation, rebuilt @ sheared, atol=1e-5, rtol=0)


@given(st.integers(2, 12), st.integers(2, 12), st.floats(0.1, 6.0), st.floats(0.3, 5.0), st.integers(0, 10**6))
def test_elastic_fields_keep_their_amplitude_and_never_fold(height, width, amplitude, smoothness, seed):
    noise = torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    field = elastic_fields(noise, amplitude, smoothness).float()
    longest, steepest = field.norm(dim=1).flatten(1).amax(1), steepness(field)
    assert (longest <= amplitude).all() and (steepest <= STEEPEST).all()
    assert ((longest > 0.999 * amplitude) | (steepest > 0.999 * STEEPEST)).all()  # as large as one of the limits lets it be
    assert (jacobian_determinants(field) > 0).all()


def test_steepness_is_the_largest_row_sum_anywhere_in_a_cell():
    field = torch.randn(5, 2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dense = functional.interpolate(field, size=(3 * 400 + 1, 5 * 400 + 1), mode="bilinear", align_corners=True) * 400
    sums = dense.diff(dim=2)[..., :-1].abs() + dense.diff(dim=3)[:, :, :-1].abs()
    found = sums.flatten(1).amax(1)
    assert (found <= steepness(field) * (1 + 1e-9)).all() and (found > 0.98 * steepness(field)).all()


@given(st.integers(0, 10**6), st.integers(0, 50))
def test_whole_fields_are_invertible_and_deformed_images_stay_in_the_box(key, draw):
    strong = Deformations(degrees=30, scale=0.5, shear=0.5, translate=2, amplitude=3, smoothness=1)
    field = strong(torch.tensor([key]), 7, (1, 9, 9), draw)
    assert (jacobian_determinants(field.double()) > 0).all()
    x = (images(1, 1, 9, 9, seed=key) > 0.5).float()
    moved = deform(x, field)
    assert moved.min() >= 0 and moved.max() <= 1


def test_fields_are_counted_by_seed_key_and_draw():
    together = SMALL(KEYS, 5, (1, 8, 7), 2)
    alone = torch.cat([SMALL(KEYS[i : i + 1], 5, (1, 8, 7), 2) for i in range(4)])
    assert torch.equal(together, alone)
    for other in (SMALL(KEYS, 6, (1, 8, 7), 2), SMALL(KEYS, 5, (1, 8, 7), 3), SMALL(KEYS + 1, 5, (1, 8, 7), 2)):
        assert not torch.equal(together, other)


def test_deform_is_differentiable_in_image_and_field():
    x, field = images(2, 2, 4, 5, dtype=torch.float64), SMALL(KEYS[:2], 0, (2, 4, 5)).double()
    assert torch.autograd.gradcheck(deform, (x.requires_grad_(), field.requires_grad_()))
    assert torch.autograd.gradgradcheck(deform, (x, field))


def test_tangents_are_the_central_difference_of_deform():
    x = images(channels=2, dtype=torch.float64)
    field = SMALL(KEYS, 0, (2, 8, 7)).double()
    for step in (1e-3, 1e-5):
        quotient = (deform(x, step * field) - deform(x, -step * field)) / (2 * step)
        torch.testing.assert_close(tangents(x, field), quotient, atol=4 * step, rtol=0)
    linear = tangents(x, 2 * field + field.flip(0))
    torch.testing.assert_close(linear, 2 * tangents(x, field) + tangents(x, field.flip(0)))


def wide(classes=3, height=6, width=6):
    model, *_ = affine(classes=classes, shape=(1, height, width))
    return model, images(5, 1, height, width), torch.arange(5) % classes, torch.tensor([4, 8, 15, 16, 23])


def test_stability_of_a_linear_model_is_the_largest_squared_change_over_all_images_and_deformations():
    model, x, y, keys = wide()
    weight = model[1].weight.detach()
    changes = [(deform(x, SMALL(keys, 9, (1, 6, 6), draw)) - x).flatten(1) @ weight.T for draw in range(3)]
    brute = torch.stack(changes).square().flatten(0, 1).amax(0).sum()
    penalty = Stability(weight=0.5, deformations=SMALL, seed=9)(model, x, y, keys)
    torch.testing.assert_close(penalty, 0.5 * brute)
    wrong = torch.stack([(deform(x, SMALL(keys, 9, (1, 6, 6), d)) - x.roll(1, 0)).flatten(1) @ weight.T for d in range(3)])
    assert not torch.isclose(penalty, 0.5 * wrong.square().flatten(0, 1).amax(0).sum())  # other images as reference: not the same
    penalty.backward()
    best = torch.stack(changes).flatten(0, 1).square().argmax(0)
    moves = torch.cat([(deform(x, SMALL(keys, 9, (1, 6, 6), d)) - x).flatten(1) for d in range(3)])[best]
    torch.testing.assert_close(model[1].weight.grad, (moves * weight).sum(1, keepdim=True) * moves)  # 2 * 0.5 * <w, m> m


def test_tangent_penalty_of_an_affine_model_is_the_largest_squared_norm_of_its_slopes():
    model, x, y, keys = wide()
    along = torch.stack([tangents(x, SMALL(keys, 2, (1, 6, 6), draw)).flatten(1) for draw in range(3)], 1)
    slopes = torch.einsum("ncp,kp->nkc", along, model[1].weight.detach())
    wanted = slopes.square().sum(2).amax(0).sum()
    penalty = Tangent(weight=3.0, deformations=SMALL, seed=2)(model, x, y, keys)
    torch.testing.assert_close(penalty, 3 * wanted)
    assert slopes.square().sum(2).argmax(0).tolist() != slopes.sum(2).argmax(0).tolist()  # the signed sum ranks otherwise
    penalty.backward()
    best = slopes.square().sum(2).argmax(0)
    rows = torch.arange(3)
    torch.testing.assert_close(model[1].weight.grad, 6 * torch.einsum("kc,kcp->kp", slopes[best, rows], along[best]))


@pytest.mark.parametrize("kind", [Stability, Tangent])
def test_only_some_images_are_deformed_the_same_at_any_order(kind):
    model, x, y, keys = wide()
    penalty = kind(images=2, deformations=SMALL)
    every = kind(images=5, deformations=SMALL)
    order = torch.tensor([3, 0, 4, 2, 1])
    value = penalty(model, x, y, keys)
    torch.testing.assert_close(value, penalty(model, x[order], y[order], keys[order]))
    by_two = [every(model, x[[i, j]], y[[i, j]], keys[[i, j]]) for i in range(5) for j in range(i)]
    assert sum(bool(torch.isclose(value, one, rtol=1e-6)) for one in by_two) >= 1 and value <= every(model, x, y, keys) * 1.000001


@pytest.mark.parametrize("kind", [Stability, Tangent])
def test_inputs_that_are_no_images_are_refused_in_one_line(kind):
    model = nn.Linear(5, 3)
    with pytest.raises(UserError, match=r"deformation_.*images of \(channel, height, width\), found inputs of shape \(5,\)"):
        kind()(model, torch.rand(2, 5), torch.zeros(2).long())
    split = Digits().test()
    assert kind().prepare(model, split, 0) == kind()


def two_ranks(me, meet):
    """One of two processes, each with its share of the batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y, keys = torch.rand(12, 1, 6, 6), torch.arange(12) % 3, torch.arange(12) * 7
    some = [kind(images=count, deformations=Deformations(count=2)) for kind in (Stability, Tangent) for count in (1, 5, 50)]

    def gradients(part):
        found = []
        for penalty in some:
            value = penalty(model, x[part], y[part], keys[part])
            found += [value.detach().view(1), *(g.flatten() for g in torch.autograd.grad(value, list(model.parameters())[:-1]))]
        return torch.cat(found)

    alone = gradients(slice(None))
    distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=me, world_size=2)
    together = gradients(slice(0, 5) if me else slice(5, 12))
    distributed.all_reduce(together)
    torch.testing.assert_close(together / 2, alone)
    distributed.destroy_process_group()


def test_two_processes_give_the_value_and_gradient_of_one(tmp_path):
    fork = multiprocessing.get_context("fork")  # a new process would import torch again
    started = [fork.Process(target=two_ranks, args=(me, tmp_path / "meet")) for me in (0, 1)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0]
