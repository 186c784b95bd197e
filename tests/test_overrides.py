"""Another `name` keeps the fields that both methods have, in every union of a recipe, and says what it dropped."""

import itertools
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

import pytest
from heard import messages_into
from pydantic import ValidationError

from robustbench_rkhs.nodes.node import Node
from robustbench_rkhs.nodes.overrides import override, override_all
from robustbench_rkhs.training.recipe import TrainRecipe


def nodes_of(annotation):
    if isinstance(annotation, type) and issubclass(annotation, Node):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType, tuple):
        return [node for one in get_args(annotation) for node in nodes_of(one)]
    return []


def unions(kind, place=(), seen=()):
    """Every field below a recipe that takes one of several methods: its path, the class it is a field of, and the methods."""
    for field, info in kind.model_fields.items():
        methods = [one for one in nodes_of(info.annotation) if "name" in one.model_fields]
        if len(methods) > 1:
            yield (*place, field), methods
        for one in methods:
            if one not in seen:
                yield from unions(one, (*place, field), (*seen, *methods))


UNIONS = {".".join(place): methods for place, methods in unions(TrainRecipe)}
PAIRS = [(place, *pair) for place, methods in UNIONS.items() for pair in itertools.permutations(methods, 2)]


def test_the_table_covers_every_union_of_a_recipe():
    assert set(UNIONS) == {
        *("data", "network", "network.network", "loss", "penalties", "penalties.sampler", "optimizer", "schedule"),
    }
    assert len(PAIRS) > 200


def required(kind):
    return {name: "x.npz" for name, field in kind.model_fields.items() if field.is_required()}


def takes(kind, field, value):
    """Whether the method itself takes this value in this field."""
    try:
        kind.model_validate(required(kind) | {field: value})
    except (ValidationError, ValueError) as error:
        return field not in str(error)
    return True


@pytest.mark.parametrize("place", UNIONS)
def test_another_name_keeps_what_the_new_method_has_too(place):
    for _, old, new in (pair for pair in PAIRS if pair[0] == place):
        fields = old.model_validate(required(old)).model_dump(mode="json")
        names = old.model_fields["name"].default, new.model_fields["name"].default
        at, keys, stored = place.split("."), [], {}
        inner = stored
        for part in at[:-1]:  # the method that holds this union
            inner[part] = {"name": holder(place)}
            keys.append(part)
            inner = inner[part]
        inner[at[-1]] = [dict(fields)] if at[-1] == "penalties" else dict(fields)
        keys.append(at[-1] + (".0" if at[-1] == "penalties" else ""))
        lines = override(stored, ".".join([*keys, "name"]), names[1], TrainRecipe)
        left = inner[at[-1]][0] if at[-1] == "penalties" else inner[at[-1]]
        expected = {
            key: value
            for key, value in fields.items()
            if key in new.model_fields and key not in ("name", "digest") and takes(new, key, value)
        }
        assert left == {"name": names[1]} | expected, (place, names)
        gone = [key for key in fields if key not in expected and key != "name"]
        if gone:
            assert len(lines) == 1 and f"dropped {', '.join(gone)}" in lines[0], (place, names)
        else:
            assert not any("dropped" in line for line in lines)


def holder(place):
    return {"network.network": "spectrally_normalised", "penalties.sampler": "function_norm"}[place]


def test_the_normalisation_of_robust_vgg_survives_another_network():
    heard = []
    before = TrainRecipe.read("robust_vgg").network
    network = TrainRecipe.read(
        "robust_vgg", {"network.name": "resnet", "network.depth": "34"}, on_event=messages_into(heard)
    ).network
    assert (network.mean, network.std, network.depth) == (before.mean, before.std, 34) and before.mean
    assert len(heard) == 1 and heard[0].startswith("--network.name resnet: ") and "kept mean, std" in heard[0]


def test_fields_typed_before_their_name_are_the_new_methods():
    fields = {"schedule.warmup": "0.25", "optimizer.betas": "[0.5, 0.9]", "schedule.name": "cosine", "optimizer.name": "adam"}
    recipe = TrainRecipe.read("robust_vgg", fields)
    assert recipe.schedule.warmup == 0.25 and recipe.optimizer.betas == (0.5, 0.9)


def test_a_data_sets_digest_is_not_that_of_another():
    stored = {"data": {"name": "mnist", "digest": "0" * 64, "train": 100}}
    assert override_all(stored, {"data.name": "digits"}, TrainRecipe) == ["--data.name digits: dropped digest; kept train"]
    assert stored == {"data": {"name": "digits", "train": 100}}


def test_an_unknown_name_drops_nothing():
    stored = {"loss": {"name": "hinge", "margin": 1}}
    assert override(stored, "loss.name", "hing", TrainRecipe) == [] and stored["loss"]["margin"] == 1


def test_the_command_says_it_once_on_stderr(tmp_path, monkeypatch, capsys):
    from robustbench_rkhs.cli.train import main

    words = [
        "--network.name",
        "convolutional",
        "--network.channels",
        "[2]",
        "--network.hidden",
        "[4]",
        "--schedule.name",
        "constant",
    ]
    small = [
        "--epochs",
        "1",
        "--data.train",
        "64",
        "--data.validation",
        "0",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr("sys.argv", ["rkhs-train", "--model", "digits_mlp", *words, *small, "--out", str(tmp_path / "m")])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert left.value.code == 0 and "dropped" not in said.out
    assert said.err.splitlines() == [
        "note: --network.name convolutional: kept hidden",
        "note: --schedule.name constant: dropped peak",
    ]
