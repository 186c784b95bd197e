"""Errors in flags, each in one line: unknown flags, missing flags, and everything else that tyro refuses."""

import inspect
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from itertools import pairwise
from typing import Any, get_args

import tyro
from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.parsing import explain

CHECKS = (FieldInfo, AfterValidator)
"""Parts of an annotation that check values."""
MISSING = re.compile(r"Missing from \S+: (.*)")
"""Tyro's message about a missing positional argument, followed by its help."""
PARSED = re.compile(r"Error parsing (?P<flag>--\S+): no type matching (?P<kind>.+?) could be instantiated from \[(?P<value>.*?)\]")
"""Tyro's message about a value of another type."""
CHOICE = re.compile(r"invalid choice '(?P<value>.*?)' for argument '(?P<name>.*?)'\. Expected one of \((?P<known>.*?)\)")
"""Tyro's message about a word that is none of those expected."""
KINDS = {"INT": "a whole number", "FLOAT": "a number"}
"""Its words for types."""
FRAME = re.compile(r"[╭╮╰╯│─]+|-{4,}")
"""Characters of the frame around tyro's messages."""


def check_flags(parameters: Sequence[inspect.Parameter], words: Sequence[str], open_ended: bool) -> None:
    """Raises UserError at a flag that no parameter has (unless `open_ended`), one without a value, and a required one missing."""
    positional = [one for one in parameters if tyro.conf.Positional in get_args(one.annotation)]
    if not positional and words and not words[0].startswith("-"):
        first = next((flag for one in parameters if one.default is inspect.Parameter.empty for flag in _flags(one)[:1]), "help")
        raise UserError(f"expected a flag, found {words[0]!r}; did you mean --{first} {words[0]}?")
    flags = [word for word in words if word.startswith("--") and len(word) > 2]
    typed = {_plain(word) for word in flags}
    if "help" in typed or "-h" in words:
        return
    named = [one for one in parameters if tyro.conf.Positional not in get_args(one.annotation)]
    known = {flag for one in named for flag in _flags(one)}
    switches = {flag for one in named if _is_switch(one) for flag in _flags(one)}
    for flag in () if open_ended else map(_plain, flags):
        if flag not in known | {f"no-{switch}" for switch in switches}:
            raise UserError(f"unknown flag --{flag}; {did_you_mean(flag, known, before='--')}")
    for word, after in pairwise([*words, "--"]):
        if word in flags and "=" not in word and after.startswith("--") and _plain(word) in known - switches:
            raise UserError(f"{word} needs a value")
        if word in flags and _plain(word) in known and (word.endswith("=") or (after == "" and "=" not in word)):
            raise UserError(f"{word.rstrip('=')}: expected a value, found an empty one")
    for one in named:
        if one.default is inspect.Parameter.empty and not typed & set(_flags(one)):
            raise UserError(f"expected --{_flags(one)[0]}, found none; see --help")


def checked(parameters: Mapping[str, inspect.Parameter], values: dict[str, Any]) -> dict[str, Any]:
    """The values, each as its parameter's type takes it. Raises UserError that names the flag."""
    return {name: _checked(parameters[name], value) if name in parameters else value for name, value in values.items()}


def _checked(one: inspect.Parameter, value: Any) -> Any:
    if not _has_checks(one.annotation):
        return value
    try:
        return TypeAdapter(one.annotation).validate_python(value)
    except ValidationError as error:
        raise UserError(f"--{_flags(one)[0]}: {explain(error).removeprefix('recipe: ')}") from None


def _has_checks(annotation: Any) -> bool:
    """Whether a type, or one of its parts, has checks of its values."""
    own = any(isinstance(extra, CHECKS) for extra in getattr(annotation, "__metadata__", ()))
    return own or any(_has_checks(part) for part in get_args(annotation))


def read_words(make: Callable[..., Any], words: Sequence[str], **settings: Any) -> Any:
    """`tyro.cli`, whose refusals become one line. Raises UserError."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(make, args=words, **settings)
    except SystemExit as left:
        if not left.code:
            raise
        raise UserError(_line(said.getvalue())) from None


def _plain(word: str) -> str:
    return word.partition("=")[0][2:].replace("_", "-")


def _is_switch(one: inspect.Parameter) -> bool:
    return bool in (one.annotation, *get_args(one.annotation)[:1])


def _flags(one: inspect.Parameter) -> list[str]:
    """A parameter's flag and its other spellings, without leading dashes."""
    name, others = one.name, []
    for extra in getattr(one.annotation, "__metadata__", ()):
        name = getattr(extra, "name", None) or name
        others += [alias.lstrip("-") for alias in getattr(extra, "aliases", None) or ()]
    return [flag.replace("_", "-") for flag in (name, *others)]


def _line(text: str) -> str:
    """The message inside tyro's frame, without its title and the pointer to --help."""
    rows = [FRAME.sub(" ", row).strip() for row in text.splitlines()[1:]]
    said = " ".join(row for row in rows if row).partition("For full helptext")[0].strip()
    if found := MISSING.match(said):
        places = " ".join(re.findall(r"\{[\w,]+\}|(?<![\w.])[A-Z]{3,}(?![\w.])", found[1]))
        return f"expected {places or found[1]}, found none; --help says what it takes"
    if found := PARSED.match(said):
        kinds = [KINDS.get(one, one) for one in re.split(r"[|\s]+", found["kind"]) if one not in ("", "{None}")]
        return f"{found['flag']}: expected {' or '.join(kinds)}, found {found['value']}"
    if found := CHOICE.match(said):
        known = re.findall(r"'([^']*)'", found["known"])
        named = f"{found['name']}: unknown" if found["name"].startswith("-") else "unknown word"
        return f"{named} {found['value']!r}; {did_you_mean(found['value'], known)}"
    return said.rstrip(".") or "not such a command: see --help"
