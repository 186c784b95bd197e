"""Pictures of runs: what is drawn is what the files say, seeds together; every missing thing is told in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_cli import rkhs

from robustbench_rkhs import verdicts
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.pictures.groups import folders, grouped, matching, without_seed
from robustbench_rkhs.reports.fits import _pieces
from robustbench_rkhs.reports.learning import common
from robustbench_rkhs.reports.seeds import seed_curves
from robustbench_rkhs.reports.spread import spread
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.verdicts import Evaluation, accuracy_steps, summary
from robustbench_rkhs.verdicts.axes import CERTIFIED, EMPIRICAL

ROOT = Path(__file__).parent.parent


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Metrics of three seeds of one recipe and of one run of another."""
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, seed, weight in [("plain-seed-0", 0, 0.0), ("plain-seed-1", 1, 0.0), ("plain-seed-2", 2, 0.0), ("strong", 0, 1.0)]:
        folder = tmp_path / "checkpoints" / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text(json.dumps({"seed": seed, "weight": weight}))
        records = [
            {"epoch": epoch, "loss": 1 / (1 + epoch + seed), "validation_clean": 0.1 * epoch + 0.01 * seed} for epoch in range(4)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """Lines and bands as they are drawn: (x, y) of plot and (x, low, high) of fill_between."""
    seen = {"plot": [], "fill_between": []}
    for kind in seen:
        plain = getattr(Axes, kind)

        def spy(self, *arguments, plain=plain, kind=kind, **options):
            seen[kind].append((arguments, options))
            return plain(self, *arguments, **options)

        monkeypatch.setattr(Axes, kind, spy)
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: Path(path).write_bytes(b"drawn"))
    return seen


def line(drawn, start):
    """x and y of the first line whose label begins so."""
    arguments = next(arguments for arguments, options in drawn["plot"] if str(options.get("label")).startswith(start))
    return np.asarray(arguments[0]), np.asarray(arguments[1])


def test_learning_curves_are_means_and_ranges_over_seeds(home, drawn):
    out, _ = rkhs("pictures", "learning", "--model", "plain-*", "strong", folder=home)
    assert [Path(path).name for path in out.split()[1:]] == [f"learning-plain-strong.{kind}" for kind in ("png", "pdf", "svg")]
    epochs, mean = line(drawn, "plain (3 seeds)")
    assert epochs.tolist() == [1, 2, 3, 4]
    assert mean == pytest.approx([np.mean([1 / (1 + epoch + seed) for seed in range(3)]) for epoch in range(4)])
    (_, low, high), _ = drawn["fill_between"][0]
    assert low == pytest.approx([1 / (3 + epoch) for epoch in range(4)]) and high == pytest.approx([1 / (1 + e) for e in range(4)])
    assert line(drawn, "strong")[1][0] == 1.0


def test_learning_pictures_are_the_same_bytes_twice(home):
    rkhs("pictures", "learning", "--model", "first=plain-*", "--name", "x", folder=home)
    before = {path: path.read_bytes() for path in (home / "reports").rglob("learning-x.*")}
    assert len(before) == 3 and all(len(stored) > 1000 for stored in before.values())
    rkhs("pictures", "learning", "--model", "first=plain-*", "--name", "x", folder=home)
    assert {path: path.read_bytes() for path in before} == before


def test_only_epochs_that_all_seeds_have(home):
    runs = [[{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5}], [{"epoch": 0, "loss": 3.0}]]
    epochs, values = common(runs, "loss")
    assert epochs.tolist() == [1] and values.tolist() == [[1.0], [3.0]]
    epochs, values = common(runs, "validation_clean")
    assert len(epochs) == 0


def test_spread():
    values = np.array([[1.0, 2.0], [3.0, 2.0], [8.0, 2.0]])
    mean, low, high = spread(values, "range")
    assert (mean.tolist(), low.tolist(), high.tolist()) == ([4, 2], [1, 2], [8, 2])
    mean, low, high = spread(values, "interval")
    half = 4.302652729911275 * np.sqrt(13) / np.sqrt(3)  # t quantile of 2 degrees of freedom; variance (9 + 1 + 16) / 2
    assert high == pytest.approx([4 + half, 2]) and low == pytest.approx([4 - half, 2])
    assert [part.tolist() for part in spread(values[:1], "interval")] == [[1, 2]] * 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["learning"], "no runs given"),
        (["learning", "--model", "plian-seed-0"], "did you mean 'plain-seed-0'"),
        (["learning", "--model", "checkpoints"], "holds no metrics.jsonl"),
        (["learning", "--model", "broken"], "not readable"),
        (["square_wave", "--model", "strong"], "holds no config.json"),
        (["curves", "--model", "nothing"], "run rkhs-eval first"),
        (["curves"], "no models given"),
        (["vae", "--vae", "laten=3"], "did you mean 'latent'"),
        (["vae", "--vae", "3"], "expected field=value"),
        (["vae", "--data", "square_wave"], "expected images"),
        (["vae", "--images", "0"], "--images"),
    ],
)
def test_missing_things_are_one_line(home, flags, words):
    (home / "checkpoints/broken").mkdir()
    (home / "checkpoints/broken/metrics.jsonl").write_text("{")
    _, err = rkhs("pictures", *flags, folder=home, code=2)
    assert words in err and len(err.splitlines()) == 1


