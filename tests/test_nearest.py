"""Adversarial images shown, re-checked and submitted: the picture, and what the commands say and leave with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from oracles import affine
from test_cli import rkhs

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import PGD
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.adversarial_figure import draw_nearest, nearest_first, readable
from robustbench_rkhs.verdicts import Adversarials, read_adversarials, write_adversarials

ROOT = Path(__file__).parent.parent
TRUTH = affine(classes=4, shape=(1, 4, 4), images=12)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The nearest images of an evaluation; image 0 is wrong as it is."""
    path, labels = tmp_path_factory.mktemp("stored") / "a.npz", TRUTH.y.clone()
    labels[0] = (labels[0] + 1) % 4
    attacks = (PGD(steps=5),)
    evaluate(TRUTH.model, (TRUTH.x, labels), eps=(2 * float(TRUTH.l2.max()),), attacks=attacks, certificates=(), adversarials=path)
    return read_adversarials(path)


def changed(stored, **arrays):
    return Adversarials.checked(stored.about.plain(), {**stored.arrays, **arrays})


def test_the_picture_shows_the_nearest_and_how_they_differ(stored, tmp_path, monkeypatch):
    seen = []
    plain = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda self, image, **how: (seen.append(np.asarray(image)), plain(self, image, **how))[1])
    places = nearest_first(stored, 3)
    others = np.setdiff1d(np.flatnonzero(stored.method != "clean"), places)
    assert stored.distance[places].max() <= stored.distance[others].min() and (np.diff(stored.distance[places]) >= 0).all()
    assert "clean" not in stored.method[places]
    clean = TRUTH.x.numpy()[stored.index[places]]
    paths = draw_nearest(stored, clean, places, tmp_path / "one")
    assert [path.name for path in paths] == ["one.png", "one.pdf", "one.svg"] and len(seen) == 9
    for column, place in enumerate(places):
        top, middle, bottom = seen[3 * column : 3 * column + 3]
        assert (top == clean[column, 0]).all() and (bottom == stored.images[place, 0]).all()
        delta = (stored.images[place, 0] - clean[column, 0]).astype(np.float64)
        factor = np.abs(middle).max() / np.abs(delta).max()
        assert middle == pytest.approx(factor * delta, abs=1e-6) and 0.2 <= np.abs(middle).max() <= 0.5
        assert f"{factor:.0e}"[0] in "125"
    again = draw_nearest(stored, clean, places, tmp_path / "two")
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(paths, again, strict=True))


def test_a_picture_of_colours_and_none_of_features(stored, tmp_path):
    colour = {"images": np.repeat(stored.images, 3, axis=1)}
    both = changed(stored, **colour)
    places = nearest_first(both, 1)
    clean = np.repeat(TRUTH.x.numpy()[both.index[places]], 3, axis=1)
    assert draw_nearest(both, clean, places, tmp_path / "x")[0].stat().st_size > 1000
    with pytest.raises(UserError, match="channels"):
        draw_nearest(changed(stored, images=stored.images.reshape(-1, 16)), clean.reshape(1, -1)[:, :16], places, tmp_path / "y")
    with pytest.raises(UserError, match="nothing to draw"):
        draw_nearest(stored, clean[:0], places[:0], tmp_path / "y")
    assert not list(tmp_path.glob("y*"))


@pytest.mark.parametrize(
    "factor, shown", [(0.3, 1), (1.0, 1), (1.9, 1), (2.0, 2), (4.99, 2), (7, 5), (10, 10), (99.9, 50), (1234, 1000), (2e11, 2e11)]
)
def test_factors_are_readable(factor, shown):
    assert readable(factor) == shown


def undrawn(patch):
    """Figures are written without being drawn: seconds each."""
    patch.setattr(Figure, "savefig", lambda self, path, **options: Path(path).write_bytes(b"drawn"))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A folder with a checkpoint, its verdicts by a weak attack, and adversarial images by a stronger one."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "checkpoints/digits_mlp", folder / "checkpoints/digits_mlp")
    flags = ["--model", "digits_mlp", "--eps", "1.0", "--samples", "16", "--certify", "none", "--save-adversarials"]
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        rkhs("evaluate", *flags, "weak.npz", "--attack", "pgd:steps=1", folder=folder)
        strong = ["adversarials", "--attack", "foolbox:attack=ddn,steps=20", "--out", "elsewhere"]
        out, _ = rkhs("evaluate", *flags, *strong, folder=folder)
        rkhs("report", folder=folder)
    assert "adversarials: adversarials/digits_mlp-l2.npz" in out
    return folder


@pytest.fixture
def home(stage, monkeypatch):
    undrawn(monkeypatch)
    return stage


