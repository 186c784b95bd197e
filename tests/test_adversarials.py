"""Files of adversarial images: they hold what was counted, survive resuming, and no forged claim of theirs is confirmed."""

import io
import json
import pickle
import zipfile
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import affine

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import PGD, Attacked, FoolboxAttack, SuperDeepFool
from robustbench_rkhs.data import Split
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.tables import console_attacks, write_tables
from robustbench_rkhs.submission.adversarials import judge, named_by
from robustbench_rkhs.verdicts import Adversarials, read_adversarials, write_adversarials
from robustbench_rkhs.zoo import NamedModel

TRUTH = affine(classes=4, shape=(1, 4, 4), images=20)
LABELS = torch.where(torch.arange(20) % 7 == 0, (TRUTH.y + 1) % 4, TRUTH.y)  # every seventh is wrong as it is
SPLIT = Split("arrays", "test", TRUTH.x, LABELS, torch.arange(20), 4, "a" * 64)
EPS = float(TRUTH.l2.median())
TWO = (PGD(steps=10), FoolboxAttack(attack="ddn", steps=20))


def saved(path, folder=None, attacks=TWO, **more):
    settings = {"eps": (EPS, EPS / 2), "attacks": attacks, "certificates": (), "block": 12} | more
    return evaluate(TRUTH.model, SPLIT, adversarials=path, folder=folder, **settings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An evaluation, and the file it wrote."""
    path = tmp_path_factory.mktemp("plain") / "nearest.npz"
    return saved(path), path


@pytest.fixture(scope="module")
def stored(plain):
    return read_adversarials(plain[1])


def judged(stored):
    return judge(stored, NamedModel("model", TRUTH.model, SPLIT))


def changed(stored, **arrays):
    return Adversarials.checked(stored.about.plain(), {**stored.arrays, **arrays})


def test_the_file_holds_the_nearest_image_that_was_counted(plain, stored):
    done, _ = plain
    table = verdicts.images(done).set_index("index")
    assert set(stored.index.tolist()) == set(table.index[np.isfinite(table["broken"])])
    assert stored.images.dtype == np.float32 and {"clean", "pgd", "foolbox:ddn"} >= set(stored.method.tolist())
    assert stored.distance.tolist() == table.loc[stored.index, "broken"].tolist()
    assert stored.method.tolist() == table.loc[stored.index, "attack"].tolist()
    delta = stored.images.astype(np.float64) - SPLIT.x.numpy()[stored.index]
    assert np.sqrt((delta**2).sum((1, 2, 3))) == pytest.approx(stored.distance_l2, rel=1e-12)
    right = stored.method != "clean"
    assert right.sum() >= 10 and (~right).sum() == 3
    assert (stored.distance[right] >= TRUTH.l2.numpy()[stored.index][right] * (1 - 1e-5)).all()
    assert (TRUTH.model(torch.from_numpy(stored.images.copy())).argmax(1).numpy() == stored.predicted_adversarial).all()
    found = judged(stored)
    assert found.confirmed.all() and "0 refused" in found.lines()[1]


def test_l_infinity_and_float64_are_kept_exactly(tmp_path):
    model, x = affine(classes=4, shape=(1, 4, 4), images=20).model.double(), TRUTH.x.double()
    settings = {"eps": (0.1,), "norm": "linf", "attacks": (PGD(steps=10),), "certificates": ()}
    evaluate(model, (x, LABELS), adversarials=tmp_path / "a.npz", **settings)
    stored = read_adversarials(tmp_path / "a.npz")
    assert stored.images.dtype == np.float64 and stored.distance is stored.distance_linf and stored.distance.max() <= 0.1
    split = replace(SPLIT, x=x, digest=stored.about.data_digest)
    assert judge(stored, NamedModel("model", model, split)).confirmed.all()
    with pytest.raises(UserError, match="float64, the data are"):
        judged(stored)


class Spy(PGD):
    """PGD, its calls counted."""

    name: Literal["spy"] = "spy"
    calls: ClassVar[list[int]] = []

    def __call__(self, model, x, y, keys, *eps):
        Spy.calls.append(len(x))
        return super().__call__(model, x, y, keys, *eps)


def beside_parts(folder):
    """The files of adversarial images beside parts."""
    return sorted(path for path in folder.rglob("*.npz") if not path.name.startswith("answers-"))


def test_resuming_does_only_parts_without_their_images_again(tmp_path):
    attacks = (Spy(steps=4),)
    saved(None, tmp_path / "kept", attacks)
    parts = tmp_path / "kept/model/parts"
    assert not beside_parts(parts) and Spy.calls
    tables = {path: verdicts.read_part(path, False).table for path in parts.rglob("*.parquet")}
    held = {path for path, table in tables.items() if len(verdicts.holding(table))}
    Spy.calls.clear()
    first = saved(tmp_path / "a.npz", tmp_path / "kept", attacks)
    redone = [path for path in held if (tables[path]["method"].iloc[0] == Spy().label)]
    assert len(Spy.calls) == len(redone) > 1 and len(beside_parts(parts)) == len(held)
    Spy.calls.clear()
    saved(tmp_path / "b.npz", tmp_path / "kept", attacks)
    assert not Spy.calls and (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    one, other = sorted(path.with_suffix(".npz") for path in redone)[:2]
    for spoilt in (None, one.read_bytes()[:-30], other.read_bytes()):
        Spy.calls.clear()
        one.write_bytes(spoilt) if spoilt else one.unlink()
        again = saved(tmp_path / "b.npz", tmp_path / "kept", attacks)
        assert len(Spy.calls) == 1 and (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        assert verdicts.digest(again.table) == verdicts.digest(first.table)
    Spy.calls.clear()
    one.unlink()
    saved(None, tmp_path / "kept", attacks)
    assert not Spy.calls  # nobody asked for images


def flipped(stored, i):
    """Every claim of a file, changed for image i, with what the refusal must say."""

    def at(name, value):
        array = getattr(stored, name).copy()
        array[i] = value
        return {name: array}

    nearer = stored.images.copy()
    nearer[i] = SPLIT.x.numpy()[stored.index[i]]
    above = stored.images.copy()
    above[i, 0, 0, 0] = np.nextafter(np.float32(1), np.float32(2))
    one_bit = stored.images.copy()
    one_bit[i, 0, 1, 1] += np.float32(1e-3)
    zero = at("distance_l2", 0.0) | at("distance_linf", 0.0)
    label = stored.label[i]
    return {
        "image moved": ({"images": one_bit}, "distance l2"),
        "image is the clean one": ({"images": nearer}, "distance l2"),
        "clean image, honest distance": (
            {"images": nearer, **zero, **at("predicted_adversarial", label)},
            "the model predicts its label",
        ),
        "clean image, prediction invented": (
            {"images": nearer, **zero, **at("predicted_adversarial", (label + 1) % 4)},
            "the model predicts its label",
        ),
        "out of the box": ({"images": above}, "leave [0, 1]"),
        "nearer in l2": (at("distance_l2", stored.distance_l2[i] * (1 - 1e-6)), "distance l2"),
        "farther in l2": (at("distance_l2", stored.distance_l2[i] + 1e-6), "distance l2"),
        "nearer in linf": (at("distance_linf", stored.distance_linf[i] * (1 - 1e-6)), "distance linf"),
        "label": (at("label", (label + 1) % 4), "label"),
        "label out of range": (at("label", 99), "label"),
        "prediction": (at("predicted", (stored.predicted[i] + 1) % 4), "on the clean image"),
        "adversarial prediction": (at("predicted_adversarial", 3 - stored.predicted_adversarial[i]), "the model predicts"),
        "not finite": (at("predicted_adversarial", -1), "the model predicts"),
        "clean image's sha": (at("input_sha256", "0" * 64), "clean image"),
        "index": (at("index", 19 - stored.index[i] if 19 - stored.index[i] not in stored.index else 0), ""),
    }


FLIPS = 15
"""How many there are."""


@settings(max_examples=60)
@given(flip=st.integers(0, FLIPS - 1), place=st.integers(0, 100))
def test_every_flipped_claim_is_refused(flip, place):
    stored = read_adversarials(test_every_flipped_claim_is_refused.path)
    attacked = np.flatnonzero(stored.method != "clean")
    i = int(attacked[place % len(attacked)])
    claims = flipped(stored, i)
    assert len(claims) == FLIPS
    claim, (arrays, words) = list(claims.items())[flip]
    try:
        forged = changed(stored, **arrays)
    except UserError:
        assert claim == "index"  # an index that stands twice
        return
    found = judged(forged)
    assert not found.confirmed[i] and words in found.reasons[i], found.reasons[i]
    assert found.confirmed.sum() == len(stored.index) - 1


@pytest.fixture(autouse=True)
def path_for_hypothesis(plain):
    test_every_flipped_claim_is_refused.path = test_a_changed_byte_changes_no_claim.path = plain[1]


@pytest.mark.parametrize("key, value", [("weights", "0" * 64), ("data_digest", "0" * 64), ("split", "train")])
def test_a_file_of_another_model_or_data_is_refused_whole(stored, key, value):
    found = judged(Adversarials.checked(stored.about.plain() | {key: value}, stored.arrays))
    assert not found.confirmed.any() and all(key.split("_")[0] in reason for reason in found.reasons)


def test_outside_the_box_counts_where_there_is_none(stored):
    box = judge(stored, NamedModel("model", TRUTH.model, replace(SPLIT, box="none")))
    assert not box.confirmed.any() and "box none" in box.reasons[0]


def test_indices_shapes_and_types_must_be_those_of_the_data(stored):
    index = stored.index.copy()
    index[0] = 20
    for arrays, words in (
        ({"index": index}, "no image with index 20"),
        ({"images": stored.images[..., :3]}, r"shape \(1, 4, 3\)"),
        ({"images": stored.images.reshape(-1, 16)}, r"shape \(16,\)"),
        ({"images": stored.images.astype(np.float64)}, "float64"),
    ):
        with pytest.raises(UserError, match=words):
            judged(changed(stored, **arrays))


BROKEN = {
    "NaN pixel": ("images", lambda a: np.where(a == a[0, 0, 0, 0], np.nan, a).astype(np.float32), "NaN"),
    "infinite pixel": ("images", lambda a: np.where(a == a[0, 0, 0, 0], np.inf, a).astype(np.float32), "NaN or infinity"),
    "NaN distance": ("distance_l2", lambda a: a * np.nan, "NaN"),
    "negative distance": ("distance_linf", lambda a: a - 9, "negative"),
    "bytes for pixels": ("images", lambda a: (a * 255).astype(np.uint8), "uint8"),
    "half precision": ("images", lambda a: a.astype(np.float16), "float16"),
    "big-endian": ("images", lambda a: a.astype(">f4"), "expected <f4"),
    "one image less": ("images", lambda a: a[:-1], "entries"),
    "a distance less": ("distance_l2", lambda a: a[:-1], "entries"),
    "one image": ("images", lambda a: a.reshape(-1), "shape"),
    "five dimensions": ("images", lambda a: a[None, None], "shape"),
    "column": ("label", lambda a: a[:, None], "shape"),
    "float labels": ("label", lambda a: a.astype(np.float64), "float64"),
    "index twice": ("index", lambda a: np.zeros_like(a), "twice"),
    "negative index": ("index", lambda a: a - 1000, "index holds"),
    "sha": ("input_sha256", lambda a: np.array(["x"] * len(a)), "hexadecimal"),
    "no method": ("method", lambda a: np.array([""] * len(a)), "printable"),
    "escape codes": ("method", lambda a: np.array(["\x1b[2J"] * len(a)), "printable"),
    "objects": ("method", lambda a: a.astype(object), "object"),
    "header no JSON": ("header", lambda a: a[:-1], "JSON"),
    "header of another format": ("header", lambda a: np.frombuffer(b'{"format": "other"}', np.uint8), "format"),
    "header a list": ("header", lambda a: np.frombuffer(b"[]", np.uint8), "format"),
    "header with NaN": ("header", lambda a: np.frombuffer(b'{"format": NaN}', np.uint8), "JSON"),
}


@pytest.mark.parametrize("name, change, words", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_such_file_is_one_line(plain, tmp_path, name, change, words):
    with np.load(plain[1]) as arrays:
        whole = dict(arrays)
    np.savez(tmp_path / "x.npz", **{**whole, name: change(whole[name])})
    with pytest.raises(UserError, match=words) as told:
        read_adversarials(tmp_path / "x.npz")
    assert "\n" not in str(told.value) and "x.npz" in str(told.value)


@pytest.mark.parametrize("key", ["model", "weights", "norm", "versions"])
def test_a_header_must_say_everything(stored, key):
    with pytest.raises(UserError, match=f"does not say its {key}"):
        Adversarials.checked({name: value for name, value in stored.about.plain().items() if name != key}, stored.arrays)
    with pytest.raises(UserError):
        Adversarials.checked(stored.about.plain() | {key: ["of", "another", "type"]}, stored.arrays)


class Bomb:
    """Leaves a mark where it is unpickled."""

    went_off = False

    def __reduce__(self):
        return setattr, (Bomb, "went_off", True)


def test_pickles_missing_doubled_and_compressed_arrays_are_refused_unread(plain, tmp_path):
    with np.load(plain[1]) as arrays:
        whole = dict(arrays)
    path = tmp_path / "x.npz"
    np.savez(path, **{**whole, "method": np.array([Bomb()] * len(whole["index"]), dtype=object)})
    refused(path, "holds object")
    path.write_bytes(pickle.dumps(Bomb()))
    refused(path, "zip")
    np.save(tmp_path / "x.npy", whole["images"])
    refused(tmp_path / "x.npy", "zip")
    np.savez_compressed(path, **whole)
    refused(path, "compressed")
    np.savez(path, **{name: array for name, array in whole.items() if name not in ("label", "method")})
    refused(path, "missing label, method")
    np.savez(path, **whole, more=np.zeros(3))
    refused(path, "unexpected more")
    np.savez(path, **whole)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("label.npy", b"")
    refused(path, "unexpected label")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 1, 4, 4)})
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in whole.items():
            data = io.BytesIO()
            np.save(data, array)
            archive.writestr(f"{name}.npy", header.getvalue() if name == "images" else data.getvalue())
    refused(path, "has 0 bytes")
    refused(tmp_path / "nowhere.npz", "no file")
    refused(tmp_path, "not a file of adversarial images")
    assert not Bomb.went_off


def refused(path, words):
    with pytest.raises(UserError, match=words) as told:
        read_adversarials(path)
    assert "\n" not in str(told.value)


@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), cut=st.booleans())
def test_a_changed_byte_changes_no_claim(tmp_path_factory, place, mask, cut):
    path = test_a_changed_byte_changes_no_claim.path
    whole, copy = bytearray(path.read_bytes()), path.with_name("copy.npz")
    at = int(place * len(whole))
    whole[at] ^= mask
    copy.write_bytes(path.read_bytes()[:at] if cut else whole)
    try:
        found = read_adversarials(copy)
    except UserError as told:
        assert "\n" not in str(told)
        return
    before = read_adversarials(path)
    assert not cut and found.about == before.about
    assert all(np.array_equal(array, before.arrays[name]) for name, array in found.arrays.items())


def test_nothing_found_is_an_empty_file(tmp_path):
    right = replace(SPLIT, y=TRUTH.y)
    settings = {"eps": (1e-6,), "attacks": (PGD(steps=1),), "certificates": ()}
    evaluate(TRUTH.model, right, adversarials=tmp_path / "a.npz", **settings)
    stored = read_adversarials(tmp_path / "a.npz")
    assert stored.images.shape == (0, 1, 4, 4)
    found = judge(stored, NamedModel("model", TRUTH.model, right))
    assert found.reasons == [] and "0: 0 confirmed" in found.lines()[1]


def test_a_smoothed_model_is_asked_as_it_was_counted(tmp_path):
    model = Smoothed(TRUTH.model, 0.05, votes=20, recount=40)
    settings = {"eps": (2 * EPS,), "attacks": (PGD(steps=5),), "certificates": (), "samples": 10}
    evaluate(model, SPLIT, adversarials=tmp_path / "a.npz", **settings)
    stored = read_adversarials(tmp_path / "a.npz")
    assert stored.about.others["smoothed"] == "sigma=0.05, votes=20, recount=40, seed=0"
    assert len(stored.index) > 5 and judge(stored, NamedModel("model", model, SPLIT)).confirmed.all()


class Careless(PGD):
    """Answers outside of box and ball, and NaN for every fifth image."""

    name: Literal["careless"] = "careless"

    @property
    def label(self):
        return "careless"

    def __call__(self, model, x, y, keys, *eps):
        images = x + torch.where(keys % 2 == 0, 1.0, 0.0).view(-1, 1, 1, 1)
        images[keys % 5 == 0] = torch.nan
        nothing = torch.zeros(len(x), dtype=torch.int64)
        return Attacked(images, nothing, nothing)


def test_answers_outside_box_or_ball_are_counted_and_told(tmp_path, plain):
    done = saved(None, attacks=(Careless(),), eps=(EPS,))
    ran = done.table[done.table["method"] == "careless"]
    assert done.about.outside == {"careless": int(((ran["index"] % 2 == 0) | (ran["index"] % 5 == 0)).sum())}
    assert "outside box or ball by more than 1e-6: careless" in (caption := str(console_attacks(done).caption)), caption
    assert plain[0].about.outside == {} and "outside" not in str(console_attacks(plain[0]).caption)
    assert "shared evenly" in str(console_attacks(plain[0]).caption)
    texts = [write_tables([one], tmp_path / name)[1].read_text() for name, one in (("a", done), ("b", plain[0]))]
    assert "more than 1e-6: careless" in texts[0] and "1e-6" not in texts[1]


@pytest.mark.parametrize("name", ["os:getcwd", "../digits_mlp", "/tmp", "", "a b"])
def test_a_header_names_no_code_and_no_path(stored, name):
    with pytest.raises(UserError, match="--model"):
        named_by(Adversarials.checked(stored.about.plain() | {"model": name}, stored.arrays))


def test_the_file_is_made_by_hand_as_well(stored, tmp_path):
    """What a stranger writes with NumPy alone is the same format."""
    header = json.dumps({"format": "robustbench_rkhs adversarials", "version": 1, **stored.about.plain()}).encode()
    np.savez(tmp_path / "mine.npz", **stored.arrays, header=np.frombuffer(header, np.uint8))
    mine = read_adversarials(tmp_path / "mine.npz")
    assert judged(mine).confirmed.all()
    ours = write_adversarials(mine, tmp_path / "ours.npz").read_bytes()
    assert write_adversarials(stored, tmp_path / "again.npz").read_bytes() == ours


class Own(SuperDeepFool):
    """An attack of our engine, the images it is shown counted."""

    name: Literal["shown"] = "shown"
    shown: ClassVar[list[int]] = []

    def __call__(self, model, x, y, keys, *eps):
        Own.shown.append(len(x))
        return super().__call__(model, x, y, keys, *eps)


def test_parts_that_are_kept_image_by_image_keep_their_images_too(tmp_path):
    attacks = (Own(),)
    saved(tmp_path / "a.npz", attacks=attacks)
    saved(tmp_path / "b.npz", tmp_path / "kept", attacks)
    Own.shown.clear()
    saved(tmp_path / "c.npz", tmp_path / "kept", attacks, block=5)
    assert not Own.shown  # another cut of the images is no other work
    beside = beside_parts(tmp_path / "kept")
    assert len(beside) > 1
    beside[0].unlink()
    rows = len(pd.read_parquet(beside[0].with_suffix(".parquet")))
    saved(tmp_path / "d.npz", tmp_path / "kept", attacks)
    assert sum(Own.shown) == rows
    files = [(tmp_path / f"{name}.npz").read_bytes() for name in "abcd"]
    assert len(set(files)) == 1 and len(read_adversarials(tmp_path / "a.npz").index) > 10
