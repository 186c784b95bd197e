"""What is kept of an accepted submission, and what the site and the service say of it."""

import html
import json
import os
import re
import shlex
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from test_bundles import place, sent, submitted  # noqa: F401
from test_report import synthetic

from robustbench_rkhs import verdicts
from robustbench_rkhs.cli.evaluate import main
from robustbench_rkhs.cli.flags import ALIASES
from robustbench_rkhs.cli.settings import eval_recipe
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.evaluation.training_accuracy import training_images
from robustbench_rkhs.nodes.accepted import accepted_folder
from robustbench_rkhs.nodes.code_names import code_in
from robustbench_rkhs.nodes.limits import STRANGERS, Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.reports.completion import made_by
from robustbench_rkhs.reports.entries import board
from robustbench_rkhs.reports.protocol_flags import eval_command
from robustbench_rkhs.reports.standing import Standing
from robustbench_rkhs.site.build import build_site
from robustbench_rkhs.site.training_facts import CARD, training_facts
from robustbench_rkhs.submission import gate
from robustbench_rkhs.submission.accepted import copied
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.verdicts import Brief

ASKED = shlex.split("--eps 0.05 0.5 --attack ddn:steps=5 --certify margin --no-diagnostics --samples 60")


def typed(words):
    """The fields that the flags of a command name, as the command reads them."""
    found, flag = {}, ""
    for word in words:
        if word.startswith("--"):
            flag = word[2:].replace("-", "_")
            flag = ALIASES.get(flag, flag)
            found[flag.removeprefix("no_")] = not flag.startswith("no_")
        else:
            found[flag] = [*(found[flag] if isinstance(found[flag], list) else []), word]
    lists = ("eps", "attacks", "certificates")
    return {key: one[0] if isinstance(one, list) and key not in lists else one for key, one in found.items()}


PROTOCOLS = [
    {"eps": ["0.25", "36/255"]},
    {"eps": ["0.05", "0.5"], "attacks": [{"name": "ddn", "steps": 5}], "diagnostics": False, "samples": 12},
    {"eps": ["0.1"], "norm": "linf", "certificates": [], "effort": "quick", "seed": 3, "curve": True},
    {"eps": ["1"], "certificates": ["margin", {"name": "crown", "search": False}], "attacks": ["fab", {"name": "pgd", "steps": 7}]},
]


@pytest.mark.parametrize("fields", PROTOCOLS)
def test_the_command_in_a_table_of_the_service_is_of_the_same_protocol(fields):
    fields = {
        key: [{"name": one} if key == "attacks" and isinstance(one, str) else one for one in value]
        if isinstance(value, list)
        else value
        for key, value in fields.items()
    }
    recipe = parse(EvalRecipe, fields, "protocol", code_in(fields))
    words = shlex.split(eval_command("theirs", recipe.model_dump(mode="json", exclude_unset=True)))
    assert words[:3] == ["rkhs-eval", "--model", "theirs"]
    assert eval_recipe(typed(words[3:]), "test") == recipe


def test_the_service_gives_the_gate_that_command(tmp_path, monkeypatch):
    pytest.importorskip("sqlmodel", reason="sqlmodel is not installed (the extra `serve`)")
    from robustbench_rkhs.service import evaluating
    from robustbench_rkhs.service.settings import Settings

    monkeypatch.setattr(gate, "submit", lambda path, recipe, **both: both["command"])
    settings = Settings(folder=tmp_path, out=tmp_path / "out", protocol=PROTOCOLS[1])
    job = {"kind": "checkpoint", "path": str(tmp_path), "name": "theirs", "approved": False}
    found = evaluating._steps(settings, job, print)
    assert found == "rkhs-eval --model theirs --eps 0.05 0.5 --attack ddn:steps=5 --no-diagnostics --samples 12"


def test_the_site_shows_what_a_sender_says_as_said_and_counts_parameters_itself(sent, place):  # noqa: F811
    folder = place / "bundle/stranger"
    submitted(place)
    (row,) = verdicts.read_all(place / "out/verdicts")
    facts = training_facts(row.about, place / "out")
    tensors = checkpoint.read_safetensors(folder / "model.safetensors")
    assert facts.parameters == sum(one.numel() for one in tensors.values()) > 0
    assert facts.extra == "said by the sender: none" and facts.how.startswith("said by the sender: ")
    assert facts.card.startswith("*Said by the sender:*") and "# card" in facts.card and facts.sent
    assert training_facts(row.about.but(key="0" * 64), place / "out").parameters is None, "of another function"
    assert training_facts(row.about.but(key=""), place / "out").parameters is None
    assert training_facts(row.about, place / "elsewhere").parameters is None
    kept = accepted_folder(place / "out", "stranger", row.about.key)
    config = json.loads((kept / "config.json").read_text())
    (kept / "README.md").write_text("x" * 2 * CARD)
    for seconds, cost in ((12.3, "said by the sender: 12 s on one chip"), (float("inf"), ""), (10**400, ""), (-1, ""), ("1", "")):
        config["trained"] = {"seconds": seconds, "device": "one\nchip\u202e"}
        config.pop("seal", None)
        (kept / "config.json").write_text(json.dumps(config))
        found = training_facts(row.about, place / "out")
        assert found.cost.removesuffix("\\u202e") == cost and len(found.card) < CARD + 100 and found.digest != facts.digest


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b"])
def test_a_name_or_key_that_is_a_path_has_no_place(tmp_path, name):
    with pytest.raises(UserError):
        accepted_folder(tmp_path, name, "a" * 64)
    with pytest.raises(UserError):
        accepted_folder(tmp_path, "a", name)


