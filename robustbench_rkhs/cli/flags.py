"""Flags: the fields of a recipe as flags of a command, and the spellings that are accepted."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.threat_model import norm_named

ALIASES = {"attack": "attacks", "certify": "certificates", "checkpoint": "weights", "certificate": "save-certificates"}
"""Shorter and older spellings of flags."""
SWITCHES = ("curve",)
"""Flags of three values, true, false and undecided, which are typed as switches, too."""
WORDS = {
    "eps": "Several at once; 36/255 is a number.",
    "norm": "l2 or linf; Linf, L2 and l_inf are read too.",
    "attacks": "NAME, NAME:field=value,... or your own package.module:Name; see rkhs-list attacks.",
    "certificates": "NAME or NAME:field=value,...; see rkhs-list certificates.",
}
"""Additions to a flag's help: how its values are typed."""
METAVARS = {"budget": "TIME", "curve": "{true,false}"}
"""Placeholders for values in --help, where the field's type is not clear enough."""


def recipe_parameters(kind: type[BaseModel], changed: Mapping[str, str | None]) -> list[inspect.Parameter]:
    """A keyword parameter for each field of the recipe, which tyro turns into a flag.

    A field that is not given is None, so that the recipe's default applies. `changed`: fields whose help shows another default
    than the recipe's, or that are left out (None).
    """
    fields = [(name, field) for name, field in kind.model_fields.items() if changed.get(name, "") is not None]
    return [_parameter(name, field, changed.get(name)) for name, field in fields]


def given(values: Mapping[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """The fields that were typed."""
    return {key: value for key, value in values.items() if value is not None and value != () and value is not _plain(kind, key)}


def _plain(kind: type[BaseModel], key: str) -> Any:
    """The default of a switch; nothing for any other field."""
    default = kind.model_fields[key].default
    return default if isinstance(default, bool) else ...


def _parameter(name: str, field: FieldInfo, default: str | None) -> inspect.Parameter:
    shown = default or _default(field)
    words = " ".join(f"{field.description or ''} {WORDS.get(name, '')}".split())
    aliases = [f"--{alias}" for alias, full in ALIASES.items() if full == name]
    several = get_origin(field.annotation) is tuple
    hint = "(required)" if field.is_required() and default is None else f"(default: {shown})"
    settings: dict[str, Any] = {"help": words, "aliases": aliases, "help_behavior_hint": hint}
    kind: Any = str | None
    value: Any = None
    if isinstance(field.default, bool):
        kind, value = bool, field.default
    elif several:
        kind, value = tuple[str, ...], inspect.Parameter.empty if hint == "(required)" else ()
    else:
        settings["metavar"] = METAVARS.get(name) or _metavar(field.annotation)
    annotation = Annotated[kind, tyro.conf.arg(**settings)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=annotation)


def _default(field: FieldInfo) -> str:
    value = field.default
    return "none" if value in (None, ()) else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _metavar(annotation: Any) -> str:
    """The placeholder for the value in --help."""
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    inner = [one for one in get_args(annotation) if one is not type(None)]
    return _metavar(inner[0]) if inner else {int: "INT", float: "FLOAT"}.get(annotation, "TEXT")


def readable(words: Sequence[str]) -> Sequence[str]:
    """The words unchanged. Raises UserError for one that is not text: bytes that are not UTF-8."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"expected text in UTF-8, found {word.encode(errors='surrogateescape')!r}") from None
        if "\0" in word:
            raise UserError(f"expected text, found a zero byte in {word!r}")
    return words


def spelt(words: Sequence[str]) -> list[str]:
    """The typed words, with norms in this package's spelling, and values for switches that stand alone (`--curve`, `--no-curve`).

    Raises UserError for a repeated flag (the last would count).
    """
    found: list[str] = []
    seen: dict[str, str] = {}
    for place, word in enumerate(words):
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word.partition("=")
            name = flag[2:].replace("_", "-")
            name = ALIASES.get(name, name)
            plain = name.removeprefix("no-")
            if plain in seen:
                both = f"{flag} is" if flag == seen[plain] else f"{seen[plain]} and {flag} are one flag, which is"
                raise UserError(f"{both} given twice: give it once (several values follow one flag)")
            seen[plain] = flag
            after = words[place + 1] if place + 1 < len(words) else "--"
            if plain in SWITCHES and not equals and not after.startswith("-") and after.lower() not in ("true", "false"):
                raise UserError(f"{flag}: expected true or false, or no value, found {after!r}")
            if plain in SWITCHES and not equals and (name != plain or not _value_follows(words, place)):
                word = f"--{plain}={'true' if name == plain else 'false'}"
            word = f"{flag}={norm_named(value)}" if equals and name == "norm" else word
        elif found and found[-1] == "--norm":
            word = norm_named(word)
        found.append(word)
    return found


def _value_follows(words: Sequence[str], place: int) -> bool:
    """Whether the word after this one is a value."""
    return place + 1 < len(words) and words[place + 1] in ("true", "false", "True", "False")
