"""The user's own attacks and certificates, and those of other libraries: taken as they are, fenced in and counted by us."""

import ast
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from oracles import affine
from torch import nn

from robustbench_rkhs.attacks import Attack, Attacked
from robustbench_rkhs.attacks.foreign import ForeignAttack, ForeignMinimalAttack
from robustbench_rkhs.certificates import Certificate, Certified, MarginCertificate
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.code_names import TYPED
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse

EPS = (0.01, 0.03)


def scene(images=16):
    return affine(4, (1, 3, 4), images=images)


def attacked(oracle, attack, **settings):
    """Rows of this attack, and the evaluation."""
    given = {"certificates": (), "diagnostics": False, "rechecked": 0, "norm": "l2"} | settings
    done = evaluate(oracle.model, (oracle.x, oracle.y), eps=EPS, attacks=[attack], **given)
    label = done.about.protocol[0]
    return done.table[(done.table["kind"] == "attack") & (done.table["method"] == label)], done


def newton(model, x, y, eps=None, beyond=1.02):
    """Each image moved a little across the nearest boundary of an affine model: exact."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        best = torch.full((len(x),), torch.inf, dtype=x.dtype)
        found = x.clone()
        for k in range(logits.shape[1]):
            gap = logits.gather(1, y[:, None])[:, 0] - logits[:, k]
            (slope,) = torch.autograd.grad(gap.sum(), leaf, retain_graph=True)
            length = (gap / slope.flatten(1).norm(dim=1)).detach()
            step = -beyond * (gap / (slope.flatten(1) ** 2).sum(1)).detach()[:, None, None, None] * slope
            better = (y != k) & (length < best) & (torch.tensor(eps is None) | (length * beyond <= (eps or 0)))
            best = torch.where(better, length, best)
            found = torch.where(better[:, None, None, None], x + step, found)
    return found.detach()


class Newton(Attack):
    """Newton's step as a class of the user's own."""

    minimal_norm: ClassVar[bool] = True
    beyond: float = 1.02

    def __call__(self, model, x, y, keys):
        once = torch.ones(len(x), dtype=torch.int64)
        return Attacked(newton(model, x, y, beyond=self.beyond), once, once)


class Torchattack:
    """The shape of an attack of torchattacks: it holds its model, its budget and its step, and is called with (images, labels)."""

    def __init__(self, model, eps=0.5, alpha=0.1):
        self.attack, self.model, self.eps, self.alpha, self._attacks = "Newton", model, eps, alpha, {}
        self.seen = []

    def set_mode_default(self):
        pass

    def __call__(self, images, labels):
        self.seen.append((self.eps, self.alpha, len(images)))
        return newton(self.model, images, labels, self.eps)


WAYS = [
    (Newton(), True),
    (f"{__name__}:Newton", True),
    (newton, False),
    (f"{__name__}:newton", False),
    (lambda model, x, y: newton(model, x, y), True),
    (Torchattack(nn.Identity()), False),
]


@pytest.mark.parametrize("attack, minimal", WAYS, ids=["instance", "named", "function", "named function", "lambda", "torchattacks"])
def test_an_exact_attack_of_anybody_breaks_exactly_what_can_be_broken(attack, minimal):
    oracle = scene()
    rows, done = attacked(oracle, attack)
    truth = oracle.l2.numpy()
    for row in rows.itertuples(index=False):
        if minimal:
            assert np.isnan(row.eps) and row.radius == pytest.approx(1.02 * truth[row.index], rel=1e-4)
        else:
            assert (row.radius < np.inf) == (1.02 * truth[row.index] <= row.eps) and row.radius >= truth[row.index] * (1 - 1e-5)
    right = (oracle.model(oracle.x).argmax(1) == oracle.y).numpy()
    assert (
        len(rows) and set(rows["index"]) == set(np.flatnonzero(right)) and (rows["forwards"] > 0).all() and not done.about.breaches
    )


def test_an_attack_of_torchattacks_gets_our_model_and_budget_and_is_given_back_as_it_was():
    held = Torchattack(own := nn.Identity(), eps=0.5, alpha=0.1)
    attacked(scene(), held)
    assert held.model is own and (held.eps, held.alpha) == (0.5, 0.1)
    assert {eps for eps, _, _ in held.seen} <= set(EPS) and all(alpha == pytest.approx(eps / 5) for eps, alpha, _ in held.seen)


def test_torchattacks_itself_where_it_is_installed():
    torchattacks = pytest.importorskip("torchattacks")
    oracle = scene()
    rows, _ = attacked(oracle, torchattacks.PGDL2(nn.Linear(1, 1), eps=1.0, alpha=0.2, steps=20))
    assert rows["method"].unique() == ["torchattacks.PGDL2"] and (rows["radius"] <= EPS[1]).any()
    named, _ = attacked(oracle, "torchattacks:PGDL2:eps=1.0,steps=20")
    assert (named["radius"].to_numpy() == rows["radius"].to_numpy()).all()


def test_objects_of_foolbox_at_a_budget_and_without():
    foolbox = pytest.importorskip("foolbox")
    oracle = scene()
    rows, _ = attacked(oracle, foolbox.attacks.L2PGD(steps=20))
    assert rows["method"].unique() == ["foolbox.L2ProjectedGradientDescentAttack"] and (rows["radius"] <= EPS[1]).any()
    assert set(rows["eps"]) <= set(EPS) and (rows["radius"].isin([np.inf]) | (rows["radius"] <= rows["eps"])).all()
    named, _ = attacked(oracle, "foolbox.attacks:L2PGD:steps=20")
    assert (named["radius"].to_numpy() == rows["radius"].to_numpy()).all()
    rows, _ = attacked(oracle, foolbox.attacks.L2DeepFoolAttack(steps=20))
    truth = oracle.l2.numpy()[rows["index"]]
    assert rows["eps"].isna().all() and ((rows["radius"] >= truth * (1 - 1e-5)) & (rows["radius"] < 1.1 * truth)).all()
    with pytest.raises(UserError, match="measures in linf, the evaluation in l2"):
        attacked(oracle, foolbox.attacks.LinfPGD())
    repeated, _ = attacked(oracle, foolbox.attacks.L2PGD(steps=5).repeat(2))
    assert len(repeated) and set(repeated["eps"]) <= set(EPS)


def far(model, x, y, eps):
    """Outside ball and box."""
    return x + 5


def nonsense(model, x, y):
    return torch.full_like(x, torch.nan)


def shapeless(model, x, y):
    return x[:, :, :1]


def nothing(model, x, y):
    return None


def failing(model, x, y):
    raise RuntimeError("out of luck")


class Meddling(Attack):
    """Changes the weights of what it attacks, so that everything falls."""

    def __call__(self, model, x, y, keys):
        for parameter in model.parameters():
            parameter.data.neg_()
        once = torch.ones(len(x), dtype=torch.int64)
        return Attacked(x, once, once)


class Bare(Attack):
    def __call__(self, model, x, y, keys):
        return x


@pytest.mark.parametrize("attack", [far, nonsense, shapeless, nothing, failing, Meddling(), Bare()])
def test_what_an_own_attack_does_wrong_breaks_no_image_that_stands(attack):
    oracle = scene()
    before = {name: tensor.clone() for name, tensor in oracle.model.state_dict().items()}
    rows, _ = attacked(oracle, attack)
    assert all(torch.equal(tensor, before[name]) for name, tensor in oracle.model.state_dict().items())
    assert (rows["radius"].to_numpy() >= oracle.l2.numpy()[rows["index"]] * (1 - 1e-5)).all()
    if attack in (far, nonsense):
        assert set(rows["state_reason"]) == {""}
        assert (rows["radius"].isin([np.inf]) | (rows["radius"] <= rows["eps"].fillna(0))).all()
    else:
        assert set(rows["state_reason"]) == {"error"}


REFUSED = [
    (nn.Linear(2, 2), "found Linear"),
    (Newton, "found the class Newton: write Newton"),
    (7, "found int"),
    (f"{__name__}:EPS", "of type tuple"),
    (f"{__name__}:Torchattack:epss=1", "unexpected keyword argument 'epss'"),
    (Attack(), "what attacks are made from"),
]


@pytest.mark.parametrize("attack, said", REFUSED)
def test_what_is_no_attack_is_refused_in_one_line(attack, said):
    with pytest.raises(UserError, match=said) as refusal:
        attacked(scene(2), attack)
    assert "\n" not in str(refusal.value)


class Half(Certificate):
    """Half of what the margin certificate proves."""

    norms: ClassVar[frozenset[str]] = frozenset({"l2"})
    factor: float = 0.5

    def __call__(self, model, x, y, keys, epsilons=()):
        found = MarginCertificate()(model, x, y, keys, epsilons)
        return found._replace(radius=self.factor * found.radius)


def certified(oracle, certificate, **settings):
    done = evaluate(
        oracle.model, (oracle.x, oracle.y), eps=EPS, effort="quick", certificates=[certificate], diagnostics=False, **settings
    )
    return done.table[(done.table["kind"] == "certificate") & (done.table["method"] != "prediction")], done


@pytest.mark.parametrize("certificate", [Half(), f"{__name__}:Half"])
def test_a_certificate_of_the_users_own_is_taken_as_it_is(certificate):
    oracle = scene(6)
    rows, done = certified(oracle, certificate)
    np.testing.assert_allclose(rows["radius"], oracle.l2.numpy()[rows["index"]] / 2, rtol=1e-5)
    assert not done.about.breaches and rows["method"].unique() == ["Half"]


def test_a_certificate_that_claims_too_much_is_found_out():
    _, done = certified(scene(6), Half(factor=3.0))
    assert done.about.breaches


class Careless(Certificate):
    norms: ClassVar[frozenset[str]] = frozenset({"l2"})
    what: str = "short"

    def __call__(self, model, x, y, keys, epsilons=()):
        radius, reason, zero = torch.ones(len(x), dtype=torch.float64), [""] * len(x), torch.zeros(len(x), dtype=torch.float64)
        if self.what == "weights":
            next(model.parameters()).data.zero_()
        return {
            "short": Certified(radius[:-1], reason, zero),
            "nan": Certified(radius * torch.nan, reason, zero),
            "negative": Certified(-radius, reason, zero),
            "single": Certified(radius.float(), reason, zero),
            "reason": Certified(radius, ["because"] * len(x), zero),
            "bare": radius,
            "sure": Certified(radius, reason, radius * 2),
            "weights": Certified(radius, reason, zero),
        }[self.what]


@pytest.mark.parametrize("what", ["short", "nan", "negative", "single", "reason", "bare", "sure", "weights"])
def test_what_an_own_certificate_returns_amiss_proves_nothing(what):
    oracle = scene(6)
    rows, done = certified(oracle, Careless(what=what))
    assert set(rows["state_reason"]) == {"error"} and (rows["radius"] == 0).all() and "Careless failed" in done.about.refused[0]
    assert next(oracle.model.parameters()).abs().sum() > 0


def test_finished_rows_of_an_own_attack_are_read_again_until_its_source_changes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = (
        "import pathlib\nimport torch\nfrom robustbench_rkhs.attacks import Attack, Attacked\n"
        "class Mine(Attack):\n    def __call__(self, model, x, y, keys):\n"
        "        with open('LOG', 'a') as log: log.write('x')\n"
        "        once = torch.ones(len(x), dtype=torch.int64)\n        return Attacked(x, once, once)\n"
    ).replace("LOG", str(tmp_path / "log"))
    oracle, runs = scene(4), []
    for text in (source, source, source + "# another\n"):
        (tmp_path / "mine_and_cached.py").write_text(text)
        sys.modules.pop("mine_and_cached", None)
        attacked(oracle, "mine_and_cached:Mine", folder=tmp_path / "out")
        runs.append(len(Path(tmp_path / "log").read_text()))
    assert runs[0] == runs[1] < runs[2]


def test_a_function_with_other_constants_is_another_attack():
    def at(size):
        return lambda model, x, y: x + size

    def described(attack):
        node = parse(EvalRecipe, {"eps": EPS, "attacks": [attack]}, "here", TYPED).attacks[0]
        return node.model_dump(mode="json")

    assert described(at(1)) == described(at(1)) != described(at(2))
    assert described(lambda model, x, y: x) != described(lambda model, x, y: y)
    one, two = (described(lambda model, x, y, other=net: other(x)) for net in (nn.Linear(40, 40), nn.Linear(40, 40)))
    assert one != two
    assert isinstance(parse(EvalRecipe, {"eps": EPS, "attacks": [far]}, "here").attacks[0], ForeignAttack)
    assert isinstance(parse(EvalRecipe, {"eps": EPS, "attacks": [nothing]}, "here").attacks[0], ForeignMinimalAttack)


def test_recipes_of_own_methods_are_written_and_read_again():
    attacks = [Newton(beyond=1.1), f"{__name__}:newton:beyond=1.2", f"{__name__}:Newton"]
    recipe = parse(EvalRecipe, {"eps": EPS, "attacks": attacks, "certificates": [Half(factor=0.25), "margin"]}, "here", TYPED)
    stored = recipe.model_dump(mode="json")
    assert [one["name"] for one in stored["attacks"]] == [f"{__name__}:Newton", f"{__name__}:newton", f"{__name__}:Newton"]
    again = parse(EvalRecipe, stored, "there", TYPED)
    assert again.model_dump(mode="json") == stored and again.certificates == recipe.certificates


@pytest.mark.parametrize("other", ["own_penalty", "own_loss", "own_layer"])
def test_a_class_that_is_called_for_something_else_is_no_attack(other):
    file = Path(__file__).parent.parent / "examples" / "own" / f"{other}.py"
    names = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    with pytest.raises(UserError, match="expected one of the attacks"):
        parse(EvalRecipe, {"eps": (0.1,), "attacks": (f"{file}:{names[-1]}",)}, "test", TYPED)
