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
from robustbench_rkhs.verifier import couplings, lagrangian
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


def split_file(model, x, y, radius, folder, box="unit"):
    """The file of these radii by sdp_crown, within this box."""
    split = Split("arrays", "test", x, y, torch.arange(len(x)), int(y.max()) + 1, "0" * 64)
    return put(model, split, np.zeros(len(x)), folder, box=box, sdp_crown=radius.numpy())


def file_of(build, folder, radius=None):
    model, x, y = build()
    classes = model(x).shape[1]
    asked = (0.02, 0.1, 0.2, 0.3)
    if radius is None:
        radius = SdpCrownCertificate(search=False, intervals=0)(model, x, y, torch.arange(len(x)), asked).radius
    split = Split("arrays", "test", x, y, torch.arange(len(x)), classes, "0" * 64)
    nothing = np.zeros(len(x))
    return put(model, split, nothing, folder, sdp_crown=radius.numpy()), radius


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return file_of(trained, tmp_path_factory.mktemp("witness") / "stored")


@pytest.fixture(scope="module")
def coupled(tmp_path_factory):
    """Radii of which balls alone do not prove the largest."""
    radius = torch.tensor([0.6, 0.6, 0.4, 0.6, 0.6, 0.3, 0.3, 0.3], dtype=torch.float64)
    return file_of(trained, tmp_path_factory.mktemp("witness") / "coupled", radius)


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


def _more(proof):
    return _row(proof)["witness"]["coupled"]


def _scaled(key, kink, by):
    def change(proof, arrays):
        name = _more(proof)[key][kink]
        arrays[name] = arrays[name].astype("<f8")
        arrays[name][2] *= by

    return change


def _negative_push(proof, arrays):
    arrays[_more(proof)["pushes"][0]][0, 0] *= -1


def _no_scale(proof, arrays):
    _more(proof)["scales"].pop()


def _flat_scale(proof, arrays):
    arrays[_more(proof)["scales"][0]][1] = 0


def _infinite_push(proof, arrays):
    arrays[_more(proof)["pushes"][1]][0, 0] = np.inf


def _longer_claim(proof, arrays):
    arrays[_row(proof)["radii"]][arrays[_more(proof)["rows"]][0, 0]] *= 1.3


def _more_of_couplings(proof, arrays):
    _more(proof)["twice"] = _more(proof)["norms"]


COUPLED = {
    "push before": (_scaled("pushes", 0, 1e3), Rejected, "its lower bound is"),
    "push behind": (_scaled("pushes", 1, 1e3), Rejected, "its lower bound is"),
    "no push": (_scaled("pushes", 1, 1e-24), Rejected, "its lower bound is"),
    "huge push": (_scaled("pushes", 1, 1e30), Rejected, "its lower bound is"),
    "negative push": (_negative_push, Malformed, "not above zero"),
    "infinite push": (_infinite_push, Malformed, "not finite"),
    "no scale": (_no_scale, Malformed, "expected scales of 1 kinks"),
    "flat scale": (_flat_scale, Malformed, "not above zero"),
    "longer claim": (_longer_claim, Rejected, "its lower bound is"),
    "key": (_more_of_couplings, Malformed, "of couplings"),
}


def test_couplings_are_verified(coupled):
    folder, radius = coupled
    assert (verify(folder).radius == radius.numpy()).all()
    assert len(read(folder).array(_more(read(folder).about)["rows"])) >= 7


@pytest.mark.parametrize("name", COUPLED)
def test_one_changed_number_of_couplings_is_not_verified(name, coupled, tmp_path):
    change, kind, words = COUPLED[name]
    with pytest.raises(kind, match=words):
        verify(forged(coupled[0], tmp_path / "forged", change))


@pytest.mark.parametrize("by", [0.0, 0.5, 0.999, 1.1, 2.0, np.inf, np.nan, -1.0])
def test_claimed_norms_of_couplings_are_not_trusted(by, coupled, tmp_path):
    """Whatever is claimed: the radii stay those that are proved, or the file is refused."""

    def change(proof, arrays):
        arrays[_more(proof)["norms"]] *= by

    copy = forged(coupled[0], tmp_path / "forged", change)
    if by in (1.1, 2.0):
        with pytest.raises(Rejected, match="its lower bound is"):
            verify(copy)
    else:
        assert (verify(copy).radius == coupled[1].numpy()).all()


@pytest.mark.parametrize("seed", range(6))
def test_bounds_of_random_couplings_lie_below_sampled_points(seed):
    """Any slopes, multipliers and curvatures, against points of the ball and a descent from the lowest of them."""
    rng = np.random.default_rng(seed)
    chain = [
        Linear((5,), rng.normal(size=(7, 5)), rng.normal(size=7)),
        Activation((7,), "leaky_relu", (0.1 * (seed % 3),)),
        Linear((7,), rng.normal(size=(6, 7)) / 2, rng.normal(size=6)),
        Linear((6,), rng.normal(size=(6, 6)) / 2, rng.normal(size=6)),
        Activation((6,), "relu", ()),
        Linear((6,), rng.normal(size=(3, 6)), rng.normal(size=3)),
    ]
    links = couplings.links(chain)
    x, radius, rows = rng.normal(size=(4, 5)), np.array([1e-6, 0.1, 0.3, 1.0]), rng.normal(size=(4, 3))
    sizes = {link.path: len(link.matrix) for link in links}
    draw = {path: 0.1 * np.exp(rng.normal(size=(4, size))) for path, size in sizes.items()}
    bounds = couplings.CoupledRows(
        chain,
        x,
        radius,
        {path: rng.normal(size=(4, size)) * 0.3 + 0.5 for path, size in sizes.items()},
        {path: np.exp(rng.normal(size=4)) for path in sizes},
        pushes=draw,
        scales={links[0].path: np.exp(0.3 * rng.normal(size=(4, 7)))},
        norms={path: np.zeros(4) for path in sizes},
    ).bounds(rows)
    ways = rng.normal(size=(4, 3000, 5))
    ways *= rng.uniform(size=(4, 3000, 1)) ** 0.2 / np.linalg.norm(ways, axis=2, keepdims=True)
    lowest = _lowest(chain, x, radius, rows, ways)
    assert (bounds <= lowest).all() and np.isfinite(bounds).all()


def _lowest(chain, x, radius, rows, ways):
    """The least value of each row at these points of the unit ball, scaled, then at smaller and smaller steps from the best."""
    best, low = ways[:, :1], np.full(len(x), np.inf)
    for step in (None, 0.3, 0.1, 0.03, 0.01):
        points = ways if step is None else best + step * ways
        points = points / np.maximum(np.linalg.norm(points, axis=2, keepdims=True), 1)
        values = (x[:, None] + radius[:, None, None] * points).reshape(-1, x.shape[1])
        for operation in chain:
            values = operation(values)
        value = (values.reshape(len(x), -1, rows.shape[1]) * rows[:, None]).sum(2)
        at = value.argmin(1)
        best = np.where((value.min(1) < low)[:, None, None], points[np.arange(len(x)), at][:, None], best)
        low = np.minimum(low, value.min(1))
    return low


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
