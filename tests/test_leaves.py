"""Proofs in parts: the tree covers all cases, each part's bound holds on its part, and one changed number is not verified."""

import itertools

import numpy as np
import pytest
from test_branching import small
from test_proof import forged
from test_witness import _row, split_file

from robustbench_rkhs.certificates import SdpCrownCertificate
from robustbench_rkhs.certificates.witness import witness
from robustbench_rkhs.proofs import witnesses as written
from robustbench_rkhs.verifier import couplings, lagrangian, liplt
from robustbench_rkhs.verifier.activations import Activation
from robustbench_rkhs.verifier.affine import Linear
from robustbench_rkhs.verifier.chain import Branches
from robustbench_rkhs.verifier.check import verify
from robustbench_rkhs.verifier.leaves import LeafWitness, covers
from robustbench_rkhs.verifier.operations import Malformed
from robustbench_rkhs.verifier.proof import Rejected, read


def random_tree(rng, values, way=()):
    free = [value for value in range(values) if (0, value) not in [one[:2] for one in way]]
    if not free or (rng.random() < 0.3 and way):
        return [way]
    value = int(rng.choice(free))
    return [leaf for side in (0, 1) for leaf in random_tree(rng, values, (*way, (0, value, side)))]


def holds(leaf, signs):
    return all(signs[value] == side for _, value, side in leaf)


@pytest.mark.parametrize("seed", range(20))
def test_trees_cover_and_what_is_said_to_cover_does(seed):
    """Against all 2^4 cases: whole trees in any order of leaves, then with one leaf less, or one split changed or left out."""
    rng = np.random.default_rng(seed)
    leaves = random_tree(rng, 4)
    rng.shuffle(leaves)
    assert covers(leaves)
    changed = [leaves[:at] + leaves[at + 1 :] for at in range(len(leaves))]
    for at, leaf in enumerate(leaves):
        for place, (kink, value, side) in enumerate(leaf):
            for other in ((kink, value, 1 - side), (kink, (value + 1) % 4, side)):
                changed.append([*leaves[:at], (*leaf[:place], other, *leaf[place + 1 :]), *leaves[at + 1 :]])
    for some in changed:
        if covers(some):
            assert all(any(holds(leaf, signs) for leaf in some) for signs in itertools.product((0, 1), repeat=4))
    assert not any(covers(some) for some in changed[: len(leaves)])
    assert not covers([]) and covers([()])


def networks(rng):
    chain = [
        Linear((5,), rng.normal(size=(7, 5)), rng.normal(size=7)),
        Activation((7,), "leaky_relu", (0.1,)),
        Linear((7,), rng.normal(size=(6, 7)) / 2, rng.normal(size=6)),
        Activation((6,), "relu", ()),
        Linear((6,), rng.normal(size=(3, 6)), rng.normal(size=3)),
    ]
    inner = [Linear((7,), rng.normal(size=(7, 7)) / 3, rng.normal(size=7)), Activation((7,), "relu", ())]
    return {"chain": chain, "sum": [*chain[:2], Branches((7,), [inner, []], True), *chain[2:]]}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["chain", "sum", "couplings"])
def test_the_bound_of_a_part_lies_below_its_points(kind, seed):
    """Any slopes, multipliers, curvatures and splits, against points of the ball that lie in the part."""
    rng = np.random.default_rng(seed)
    chain = networks(rng)["sum" if kind == "sum" else "chain"]
    places, x, radius, count = list(lagrangian.kinks(chain)), rng.uniform(size=(1, 5)), 0.6, 5
    near = x + radius * rng.normal(size=(20000, 5)) / np.sqrt(5) * rng.uniform(size=(20000, 1))
    near = near[np.linalg.norm(near - x, axis=1) <= radius]
    known = lagrangian.Rows(chain, near, np.zeros(len(near)), {}, {})
    known.begin()
    inputs = [known.inputs[path][0] for path, _ in places]
    ways = [
        [(k, int(rng.integers(inputs[k].shape[1])), int(rng.integers(2))) for k in rng.permutation(len(places))[:2].tolist()]
        for _ in range(count)
    ]
    slopes = [rng.normal(size=(count, kink.inputs[0])) * 0.3 + 0.5 for _, kink in places]
    plain = (np.zeros((count, 2), int), slopes, np.exp(rng.normal(size=(count, len(places)))), liplt.reached(chain))
    bounds = lagrangian.Witness(*plain)
    if kind == "couplings":
        draw = [0.1 * np.exp(rng.normal(size=(1, kink.inputs[0]))) for _, kink in places]
        scales, links = [np.exp(0.3 * rng.normal(size=(1, 7)))], couplings.links(chain)
        shared = np.zeros(count, int)
        bounds = couplings.CoupledWitness(*plain, draw, scales, np.zeros((1, 2)), links, shared=shared)
    leaves = LeafWitness(np.array([[0, 1]]), np.zeros(count, int), ways, bounds)
    made = bounds.made(chain, np.arange(count), np.repeat(x, count, axis=0), np.full(count, radius))
    around = leaves.known(chain, x, radius)
    made.intervals = leaves.intervals(chain, around, np.arange(count))
    row = rng.normal(size=3)
    found = made.bounds(np.repeat(row[None], count, axis=0))
    values = near
    for operation in chain:
        values = operation(values)
    for k, (path, _) in enumerate(places):
        low, high = (end.reshape(1, -1) for end in around.boxes[path])
        assert (inputs[k] >= low).all() and (inputs[k] <= high).all()
    checked = 0
    for bound, way in zip(found, ways, strict=True):
        there = np.all([(inputs[k][:, value] >= 0) == bool(side) for k, value, side in way], axis=0)
        checked += int(there.sum())
        assert (values[there] @ row >= bound).all() and np.isfinite(bound)
    assert checked > 0
    if kind == "couplings":  # curvatures that cost too much are left out on a part
        bounds.pushes[0][:] = 1e6
        made = bounds.made(chain, np.arange(count), np.repeat(x, count, axis=0), np.full(count, radius))
        made.intervals = leaves.intervals(chain, around, np.arange(count))
        alone = lagrangian.Witness(*plain).made(chain, np.arange(count), np.repeat(x, count, axis=0), np.full(count, radius))
        alone.intervals = made.intervals
        rows = np.repeat(row[None], count, axis=0)
        assert (made.bounds(rows) >= alone.bounds(rows)).all()


