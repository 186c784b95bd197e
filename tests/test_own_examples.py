"""The methods of examples/own/: each is one file, keeps its contract, and runs by the name that one types."""

from pathlib import Path

import torch
from torch import nn

from robustbench_rkhs import testing
from robustbench_rkhs.bounds import upper
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.code_names import TYPED, load

OWN = Path(__file__).resolve().parent.parent / "examples" / "own"


def own(file, name):
    return load(f"{OWN / file}.py:{name}", TYPED)


def test_own_attack():
    attack = own("own_attack", "OneStep")
    testing.check_attack(attack(), "l2", factor=2.0)
    testing.check_attack(attack(), "linf", factor=2.0)


def test_own_penalty():
    testing.check_penalty(own("own_penalty", "Confidence")())


def test_own_loss():
    testing.check_loss(own("own_loss", "Focal")())


def test_own_layer():
    rotate = own("own_layer", "Rotate")
    testing.check_layer(rotate, (3,))
    assert upper(nn.Sequential(nn.Linear(4, 4), rotate(), nn.ReLU(), nn.Linear(4, 2)), (4,)).value < torch.inf


def test_own_certificate():
    testing.check_certificate(own("own_certificate", "GlobalBound")(), factor=0.3)


def test_own_data():
    stripes = own("own_data", "Stripes")()
    testing.check_data(stripes)
    assert stripes.test().classes == 2


def test_an_evaluation_by_the_names_one_types(tmp_path):
    torch.manual_seed(0)
    split = own("own_data", "Stripes")().test()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    settings = {"attacks": [f"{OWN}/own_attack.py:OneStep:shrink=0.9"], "certificates": [f"{OWN}/own_certificate.py:GlobalBound"]}
    done = evaluate(model, split, eps=[0.01, 0.5], samples=20, diagnostics=False, **settings)
    assert {"OneStep", "GlobalBound"} <= set(done.table["method"]) and not done.about.breaches
    function = evaluate(model, split, eps=[0.5], samples=20, diagnostics=False, attacks=[own("own_attack", "one_step")])
    assert any("one_step" in method for method in function.table["method"])


def test_every_file_is_run_by_a_test():
    source = Path(__file__).read_text()
    files = sorted(path.stem for path in OWN.glob("*.py"))
    assert len(files) == 6 and all(f'own("{name}"' in source for name in files)
