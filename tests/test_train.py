"""Training: the seams are called, killing changes nothing, faults name the step."""

import json
import signal
import time

import numpy as np
import pytest
import torch
from killed import told_by
from torch import nn

from robustbench_rkhs.data.given import given_split
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.training import checkpoint, optimizers
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.run import Run, update_average
from robustbench_rkhs.training.validation import validate

TINY = {
    "data": {"name": "digits", "train": 200, "validation": 100, "crop": 1, "flip": True},
    "network": {"name": "mlp", "hidden": [16], "mean": [0.3], "std": [0.4]},
    "attack": {"name": "pgd", "eps": 0.2, "steps": 2, "start": "random"},
    "penalties": [{"name": "gradient", "weight": 0.001}],
    "projections": [{"name": "spectral", "tau": 1.5, "kappa": 1.0}],
    "schedule": {"name": "one_cycle"},
    "epochs": 3,
    "batch_size": 50,
    "ema": 0.9,
    "validate_with": {"name": "pgd", "eps": 0.2, "steps": 3},
}


def tiny(**changes):
    return TrainRecipe.parse(TINY | changes)


def trained(recipe, folder, slow, tell):
    """A training that keeps its state after each step and tells each event."""

    def on_event(event):
        tell(getattr(event, "epoch", ""))
        time.sleep(slow)

    train(recipe, folder, save_seconds=0, on_event=on_event)


def test_gradients_that_are_accumulated_over_parts_train_the_same(tmp_path):
    whole, parts = (tiny(penalties=[], epochs=2, accumulate=count) for count in (1, 3))
    records = [train(recipe, tmp_path / str(recipe.accumulate)) for recipe in (whole, parts)]
    one, other = (checkpoint.load(tmp_path / str(count)).model.state_dict() for count in (1, 3))
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], abs=1e-6)
    assert all((one[name] - other[name]).abs().max() < 1e-5 for name in one)
    with pytest.raises(UserError, match="at least the 51 parts"):
        train(tiny(accumulate=51), tmp_path / "more")
    with pytest.raises(UserError, match="on_device: a step takes its whole batch"):
        tiny(accumulate=2, on_device=True)
    with pytest.raises(UserError, match="BatchNorm trains in one process without accumulate"):
        recipe = tiny(accumulate=2, network={"name": "lenet", "batch_norm": True})
        Run(recipe, given_split(torch.rand(4, 1, 28, 28), torch.arange(4), 10), "cpu")


