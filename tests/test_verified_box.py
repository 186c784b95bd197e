"""The verifier within the pixel box: falls against the exact optimum, bounds against points of ball and box, and files."""

import numpy as np
import pytest
import torch
from test_proof import forged, put
from test_sdp_crown import trained
from test_verified_relaxations import images
from test_witness import _row

from robustbench_rkhs.certificates import CrownCertificate, SdpCrownCertificate
from robustbench_rkhs.data import Split
from robustbench_rkhs.verifier import couplings, crown, lagrangian
from robustbench_rkhs.verifier.activations import Activation
from robustbench_rkhs.verifier.affine import Linear
from robustbench_rkhs.verifier.check import verify
from robustbench_rkhs.verifier.operations import Malformed
from robustbench_rkhs.verifier.pixel_box import fall, multiplier, sides
from robustbench_rkhs.verifier.proof import Rejected, read


@pytest.mark.parametrize("size", [1e-6, 0.1, 0.6, 5.0])
def test_the_fall_is_the_exact_optimum_rounded_up(size):
    """The best point has the form clip(-a / m): a bisection in steps too fine for doubt gives a point of ball and box."""
    rng = np.random.default_rng(0)
    a, x = rng.normal(size=(30, 12)), rng.uniform(-0.1, 1.1, size=(30, 12)).round(1)
    a[0], radius = 0.0, np.full(30, size)
    low, high = sides(x)
    assert (low <= 0).all() and (high >= 0).all() and (x + high >= 1 - 1e-16).all()
    found = fall(a, low, high, radius)
    m = np.logspace(-14, 14, 20001)[:, None, None]
    points = np.clip(-a / m, low, high)
    inside = (points**2).sum(2) <= size**2
    best = np.where(inside, (-a * points).sum(2), -np.inf).max(0)
    assert (found >= best).all() and found[0] < 1e-200
    assert (found <= best * (1 + 5e-3) + 1e-12).all()
    assert (found <= np.linalg.norm(a, axis=1) * size * (1 + 1e-7) + 1e-200).all()
    a, low, high = a[1:], low[1:], high[1:]
    clipped = np.clip(-a / np.maximum(multiplier(-a, low, high, radius[1:]), 1e-9)[:, None], low, high)
    assert (np.linalg.norm(clipped, axis=1) <= size * 1.3).all()


