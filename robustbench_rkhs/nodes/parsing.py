"""From a mapping or typed text to a validated node; what is wrong becomes one line."""

import re
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from robustbench_rkhs.nodes.node import UserError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


def parse(kind: type[Model], stored: dict[str, Any], source: str) -> Model:
    """A validated node; what pydantic finds becomes one line that names the place."""
    try:
        return kind.model_validate(stored)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """The first thing pydantic found, in one line with its place."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "recipe"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_invalid":
        known = first["ctx"]["expected_tags"].replace("'", "").split(", ")
        message = f"unknown name {first['ctx']['tag']!r}; {did_you_mean(first['ctx']['tag'], known)}"
    elif first["type"] not in ("value_error", "missing"):
        message = f"{message[0].lower()}{message[1:]}, found {str(first['input'])[:80]!r}"
    others = error.error_count() - 1
    return f"{place}: {message}" + (f" (and {others} more)" if others else "")


def override(stored: dict[str, Any], key: str, text: str) -> None:
    """Set a dotted field (`attack.eps`, `penalties.0.weight`) of a mapping to a YAML value.

    A new `name` clears the fields beside it, which belong to another method; those given after it stay.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    at: Any = stored
    parts = key.split(".")
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                raise UserError(f"--{key}: expected a position from 0 to {len(at) - 1}, found {part!r}")
            step: Any = int(part)
        elif isinstance(at, dict):
            step = part
        else:
            raise UserError(f"--{key}: {part!r} is below a plain value")
        if after is None:
            if step == "name" and at.get("name") not in (None, value):
                at.clear()  # another method: the old one's fields mean nothing to it
            at[step] = value
            return
        if isinstance(at, dict) and at.get(step) is None:
            at[step] = {}
        at = at[step]


def with_fields(stored: dict[str, Any], rest: str, source: str) -> dict[str, Any]:
    """The mapping with `field=value,...` set in it."""
    for pair in re.split(r",(?![^\[]*\])", rest) if rest else []:
        field, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"{source}: expected field=value, found {pair!r}")
        override(stored, field.strip(), value)
    return stored
