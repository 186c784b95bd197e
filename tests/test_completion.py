"""What completes an entry of a board, and what a board says of its attacks."""

import shlex
from contextlib import suppress
from dataclasses import replace

import pytest
from test_report import synthetic

from robustbench_rkhs.attacks.efforts import protocol_of
from robustbench_rkhs.attacks.ensemble import BATTERIES, Ensemble
from robustbench_rkhs.attacks.pgd import PGD
from robustbench_rkhs.cli.evaluate import main
from robustbench_rkhs.reports.completion import completing, options
from robustbench_rkhs.reports.entries import board
from robustbench_rkhs.reports.standing import Standing
from robustbench_rkhs.site.effort_settings import OF_EFFORT
from robustbench_rkhs.verdicts import Brief, ranked_together, read


def about(name="m", command="", **more):
    return synthetic(name).about.model_copy(update={"command": command, **more})


RANKED = "rkhs-eval --model a b --eps 1/4 0.5 --samples 60 --attack pgd:steps=5 --out X --threads 1 --no-diagnostics"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("rkhs-eval --model c --samples 4 --attack fab", "--model c"),
        ("rkhs-eval --model c d m --samples 4", "--model m"),
        ("rkhs-serve", "--model m"),
        ("an 'open quotation", "--model m"),
        ("", "--model m"),
        ("rkhs-eval --model=nets.py:build --name m --data d.npz --eps 9", "--model nets.py:build --name m --data d.npz"),
        ("rkhs-eval --model 'my net.py:build' --weights", "--model 'my net.py:build'"),
    ],
)
def test_the_command_names_the_own_model_and_does_what_the_ranked_went_through(own, expected):
    asked = "--eps 1/4 0.5 --samples 60 --attack pgd:steps=5 --no-diagnostics"
    found = completing(about("m", own), about("a", RANKED))
    named, rest = found.split(" --eps ", 1)
    assert f"--eps {rest}" == asked
    assert options(found)["--model"] == shlex.split(expected)[1:2] and named.startswith(f"rkhs-eval {expected[:9]}")
    assert {"--name", "--data"} & options(found).keys() == {"--name", "--data"} & set(shlex.split(expected))


def test_where_another_program_evaluated_the_settings_say_what_it_did():
    settings = {"samples": 60, "order": "first", "seed": 3, "effort": "quick", "certificates": [{"name": "margin", "norm": "l2"}]}
    served = about("a", "rkhs-serve", settings=settings, epsilons=(0.25, 0.5))
    found = completing(about("m", "rkhs-eval --model m --data d.npz"), served)
    asked = "--norm l2 --eps 0.25 0.5 --samples 60 --order first --seed 3 --effort quick --certify margin"
    assert found == f"rkhs-eval --model m --data d.npz {asked}"
    attacked = settings | {"attacks": [PGD(steps=7).model_dump(mode="json")]}
    named = completing(about("m"), served.model_copy(update={"settings": attacked}))
    assert "steps=7" in next(word for word in shlex.split(named) if word.startswith("pgd:"))
    assert completing(about("m"), served.model_copy(update={"settings": {}})) == ""
    bare = completing(about("m"), served.model_copy(update={"settings": settings | {"certificates": []}}))
    assert bare.endswith("--certify none")


def test_the_command_evaluates_as_the_table_says(tmp_path, monkeypatch):
    attack = PGD(steps=2, restarts=2).model_dump(mode="json")
    settings = {"samples": 2, "order": "first", "seed": 1, "attacks": [attack], "certificates": [{"name": "margin"}]}
    served = about("a", "rkhs-serve", settings=settings, epsilons=(0.25,))
    words = shlex.split(completing(about("digits_mlp"), served))
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path), "--no-diagnostics", "--quiet"])
    with suppress(SystemExit):
        main()
    (path,) = (tmp_path / "verdicts" / "digits_mlp").glob("*.parquet")
    done = read(path).about
    assert done.model == "digits_mlp" and done.epsilons == (0.25,) and done.seed == 1
    (ran,) = done.settings["attacks"]
    assert {name: ran[name] for name in ("name", "steps", "restarts")} == {"name": "pgd", "steps": 2, "restarts": 2}
    assert [one["name"] for one in done.settings["certificates"]] == ["margin"]


def test_many_models_that_ran_less_do_not_outrank_one():
    strong = synthetic("strong", images=60)
    weak = [synthetic(name, seed=place, images=4) for place, name in enumerate(("a", "b", "c"), 1)]
    assert [one.about.model for one in ranked_together([Brief.of(one) for one in [*weak, strong]], 0.5).chosen] == ["strong"]
    (entries,) = [entries for section, entries in board([*weak, strong]).items() if section[-1] == 0.5]
    stand = Standing.of(entries, 0.5)
    assert [entry.name for entry in stand.ranked] == ["strong"] and len(stand.beside) == 3


def test_attacks_of_fewer_passes_do_not_outrank_those_of_more():
    strong = synthetic("strong")
    names = ("a", "b")
    weak = [synthetic(name, seed=place, settings={"attacks": [{"name": "pgd", "steps": 1}]}) for place, name in enumerate(names, 1)]
    cheap = [replace(one, table=one.table.assign(forwards=1, backwards=1)) for one in weak]
    dear = replace(strong, table=strong.table.assign(forwards=500, backwards=500))
    assert [one.about.model for one in ranked_together([Brief.of(one) for one in [*cheap, dear]], 0.5).chosen] == ["strong"]


def said(attack):
    general = {"norm", "box", "eps", "seed", "batch_size", "expectation", "confirm", "straight_through", "precision"}
    own = {name: value for name, value in attack.model_dump(mode="json").items() if name not in general and value not in (None, [])}
    name, words = own.pop("name"), ", ".join(f"{field} {value}" for field, value in own.items())
    parts = f": {', '.join(map(said, BATTERIES[attack.version]))}" if isinstance(attack, Ensemble) else ""
    return f"{name} ({words}{parts})"


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("effort", ["quick", "adaptive", "standard"])
def test_boards_say_the_settings_of_an_effort(effort, norm):
    assert OF_EFFORT[effort, norm] == tuple(map(said, protocol_of(effort, norm)))


def test_every_effort_is_said():
    assert {effort for effort, _ in OF_EFFORT} == {"quick", "adaptive", "standard"} and len(OF_EFFORT) == 6