def points_of(rng, x, radius, norm, count):
    """Points of the balls, cut by the box: ends of it too."""
    flat = x.reshape(len(x), 1, -1)
    ways = rng.normal(size=(len(x), count, flat.shape[2]))
    ways = np.sign(ways) if norm == "linf" else ways / np.linalg.norm(ways, axis=2, keepdims=True)
    return np.clip(flat + radius[:, None, None] * ways * rng.choice([1, 1, 0.5], size=(len(x), count, 1)), 0, 1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_relaxations_hold_in_the_box_and_are_tighter_there(norm):
    rng = np.random.default_rng(0)
    chain = images(rng, "relu")
    x, radius, rows = rng.uniform(size=(3, 1, 6, 6)).round(), np.array([0.05, 0.3, 0.5]), rng.normal(size=(3, 3))
    inside = points_of(rng, x, radius, norm, 500).reshape(-1, 1, 6, 6)
    values = inside
    for operation in chain:
        values = operation(values)
    lowest = (values.reshape(3, 500, 3) * rows[:, None]).sum(2).min(1)
    for linear in (False, True):
        bound = {}
        for unit in (False, True):
            known = crown.bounded(chain, x, radius, norm, linear, unit)
            bound[unit] = known.of(np.arange(3)).least(rows)
            first = known.boxes[2,]  # what enters the first kink
            middle = chain[1](chain[0](inside)).reshape(3, 500, *chain[1].outputs)
            assert not unit or ((middle >= first.lower[:, None]) & (middle <= first.upper[:, None])).all()
        assert (bound[True] <= lowest).all() and (bound[True] > bound[False]).all()


@pytest.mark.parametrize("seed", range(3))
def test_rows_and_couplings_hold_in_the_box_and_are_tighter_there(seed):
    rng = np.random.default_rng(seed)
    chain = [
        Linear((8,), rng.normal(size=(7, 8)), rng.normal(size=7)),
        Activation((7,), "leaky_relu", (0.1 * seed,)),
        Linear((7,), rng.normal(size=(6, 7)) / 2, rng.normal(size=6)),
        Activation((6,), "relu", ()),
        Linear((6,), rng.normal(size=(3, 6)), rng.normal(size=3)),
    ]
    links = couplings.links(chain)
    x, radius, rows = rng.uniform(size=(4, 8)).round(1), np.array([1e-6, 0.1, 0.3, 1.0]), rng.normal(size=(4, 3))
    sizes = {link.path: len(link.matrix) for link in links}
    slopes = {path: rng.normal(size=(4, size)) * 0.3 + 0.5 for path, size in sizes.items()}
    multipliers = {path: np.exp(rng.normal(size=4)) for path in sizes}
    more = {
        "pushes": {path: 0.1 * np.exp(rng.normal(size=(4, size))) for path, size in sizes.items()},
        "scales": {links[0].path: np.exp(0.3 * rng.normal(size=(4, 7)))},
        "norms": {path: np.zeros(4) for path in sizes},
    }
    values = points_of(rng, x, radius, "l2", 4000).reshape(-1, 8)
    for operation in chain:
        values = operation(values)
    lowest = (values.reshape(4, 4000, 3) * rows[:, None]).sum(2).min(1)
    for kind, extra in ((lagrangian.Rows, {}), (couplings.CoupledRows, more)):
        ball, box = (kind(chain, x, radius, slopes, multipliers, **extra, unit=unit).bounds(rows) for unit in (False, True))
        assert (box <= lowest).all() and (box >= ball - 1e-9).all() and (box > ball + 1e-3).any()


def dark():
    """Images near a corner of the box, which cuts most of the ball away."""
    model, x, _ = trained()
    x = (x[[1, 5]] > 0.5).float()
    return model, x, model(x).argmax(1)


@pytest.fixture(scope="module")
def boxed(tmp_path_factory):
    model, x, y = dark()
    split = Split("arrays", "test", x, y, torch.arange(len(x)), 8, "0" * 64)
    radius = {}
    quick = SdpCrownCertificate(search=False, steps=60, intervals=0, couplings=0, domains=0)
    for method in (quick, CrownCertificate(search=False)):
        for box in ("none", "unit"):
            found = method.model_copy(update={"box": box})(model, x, y, torch.arange(2), (0.4, 0.46, 0.5))
            radius[method.name, box] = found.radius.numpy()
    asked = {name: radius[name, "unit"] for name in ("sdp_crown", "crown")}
    return put(model, split, np.zeros(len(x)), tmp_path_factory.mktemp("box") / "stored", **asked), radius


def test_radii_that_need_the_box_are_verified_in_it(boxed):
    folder, radius = boxed
    for name in ("sdp_crown", "crown"):
        assert (radius[name, "unit"] > radius[name, "none"]).any()  # the box matters
    found = verify(folder)
    about = read(folder)
    for row in about.about["certificates"]:
        if row["method"] in ("sdp_crown", "crown"):
            assert (about.array(row["radii"]) >= 0.95 * radius[row["method"], "unit"]).all()
    assert about.about["box"] == "unit" and (found.radius > 0).any()


@pytest.mark.parametrize("name", ["sdp_crown", "crown"])
def test_radii_of_the_box_are_refused_for_the_whole_ball(name, boxed, tmp_path):
    def change(proof, arrays):
        proof["box"] = "none"
        for row in proof["certificates"]:
            if row["method"] not in ("margin", name):
                arrays[row["radii"]][:] = 0
        radii = np.stack([arrays[row["radii"]] for row in proof["certificates"]])
        arrays["best"] = np.where(radii.max(0) > 0, radii.argmax(0), -1)

    with pytest.raises(Rejected, match=f"{name} claims radius"):
        verify(forged(boxed[0], tmp_path / "forged", change))


def test_another_box_is_no_proof(boxed, tmp_path):
    with pytest.raises(Malformed, match="expected box none or unit"):
        verify(forged(boxed[0], tmp_path / "forged", lambda proof, arrays: proof.update(box="half")))


def test_the_witness_of_the_box_is_that_of_the_evaluation(boxed):
    assert _row(read(boxed[0]).about)["witness"] != []
