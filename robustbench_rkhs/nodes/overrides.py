"""Overrides of dotted fields in a mapping; a new `name` keeps the fields that both methods share."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from robustbench_rkhs.nodes.node import Node, UserError, did_you_mean


def override_all(stored: dict[str, Any], overrides: dict[str, Any], kind: type[Node]) -> list[str]:
    """Set every override in the mapping of a node of this kind. Returns a line for each `name` that dropped or kept fields.

    A method's `name` is set before its fields, whatever the order given.
    """
    lines, waiting = [], dict(overrides)
    while waiting:
        key = next(iter(waiting))
        named = f"{key.rpartition('.')[0]}.name".removeprefix(".")
        first = named if named in waiting else key
        lines += override(stored, first, waiting.pop(first), kind)
    return lines


def override(stored: dict[str, Any], key: str, text: Any, kind: type[Node] | None = None) -> list[str]:
    """Set a dotted field (`attack.eps`, `penalties.0.weight`) of a mapping to a YAML value.

    A new `name` keeps the fields that the new method also has and whose values it accepts, and drops the others; without `kind`,
    the node class of the mapping, it drops all. Returns a line that says what was dropped and kept, if anything.
    """
    value = as_value(text)
    at: Any = stored
    kinds = [kind] if kind else []
    parts = key.split(".")
    if kind and parts[0] not in kind.model_fields and parts[0] not in stored:
        known = [one.replace("_", "-") for one in kind.model_fields]
        raise UserError(f"unknown flag or field --{key}; {did_you_mean(parts[0], known, before='--')}")
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
            line = _renamed(at, value, kinds, key) if step == "name" and isinstance(at, dict) else None
            at[step] = value
            return [line] if line else []
        if isinstance(at, dict):
            kinds = list(_below(_named(kinds, at.get("name")), part))
        if isinstance(at[step] if isinstance(at, list) else at.get(step), str) and kinds and after == "name":
            at[step] = {"name": at[step]}
        if isinstance(at, dict) and at.get(step) is None:
            at[step] = {}
        at = at[step]
    return []


def as_value(text: Any) -> Any:
    """Text parsed as a YAML value; text that is not valid YAML, and anything else, is returned unchanged."""
    if not isinstance(text, str):
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):  # an invalid date, a number of 5,000 digits
        return text


def _renamed(at: dict[str, Any], name: Any, kinds: list[type[Node]], key: str) -> str | None:
    """Drop the fields that only the old method has; nothing if no method has this name, which validation reports.

    For a user-defined method, given by code name, only its base class is known here.
    """
    found = _named(kinds, name)
    unknown = kinds and (not found or ("name" not in found[0].model_fields and ":" not in str(name)))
    if at.get("name") in (None, name) or unknown:
        return None
    kept = {field: value for field, value in at.items() if found and field != "name" and _takes(found[0], field, value)}
    dropped = [field for field in at if field not in (*kept, "name")]
    at.clear()
    at |= kept
    words = [f"{verb} {', '.join(fields)}" for verb, fields in (("dropped", dropped), ("kept", kept)) if fields]
    return f"--{key} {name}: {'; '.join(words)}" if words else None


def _takes(kind: type[Node], field: str, value: Any) -> bool:
    """Whether a method shares this field with the others and accepts the value."""
    if field not in kind.model_fields or field in kind.not_shared:
        return False
    try:
        TypeAdapter(kind.model_fields[field].rebuild_annotation()).validate_python(value)
    except ValidationError:
        return False
    return True


def _named(kinds: list[type[Node]], name: Any) -> list[type[Node]]:
    """The methods of this name; if there are none, those without a name, which are base classes."""
    found = [kind for kind in kinds if "name" in kind.model_fields and kind.model_fields["name"].default == name]
    return found or [kind for kind in kinds if "name" not in kind.model_fields]


def _below(kinds: list[type[Node]], field: str) -> Iterator[type[Node]]:
    """The node classes that a field may hold, itself or in a sequence."""
    for kind in kinds:
        if field in kind.model_fields:
            yield from _nodes(kind.model_fields[field].annotation)


def _nodes(annotation: Any) -> Iterator[type[Node]]:
    if isinstance(annotation, type) and issubclass(annotation, Node):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType, tuple, list):
        for one in get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]:
            yield from _nodes(one)
