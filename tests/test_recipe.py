"""Recipes: every shipped one is valid, every mistake is one line that guesses what was meant."""

import sys
from itertools import islice

import pytest
import torch
import yaml

from robustbench_rkhs.attacks import AnyAttack
from robustbench_rkhs.certificates import AnyCertificate
from robustbench_rkhs.data import Data, Split
from robustbench_rkhs.evaluation.recipe import EvalRecipe, attack_from, certificate_from
from robustbench_rkhs.listing import KINDS, cards, listing, models
from robustbench_rkhs.networks import Network
from robustbench_rkhs.nodes.node import FEW, UserError
from robustbench_rkhs.nodes.one_of import LISTED, names_of
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.paths import find_checkpoint, find_recipe, models_folder
from robustbench_rkhs.training.losses import Loss
from robustbench_rkhs.training.penalties import Penalty
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.run import Run
from robustbench_rkhs.zoo import named_data

RECIPES = sorted(path.stem for path in models_folder().glob("*.yaml"))


def test_the_named_models_are_there():
    assert {"digits_mlp", "digits_conv", "digits_sandwich", "robust_vgg", "robust_vgg_published", "robust_vgg_small"} <= set(
        RECIPES
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resolves_and_its_resolved_copy_is_itself(name):
    recipe = TrainRecipe.read(name)
    assert TrainRecipe.parse(yaml.safe_load(recipe.yaml())) == recipe
    assert recipe.about and recipe.about == yaml.safe_load((models_folder() / f"{name}.yaml").read_text())["about"]


def test_robust_vgg_published_is_the_published_recipe():
    recipe = TrainRecipe.read("robust_vgg_published")
    assert recipe.attack and recipe.attack.norm == "l2" and recipe.attack.eps == 2.0 and recipe.attack.steps == 5
    projection = recipe.projections[0]
    assert (projection.tau, projection.kappa, projection.operator, recipe.epochs) == (0.8, 50, "reshaped", 501)


OVERRIDES = {
    "number": ({"epochs": "3"}, lambda r: r.epochs == 3),
    "nested": ({"attack.eps": "36/255"}, lambda r: r.attack.eps == 36 / 255),
    "in a list": ({"projections.0.tau": "1.5"}, lambda r: r.projections[0].tau == 1.5),
    "a whole list": ({"penalties": "[{name: gradient, weight: 0.5}]"}, lambda r: r.penalties[0].weight == 0.5),
    "none": ({"attack": "null"}, lambda r: r.attack is None),
    "another method": ({"schedule.name": "cosine", "schedule.warmup": "0.1"}, lambda r: r.schedule.warmup == 0.1),
    "exponent": ({"optimizer.lr": "1e-3"}, lambda r: r.optimizer.lr == 1e-3),
}


@pytest.mark.parametrize("fields, holds", OVERRIDES.values(), ids=OVERRIDES.keys())
def test_any_field_is_a_flag(fields, holds):
    assert holds(TrainRecipe.read("robust_vgg_published", fields))


MISTAKES = {
    "misspelt key": ({"epoch": "3"}, "unknown flag or field --epoch; did you mean '--epochs'"),
    "misspelt nested key": ({"attack.epss": "1"}, "attack: unknown key 'epss' of PGD; did you mean 'eps'"),
    "misspelt method": ({"schedule.name": "cosin"}, "unknown name 'cosin'; did you mean 'cosine'"),
    "not a number": ({"attack.eps": "big"}, "attack.eps: .*found 'big'"),
    "not finite": ({"attack.eps": ".inf"}, "expected a finite number"),
    "negative": ({"epochs": "0"}, "--epochs: expected a value greater than or equal to 1, found '0'"),
    "bad fraction": ({"attack.eps": "1/0"}, "fraction such as 36/255, found '1/0'"),
    "position": ({"projections.3.tau": "1"}, "expected a position from 0 to 0, found '3'"),
    "below a value": ({"epochs.x": "1"}, "below a plain value"),
}


@pytest.mark.parametrize("fields, line", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(fields, line):
    with pytest.raises(UserError, match=line) as caught:
        TrainRecipe.read("robust_vgg_published", fields)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_guessed():
    with pytest.raises(UserError, match="unknown model 'robust_vg'; did you mean 'robust_vgg'"):
        TrainRecipe.read("robust_vg")


def test_a_file_that_is_no_recipe(tmp_path):
    path = tmp_path / "x.yaml"
    for text, line in (
        ("- 1\n- 2", "expected a mapping"),
        ("a: [", "not readable YAML|cannot be read|expected a mapping"),
        ("", "expected a mapping"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=line):
            TrainRecipe.read(path)


ATTACKS = {
    "pgd": lambda a: a.steps == 40 and a.scale_invariant,
    "pgd:steps=7,loss=cross_entropy": lambda a: a.steps == 7 and not a.scale_invariant,
    "published": lambda a: a.box == "none" and a.steps == 100 and not a.scale_invariant,
    "cw": lambda a: a.attack == "cw" and a.minimal_norm,
    "ddn:steps=9": lambda a: a.name == "ddn" and a.steps == 9,
    "foolbox:attack=ddn": lambda a: a.attack == "ddn" and a.minimal_norm,
    "autoattack:version=custom,attacks=[apgd-ce,square]": lambda a: a.attacks == ("apgd-ce", "square"),
}


@pytest.mark.parametrize("text, holds", ATTACKS.items())
def test_attacks_as_typed(text, holds):
    assert holds(parse(EvalRecipe, {"eps": [1.0], "attacks": [attack_from(text)]}, "test").attacks[0])


@pytest.mark.parametrize(
    "text, line", [("pdg", "did you mean 'pgd'"), ("pgd:steps", "field=value"), ("pgd:step=3", "did you mean 'steps'")]
)
def test_a_mistyped_attack(text, line):
    with pytest.raises(UserError, match=line):
        parse(EvalRecipe, {"eps": [1.0], "attacks": [attack_from(text)]}, "test")


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_has_a_card_and_every_field_a_meaning(kind):
    found = cards(kind)
    assert found
    for card in found.values():
        assert card.first_line and card.name in listing(kind, card.name)
        for field, _, meaning in card.fields:
            assert meaning, f"{card.name}.{field} is undocumented"
    assert set(models()) == set(RECIPES)
    with pytest.raises(UserError, match=f"known|rkhs-list {kind}"):
        listing(kind, "nothing")


UNIONS = {
    "attacks": AnyAttack,
    "certificates": AnyCertificate,
    "penalties": Penalty,
    "losses": Loss,
    "networks": Network,
    "data": Data,
}


@pytest.mark.parametrize("kind", UNIONS)
def test_every_method_that_has_a_name_is_one_that_recipes_take(kind):
    """A file that was written and never added to the union of its room."""
    assert set(cards(kind)) == set(names_of(UNIONS[kind]))


def test_what_a_package_announces_is_listed_as_its_own_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "theirs_1").mkdir()
    (tmp_path / "theirs_1/__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / "theirs_1/shove.py").write_text(
        'from robustbench_rkhs.attacks import Attack\n\n\nclass Shove(Attack):\n    """One hard push."""\n\n'
        '    force: float = 2.0\n    """How hard."""\n'
    )
    info = tmp_path / "theirs_1-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 3.1\n")
    points = "shove = theirs_1.shove:Shove\nlost = theirs_1.nowhere:Lost\npgd = theirs_1.shove:Shove\n"
    (info / "entry_points.txt").write_text(f"[robustbench_rkhs.attacks]\n{points}")
    before = listing("attacks")
    monkeypatch.syspath_prepend(tmp_path)
    found = listing("attacks").splitlines()
    new = [line.strip() for line in found if line.split() not in [one.split() for one in before.splitlines()]]
    assert [" ".join(line.split()) for line in new] == [
        "lost [from package their-package: theirs_1.nowhere:Lost]",
        "shove One hard push. [from package their-package: theirs_1.shove:Shove]",
    ]
    card = listing("attacks", "shove")
    assert "from package their-package" in card and "force: float = 2.0\n      How hard." in card and "box: Box" in card
    assert "theirs_1" not in listing("attacks", "pgd") and "theirs_1" not in sys.modules


SMALL = [name for name in RECIPES if name.startswith("rkhs_small_")]


def test_the_rkhs_experiments_are_there():
    methods = {TrainRecipe.read(name).penalties[0].name for name in SMALL if TrainRecipe.read(name).penalties}
    assert {"gradient", "adversarial_perturbation", "loss_gradient", "spectral_norm", "virtual_adversarial"} <= methods
    assert {"deformation_stability", "deformation_tangent"} <= methods
    combined = TrainRecipe.read("rkhs_small_combined")
    assert combined.penalties and combined.projections, "a lower bound and an upper bound"


@pytest.mark.parametrize("name", SMALL)
def test_an_rkhs_recipe_trains_two_steps(name):
    """The recipe's own loss, penalties, attack and projections, on a tiny network and noise of the data set's shape."""
    recipe = TrainRecipe.read(name, {"batch_size": "2", "network": "{name: mlp, hidden: [8]}"})
    shape = {"cifar10": (3, 32, 32), "mnist": (1, 28, 28)}[recipe.data.title]
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0))
    split = Split("noise", "train", x, torch.arange(6), torch.arange(6), 10, "none")
    run = Run(recipe, split, "cpu")
    run.prepare(split)
    before = [p.detach().clone() for p in run.model.parameters()]
    for step, x, y, keys in islice(run.batches(split), 2):
        run.step(step, x, y, keys)
    assert run.position == 2 and 0 < run.mean_loss() < 1e3
    assert all(not torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))


LONG = {
    "models": lambda: find_recipe("robust_vg"),
    "checkpoints": lambda: find_checkpoint("robust_vg"),
    "attacks": lambda: attack_from("pdg"),
    "certificates": lambda: certificate_from("magrin"),
    "data": lambda: named_data("minst"),
    "penalties": lambda: TrainRecipe.parse({"data": "digits", "network": "mlp", "epochs": 1, "penalties": ["gradeint"]}),
    "networks": lambda: TrainRecipe.parse({"data": "digits", "network": {"name": "resnett"}, "epochs": 1}),
}


@pytest.mark.parametrize("kind", LONG)
def test_an_unknown_name_is_answered_by_the_nearest_and_by_the_command_that_lists_all(kind):
    with pytest.raises(UserError, match="did you mean") as refused:
        LONG[kind]()
    line, kind = str(refused.value), kind.replace("checkpoints", "models")
    assert len(line) < 300 and line.isprintable()
    assert f"rkhs-list {kind}" in line or line.count(",") < FEW
    listing(kind)


def test_kinds_that_messages_say_are_listed_are_listed():
    assert set(LISTED) <= set(KINDS)
