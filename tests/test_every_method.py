"""Every method that a training takes, with combinations of its fields: eight images, one step, save, load, evaluate."""

from types import UnionType
from typing import Annotated, Union, get_args, get_origin

import pytest
import torch
from method_table import BOUNDED, METHODS, recipe_of
from torch import nn

from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import Node, UserError
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe

CASES = [
    (place, name, number) for place, names in METHODS.items() for name, line in names.items() for number in range(len(line) - 1)
]


def nodes_of(annotation):
    """Every node class that a field takes, and those of its fields."""
    if isinstance(annotation, type) and issubclass(annotation, Node):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType, tuple):
        return [node for one in get_args(annotation) for node in nodes_of(one)]
    return []


def below(kind, seen):
    """The methods that a recipe's fields take, at any depth, by the name of the field."""
    for field, info in kind.model_fields.items():
        for one in nodes_of(info.annotation):
            yield field, one
            if one not in seen:
                yield from below(one, (*seen, one))


def test_the_table_covers_every_method_that_a_recipe_takes():
    found = {}
    for field, kind in below(TrainRecipe, (TrainRecipe,)):
        if "name" in kind.model_fields or field == "adaptive":
            found.setdefault(field, set()).add(str(kind.model_fields["name"].default) if "name" in kind.model_fields else "")
    found.pop("validate_with")  # the attack's class
    assert found == {place: set(names) for place, names in METHODS.items()}


@pytest.mark.parametrize("place, name, number", CASES, ids=[f"{place}-{name}-{number}" for place, name, number in CASES])
def test_a_method_trains_saves_loads_and_is_evaluated(place, name, number, data_of_every_set, tmp_path, monkeypatch):
    monkeypatch.setenv("RKHS_DATA", str(data_of_every_set))
    recipe = recipe_of(place, name, number)
    train(recipe, tmp_path / "m")
    loaded = checkpoint.load(tmp_path / "m")
    assert loaded.recipe == recipe and loaded.weights == loaded.config["weights"]
    test = recipe.data.test()
    if test.task == "regression" or number:  # one combination of each method is evaluated
        assert loaded.model(test.x[:2]).isfinite().all()
        return
    one = {"name": "pgd", "steps": 1, "targets": 0, "box": test.box}
    found = evaluate(loaded.model, test.take(torch.arange(4)), eps=[0.1], attacks=[one], certificates=[], **PLAIN)
    assert found.table["index"].nunique() == 4 and found.table.radius.notna().all()


PLAIN = {"diagnostics": False, "rechecked": 0}
TIED = [
    BOUNDED | {"learnable": True},
    {"name": "kwl", "learnable": True, "family": "aol"},
]


@pytest.mark.parametrize("network", TIED, ids=lambda one: one["name"])
def test_tied_tensors_resume_load_and_certify(network, data_of_every_set, tmp_path, monkeypatch):
    monkeypatch.setenv("RKHS_DATA", str(data_of_every_set))
    data = {"name": "npz", "path": "s.npz", "train": 8}
    recipe = TrainRecipe.parse({"data": data, "network": network, "epochs": 1, "batch_size": 8, "ema": 0.5})
    train(recipe, tmp_path / "m")
    train(recipe.model_copy(update={"epochs": 2}), tmp_path / "m")
    loaded = checkpoint.load(tmp_path / "m")
    tensors = [one for name, one in loaded.model.state_dict().items() if name.endswith("logarithm")]
    assert len(tensors) == 2 and tensors[0].data_ptr() == tensors[1].data_ptr()
    assert sum(name.endswith("logarithm") for name, _ in loaded.model.named_parameters()) == 1
    test = recipe.data.test()
    found = evaluate(
        loaded.model, test, eps=[0.1], attacks=[{"name": "ddn", "steps": 3}], certificates=[MarginCertificate()], **PLAIN
    )
    assert set(found.table.kind) == {"attack", "certificate"} and not found.about.breaches


class Tied(nn.Module):
    """Two layers that are one."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_a_file_whose_tied_tensors_differ_is_refused():
    state = checkpoint.as_stored(Tied().state_dict())
    checkpoint.fill(Tied(), state, "file")
    state["second.weight"] += 1
    with pytest.raises(UserError, match=r"file: 'first.weight' and 'second.weight' are one tensor in this network, and differ"):
        checkpoint.fill(Tied(), state, "file")