def test_a_killed_training_ends_bit_for_bit_where_an_unbroken_one_does(tmp_path):
    recipe = tiny()
    trained(recipe, tmp_path / "whole", 0.0, lambda record: None)
    for after in (3, 6):  # inside the first epoch, inside the second
        assert told_by(trained, recipe, tmp_path / "killed", 0.05, after=after)[1] == -signal.SIGKILL
    assert not (tmp_path / "killed" / "config.json").exists()
    trained(recipe, tmp_path / "killed", 0.0, lambda record: None)
    for file in ("model.safetensors", "last.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()

    def metrics(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]

    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed") and len(metrics(tmp_path / "whole")) == 3


def test_the_checkpoint_is_the_best_on_validation_and_loads(tmp_path):
    recipe = tiny(epochs=4)
    train(recipe, tmp_path / "m")
    records = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    loaded = checkpoint.load(tmp_path / "m")
    best = max(records, key=lambda r: (r["validation_robust"], r["validation_clean"], r["epoch"]))
    assert loaded.config["epoch"] == best["epoch"] and loaded.recipe == recipe
    found = validate(loaded.model, recipe.data.load().validation, recipe.validate_with)
    assert found == {k: best[k] for k in found}
    assert records[0]["tau_0"] > records[-1]["tau_0"] > 1.5


def test_without_validation_images_the_last_epoch_is_kept_and_the_card_says_so(tmp_path):
    train(tiny(epochs=3, data={"name": "digits", "train": 200, "validation": 0}), tmp_path / "m")
    assert checkpoint.load(tmp_path / "m").config["epoch"] == 2
    card = (tmp_path / "m" / "README.md").read_text()
    assert "Epoch 3, the last: no image was held out" in card and "chose the epoch" not in card


def test_a_finished_training_is_not_overwritten_without_being_asked(tmp_path):
    recipe = tiny(epochs=1)
    train(recipe, tmp_path / "m")
    with pytest.raises(UserError, match=r"already holds this recipe, trained; to train it again: --out .* --fresh"):
        train(recipe, tmp_path / "m")
    with pytest.raises(UserError, match=r"holds a model of another recipe \(seed: 0 before, 1 now\)"):
        train(tiny(epochs=1, seed=1), tmp_path / "m")
    train(tiny(epochs=2), tmp_path / "m", fresh=True)
    assert checkpoint.load(tmp_path / "m").recipe.epochs == 2


def test_training_learns_and_the_projection_holds(tmp_path):
    recipe = tiny(epochs=15, ema=None, data={"name": "digits", "validation": 200})
    record = train(recipe, tmp_path / "m")
    assert record["validation_clean"] > 0.85
    for name, weight in checkpoint.load(tmp_path / "m").model.named_parameters():
        if "weight" in name:
            assert torch.linalg.matrix_norm(weight.detach(), 2) < 1.5 * (1 + 4 * np.exp(-8))


def test_a_gradient_that_is_not_finite_names_the_step(tmp_path):
    with pytest.raises(UserError, match=r"not finite at epoch \d+, step \d+: .*lower the lr"):
        train(tiny(optimizer={"name": "sgd", "lr": 1e30}, projections=[], attack=None), tmp_path / "m")
    assert not (tmp_path / "m" / "config.json").exists()


def test_the_attack_warms_up(tmp_path):
    from robustbench_rkhs.training.run import Run

    recipe = tiny(attack={"name": "pgd", "eps": 0.4, "step_size": 0.1, "steps": 2}, attack_warmup=0.5)
    run = Run(recipe, recipe.data.load().test, "cpu")
    assert run.attack_at(0.0) is None
    assert run.attack_at(0.25).eps == pytest.approx(0.2) and run.attack_at(0.25).step_size == pytest.approx(0.05)
    assert run.attack_at(0.5) == recipe.attack


def test_the_running_mean_is_its_definition():
    average, model = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    nn.init.zeros_(average.weight)
    nn.init.ones_(model.weight)
    update_average(average, model, 0.75)
    torch.testing.assert_close(average.weight.detach(), torch.full((1, 2), 0.25))


SCHEDULES = {
    "constant": (optimizers.Constant(), {0.0: 1, 0.9: 1}),
    "cosine": (optimizers.Cosine(warmup=0.2), {0.1: 0.5, 0.2: 1, 0.6: 0.5}),
    "one_cycle": (optimizers.OneCycle(peak=0.5), {0.0: 0.04, 0.5: 1, 0.75: 0.5}),
    "triangular": (optimizers.Triangular(), {0.0: 0, 0.2: 0.5, 0.4: 1, 0.8: 0.05, 0.9: 0.025}),
}


@pytest.mark.parametrize("schedule, points", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_schedules_pass_through_their_corners(schedule, points):
    for progress, factor in points.items():
        assert schedule(progress, 0) == pytest.approx(factor, abs=1e-9)


def test_step_schedule():
    assert [optimizers.Step(every=2, gamma=0.5)(0, epoch) for epoch in range(5)] == [1, 1, 0.5, 0.5, 0.25]


def test_bfloat16_and_channels_last_train_too(tmp_path):
    network = {"name": "convolutional", "channels": [4, 4], "hidden": [8]}
    record = train(tiny(network=network, precision="bfloat16", channels_last=True, epochs=1), tmp_path / "m")
    assert np.isfinite(record["loss"])
    assert all(t.dtype == torch.float32 for t in checkpoint.load(tmp_path / "m").model.state_dict().values())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        train(tiny(epochs=1), tmp_path / "file" / "m")
