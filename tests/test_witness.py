"""Witnesses of linear bounds: what is written is verified in NumPy, and one changed number is not."""

import numpy as np
import pytest
import torch
from test_proof import forged, put
from test_sdp_crown import trained
from torch import nn

from robustbench_rkhs.certificates import SdpCrownCertificate
from robustbench_rkhs.data import Split
from robustbench_rkhs.layers import Concatenate, Residual
from robustbench_rkhs.verifier import lagrangian
from robustbench_rkhs.verifier.activations import Activation
from robustbench_rkhs.verifier.affine import Linear
from robustbench_rkhs.verifier.chain import Branches
from robustbench_rkhs.verifier.check import verify
from robustbench_rkhs.verifier.operations import Malformed
from robustbench_rkhs.verifier.proof import Rejected, read


def graph():
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(2, 2, 1))
    joined = Concatenate([nn.Identity(), nn.Sequential(nn.Conv2d(2, 1, 3, padding=1), nn.ReLU())])
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, 1, 1), nn.ReLU(), Residual(body, nn.Identity()), nn.ReLU(), joined, nn.Flatten(), nn.Linear(60, 3)
    )
    x = torch.rand(5, 1, 4, 5)
    return model.eval(), x, model(x).argmax(1)


def file_of(build, folder):
    model, x, y = build()
    classes = model(x).shape[1]
    asked = (0.02, 0.1, 0.2, 0.3)
    radius = SdpCrownCertificate(search=False, intervals=0)(model, x, y, torch.arange(len(x)), asked).radius
    split = Split("arrays", "test", x, y, torch.arange(len(x)), classes, "0" * 64)
    nothing = np.zeros(len(x))
    return put(model, split, nothing, folder, sdp_crown=radius.numpy()), radius


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return file_of(trained, tmp_path_factory.mktemp("witness") / "stored")


@pytest.mark.parametrize("build", [trained, graph])
def test_what_is_written_is_verified(build, tmp_path):
    folder, radius = file_of(build, tmp_path / "proof")
    verdict, asked = verify(folder), radius.numpy()
    assert (verdict.radius <= asked).all() and (asked > 0).all()
    if build is trained:
        assert (verdict.radius >= 0.9 * asked).all()
    assert (verdict.radius > 0).sum() >= 2  # in the other, intervals prove the rest, which no witness holds
    assert not any("not re-checked: sdp_crown" in note for note in verdict.notes)


def _row(proof):
    return next(row for row in proof["certificates"] if row["method"] == "sdp_crown")


def _larger_radius(proof, arrays):
    arrays[_row(proof)["radii"]][2] *= 1.5


def _smaller_multiplier(proof, arrays):
    arrays[_row(proof)["witness"]["multipliers"]][3, 1] *= 1e-3


def _larger_multiplier(proof, arrays):
    arrays[_row(proof)["witness"]["multipliers"]][3, 0] *= 1e3


def _another_slope(proof, arrays):
    name = _row(proof)["witness"]["slopes"][1]
    at = np.unravel_index(np.abs(arrays[name][:7]).argmax(), arrays[name][:7].shape)
    arrays[name] = arrays[name].astype("<f4")
    arrays[name][at] += 1000


def _another_class(proof, arrays):
    name = _row(proof)["witness"]["rows"]
    arrays[name][1, 1] = arrays[name][0, 1]


def _missing_row(proof, arrays):
    witness = _row(proof)["witness"]
    for name in (witness["rows"], witness["multipliers"], *witness["slopes"]):
        arrays[name] = arrays[name][1:]


def _nan_slope(proof, arrays):
    arrays[_row(proof)["witness"]["slopes"][0]][0, 0] = np.nan


def _zero_multiplier(proof, arrays):
    arrays[_row(proof)["witness"]["multipliers"]][0, 0] = 0


def _another_weight(proof, arrays):
    name = next(name for name in arrays if name.startswith("layer_") and arrays[name].ndim == 2)
    arrays[name] = arrays[name] * 2


def _fewer_kinks(proof, arrays):
    _row(proof)["witness"]["slopes"].pop()


FORGERIES = {
    _larger_radius: (Rejected, "sdp_crown claims radius"),
    _smaller_multiplier: (Rejected, "its lower bound is"),
    _larger_multiplier: (Rejected, "its lower bound is"),
    _another_slope: (Rejected, "its lower bound is"),
    _another_class: (Rejected, "no rows for each other class"),
    _missing_row: (Rejected, "no rows for each other class"),
    _another_weight: (Rejected, "claim"),
    _nan_slope: (Malformed, "not finite"),
    _zero_multiplier: (Malformed, "above zero"),
    _fewer_kinks: (Malformed, "slopes of 2 kinks"),
}


@pytest.mark.parametrize("change", FORGERIES)
def test_one_changed_number_is_not_verified(change, stored, tmp_path):
    kind, words = FORGERIES[change]
    with pytest.raises(kind, match=words):
        verify(forged(stored[0], tmp_path / "forged", change))


def test_an_unchanged_copy_is_verified(stored, tmp_path):
    assert (verify(forged(stored[0], tmp_path / "same", lambda proof, arrays: None)).radius > 0).all()
    assert read(stored[0]).array(_row(read(stored[0]).about)["witness"]["slopes"][0]).dtype == np.float32


def test_operations_without_a_re_check_are_named():
    with pytest.raises(Malformed, match="through Activation"):
        list(lagrangian.kinks([Activation((3,), "tanh", ())]))


@pytest.mark.parametrize("seed", range(5))
def test_bounds_of_random_witnesses_lie_below_sampled_points(seed):
    """Any slopes and multipliers: the verifier's own bound against points of the ball, through sums and concatenations."""
    rng = np.random.default_rng(seed)
    inner = [Linear((6,), rng.normal(size=(6, 6)), rng.normal(size=6)), Activation((6,), "relu", ())]
    joined = [Linear((6,), rng.normal(size=(4, 6)), None), Activation((4,), "leaky_relu", (0.2,))]
    chain = [
        Linear((5,), rng.normal(size=(6, 5)), rng.normal(size=6)),
        Activation((6,), "relu", ()),
        Branches((6,), [inner, []], True),
        Branches((6,), [[], joined], False),
        Linear((10,), rng.normal(size=(3, 10)), rng.normal(size=3)),
    ]
    places = list(lagrangian.kinks(chain))
    assert [kink.inputs for _, kink in places] == [(6,), (6,), (4,)]
    x, radius = rng.normal(size=(4, 5)), np.full(4, 0.3)
    slopes = {path: rng.normal(size=(4, *kink.inputs)) * 0.5 + 0.5 for path, kink in places}
    rows = rng.normal(size=(4, 3))
    bound = lagrangian.Rows(chain, x, radius, slopes, {path: np.exp(rng.normal(size=4)) for path, _ in places}).bounds(rows)
    ways = rng.normal(size=(2000, 5))
    points = x[:, None] + 0.3 * ways / np.linalg.norm(ways, axis=1)[:, None]
    values = points.reshape(-1, 5)
    for operation in chain:
        values = operation(values)
    lowest = (values.reshape(4, 2000, 3) * rows[:, None]).sum(2).min(1)
    assert (bound <= lowest).all() and np.isfinite(bound).all()
