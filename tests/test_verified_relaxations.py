"""The verifier's own intervals and lines against sampled points, and files of CROWN and IBP radii, forged ones too."""

import numpy as np
import pytest
import torch
from test_proof import forged, put
from torch import nn

from robustbench_rkhs.certificates import CrownCertificate, IBPCertificate
from robustbench_rkhs.data import Split
from robustbench_rkhs.layers import Residual
from robustbench_rkhs.verifier import crown
from robustbench_rkhs.verifier.activations import Activation
from robustbench_rkhs.verifier.affine import Diagonal, Linear, Pad, Reshape
from robustbench_rkhs.verifier.chain import Branches, forward
from robustbench_rkhs.verifier.check import verify
from robustbench_rkhs.verifier.convolution import Average, Convolution
from robustbench_rkhs.verifier.curved import GroupSort, Maximum, MaxMin
from robustbench_rkhs.verifier.intervals import ball, through
from robustbench_rkhs.verifier.operations import Malformed
from robustbench_rkhs.verifier.proof import Rejected

KINDS = {
    "relu": (),
    "leaky_relu": (0.2,),
    "gelu": (),
    "silu": (),
    "hardswish": (),
    "tanh": (),
    "elu": (0.7,),
    "softplus": (2.0,),
    "hardtanh": (-0.4, 0.7),
    "selu": (),
}


def images(rng, kind):
    """A network of images: convolution, pools, sums and concatenations."""
    draw = rng.normal
    body = [Convolution((3, 4, 4), draw(size=(3, 1, 3, 3)), draw(size=3), padding=((1, 1), (1, 1)), groups=3)]
    body.append(Activation((3, 4, 4), kind, KINDS[kind]))
    more = [Convolution((3, 4, 4), draw(size=(1, 3, 1, 1)), None), Activation((1, 4, 4), "relu", ())]
    return [
        Diagonal((1, 6, 6), np.array([0.4]), np.array([-2.0]), np.array([0.1])),
        Convolution((1, 6, 6), draw(size=(3, 1, 3, 3)), draw(size=3)),
        Activation((3, 4, 4), kind, KINDS[kind]),
        Branches((3, 4, 4), [body, []], True),
        Branches((3, 4, 4), [[], more], False),
        MaxMin((4, 4, 4)),
        Pad((4, 4, 4), ((0, 1), (1, 0)), 0.5),
        Maximum((4, 5, 5), (2, 2), (1, 1), (0, 0), (1, 1), (4, 4)),
        Average((4, 4, 4), (2, 2), (2, 2), ((0, 0), (0, 0)), 4.0),
        Reshape((4, 2, 2), (16,)),
        GroupSort((16,), 4),
        Linear((16,), draw(size=(5, 16)) / 4, draw(size=5)),
        Activation((5,), "relu", ()),
        Linear((5,), draw(size=(3, 5)), draw(size=3)),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_bounds_lie_below_sampled_points(kind, norm):
    rng = np.random.default_rng(len(kind))
    chain = images(rng, kind)
    x, radius = rng.uniform(size=(3, 1, 6, 6)), np.array([1e-7, 0.05, 0.5])
    ways = rng.normal(size=(3, 800, 36))
    ways = (
        ways / np.linalg.norm(ways, axis=2, keepdims=True)
        if norm == "l2"
        else np.sign(ways) * rng.choice([1.0, 0.3], size=(3, 800, 1))
    )
    points = (x.reshape(3, 1, 36) + radius[:, None, None] * ways).reshape(-1, 1, 6, 6)
    rows = rng.normal(size=(3, 3))
    for linear in (False, True):
        known = crown.bounded(chain, x, radius, norm, linear)
        bound = known.of(np.arange(3)).least(rows)
        values = points
        for at, operation in enumerate(chain):
            box, many = known.boxes[at,], values.reshape(3, 800, *operation.inputs)
            assert (box.lower[:, None] <= many).all() and (many <= box.upper[:, None]).all()
            values = operation(values)
        lowest = (values.reshape(3, 800, 3) * rows[:, None]).sum(2).min(1)
        assert (bound <= lowest).all() and np.isfinite(bound).all()
        assert bound[0] >= lowest[0] - 1e-3  # a tiny ball: nearly the value itself


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_of_activations_hold_a_fine_grid(kind):
    rng = np.random.default_rng(0)
    ends = np.sort(np.concatenate([rng.normal(size=(200, 2)) * 3, rng.normal(size=(200, 2)) * 1e-3 - 0.7518]), axis=1)
    operation = Activation((1,), kind, KINDS[kind])
    box = through(operation, crown.Box(ends[:, :1], ends[:, 1:]))
    grid = np.linspace(ends[:, 0], ends[:, 1], 101)
    values = operation(grid)
    assert (box.lower[:, 0] <= values.min(0)).all() and (values.max(0) <= box.upper[:, 0]).all()
    assert (box.upper[:, 0] - values.max(0)).max() < 1e-10  # all of them fall and then rise, or rise
    assert (values.min(0) - box.lower[:, 0]).max() < 5e-3


def test_first_layers_are_bounded_row_by_row():
    rng = np.random.default_rng(0)
    chain = [Linear((4,), rng.normal(size=(4, 4)), None), Linear((4,), rng.normal(size=(5, 4)), rng.normal(size=5))]
    chain += [Activation((5,), "relu", ()), Linear((5,), rng.normal(size=(2, 5)), None)]
    x, whole = rng.normal(size=(1, 4)), chain[1].weight @ chain[0].weight
    for norm, dual in (("l2", 2), ("linf", 1)):
        box = crown.bounded(chain, x, np.array([0.3]), norm, False).boxes[2,]
        radius = 0.3 * np.linalg.norm(whole, ord=dual, axis=1)
        assert np.allclose(box.lower, forward(chain[:2], x)[0] - radius, atol=1e-9)
    held = ball(x, np.array([0.3]))
    assert (held.lower <= x - 0.3).all() and (x + 0.3 <= held.upper).all()


def test_what_has_no_interval_is_refused():
    with pytest.raises(Malformed, match="no interval of prelu with a negative slope"):
        through(Activation((2,), "prelu", (), np.array([-0.5])), ball(np.zeros((1, 2)), np.ones(1)))


def model_of(seed=0):
    torch.manual_seed(seed)
    block = Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.GELU()), nn.Identity())
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), block, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 6), nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers, nn.Linear(6, 3)).eval()
    x = torch.rand(6, 1, 4, 4)
    return model, x, model(x).argmax(1)


