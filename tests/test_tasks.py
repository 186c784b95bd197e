"""Regression and ranking from recipe to report: what trains, what is measured, and what is refused in one line."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from oracles import affine
from sklearn.metrics import roc_auc_score
from test_cli import rkhs
from torch import nn

from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.data import Split, SquareWave
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.losses import SquaredError
from robustbench_rkhs.training.penalties import GradientPenalty
from robustbench_rkhs.training.ranking import scores_of
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.validation import score, validate

WAVE = {
    "data": {"name": "square_wave", "validation": 60},
    "network": {"name": "mlp", "hidden": [32, 32]},
    "loss": {"name": "squared_error"},
    "penalties": [{"name": "gradient", "weight": 1e-6}],
    "optimizer": {"name": "adam", "lr": 0.01},
    "epochs": 40,
    "batch_size": 30,
}
MOTIF = {
    "data": {"name": "protein", "family": "9.9", "validation": 40, "length": 24},
    "network": {"name": "sequence_convolutional", "channels": [8], "kernel": 5},
    "penalties": [{"name": "gradient", "weight": 1e-4}],
    "optimizer": {"name": "adam", "lr": 0.02},
    "epochs": 8,
    "batch_size": 20,
}


@pytest.fixture(scope="module")
def proteins(tmp_path_factory):
    """Random sequences, of which the members hold WCHYW somewhere."""
    root, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (root / "protein").mkdir()
    for part, count, members in (("train", 200, 80), ("test", 100, 12)):
        records = []
        for position in range(count):
            letters = generator.choice(list("ARNDQEGILKMFPSTV"), generator.integers(12, 30)).tolist()
            if position < members:
                letters[3:8] = "WCHYW"
            records.append(f">{int(position < members)}\n{''.join(letters)}\n")
        (root / f"protein/9.9.{part}.fasta").write_text("".join(records))
    return root


@pytest.fixture(scope="module")
def trained(proteins, tmp_path_factory):
    """A home folder with a model of each task, trained by `train`."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RKHS_DATA", str(proteins))
        for name, recipe in {"wave": WAVE, "motif": MOTIF}.items():
            train(TrainRecipe.parse(recipe), folder / "checkpoints" / name)
    return folder


@pytest.fixture(autouse=True)
def _data_root(proteins, monkeypatch):
    monkeypatch.setenv("RKHS_DATA", str(proteins))


def test_square_wave_trains(trained):
    loaded = checkpoint.load(trained / "checkpoints/wave")
    test = SquareWave().test()
    with torch.no_grad():
        error = (loaded.model(test.x) - test.y).square().mean().item()
    assert error < 0.05  # the best constant has 0.25
    records = [json.loads(line) for line in (trained / "checkpoints/wave/metrics.jsonl").read_text().splitlines()]
    best = min(range(len(records)), key=lambda epoch: (records[epoch]["validation_mse"], -epoch))
    assert loaded.config["epoch"] == best and loaded.config["classes"] == 1
    assert "mse" in (trained / "checkpoints/wave/README.md").read_text()


def test_motif_trains_and_is_ranked(trained, proteins):
    out, _ = rkhs("rank", "--model", "motif", folder=trained)
    (place,) = (trained / "reports/local/ranking").glob("motif-*.json")
    written = json.loads(place.read_text())
    loaded = checkpoint.load(trained / "checkpoints/motif")
    split = loaded.recipe.data.test()
    assert written["auroc"] == pytest.approx(roc_auc_score(split.y, scores_of(loaded.model, split.x)))
    assert written["auroc"] > 0.9 and f"auROC {written['auroc']:.4f}" in out
    assert (written["members"], written["others"], written["seed"], written["data"]) == (12, 88, 0, "protein-9.9")
    assert written["weights"] == loaded.weights and written["data_digest"] == split.digest
    assert written["command"] == "rkhs-rank --model motif"


def test_ranking_models_are_attacked_and_certified_without_a_box(trained):
    loaded = checkpoint.load(trained / "checkpoints/motif")
    split = loaded.recipe.data.test()
    flags = ["--model", "motif", "--eps", "0.02", "0.2", "--samples", "8", "--json"]
    out, _ = rkhs("evaluate", *flags, "--attack", "pgd:steps=5", folder=trained)
    about, summary = (json.loads(out)["evaluations"][0][key] for key in ("about", "summary"))
    assert about["box"] == "none" and about["data"] == "protein-9.9" and not about["breaches"] and not about["refused"]
    assert all(row["certified"] <= row["robust"] <= row["clean"] for row in summary)
    done = evaluate(loaded.model, split, eps=(3.0,), norm="l2", samples=5, effort="quick")
    assert done.about.protocol == ("superdeepfool", "ddn", "fab:targeted") and (done.table["box"] == "none").all()
    reached = done.table[np.isfinite(done.table["distance_l2"])]
    proved = MarginCertificate().radii(loaded.model, split.x, split.y).numpy()
    assert len(reached) and (reached["distance_l2"].to_numpy() >= proved[reached["index"]]).all()
    for named in ("autoattack", "pgd:box=unit"):
        _, err = rkhs("evaluate", *flags, "--attack", named, folder=trained, code=2)
        assert "does not lie in [0, 1]" in err and len(err.splitlines()) == 1


