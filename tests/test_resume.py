"""Resuming: recipes are compared as parsed, a training is lengthened where that is well defined, nothing shipped is overwritten."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from heard import Killed, killed_at, messages_into, steps_of

from robustbench_rkhs.nodes import paths
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.one_of import names_of
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.destination import destination
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.optimizers import Schedule
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.resume import stored_state

ROOT = Path(__file__).parent.parent
SHIPPED = ("digits_conv", "digits_gloro", "digits_mlp", "digits_sandwich", "digits_smoothed")
TINY = {
    "data": {"name": "digits", "train": 100, "validation": 50},
    "network": {"name": "mlp", "hidden": [8]},
    "penalties": [{"name": "gradient", "weight": 0.001}],
    "projections": [{"name": "spectral", "tau": 1.5, "kappa": 1.0}],
    "schedule": {"name": "step", "every": 2},
    "epochs": 2,
    "batch_size": 50,
    "ema": 0.9,
}
SCHEDULES = list(names_of(Schedule).values())


def tiny(**changes):
    return TrainRecipe.parse(TINY | changes)


def same_weights(one, other):
    return all((one / file).read_bytes() == (other / file).read_bytes() for file in ("model.safetensors", "last.safetensors"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_folder_is_recognised_as_its_recipe(name):
    with pytest.raises(UserError, match="already holds this recipe, trained"):
        stored_state(TrainRecipe.read(name), ROOT / "checkpoints" / name, "cpu")


def test_fields_that_change_no_weights_do_not_matter(tmp_path):
    recipe = tiny(data=TINY["data"] | {"validation": 0})
    train(recipe, tmp_path / "m")
    digest = recipe.data.test().digest
    same = {"about": "other words", "certify_eps": 0.3, "data": TINY["data"] | {"validation": 0, "digest": digest}}
    with pytest.raises(UserError, match="already holds this recipe, trained"):
        train(tiny(**same), tmp_path / "m")
    with pytest.raises(UserError, match=r"another recipe \(seed: 0 before, 1 now\)"):
        train(tiny(**same, seed=1), tmp_path / "m")
    with pytest.raises(UserError, match=r"another recipe \(data.validation: 0 before, 50 now"):
        train(tiny(), tmp_path / "m")


def as_if_older(folder, recipe):
    """The recipe in resume.pt as a version wrote it that knew fewer fields and other words."""
    state = torch.load(folder / "resume.pt", weights_only=True)
    full = yaml.safe_load(state["recipe"])
    less = {key: value for key, value in full.items() if value != TrainRecipe.model_fields[key].default}
    less["penalties"] = [{"name": one["name"], "weight": one["weight"]} for one in full["penalties"]]
    assert len(less) < len(full)
    torch.save(state | {"recipe": yaml.safe_dump(less | {"about": "older words"})}, folder / "resume.pt")


def test_an_unfinished_training_survives_an_upgrade(tmp_path):
    train(tiny(), tmp_path / "whole")
    with pytest.raises(Killed):
        train(tiny(), tmp_path / "cut", save_seconds=0, on_event=killed_at(4))
    as_if_older(tmp_path / "cut", tiny())
    with pytest.raises(UserError, match=r"an unfinished training of another recipe \(batch_size: 50 before, 25 now\)"):
        train(tiny(batch_size=25), tmp_path / "cut")
    seen = []
    train(tiny(), tmp_path / "cut", on_event=seen.append)
    assert steps_of(seen)[0].epoch == 1 and same_weights(tmp_path / "whole", tmp_path / "cut")


def test_a_state_of_an_unknown_field_is_told_in_one_line(tmp_path):
    with pytest.raises(Killed):
        train(tiny(), tmp_path / "m", save_seconds=0, on_event=killed_at(3))
    state = torch.load(tmp_path / "m/resume.pt", weights_only=True)
    torch.save(state | {"recipe": state["recipe"] + "future: 1\n"}, tmp_path / "m/resume.pt")
    with pytest.raises(UserError, match=r"unknown key 'future'.*written by another version.*--fresh"):
        train(tiny(), tmp_path / "m")
    (tmp_path / "m/resume.pt").write_bytes(b"foreign")
    with pytest.raises(UserError, match=r"resume.pt is unreadable .*--fresh"):
        train(tiny(), tmp_path / "m")


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize("schedule", [{"name": "step", "every": 2}, {"name": "constant"}], ids=lambda one: one["name"])
def test_a_lengthened_training_is_one_training_of_its_length(tmp_path, schedule, finished):
    train(tiny(schedule=schedule, epochs=4), tmp_path / "whole")
    if finished:
        train(tiny(schedule=schedule), tmp_path / "m")
    else:
        with pytest.raises(Killed):
            train(tiny(schedule=schedule), tmp_path / "m", save_seconds=0, on_event=killed_at(4))
    with pytest.raises(Killed):  # what is finished stays a checkpoint until the longer training ends
        train(tiny(schedule=schedule, epochs=4), tmp_path / "m", save_seconds=0, on_event=killed_at(4))
    if finished:
        assert checkpoint.load(tmp_path / "m").recipe.epochs == 2
    train(tiny(schedule=schedule, epochs=4), tmp_path / "m")
    assert same_weights(tmp_path / "whole", tmp_path / "m") and checkpoint.load(tmp_path / "m").recipe.epochs == 4
    assert len((tmp_path / "m/metrics.jsonl").read_text().splitlines()) == 4


def test_what_a_schedule_says_of_itself_is_true():
    for kind in SCHEDULES:
        schedule = kind()
        constant = all(schedule(0.1, epoch) == schedule(0.9, epoch) for epoch in range(60))
        assert constant == kind.by_epoch, kind
    assert {kind.model_fields["name"].default for kind in SCHEDULES if kind.by_epoch} == {"step", "constant"}


ATTACK = {"name": "pgd", "eps": 0.2, "steps": 1}
LENGTHS = {
    **{kind.model_fields["name"].default: {"schedule": {"name": kind.model_fields["name"].default}} for kind in SCHEDULES},
    "attack_warmup": {"attack": ATTACK, "attack_warmup": 0.5},
    "the ramps of 'cross_entropy'": {"loss": {"name": "cross_entropy", "schedule": {"offset": {"end": 0.5}}}},
    "the ramps of 'gradient'": {"penalties": [{"name": "gradient", "schedule": {"weight": {"end": 0.5}}}]},
    "kappa": {"projections": [{"name": "spectral", "kappa": 1.0, "of_epochs": 9}]},
    "validate_every 3": {"validate_every": 3},
}


@pytest.mark.parametrize("reason", [name for name in LENGTHS if name not in ("step", "constant")])
def test_a_training_that_its_length_shapes_is_not_lengthened_and_says_why(tmp_path, reason):
    train(tiny(**LENGTHS[reason]), tmp_path / "m")
    kept = (tmp_path / "m/model.safetensors").read_bytes()
    with pytest.raises(UserError, match=rf"at 2 epochs, which cannot become 4: .*{reason}.*--out"):
        train(tiny(**LENGTHS[reason], epochs=4), tmp_path / "m")
    assert (tmp_path / "m/model.safetensors").read_bytes() == kept


def test_a_training_is_not_shortened_nor_lengthened_without_its_state(tmp_path):
    train(tiny(), tmp_path / "m")
    with pytest.raises(UserError, match="which cannot become 1: 2 epochs are trained already"):
        train(tiny(epochs=1), tmp_path / "m")
    (tmp_path / "m/resume.pt").unlink()
    with pytest.raises(UserError, match=r"which cannot become 4: it has no resume\.pt"):
        train(tiny(epochs=4), tmp_path / "m")


def test_a_fresh_start_forgets_the_old_state_at_once(tmp_path):
    train(tiny(), tmp_path / "m")
    with pytest.raises(Killed):
        train(tiny(), tmp_path / "m", fresh=True, on_event=killed_at(1))
    seen = []
    train(tiny(), tmp_path / "m", on_event=seen.append)
    assert (steps_of(seen)[0].epoch, steps_of(seen)[0].step) == (0, 1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with a recipe and its finished checkpoint, as after a clone."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/small.yaml").write_text(yaml.safe_dump(TINY | {"schedule": {"name": "one_cycle"}}))
    monkeypatch.chdir(tmp_path)
    train(TrainRecipe.read("small"), Path("checkpoints/small"))
    (tmp_path / "checkpoints/small/resume.pt").unlink()
    return tmp_path


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_not_the_shipped_recipe_goes_to_a_folder_of_its_own(home):
    before = content(home / "checkpoints/small")
    folder, why = destination("small", TrainRecipe.read("small", {"epochs": "1"}))
    assert folder == Path("checkpoints/small@mine") and "epochs: 2 before, 1 now" in why
    train(TrainRecipe.read("small", {"epochs": "1"}), folder)
    assert paths.find_checkpoint("small@mine") == folder and checkpoint.load(folder).recipe.epochs == 1
    assert destination("small", TrainRecipe.read("small")) == (Path("checkpoints/small"), "")
    assert destination("small", TrainRecipe.read("small", {"about": "hm"})) == (Path("checkpoints/small"), "")
    with pytest.raises(UserError, match="only overwritten where its path is typed: --out checkpoints/small --fresh"):
        destination("small", TrainRecipe.read("small"), fresh=True)
    assert destination("small", TrainRecipe.read("small", {"epochs": "1"}), fresh=True)[0] == folder
    (home / "elsewhere").mkdir()
    shutil.copy(home / "models/small.yaml", home / "elsewhere/small.yaml")
    (home / "models/small.yaml").write_text((home / "models/small.yaml").read_text() + "seed: 3\n")
    own = Path("checkpoints/small@mine2")  # @mine holds the one with other epochs
    assert destination("small", TrainRecipe.read("small"))[0] == own  # the folder holds the older recipe
    other = TrainRecipe.read("elsewhere/small.yaml")
    assert destination("elsewhere/small.yaml", other)[0] == own  # the name is that of another recipe
    (home / "checkpoints/small/recipe.yaml").write_text("future: 1\n")
    assert destination("small", TrainRecipe.read("small"), fresh=True)[0] == own
    assert content(home / "checkpoints/small") | {"recipe.yaml": before["recipe.yaml"]} == before


def test_every_further_recipe_goes_to_a_folder_of_its_own_and_the_same_one_to_its_own_again(home):
    def placed(**fields):
        return destination("small", TrainRecipe.read("small", fields))[0].name

    kept = {}
    for number, seed in enumerate(("", "2", "3"), start=5):
        place = placed(seed=str(number))
        assert place == f"small@mine{seed}"
        if number < 7:
            train(TrainRecipe.read("small", {"seed": str(number)}), Path("checkpoints") / place)
            kept[place] = content(home / "checkpoints" / place)
    assert placed(seed="6") == "small@mine2" and placed(seed="5") == "small@mine"
    assert destination("small", TrainRecipe.read("small", {"seed": "7"}), fresh=True)[0].name == "small@mine3"  # --fresh too
    (home / "checkpoints/small@mine3").mkdir()
    assert placed(seed="7") == "small@mine3"  # an empty folder is free
    (home / "checkpoints/small@mine3/recipe.yaml").write_text(TrainRecipe.read("small", {"seed": "8"}).yaml())
    assert placed(seed="7") == "small@mine4" and placed(seed="8") == "small@mine3"  # one that has only begun
    (home / "checkpoints/small@mine3/recipe.yaml").write_text("[")
    assert placed(seed="7") == placed(seed="8") == "small@mine4"
    assert all(content(home / "checkpoints" / place) == held for place, held in kept.items())


def test_a_training_is_called_by_name_from_python_as_from_the_command_line(home):
    from robustbench_rkhs import train as train_named

    lines = []
    found = train_named("small", epochs=1, on_event=messages_into(lines), device="cpu")
    assert found["folder"] == "checkpoints/small@mine" and "epochs: 2 before, 1 now" in lines[0] and math.isfinite(found["loss"])
    assert checkpoint.load(Path(found["folder"])).recipe.epochs == 1
    again = train_named(TrainRecipe.read("small"), "checkpoints/two", epochs=1, **{"schedule.name": "constant"})
    assert again["folder"] == "checkpoints/two"
    assert checkpoint.load(Path("checkpoints/two")).recipe.schedule.name == "constant"


REFUSED = {
    "a misspelt model": (("smal",), {}, "unknown model 'smal'; did you mean 'small'"),
    "a misspelt field": (("small",), {"epoch": 1}, "did you mean '--epochs'"),
    "a finished training": (("small",), {}, "already holds this recipe, trained"),
    "no folder": ((dict(TINY),), {}, "needs a folder"),
    "a number": ((3,), {}, "expected a model's name, a mapping .* found int"),
    "nothing": ((), {}, "train: expected recipe, found none"),
    "a model by its flag": ((), {"model": "small"}, "train: expected 'recipe', found 'model'"),
    "too many": (("small", "a", "b"), {}, "at most 2 arguments by position"),
    "no such device": (("small",), {"epochs": 1, "device": "gpu"}, "device 'gpu' cannot be used here"),
}


@pytest.mark.parametrize(("args", "fields", "line"), REFUSED.values(), ids=REFUSED)
def test_a_training_that_cannot_be_called_is_refused_in_one_line(home, args, fields, line):
    from robustbench_rkhs import train as train_named

    with pytest.raises(UserError, match=line) as refused:
        train_named(*args, **fields)
    assert str(refused.value).isprintable()


def test_the_command_says_where_and_leaves_the_shipped_folder_alone(home, monkeypatch, capsys):
    from robustbench_rkhs.cli.train import main

    def typed(*words):
        monkeypatch.setattr("sys.argv", ["rkhs-train", "--model", "small", *words])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, capsys.readouterr()

    before = content(home / "checkpoints/small")
    code, said = typed("--epochs", "1", "--device", "cpu")
    assert code == 0 and "checkpoint: checkpoints/small@mine" in said.out and "note: not the recipe models/small.yaml" in said.err
    code, said = typed("--fresh")
    assert code == 2 and said.err.count("\n") == 1 and "path is typed" in said.err
    assert content(home / "checkpoints/small") == before
    code, said = typed("--fresh", "--out", "checkpoints/small", "--device", "cpu")
    assert code == 0 and json.loads((home / "checkpoints/small/config.json").read_text())["epoch"] in (0, 1)


def test_shipped_models_are_found_from_a_folder_that_has_models_and_checkpoints_of_its_own(home):
    assert paths.find_recipe("small") == Path("models/small.yaml")
    assert paths.find_checkpoint("small").samefile(home / "checkpoints/small")
    assert paths.find_recipe("digits_mlp").samefile(ROOT / "models/digits_mlp.yaml")
    assert paths.find_checkpoint("digits_mlp").samefile(ROOT / "checkpoints/digits_mlp")
    with pytest.raises(UserError, match="did you mean 'small'"):
        paths.find_checkpoint("smal")
    os.makedirs("checkpoints/small@mine")
    Path("checkpoints/small@mine/resume.pt").write_bytes(b"")
    with pytest.raises(UserError, match="'small@mine' has unfinished training"):
        paths.find_checkpoint("small@mine")


def test_own_folders_are_ignored_by_git():
    lines = (ROOT / ".gitignore").read_text().splitlines()
    assert "/checkpoints/*@*/" in lines and "/reports/**/*@*" in lines
