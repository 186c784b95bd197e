"""The command that evaluates a model as the ranked ones of a board were, or as its own table says.

A submission that was accepted is named by the folder where it is kept, as seen from the folder that holds OUT: nothing else is
known of it there.
"""

import shlex
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.accepted import accepted_folder
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.protocol_flags import typed_method
from robustbench_rkhs.verdicts import About, Brief

Options = dict[str, list[str]]
"""Flags and their values."""
OF_MODEL = ("--model", "--checkpoint", "--data", "--name", "--mean", "--std", "--smooth", "--twin", "--allow-code")
"""Flags of `rkhs-eval` that say which function is evaluated."""
OF_RUN = (
    *("--out", "--json", "--require", "--quiet", "--certificate", "--save-adversarials", "--adversarials", "--bits", "--vnnlib"),
    *("--answers", "--engine", "--parts", "--device", "--workers", "--threads", "--budget"),
)
"""Those that say where it runs, and what is made of the table."""

NOT_TYPED = ("name", "norm", "box", "seed")
"""Fields of a method that are not typed: they follow those of the evaluation."""


OUT = "reports"
"""Where `rkhs-eval` keeps tables if nothing else is typed."""


def kept_folder(brief: Brief) -> Path | None:
    """Where the checkpoint of an accepted submission is kept, OUT/accepted/KEY/NAME; None for any other table."""
    about, table = brief.about, brief.path
    if table is None or not about.submitted or not about.key or len(table.parts) < 3 or table.parts[-3] != "verdicts":
        return None
    try:
        folder = accepted_folder(table.parents[2], about.model, about.key)
    except UserError:  # the words of a table that somebody else made
        return None
    return folder if folder.is_dir() else None


def made_by(brief: Brief) -> str:
    """The command that makes the table of an evaluation again."""
    about, folder = brief.about, kept_folder(brief)
    found = options(about.command)
    if folder is None or found is None or found["--model"] != [about.model]:
        return about.command
    return _typed(found | _kept(folder))


def _kept(folder: Path) -> Options:
    """The flags that name an accepted checkpoint and where its results lie."""
    out = folder.absolute().parents[2].name
    return {"--model": ["/".join([out, *folder.parts[-3:]])]} | ({} if out == OUT else {"--out": [out]})


def _typed(found: Options) -> str:
    return shlex.join(["rkhs-eval", *(word for flag, values in found.items() for word in (flag, *values))])


def completing(own: About, ranked: About, kept: Path | None = None) -> str:
    """The command that evaluates the model of one table as that of another was; empty where none is known.

    What names the model comes from its own command, the rest from the other's: from its command, or from its settings where
    another program than `rkhs-eval` made it. `kept`: as `kept_folder` finds it; it then names the model.
    """
    asked = options(ranked.command) or of_settings(ranked)
    if asked is None:
        return ""
    rest = {flag: values for flag, values in asked.items() if flag not in (*OF_MODEL, *OF_RUN)}
    data = {"--data": asked["--data"]} if "--data" in asked else {}
    named = {flag: values for flag, values in (options(own.command) or {}).items() if flag in OF_MODEL}
    if len(named.get("--model", [])) != 1:
        named |= {"--model": [own.model]}
    if kept is not None:
        named |= _kept(kept)
    return _typed({"--model": named["--model"]} | data | named | rest)


def options(command: str) -> Options | None:
    """The flags of a command line of `rkhs-eval` for a model; None for another."""
    try:
        program, *words = shlex.split(command)
    except ValueError:
        return None
    if program != "rkhs-eval":
        return None
    found: Options = {}
    for word in words:
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            found[flag] = [value] if equals else []
        elif found:
            found[[*found][-1]].append(word)
    return found if "--model" in found else None


def of_settings(about: About) -> Options | None:
    """The flags that repeat an evaluation, from what its table says of it; None where it does not say enough."""
    said = about.settings
    if not {"samples", "order", "seed"} <= said.keys():
        return None
    found: Options = {"--norm": [about.norm], "--eps": [about.words(eps) for eps in about.epsilons]}
    found |= {f"--{name}": [str(said[name])] for name in ("samples", "order", "seed", "effort") if said.get(name) is not None}
    if named := [_node(one) for one in said.get("attacks") or [] if isinstance(one, dict)]:
        found["--attack"] = named
    if (certificates := said.get("certificates")) is not None:
        found["--certify"] = [str(one["name"]) for one in certificates if isinstance(one, dict) and "name" in one] or ["none"]
    return found


def _node(settings: dict[str, Any]) -> str:
    """A method as a flag takes it, with its numbers and words."""
    typed = {name: one for name, one in settings.items() if name not in NOT_TYPED and isinstance(one, str | int | float)}
    return typed_method({"name": settings.get("name", "?"), **typed})