def test_attacks_without_a_box_find_the_distance_of_an_affine_model():
    model, x, y, l2, _ = affine(classes=3, shape=(2, 5), images=8)
    shifted = nn.Sequential(nn.Flatten(), nn.Linear(10, 3)).eval()  # the same, with its images far outside [0, 1]
    with torch.no_grad():
        shifted[1].weight.copy_(model[1].weight)
        shifted[1].bias.copy_(model[1].bias - 5 * model[1].weight.sum(1))
    split = Split("far", "test", x + 5, y, torch.arange(len(x)), 3, "0" * 64, "none")
    done = evaluate(shifted, split, eps=(2 * l2.max().item(),), attacks=({"name": "foolbox", "attack": "ddn"},))
    found = done.table[done.table["method"] == "ddn"].set_index("index")["radius"]
    wanted = {index: l2[index].item() for index in found.index}
    np.testing.assert_allclose(found.to_numpy(), list(wanted.values()), rtol=0.05)
    proved = done.table[done.table["method"] == "margin"].set_index("index")["radius"].sort_index()
    assert (proved.to_numpy() <= l2.numpy() * (1 + 1e-6)).all()
    np.testing.assert_allclose(proved.to_numpy(), l2.numpy(), rtol=1e-2)  # less by the error of float32


def test_regressions_are_refused_where_classes_are_needed(trained, monkeypatch):
    for command, line in (("evaluate", "is a regression"), ("rank", "is a regression")):
        flags = ["--eps", "0.1"] if command == "evaluate" else []
        _, err = rkhs(command, "--model", "wave", *flags, folder=trained, code=2)
        assert line in err and len(err.splitlines()) == 1
    _, err = rkhs("evaluate", "--model", "motif", "--data", "square_wave", "--eps", "0.1", folder=trained, code=2)
    assert "takes 2 classes" in err
    needy = {
        "'cross_entropy'": {"loss": {"name": "cross_entropy"}},
        "attack": {"attack": {"name": "pgd", "eps": 0.1, "box": "none"}},
        "validate_with": {"validate_with": {"name": "pgd", "eps": 0.1, "box": "none"}},
        "adaptive": {"adaptive": [{"target": 1.0}]},
    }
    for named, part in needy.items():
        with pytest.raises(UserError, match=f"regression, which has no classes: {named} cannot be used"):
            TrainRecipe.parse(WAVE | part)
    monkeypatch.setattr(GradientPenalty, "regression", False)  # as it is for a penalty that says nothing
    with pytest.raises(UserError, match="no classes: 'gradient' cannot be used"):
        TrainRecipe.parse(WAVE)


def test_attacks_that_keep_to_the_box_are_refused_where_inputs_do_not():
    boxed = {"name": "pgd", "eps": 0.1}
    for key in ("attack", "validate_with"):
        with pytest.raises(UserError, match=f"does not lie in .*give {key} box none"):
            TrainRecipe.parse(MOTIF | {key: boxed})
        assert getattr(TrainRecipe.parse(MOTIF | {key: boxed | {"box": "none"}}), key).box == "none"


def test_validation_of_each_task():
    torch.manual_seed(0)
    wave, model = SquareWave(validation=50).load().validation, nn.Linear(1, 1)
    with torch.no_grad():
        wanted = (model(wave.x) - wave.y).square().mean().item()
    found = validate(model, wave, None, batch=7)
    assert found == {"validation_mse": pytest.approx(wanted)} and score(found) == (pytest.approx(-wanted), 0.0)
    assert score({"validation_mse": 5.0}) < score({"validation_mse": 4.0})
    ranker = nn.Linear(1, 2)
    split = dataclasses.replace(wave, y=wave.y.long().flatten(), classes=2, task="ranking")
    found = validate(ranker, split, None, batch=7)
    assert found["validation_auroc"] == pytest.approx(roc_auc_score(split.y, scores_of(ranker, split.x)))
    assert score(found) == (found["validation_auroc50"], found["validation_auroc"])
    plain = validate(ranker, dataclasses.replace(split, task="classification"), None)
    assert set(plain) == {"validation_clean", "validation_margin"} and plain["validation_clean"] == found["validation_clean"]
    members = split.take((split.y == 1).nonzero().flatten())
    assert validate(ranker, members, None)["validation_auroc"] == 0


def test_a_regression_worse_than_minus_one_is_still_kept(tmp_path):
    recipe = TrainRecipe.parse(WAVE | {"epochs": 1, "optimizer": {"name": "sgd", "lr": 1e-9}, "seed": 3})
    with torch.no_grad():
        far = checkpoint.build(recipe, (1,), 1)
        far[-1].bias += 100
    checkpoint.save(tmp_path / "far", recipe, SquareWave().test(), far.state_dict(), "")
    record = train(recipe.model_copy(update={"start_from": str(tmp_path / "far")}), tmp_path / "kept")
    assert record["validation_mse"] > 1000 and checkpoint.load(tmp_path / "kept").config["epoch"] == 0


def test_squared_error_is_its_definition():
    model, x, y, *_ = affine(classes=3)
    one_hot = torch.nn.functional.one_hot(y, 3)
    torch.testing.assert_close(SquaredError()(model, x, y), (model(x) - one_hot).square().mean())
    numbers = torch.randn(len(x), 3)
    torch.testing.assert_close(SquaredError()(model, x, numbers), (model(x) - numbers).square().mean())
    single = nn.Linear(2, 1)
    points, labels = torch.randn(5, 2), torch.randn(5)  # a missing dimension is not broadcast
    wanted = (single(points)[:, 0] - labels).square().mean()
    torch.testing.assert_close(SquaredError()(single, points, labels), wanted)
    with pytest.raises(UserError, match="unknown name"):
        parse(TrainRecipe, WAVE | {"loss": {"name": "squared"}}, "recipe")