def test_verify_says_confirmed_refused_or_no_such_file(home):
    out, _ = rkhs("verify", "adversarials/digits_mlp-l2.npz", folder=home)
    assert "digits_mlp on digits test, l2, box unit" in out and "16: 16 confirmed, 0 refused" in out
    stored = read_adversarials(home / "adversarials/digits_mlp-l2.npz")
    nearer = stored.distance_l2 * np.where(np.arange(16) == 3, 0.5, 1)
    write_adversarials(changed(stored, distance_l2=nearer), home / "forged.npz")
    out, _ = rkhs("verify", "forged.npz", folder=home, code=1)
    assert "15 confirmed, 1 refused" in out and f"image {stored.index[3]} ({stored.method[3]}): distance l2" in out
    (home / "cut.npz").write_bytes((home / "forged.npz").read_bytes()[:-40])
    out, err = rkhs("verify", "forged.npz", "cut.npz", folder=home, code=2)
    assert "1 refused" in out and err.startswith("error: cut.npz: not a file") and err.count("\n") == 1
    write_adversarials(Adversarials.checked(stored.about.plain() | {"model": "os:getcwd"}, stored.arrays), home / "code.npz")
    _, err = rkhs("verify", "code.npz", folder=home, code=2)
    assert "--model" in err
    out, _ = rkhs("verify", "code.npz", "--model", "checkpoints/digits_mlp", folder=home)
    assert "16 confirmed" in out


def test_submitted_images_count_on_the_leaderboard(home):
    def robust():
        return pd.read_csv(home / "reports/local/leaderboard.csv").set_index("model").loc["digits_mlp", "robust"]

    before, board = robust(), (home / "reports/local/leaderboard.md").read_bytes()
    stored = read_adversarials(home / "adversarials/digits_mlp-l2.npz")
    write_adversarials(changed(stored, distance_l2=stored.distance_l2 / 2), home / "lies.npz")
    _, err = rkhs("submit", "adversarials", "lies.npz", folder=home, code=2)
    assert "none of its 16 images is confirmed" in err and (home / "reports/local/leaderboard.md").read_bytes() == board
    half = np.where(np.arange(16) < 8, 1.0, 0.5)
    write_adversarials(changed(stored, distance_l2=stored.distance_l2 * half), home / "half.npz")
    out, _ = rkhs("submit", "adversarials", "half.npz", folder=home)
    assert "8 confirmed, 8 refused" in out and "accepted: 8 images" in out
    attacked = verdicts.read_all(home / "reports/verdicts")[0].table
    (found,) = verdicts.read_all(home / "reports/submitted")
    rows = verdicts.holding(found.table)
    assert sorted(rows["index"]) == sorted(stored.index[:8].tolist())
    weak = set(verdicts.holding(attacked)["index"]) | set(attacked.loc[attacked["label"] != attacked["predicted"], "index"])
    expected = 1 - len(weak | set(stored.index[:8][stored.distance[:8] <= 1.0])) / 16
    assert robust() == pytest.approx(expected) and expected < before
    rkhs("report", folder=home)
    assert robust() == pytest.approx(expected)
    for flags in (["checkpoint", "checkpoints/digits_mlp"], ["adversarials", "nowhere.npz"]):
        _, err = rkhs("submit", *flags, folder=home, code=2)
        assert "--eps" in err or "no file" in err


def test_reports_draw_saved_files(home):
    out, _ = rkhs("report", "--adversarials", "adversarials/digits_mlp-l2.npz", "--images", "3", "--out", "pics", folder=home)
    assert out.split() == "nearest: 3 files in pics/local/pictures".split()
    out, _ = rkhs("report", "--adversarials", "adversarials/digits_mlp-l2.npz", "--out", "pics", "--json", folder=home)
    assert json.loads(out) == {"nearest": [f"pics/local/pictures/nearest-digits_mlp-l2.{kind}" for kind in ("png", "pdf", "svg")]}
    stored = read_adversarials(home / "adversarials/digits_mlp-l2.npz")
    write_adversarials(changed(stored, input_sha256=np.array(["0" * 64] * 16)), home / "pics/adversarials/other.npz")
    _, err = rkhs("report", "--adversarials", "pics/adversarials/other.npz", "--out", "pics", folder=home, code=2)
    assert "not those of digits" in err
    write_adversarials(Adversarials.checked(stored.about.plain() | {"data": "/etc/x.npz"}, stored.arrays), home / "path.npz")
    _, err = rkhs("report", "--adversarials", "path.npz", "--out", "pics", folder=home, code=2)
    assert "add --data" in err


def test_two_models_do_not_fit_into_one_file(home):
    flags = ["--model", "digits_mlp", "digits_mlp", "--eps", "1", "--save-adversarials", "one.npz"]
    _, err = rkhs("evaluate", *flags, folder=home, code=2)
    assert "expected a folder" in err
