"""Parsing of mappings and text into validated nodes, with one-line errors."""

import re
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from robustbench_rkhs.nodes.code_names import CLOSED, Code
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.overrides import override

Model = TypeVar("Model", bound=BaseModel)
WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid tuple": "a list",
    "a valid list": "a list",
    "a valid dictionary": "a mapping",
}
"""Types in pydantic's messages, and in plain words."""


def parse(kind: type[Model], stored: dict[str, Any], source: str, code: Code = CLOSED, flags: Iterable[str] = ()) -> Model:
    """A validated node. Raises UserError with the first error and its field in one line.

    `code`: which code it may name. `TYPED` for input that was typed or lies in the user's own models/; default: none.
    `flags`: fields that were typed as flags; an error in one of them names the flag instead of the source.
    """
    try:
        return kind.model_validate(stored, context={"code": code})
    except ValidationError as error:
        place, _, words = explain(error).partition(": ")
        if place in flags:
            raise UserError(f"--{place}: {words}") from None
        raise UserError(f"{source}: {words if place == 'recipe' else f'{place}: {words}'}") from None


def explain(error: ValidationError) -> str:
    """The first error that pydantic found, in one line with its field."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "recipe"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_invalid":
        known = first["ctx"]["expected_tags"].replace("'", "").split(", ")
        message = f"unknown name {first['ctx']['tag']!r}; {did_you_mean(first['ctx']['tag'], known)}"
    elif first["type"] not in ("value_error", "missing"):
        message = f"{_plain(message)}, found {str(first['input'])[:80]!r}"
    others = error.error_count() - 1
    return f"{place}: {message}" + (f" (and {others} more)" if others else "")


def _plain(message: str) -> str:
    """A message of pydantic's in the words of ours: what was expected."""
    said = message.removeprefix("Input should be ").partition(", unable to parse")[0].partition(", got a number with")[0]
    if said == message:
        return f"{message[0].lower()}{message[1:]}"
    return f"expected {WORDS.get(said, f'a value {said}' if said.startswith(('greater', 'less')) else said)}"


def with_fields(stored: dict[str, Any], rest: str, source: str) -> dict[str, Any]:
    """The mapping with `field=value,...` set in it."""
    for pair in re.split(r",(?![^\[]*\])", rest) if rest else []:
        field, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"{source}: expected field=value, found {pair!r}")
        override(stored, field.strip(), value)
    return stored
