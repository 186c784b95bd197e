"""Readers of untrusted YAML and JSON, with limits on size, depth and number of values."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent, ScalarEvent

from robustbench_rkhs.nodes.limits import STRANGERS, Limits
from robustbench_rkhs.nodes.missing import missing
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The libyaml loader if available, as it is faster; both are safe loaders that build only plain values."""
LONGEST = 10_000
"""Most characters of an unquoted value: parsing a longer number would take seconds."""

TEXT = (None, "!", "tag:yaml.org,2002:str")
"""Tags of quoted text."""


def read_text(path: Path, limits: Limits = STRANGERS) -> str:
    """The text of a file. Raises UserError if it cannot be read, is too large or is not UTF-8."""
    try:
        size = path.stat().st_size
        if size > limits.text:
            raise UserError(f"{path} has {size:,} bytes, expected at most {limits.text:,}")
        with path.open("rb") as handle:
            stored = handle.read(limits.text + 1)  # a pipe or a device does not report its size
        if len(stored) > limits.text:
            raise UserError(f"{path} has more than {limits.text:,} bytes")
        return stored.decode("utf-8")
    except FileNotFoundError:
        raise missing("file", str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from None


def yaml_of(text: str, source: str, limits: Limits = STRANGERS) -> Any:
    """The values of a YAML document. Raises UserError in one line; cost: at most about a second and 100 MB for a megabyte."""
    try:
        _count(yaml.parse(text, LOADER), limits)
        return yaml.load(text, LOADER)  # a safe loader: plain values only
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:  # PyYAML raises many types of exceptions on malformed text
        raise UserError(f"{source} is not readable YAML: {reason(error)}") from None


def json_of(text: str, source: str, limits: Limits = STRANGERS) -> Any:
    """The values of a JSON document; NaN and infinity are rejected. Raises UserError in one line."""
    if len(text) > limits.text:
        raise UserError(f"{source} has more than {limits.text:,} characters")
    try:
        found = json.loads(text, parse_constant=_refused)
        _measure(found, limits)
        return found
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not JSON: {reason(error)}") from None


def _count(events: Iterator[Any], limits: Limits) -> None:
    """Raises UserError if the document is too deep or too large; each alias counts as all the values it repeats."""
    counts: list[int] = [0]
    anchors: dict[str, int] = {}
    open_anchors: list[str | None] = []
    for event in events:
        if not isinstance(event, (NodeEvent, CollectionEndEvent)):
            continue
        if isinstance(event, AliasEvent):
            if event.anchor not in anchors:
                raise UserError(f"alias {str(event.anchor)[:40]!r} has no earlier anchor, or refers to its own container")
            counts[-1] += anchors[event.anchor]
        elif isinstance(event, CollectionStartEvent):
            counts.append(1)
            open_anchors.append(event.anchor)
            if len(counts) - 1 > limits.depth:
                raise UserError(f"it is nested more than {limits.depth} deep")
        elif isinstance(event, CollectionEndEvent):
            within, name = counts.pop(), open_anchors.pop()
            counts[-1] += within
            if name is not None:
                anchors[name] = within
        elif isinstance(event, ScalarEvent):
            counts[-1] += 1
            if len(event.value) > LONGEST and (event.implicit[0] or event.tag not in TEXT):
                raise UserError(f"a value has {len(event.value):,} characters, expected at most {LONGEST:,} where it is not quoted")
            if event.anchor is not None:
                anchors[event.anchor] = 1
        if sum(counts) > limits.entries:
            raise UserError(f"it holds more than {limits.entries:,} values")


def _measure(value: Any, limits: Limits) -> None:
    """Raises UserError for too many or too deeply nested values, and for text with a lone surrogate."""
    waiting, seen = [(value, 0)], 0
    while waiting:
        one, depth = waiting.pop()
        seen += 1
        if seen > limits.entries:
            raise UserError(f"it holds more than {limits.entries:,} values")
        if depth > limits.depth:
            raise UserError(f"it is nested more than {limits.depth} deep")
        if isinstance(one, dict):
            waiting += [(part, depth + 1) for pair in one.items() for part in pair]
        elif isinstance(one, list):
            waiting += [(part, depth + 1) for part in one]
        elif isinstance(one, str) and any("\ud800" <= sign <= "\udfff" for sign in one):
            raise UserError("it holds text with a lone surrogate (half a character)")


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")
