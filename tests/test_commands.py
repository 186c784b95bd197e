"""The commands' own contract: stdout that is JSON or nothing, flags that are the recipe's fields, contradictions refused."""

import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from heard import messages_into
from test_evaluate import small_net

import robustbench_rkhs
from robustbench_rkhs import cli
from robustbench_rkhs.attacks import Attack
from robustbench_rkhs.cli.flags import recipe_parameters
from robustbench_rkhs.cli.screen import strict
from robustbench_rkhs.cli.settings import eval_recipe
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.evaluation.settings import EvalSettings
from robustbench_rkhs.nodes.node import UserError

COMMANDS = {
    "rkhs-train": "train",
    "rkhs-eval": "evaluate",
    "rkhs-verify": "verify",
    "rkhs-report": "report",
    "rkhs-rank": "rank",
    "rkhs-list": "listing",
    "rkhs-submit": "submit",
    "rkhs-serve": "serve",
    "rkhs-norms": "norms",
    "rkhs-audit": "audit",
    "rkhs-tightness": "tightness",
    "rkhs-pictures": "pictures",
    "rkhs-sweep": "sweep",
}
NETS = """
import torch
from torch import nn

from robustbench_rkhs.attacks.base import Attack

class Talking(nn.Sequential):
    def forward(self, x):
        print("a model that prints")
        return super().forward(x)

def build():
    torch.manual_seed(0)
    return Talking(nn.Flatten(), nn.Linear(16, 2))

class Fails(Attack):
    def __call__(self, model, x, y, keys):
        print("an attack that prints")
        raise RuntimeError("no such kernel")
"""


class Failing(Attack):
    """Of a library, say."""

    def __call__(self, model, x, y, keys):
        print("an attack that prints")
        raise RuntimeError("no such kernel")


def main_of(name):
    return importlib.import_module(f"robustbench_rkhs.cli.{COMMANDS[name]}").main


def examples():
    """Every example line of every command's docstring."""
    root = Path(cli.__file__).parent
    return [
        line.strip().removeprefix("$ ")
        for name in COMMANDS.values()
        for line in (root / f"{name}.py").read_text().splitlines()
        if line.strip().startswith("$ ")
    ]


@pytest.mark.parametrize("line", examples())
def test_every_example_of_the_help_is_read_as_it_stands(line):
    words = shlex.split(line)
    while words[0] not in COMMANDS:  # torchrun before it
        words = words[1:]
    if words[0] == "rkhs-verify":
        read = importlib.import_module("robustbench_rkhs.cli.command").command
        read(importlib.import_module("robustbench_rkhs.cli.verify")._verify_adversarials).read(words[1:])
        return
    call = main_of(words[0]).read(words[1:])
    if words[0] == "rkhs-eval":
        recipe = eval_recipe(call.args[0], "here")
        assert recipe.eps and set(call.args[0]) <= set(EvalRecipe.model_fields)


