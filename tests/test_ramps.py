"""Ramps, adaptive weights and the second of two stages: what changes over a training changes as it says."""

import math

import pytest
import torch
from heard import metrics_into
from hypothesis import given
from hypothesis import strategies as st
from test_train import tiny

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.ramps import Ramp
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.adaptive import Adaptive
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.losses import CrossEntropy
from robustbench_rkhs.training.penalties import GradientPenalty
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.run import Run

share = st.floats(0, 1)


@given(st.floats(-5, 5), st.floats(-5, 5), share, share, st.sampled_from(["linear", "cosine", "jump"]), share)
def test_a_ramp_starts_at_its_start_ends_at_the_value_and_stays_between(start, value, one, other, shape, progress):
    begin, end = sorted((one, other))
    ramp = Ramp(start=start, begin=begin, end=end, shape=shape)
    assert ramp(value, 1.0) == value and ramp(value, end) == value
    if begin < end:
        assert ramp(value, begin) == pytest.approx(start)
    assert min(start, value) - 1e-9 <= ramp(value, progress) <= max(start, value) + 1e-9


def test_halfway():
    assert Ramp(begin=0.2, end=0.6)(8.0, 0.4) == pytest.approx(4.0)
    assert Ramp(start=1, shape="cosine")(3.0, 0.25) == pytest.approx(1 + (1 - math.cos(math.pi / 4)))
    assert Ramp(shape="jump", end=0.5)(3.0, 0.49) == 0


def test_a_scheduled_penalty_is_the_penalty_at_the_number_in_force():
    penalty = GradientPenalty(weight=2.0, schedule={"weight": {"end": 0.5}})
    model, x = torch.nn.Linear(3, 2), torch.rand(4, 3)
    for progress, weight in ((0.0, 0.0), (0.25, 1.0), (0.5, 2.0), (1.0, 2.0)):
        assert penalty.at(progress).weight == weight
        wanted = GradientPenalty(weight=weight)(model, x, torch.zeros(4).long())
        assert penalty.at(progress)(model, x, torch.zeros(4).long()).item() == wanted.item()
    loss = CrossEntropy(temperature=0.5, schedule={"temperature": {"start": 1.0}})
    assert loss.at(0.5).temperature == 0.75


@pytest.mark.parametrize(
    "schedule, line",
    [
        ({"wieght": {}}, r"no number 'wieght' to schedule; did you mean 'weight'\?"),
        ({"weight": {"begin": 0.5, "end": 0.2}}, "a ramp ends after it begins: found begin 0.5 and end 0.2"),
        ({"weight": {"until": 0.2}}, "unknown key 'until' of Ramp"),
    ],
)
def test_a_wrong_schedule_is_one_line(schedule, line):
    with pytest.raises(UserError, match=line):
        TrainRecipe.parse(tiny().model_dump(mode="json") | {"penalties": [{"name": "gradient", "schedule": schedule}]})


def test_training_follows_the_ramp(tmp_path):
    """A weight that is zero for the whole training leaves the weights of a training without the penalty."""
    never = [{"name": "gradient", "weight": 1.0, "schedule": {"weight": {"begin": 1.0, "shape": "jump"}}}]
    train(tiny(penalties=never, epochs=1), tmp_path / "ramp")
    train(tiny(penalties=[{"name": "gradient", "weight": 0.0}], epochs=1), tmp_path / "none")
    train(tiny(penalties=[{"name": "gradient", "weight": 1.0}], epochs=1), tmp_path / "full")
    ramp, none, full = (checkpoint.load(tmp_path / name).weights for name in ("ramp", "none", "full"))
    assert ramp == none != full


@given(st.floats(0.01, 100), st.floats(-50, 50), st.floats(0.1, 10))
def test_an_adaptive_weight_moves_towards_its_target_within_its_limits(factor, margin, target):
    rule = Adaptive(target=target, rate=0.3, limit=50)
    new = rule(factor, {"validation_margin": margin})
    assert 1 / 50 <= new <= 50
    moved = math.log(new / min(50, max(1 / 50, factor)))
    assert abs(moved) <= 0.3 + 1e-9 and moved * (target - margin) >= -1e-9
    clean = Adaptive(measure="clean", target=0.9)
    assert clean(1.0, {"validation_clean": 0.5}) < 1 < clean(1.0, {"validation_clean": 1.0})


def test_adaptive_weights_act_and_are_recorded_and_resumed(tmp_path):
    adaptive = [{"penalty": 0, "target": 1e6, "rate": math.log(2)}]  # never reached: doubles every epoch
    recipe = tiny(adaptive=adaptive, epochs=3)
    records = []
    train(recipe, tmp_path / "a", on_event=metrics_into(records))
    assert [record["weight_0"] for record in records] == pytest.approx([1, 2, 4])
    run = Run(recipe, recipe.data.load().test, "cpu")
    run.restore(torch.load(tmp_path / "a" / "resume.pt", weights_only=True))
    assert run.factors == pytest.approx([8])
    assert "followed the margin" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"adaptive": [{"penalty": 3, "target": 1}]}, "no penalty 3, found 1 penalties"),
        ({"adaptive": [{"target": 1, "measure": "robust"}], "validate_with": None}, "needs validate_with"),
        ({"adaptive": [{"target": 1}], "data": {"name": "digits"}}, "data.validation 0"),
    ],
)
def test_a_wrong_adaptive_weight_is_one_line(changes, line):
    with pytest.raises(UserError, match=line):
        TrainRecipe.parse(tiny().model_dump(mode="json") | changes)


def test_the_second_stage_starts_from_the_first(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train(tiny(epochs=1, ema=None), first)
    recipe = tiny(epochs=1, start_from=str(first), seed=7)
    run = Run(recipe, recipe.data.load().test, "cpu")
    assert checkpoint.weights_digest(run.model.state_dict()) == checkpoint.load(first).weights
    train(recipe, second)
    loaded = checkpoint.load(second)
    assert loaded.config["trained"]["started_from"]["weights"] == checkpoint.load(first).weights != loaded.weights
    with pytest.raises(UserError, match="unknown model 'nowhere'"):
        Run(tiny(start_from="nowhere"), recipe.data.load().test, "cpu")
    with pytest.raises(UserError, match=r"start_from.*has shape"):
        Run(
            tiny(start_from=str(first), network={"name": "mlp", "hidden": [17], "mean": [0.3], "std": [0.4]}),
            recipe.data.test(),
            "cpu",
        )