def test_groups():
    assert without_seed("plain-seed-2") == "plain" and without_seed("seed-2", "0003") == "0003"
    assert without_seed("mnist_300") == "mnist_300"
    runs = [(None, "a", "x", 1), (None, "a", "y", 2), (None, "b", "x", 3), ("mine", "c", "y", 4), ("mine", "d", "z", 5)]
    assert grouped(runs) == {"a": [1, 3], "a #2": [2], "mine": [4, 5]}
    assert matching(["x-*", "b=y"], ["x-1", "x-2", "y"], "here") == [(None, "x-1"), (None, "x-2"), ("b", "y")]


def test_a_run_is_drawn_once(home):
    assert [path.name for _, path in folders(["plain-seed-0", "checkpoints/plain-*"], "metrics.jsonl")] == [
        "plain-seed-0",
        "plain-seed-1",
        "plain-seed-2",
    ]
    with pytest.raises(UserError, match="no such run"):
        folders(["plain-*", "other-*"], "metrics.jsonl")


def stored_verdicts():
    found = verdicts.read_all(ROOT / "reports/verdicts")
    return [one for one in found if str(one.about.model) in ("digits_mlp", "digits_sandwich", "digits_conv")]


def test_curves_over_seeds_are_means_of_the_tables(home, drawn):
    seeds = stored_verdicts()
    assert len(seeds) == 3
    table = seed_curves([accuracy_steps(one) for one in seeds], "range").set_index("eps")
    for eps in (0.1, 0.25, 0.5):
        rows = [summary(one, [eps]).iloc[0] for one in seeds]
        for part, shown in (("certified", "certified"), ("robust", "empirical")):
            values = [row[part] for row in rows]
            found = table.loc[eps, [shown, f"{shown}_low", f"{shown}_high"]].tolist()
            assert found == pytest.approx([np.mean(values), min(values), max(values)])
        assert table.loc[eps, "asked"]
    for number, one in enumerate(seeds):
        verdicts.write(
            Evaluation(one.table.assign(model=f"net-seed-{number}"), one.about.but(model=f"net-seed-{number}")),
            home / f"reports/verdicts/net-seed-{number}/l2.parquet",
        )
    rkhs("pictures", "curves", "--model", "net-*", folder=home)
    curves = [(np.asarray(x), np.asarray(y), options) for (x, y, *_), options in drawn["plot"] if len(np.atleast_1d(x)) > 3]
    (at, certified, solid), (_, empirical, dashed) = curves[:2]
    assert at.tolist() == table.index.tolist() and solid["ls"] == CERTIFIED and dashed["ls"] == EMPIRICAL
    assert certified == pytest.approx(table["certified"].to_numpy()) and empirical == pytest.approx(table["empirical"].to_numpy())


def test_square_wave_fits_are_the_networks(home, drawn):
    for lipschitz, seed in ((1.0, 0), (1.0, 1), (5.0, 0)):
        stored = {
            "data": {"name": "square_wave"},
            "network": {"name": "lipschitz_bounded", "hidden": [8], "lipschitz": lipschitz},
            "loss": {"name": "squared_error"},
            "epochs": 1,
            "seed": seed,
        }
        train(TrainRecipe.parse(stored), home / f"runs/{lipschitz:g}-{seed}")
    rkhs("pictures", "square_wave", "--model", "runs/*", "--name", "x", folder=home)
    x, y = line(drawn, "lipschitz_bounded" if not any("sandwich" in str(o.get("label")) for _, o in drawn["plot"]) else "sandwich")
    assert np.abs(np.diff(y) / np.diff(x)).max() <= 1 + 1e-9 and len(x) == 8001
    assert sum(len(np.atleast_1d(arguments[0])) == 8001 for arguments, _ in drawn["plot"]) == 3
    digits = home / "checkpoints/digits_mlp"
    shutil.copytree(ROOT / "checkpoints/digits_mlp", digits)
    with pytest.raises(AssertionError, match="network of one number"):
        rkhs("pictures", "square_wave", "--model", "digits_mlp", folder=home)


def test_pieces_of_the_wave():
    x = np.linspace(-2, 2, 5)
    assert _pieces(x, np.array([1.0, 1.0, 0.0, 1.0, 0.0])) == [(-2, 0, 1), (0, 1, 0), (1, 2, 1), (2, 2, 0)]


def test_vae_samples_lie_beside_the_data(home, monkeypatch):
    seen = []
    plain = Axes.imshow
    monkeypatch.setattr(
        Axes, "imshow", lambda self, image, **options: (seen.append(np.asarray(image)), plain(self, image, **options))[1]
    )
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: Path(path).write_bytes(b"drawn"))
    rkhs("pictures", "vae", "--images", "2", "--vae", "iterations=20,latent=4,hidden=8", folder=home)
    assert len(seen) == 26 and all(image.shape == (8, 8) for image in seen)
    assert all((seen[place] == 1).all() for place in (6, 19))  # the empty column
    from robustbench_rkhs.zoo import named_data

    images = {image[0].numpy().tobytes() for image in named_data("digits").load().train.x}
    left, right = [*seen[:6], *seen[13:19]], [*seen[7:13], *seen[20:26]]
    assert all(image.tobytes() in images for image in left) and not any(image.tobytes() in images for image in right)