def test_the_help_shows_its_examples_a_line_each(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rkhs-eval", "--help"])
    with pytest.raises(SystemExit) as left:
        main_of("rkhs-eval")()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert left.value.code == 0
    for line in (line for line in examples() if line.startswith("rkhs-eval")):
        assert f"$ {line}\n" in re.sub(r" +\n", "\n", shown), line
    for field in EvalRecipe.model_fields:
        assert f"--{field.replace('_', '-')}" in shown, field


@pytest.mark.parametrize("command, more", [("rkhs-eval", {}), ("rkhs-submit", {}), ("rkhs-audit", {"attacks": ["pgd"]})])
def test_what_is_not_typed_is_as_the_recipe_has_it(command, more):
    words = {
        "rkhs-eval": ["--model", "m", "--eps", "0.5"],
        "rkhs-submit": ["checkpoint", "m", "--eps", "0.5"],
        "rkhs-audit": ["--model", "m", "--claim", "clean=0.5"],
    }[command]
    (typed,) = main_of(command).read(words).args
    recipe = eval_recipe(typed, "here", **more, **({"eps": (0.5,)} if command == "rkhs-audit" else {}))
    assert recipe == EvalRecipe.model_validate({"eps": (0.5,), "attacks": [{"name": name} for name in more.get("attacks", ())]})


def typed(*words):
    return eval_recipe(main_of("rkhs-eval").read(["--model", "m", "--eps", "0.5", *words]).args[0], "here")


def test_every_field_of_the_recipe_is_a_flag_in_either_spelling():
    words = ["--norm=Linf", "--attacks", "pgd:steps=3", "--certify", "margin", "--certify_seconds", "3", "--samples", "5"]
    words += ["--seed", "2", "--block", "7", "--workers", "2", "--budget", "2min", "--rechecked", "1", "--no-diagnostics"]
    recipe = typed(*words)
    fields = {"norm": "linf", "eps": (0.5,), "attacks": [{"name": "pgd", "steps": 3}], "certificates": [{"name": "margin"}]}
    fields |= {"certify_seconds": 3, "samples": 5, "seed": 2, "block": 7, "workers": 2, "budget": 120, "rechecked": 1}
    assert recipe == EvalRecipe.model_validate(fields | {"diagnostics": False})
    assert typed("--effort", "quick").effort == "quick"
    assert typed("--certify-seconds", "3") == typed("--certify_seconds", "3") == typed("--certify-seconds=3")
    assert typed("--attack", "pgd") == typed("--attacks", "pgd") and typed("--certificates", "none").certificates == ()


@pytest.mark.parametrize("spelling, norm", [("L2", "l2"), ("Linf", "linf"), ("l_inf", "linf"), ("L-Inf", "linf"), ("inf", "linf")])
def test_norms_are_read_in_every_usual_spelling(spelling, norm):
    assert typed("--norm", spelling).norm == norm == EvalRecipe(eps=(0.1,), norm=spelling).norm
    assert main_of("rkhs-pictures").read(["curves", "--norm", spelling]).keywords["norm"] == norm


@pytest.mark.parametrize("command", ["rkhs-eval", "rkhs-audit", "rkhs-submit", "rkhs-norms", "rkhs-tightness", "rkhs-verify"])
def test_weights_have_one_name_and_the_older_one_still_works(command):
    base = {"rkhs-submit": ["adversarials", "x.npz"], "rkhs-verify": ["x.npz"]}.get(command, ["--model", "m"])
    base = base + {"rkhs-eval": ["--eps", "1"], "rkhs-audit": ["--claim", "clean=1"]}.get(command, [])
    main = main_of(command)
    if command == "rkhs-verify":
        verify = importlib.import_module("robustbench_rkhs.cli.verify")
        main = importlib.import_module("robustbench_rkhs.cli.command").command(verify._verify_adversarials)
    for flag in ("--weights", "--checkpoint"):
        call = main.read([*base, flag, "w.pth"])
        keywords = {**getattr(call, "keywords", {}), **getattr(getattr(call, "func", None), "keywords", {})}
        assert keywords["weights"] == "w.pth"


CONTRADICTIONS = {
    "norm of an attack": (["--attack", "pgd:norm=linf"], "pgd is given norm linf, the evaluation norm l2"),
    "norm of a certificate": (["--certify", "margin:norm=l2", "--norm", "linf"], "margin is given norm l2"),
    "eps of an attack": (["--attack", "pgd:eps=0.25"], "pgd is given eps 0.25, the evaluation eps 0.5"),
    "seed of an attack": (["--attack", "pgd:seed=3", "--seed", "4"], "pgd is given seed 3, the evaluation seed 4"),
    "effort and attack": (["--effort", "quick", "--attack", "pgd"], "leave out"),
    "none and a certificate": (["--certify", "none", "margin"], "or only none"),
    "a flag twice": (["--norm", "l2", "--norm", "linf"], "--norm is given twice: give it once"),
    "in two spellings": (["--attack", "pgd", "--attacks", "ddn"], "--attack and --attacks are one flag, which is given twice"),
    "yes and no": (["--diagnostics", "--no-diagnostics"], "--diagnostics and --no-diagnostics are one flag, which is given twice"),
    "dash and underscore": (["--certify-seconds", "3", "--certify_seconds", "4"], "given twice"),
}


@pytest.mark.parametrize("words, line", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_contradictory_settings_are_refused(words, line):
    with pytest.raises(UserError) as refused:
        typed(*words)
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_settings_that_agree_are_no_contradiction():
    assert typed("--attack", "pgd:norm=l2,eps=0.5,seed=0").attacks[0].eps == 0.5
    x, against = torch.rand(2, 1, 4, 4), ({"name": "pgd", "norm": "linf"},)
    with pytest.raises(UserError, match="norm linf"):
        evaluate(small_net(), (x, torch.zeros(2).long()), eps=(0.1,), attacks=against)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talking")
    generator = np.random.default_rng(0)
    x = generator.random((12, 1, 4, 4), dtype=np.float32)
    y = (x.reshape(12, -1).sum(1) > 8).astype(np.int64)
    np.savez(folder / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (folder / "talkingnets.py").write_text(NETS)
    return folder


def run(name, *words, folder, code=0):
    """In this process: stdout and stderr apart."""
    out, err, before, argv = io.StringIO(), io.StringIO(), Path.cwd(), sys.argv
    try:
        os.chdir(folder)
        sys.argv = [name, *words]
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
            main_of(name)()
    finally:
        os.chdir(before)
        sys.argv = argv
    assert left.value.code == code, out.getvalue() + err.getvalue()
    return out.getvalue(), err.getvalue()


OWN = ["--model", "talkingnets:build", "--data", "mine.npz", "--no-diagnostics", "--certify", "none"]


def test_json_is_all_of_stdout_whatever_prints_and_a_protocol_that_failed_exits_1(home):
    flags = [*OWN, "--eps", "0.1", "--attack", "talkingnets:Fails", "--json"]
    out, err = run("rkhs-eval", *flags, folder=home, code=1)
    (found,) = json.loads(out)["evaluations"]
    assert found["failed"] == found["about"]["failed"] and "RuntimeError: no such kernel" in found["failed"][0]
    assert found["summary"][0]["robust"] is None and "a model that prints" in err and "an attack that prints" in err
    assert err.count("failed: attack") >= 1 and "every attack of the protocol failed" in err


def test_an_attack_that_failed_beside_one_that_ran_is_named_and_no_failure_of_the_command(home):
    flags = [*OWN, "--eps", "0.1", "--attack", "talkingnets:Fails", "pgd:steps=3"]
    out, err = run("rkhs-eval", *flags, folder=home)
    assert "failed: attack" in err and "every attack of the protocol" not in err and "withheld" in out


@pytest.mark.parametrize(
    "name, words, line",
    [
        ("rkhs-eval", [*OWN, "--eps", "many", "--json"], "found 'many'"),
        ("rkhs-eval", ["--model", "digits_mpl", "--eps", "1", "--json"], "digits_mpl"),
        ("rkhs-eval", ["--json"], "expected --model, found none"),
        ("rkhs-eval", [*OWN, "--epsilon", "0.1", "--json"], "unknown flag --epsilon; did you mean '--eps'"),
        ("rkhs-eval", [*OWN, "--eps", "0.1", "--require", "robust@0.2>=0.5", "--json"], "eps 0.2 is not evaluated, only 0.1"),
        ("rkhs-audit", [*OWN, "--claim", "robust=1", "--json"], "claim"),
        ("rkhs-submit", ["checkpoint", "nowhere", "--eps", "1", "--json"], "no checkpoint folder"),
        ("rkhs-submit", ["checkpoint", "nowhere", "--eps", "1", "--data", "x.npz", "--json"], "--data: not for"),
        ("rkhs-submit", ["adversarials", "nowhere.npz", "--eps", "1", "--json"], "--eps: not for"),
        ("rkhs-norms", ["--model", "nowhere", "--json"], "nowhere"),
        ("rkhs-tightness", ["--model", "nowhere", "--json"], "nowhere"),
        ("rkhs-sweep", ["--sweep", "nowhere", "--json"], "nowhere"),
    ],
)
def test_bad_input_is_json_too_where_it_was_asked_for(home, name, words, line):
    out, err = run(name, *words, folder=home, code=2)
    assert line in json.loads(out)["error"] and err


@pytest.mark.parametrize("eps", ["eight", "0.1,0.2", "8/0", "-1", "nan", ""])
def test_radii_are_refused_by_commands_and_calls_in_the_same_words(eps):
    with pytest.raises(UserError) as typed:
        eval_recipe({"eps": (eps,)}, "rkhs-eval")
    with pytest.raises(UserError) as called:
        robustbench_rkhs.evaluate(small_net(), (torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)), eps=(eps,))
    assert str(typed.value).removeprefix("rkhs-eval") == str(called.value).removeprefix("evaluate")


def test_every_command_says_its_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rkhs-eval", "--version"])
    with pytest.raises(SystemExit) as left:
        importlib.import_module("robustbench_rkhs.cli.evaluate").main()
    assert left.value.code == 0 and capsys.readouterr().out == f"robustbench_rkhs {robustbench_rkhs.__version__}\n"


WRONG_FLAGS = [
    *[
        (name, ["--nonsense", "3"], "--")
        for name in COMMANDS
        if name not in ("rkhs-verify", "rkhs-list", "rkhs-submit", "rkhs-pictures")
    ],
    ("rkhs-eval", ["--modle", "digits_mlp", "--eps", "1"], "unknown flag --modle; did you mean '--model'?"),
    ("rkhs-eval", ["--model", "digits_mlp", "--eps"], "--eps needs a value"),
    ("rkhs-eval", ["digits_mlp", "--eps", "1"], "expected a flag, found 'digits_mlp'; did you mean --model digits_mlp?"),
    ("rkhs-eval", [*OWN, "--eps", "1", "--save-adversarials", "found.pt"], "expected FILE.npz or a folder, found 'found.pt'"),
    ("rkhs-submit", [], "expected {checkpoint,adversarials,check,comment} PATH, found none"),
    ("rkhs-submit", ["checkpoint"], "expected PATH, found none"),
    ("rkhs-pictures", [], "expected {deformations,learning,curves,square_wave,vae}, found none"),
    ("rkhs-eval", ["--model", "--eps", "1"], "--model needs a value"),
    ("rkhs-train", ["--epochs", "1"], "expected --model, found none"),
    ("rkhs-norms", ["--model", "digits_mlp", "--samples", "many"], "many"),
    ("rkhs-list", ["atacks"], "unknown word 'atacks'; did you mean 'attacks'?"),
    ("rkhs-submit", ["folder", "--eps", "1"], "unknown word 'folder'; known: adversarials, check"),
    ("rkhs-submit", ["checkpoint"], "PATH"),
]


@pytest.mark.parametrize("name, words, line", WRONG_FLAGS)
def test_wrong_flags_are_one_line_without_frames(name, words, line):
    """Nothing is drawn around it, and it names what is wrong; nothing else is on stderr."""
    err = io.StringIO()
    with redirect_stderr(err), pytest.raises(UserError) as refused:
        main_of(name).read(words)
    said = str(refused.value)
    assert line in said and "\n" not in said and not set("╭│╰─") & set(said) and not err.getvalue()


@pytest.mark.parametrize("words", [["--help"], ["--model", "digits_mlp", "--eps", "1", "-h"]])
def test_help_is_no_refusal(words):
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as left:
        main_of("rkhs-eval").read(words)
    assert not left.value.code and "--eps" in out.getvalue()


@pytest.mark.parametrize("word", ["--no-diagnostics", "--no_diagnostics", "--certify=none", "--checkpoint=net.pth", "--json"])
def test_every_spelling_of_a_flag_is_known(word):
    assert callable(main_of("rkhs-eval").read(["--model", "digits_mlp", "--eps", "1", word]))


def test_an_audit_prints_json_alone_and_fails_where_its_attacks_did(home):
    flags = ["--model", "talkingnets:build", "--data", "mine.npz", "--certify", "none", "--no-diagnostics"]
    out, err = run(
        "rkhs-audit", *flags, "--claim", "robust@0.1=0.5", "--attack", "talkingnets:Fails", "--json", folder=home, code=1
    )
    found = json.loads(out)
    assert "no such kernel" in found["failed"][0] and found["protocol_failed"] and "failed: attack" in err


def test_what_a_library_writes_below_python_stays_off_stdout_too(home):
    script = "import os, sys\nfrom robustbench_rkhs.cli.screen import emit, json_alone\n"
    script += "with json_alone():\n    print('python'); os.write(1, b'below'); emit({'a': float('nan')})\nprint('after')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == '{"a": null}\nafter\n' and "python" in done.stderr and "below" in done.stderr


def test_the_library_never_prints_also_where_an_attack_fails(capfd):
    x = torch.rand(4, 1, 4, 4)
    model, said = small_net(), []
    done = evaluate(
        model, (x, model(x).argmax(1)), eps=(0.01,), attacks=(Failing(),), certificates=(), on_event=messages_into(said)
    )
    assert capfd.readouterr().out == "" and done.about.failed and any(done.about.failed[0] in line for line in said)
    printing = re.compile(r"(?<![\w.])print\(")
    root = Path(cli.__file__).parent.parent
    library = [path for path in root.rglob("*.py") if path.parent.name not in ("cli", "verifier")]
    assert [path for path in library if printing.search(path.read_text())] == []


def test_strict_json_has_no_numbers_that_are_none():
    given = {"a": [float("inf"), 1.5, np.float64(np.nan), np.int64(3)], "b": (None, True, Path("x")), 3: np.array([1.0, np.inf])}
    assert strict(given) == {"a": [None, 1.5, None, 3], "b": [None, True, "x"], "3": [1.0, None]}


LIGHT = """
import contextlib, importlib, io, sys
from robustbench_rkhs.cli.command import Command
from robustbench_rkhs.nodes.node import UserError

said = io.StringIO()
for name in sys.argv[1:]:
    main = importlib.import_module(f"robustbench_rkhs.cli.{name}").main
    for words in (["--help"], ["--modle", "x"], []) if isinstance(main, Command) else ():
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit, UserError):
            main.read(words)
from robustbench_rkhs.listing import listing
listing("all")
print(sorted({"torch", "pandas", "scipy", "matplotlib"} & set(sys.modules)), said.getvalue().count("usage:"))
"""


def test_help_refusals_of_flags_and_lists_import_nothing_large():
    done = subprocess.run([sys.executable, "-c", LIGHT, *COMMANDS.values()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    large, helped = done.stdout.split("] ")
    assert large == "[" and int(helped) >= len(COMMANDS) - 2


def test_flags_are_read_from_the_fields_of_the_recipe_itself():
    assert recipe_parameters(EvalSettings, {}) == recipe_parameters(EvalRecipe, {})
    assert list(EvalSettings.model_fields) == list(EvalRecipe.model_fields)


def test_a_command_says_at_once_what_it_loads_unless_quiet(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "argv", ["/bin/rkhs-eval"])
    flags = ["--model", "digits_mlp", "net\x1b[2J.onnx", "--eps", "1"]
    main_of("rkhs-eval").read(flags)
    assert capsys.readouterr() == ("", "rkhs-eval: loading digits_mlp net.onnx ...\n")
    main_of("rkhs-eval").read([*flags, "--quiet"])
    main_of("rkhs-list").read([])
    assert capsys.readouterr() == ("", "")
