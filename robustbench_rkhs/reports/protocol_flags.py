"""A protocol as the flags of `rkhs-eval`, so that whoever reads a table of the service can run the same."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

FLAGS = {"attacks": "attack", "certificates": "certify"}
"""Fields whose flag has another name."""


def eval_command(model: str, protocol: Mapping[str, Any]) -> str:
    """The command that evaluates a checkpoint, in checkpoints/ or in a folder of its name, by these fields of a recipe."""
    return shlex.join(["rkhs-eval", "--model", model, *(word for name, value in protocol.items() for word in _flag(name, value))])


def _flag(name: str, value: Any) -> list[str]:
    flag = FLAGS.get(name, name).replace("_", "-")
    if value is None or (name == "attacks" and not value):
        return []  # as where it is not typed
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if name == "certificates" and not value:
        return [f"--{flag}", "none"]
    return [f"--{flag}", *(typed_method(one) for one in (value if isinstance(value, list | tuple) else [value]))]


def typed_method(value: Any) -> str:
    """One value; a method as NAME:field=value,..."""
    if not isinstance(value, Mapping):
        return str(value)
    fields = ",".join(_fields({key: one for key, one in value.items() if key != "name"}))
    return f"{value['name']}:{fields}" if fields else str(value["name"])


def _fields(fields: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{before}{key}.")
        else:
            yield f"{before}{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"