QUICK = SdpCrownCertificate(search=False, steps=20, couplings=0, domains=200, seconds=1e6)


def close(at=(2,)):
    """Images of a network of two inputs, and radii close to the true ones."""
    model, x, y, nearest = small(0)
    return model, x[list(at)], y[list(at)], nearest[list(at)]


@pytest.fixture(scope="module", params=[0, 10])
def parted(request, tmp_path_factory):
    """Radii that are not proved without splits, with and without couplings."""
    model, x, y, nearest = close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written, "SEARCH", QUICK.model_copy(update={"couplings": request.param}))
        folder = split_file(model, x, y, 0.96 * nearest, tmp_path_factory.mktemp("leaves") / "stored", box="none")
    return folder, 0.96 * nearest.numpy(), nearest.numpy()


def parts_of(about):
    return next(_row(about)["witness"][kind] for kind in ("parts", "coupled_parts") if kind in _row(about)["witness"])


def test_radii_by_branch_and_bound_are_verified(parted):
    folder, asked, nearest = parted
    found = verify(folder)
    assert (found.radius >= 0.9 * asked).all() and (found.radius < nearest).all()
    proof = read(folder)
    assert len(proof.array(parts_of(proof.about)["splits"])) >= 2


def leaf_with_splits(arrays, entry):
    return int(np.bincount(arrays[entry["splits"]][:, 0]).argmax())


def _flipped_side(arrays, entry):
    arrays[entry["splits"]][-1, 3] ^= 1


def _another_value(arrays, entry):
    arrays[entry["splits"]][-1, 2] = (arrays[entry["splits"]][-1, 2] + 1) % 8


def _another_kink(arrays, entry):
    arrays[entry["splits"]][-1, 1] ^= 1


def _another_part(arrays, entry):
    arrays[entry["splits"]][-1, 0] -= 1


def _no_split(arrays, entry):
    arrays[entry["splits"]] = arrays[entry["splits"]][:-1]


def _without_part(arrays, entry):
    gone = leaf_with_splits(arrays, entry)
    for name in (entry["part_of"], entry["multipliers"], *entry["slopes"]):
        arrays[name] = np.delete(arrays[name], gone, axis=0)
    splits = arrays[entry["splits"]]
    splits = splits[splits[:, 0] != gone]
    splits[:, 0] -= splits[:, 0] > gone
    arrays[entry["splits"]] = splits


def _slope(arrays, entry):
    name = entry["slopes"][0]
    arrays[name] = arrays[name].astype("<f8")
    arrays[name][leaf_with_splits(arrays, entry)] += 3


def _multiplier(arrays, entry):
    name = entry["multipliers"]
    arrays[name] = arrays[name].astype("<f8")
    arrays[name][leaf_with_splits(arrays, entry)] *= 1e6


def _negative(arrays, entry):
    arrays[entry["splits"]][0, 2] = -1


def _third_side(arrays, entry):
    arrays[entry["splits"]][0, 3] = 2


def _of_nothing(arrays, entry):
    arrays[entry["part_of"]][0] = 1000


COVER, BOUND = "do not cover all cases", "lower bound of a part"
FORGERIES = {
    _flipped_side: (Rejected, COVER),
    _another_value: (Rejected, COVER),
    _another_kink: (Rejected, COVER),
    _another_part: (Rejected, f"{COVER}|{BOUND}"),
    _no_split: (Rejected, f"{COVER}|{BOUND}"),
    _without_part: (Rejected, COVER),
    _slope: (Rejected, BOUND),
    _multiplier: (Rejected, BOUND),
    _negative: (Malformed, "whole numbers from 0 up"),
    _third_side: (Malformed, "that do not exist"),
    _of_nothing: (Malformed, "that do not exist"),
}


@pytest.mark.parametrize("change", FORGERIES)
def test_one_changed_number_of_parts_is_not_verified(change, parted, tmp_path):
    kind, words = FORGERIES[change]
    with pytest.raises(kind, match=words):
        verify(forged(parted[0], tmp_path / "forged", lambda proof, arrays: change(arrays, parts_of(proof))))


def test_a_larger_radius_with_the_same_parts_is_not_verified(parted, tmp_path):
    with pytest.raises(Rejected, match=BOUND):
        verify(forged(parted[0], tmp_path / "forged", lambda proof, arrays: arrays[_row(proof)["radii"]].__imul__(1.05)))


def test_proofs_in_parts_without_room_are_left_out():
    model, x, y, nearest = close()
    whole, found = (witness(QUICK, model, x, y, 0.96 * nearest, room) for room in (2**28, 0))
    assert whole.radius == 0.96 * nearest and whole.left_out == 0 and len(whole.stored["parts"].part_of) > 1
    assert found.left_out == 1 and found.radius < whole.radius
    assert not len(found.stored["parts"].rows)
