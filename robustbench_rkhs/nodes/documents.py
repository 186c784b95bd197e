"""YAML and JSON from anybody: size, depth and number of values are counted before a document is made of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent, ScalarEvent

from robustbench_rkhs.nodes.limits import STRANGERS, Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The faster one, where libyaml is there; neither makes anything but plain values."""
LONGEST = 10_000
"""Signs of a value that is no text: of a number written with more, the value would take seconds to work out."""

TEXT = (None, "!", "tag:yaml.org,2002:str")
"""Tags of quoted text."""


def read_text(path: Path, limits: Limits = STRANGERS) -> str:
    """A file of text. Raises UserError where it cannot be read, is too large or no UTF-8."""
    try:
        size = path.stat().st_size
        if size > limits.text:
            raise UserError(f"{path} has {size:,} bytes, expected at most {limits.text:,}")
        with path.open("rb") as handle:
            stored = handle.read(limits.text + 1)  # a pipe or a device says nothing of its size
        if len(stored) > limits.text:
            raise UserError(f"{path} has more than {limits.text:,} bytes")
        return stored.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from None


def yaml_of(text: str, source: str, limits: Limits = STRANGERS) -> Any:
    """The values of a YAML document. Raises UserError in one line; cost: at most about a second and 100 MB for a megabyte."""
    try:
        _count(yaml.parse(text, LOADER), limits)
        return yaml.load(text, LOADER)  # a safe loader: plain values alone
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:  # PyYAML raises many kinds for foreign text
        raise UserError(f"{source} is not readable YAML: {reason(error)}") from None


def json_of(text: str, source: str, limits: Limits = STRANGERS) -> Any:
    """The values of a JSON document; NaN and infinity are none. Raises UserError in one line."""
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
    """Raises UserError where the document is too deep or too large, each alias counted as all that it repeats."""
    counts: list[int] = [0]
    anchors: dict[str, int] = {}
    open_anchors: list[str | None] = []
    for event in events:
        if not isinstance(event, (NodeEvent, CollectionEndEvent)):
            continue
        if isinstance(event, AliasEvent):
            if event.anchor not in anchors:
                raise UserError(f"alias {str(event.anchor)[:40]!r} names nothing before it, or what it lies in")
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
    """Raises UserError where values are too many or too deep, and where text holds half a character."""
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
            raise UserError("a text in it holds half a character (a lone surrogate)")


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")