def test_a_copy_holds_no_link_nothing_large_and_nothing_else(sent, tmp_path):  # noqa: F811
    weights = checkpoint.described(sent / "stranger").weights
    source = tmp_path / "stranger"
    shutil.copytree(sent / "stranger", source)
    (source / "resume.pt").write_bytes(b"pickle")
    (source / "README.md").write_bytes(b"x" * (2 << 20))
    with copied(source, "stranger", weights, tmp_path / "staged", STRANGERS) as copy:
        assert sorted(one.name for one in copy.iterdir()) == ["config.json", "model.safetensors", "recipe.yaml"]
    assert not list((tmp_path / "staged").iterdir())
    with (
        pytest.raises(UserError, match="was changed while it was read"),
        copied(source, "stranger", "0" * 64, tmp_path / "staged", STRANGERS),
    ):
        pass
    with pytest.raises(UserError, match="bytes"), copied(source, "stranger", weights, tmp_path / "staged", Limits(text=10)):
        pass
    (source / "recipe.yaml").unlink()
    os.symlink(sent / "stranger/recipe.yaml", source / "recipe.yaml")
    with (
        pytest.raises(UserError, match=r"'recipe.yaml' is not a plain file"),
        copied(source, "stranger", weights, tmp_path / "staged", STRANGERS),
    ):
        pass
    assert not list((tmp_path / "staged").iterdir())


def test_the_printed_commands_find_an_accepted_submission_and_complete_its_entry(sent, place, monkeypatch):  # noqa: F811
    """The fault: `rkhs-eval --model stranger ...` was printed where nothing of that name is known."""
    submitted(place, seed=1)
    loaded = checkpoint.load(sent / "stranger")
    torch.nn.init.normal_(loaded.model[-1].bias, std=0.1)
    where = {"name": "ranked", "folder": place / "out/verdicts", "command": f"rkhs-eval --model ranked {' '.join(ASKED)}"}
    asked = eval_recipe(typed(ASKED), "test")
    evaluate(loaded.model, loaded.recipe.data.test(), asked, training=training_images(loaded.recipe.data), **where)
    build_site(place / "out", place / "site")
    (page,) = (place / "site/boards").glob("*eps0.5.html")
    words = html.unescape(page.read_text())
    (table,) = verdicts.read_all(place / "out/verdicts/stranger")
    folder = f"out/accepted/{table.about.key[:16]}/stranger"
    (command,) = re.findall(r"<code>(rkhs-eval [^<]*)</code>, where the results of this board lie", words)
    assert command == f"rkhs-eval --model {folder} --out out {' '.join(ASKED)}"
    assert str(place) not in words
    assert [entry.name for entry in standing(place).ranked] == ["ranked"]
    monkeypatch.setattr("sys.argv", [*shlex.split(command), "--quiet"])
    with suppress(SystemExit):
        main()
    stand = standing(place)
    assert {entry.name for entry in stand.ranked} == {"ranked", "stranger"} and not stand.beside


def standing(place):  # noqa: F811
    (entries,) = [one for section, one in board(verdicts.read_all(place / "out/verdicts")).items() if section[-1] == 0.5]
    return Standing.of(entries, 0.5)


@pytest.mark.parametrize("out", ["reports", "results"])
def test_a_table_of_the_service_is_made_again_by_the_folder_that_is_kept(tmp_path, out):
    about = synthetic("theirs").about.model_copy(
        update={"command": "rkhs-eval --model theirs --eps 0.5", "submitted": "2026-01-01", "key": "ab" * 32}
    )
    brief = replace(Brief.of(synthetic("theirs")), about=about, path=tmp_path / out / "verdicts/theirs/l2.parquet")
    assert made_by(brief) == about.command
    accepted_folder(tmp_path / out, "theirs", about.key).mkdir(parents=True)
    more = " --out results" if out == "results" else ""
    assert made_by(brief) == f"rkhs-eval --model {out}/accepted/{'ab' * 8}/theirs --eps 0.5{more}"
    assert made_by(replace(brief, about=about.but(submitted=""))) == about.command
    assert made_by(replace(brief, about=about.but(command="rkhs-submit checkpoint theirs"))) == "rkhs-submit checkpoint theirs"