def file_of(norm, folder, names=("crown", "ibp")):
    model, x, y = model_of()
    methods = {"crown": CrownCertificate(norm=norm, search=False), "ibp": IBPCertificate(norm=norm, search=False)}
    asked = (0.001, 0.003, 0.01, 0.02, 0.04, 0.08)
    radii = {name: methods[name](model, x, y, torch.arange(len(x)), asked).radius.numpy() for name in names}
    split = Split("arrays", "test", x, y, torch.arange(len(x)), 3, "0" * 64)
    return put(model, split, np.zeros(len(x)), folder, norm, **radii), radii


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return file_of("linf", tmp_path_factory.mktemp("relaxed") / "stored")


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_radii_of_crown_and_ibp_are_verified(norm, tmp_path):
    folder, radii = file_of(norm, tmp_path / "proof")
    verdict = verify(folder)
    assert not any("not re-checked" in note for note in verdict.notes)
    assert (verdict.radius >= 0.8 * radii["ibp"]).all() and (radii["ibp"] > 0).all()
    assert (verdict.radius <= np.maximum(radii["ibp"], radii["crown"])).all()


def _row(proof, method):
    return next(row for row in proof["certificates"] if row["method"] == method)


def _larger(method):
    def change(proof, arrays):
        arrays[_row(proof, method)["radii"]][3] *= 4
        arrays["best"] = np.where(arrays["best"] >= 0, _best(proof, arrays), -1)

    return change


def _best(proof, arrays):
    kept = [k for k, row in enumerate(proof["certificates"]) if row["checkable"]]
    radii = np.stack([arrays[proof["certificates"][k]["radii"]] for k in kept])
    return np.array(kept)[radii.argmax(0)]


def _weight(proof, arrays):
    name = next(name for name in arrays if name.startswith("layer_") and arrays[name].ndim == 4)
    arrays[name] = arrays[name].astype("<f8")
    arrays[name][0, 0, 1, 1] += 0.3


def _witness(proof, arrays):
    _row(proof, "ibp")["witness"] = {"rows": "best"}


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (_larger("crown"), Rejected, "crown claims radius"),
        (_larger("ibp"), Rejected, "ibp claims radius"),
        (_weight, Rejected, "claim"),
        (_witness, Malformed, "ibp has no witness"),
    ],
)
def test_forged_radii_are_rejected(change, kind, words, stored, tmp_path):
    with pytest.raises(kind, match=words):
        verify(forged(stored[0], tmp_path / "forged", change))


def test_an_unchanged_copy_is_verified(stored, tmp_path):
    assert (verify(forged(stored[0], tmp_path / "same", lambda proof, arrays: None)).radius > 0).all()
