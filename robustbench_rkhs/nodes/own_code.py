"""User-defined code in a recipe: its classes, the modules they come from, and a digest of their source."""

import functools
import hashlib
import inspect
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.code_names import PACKAGE, Code, code_name, is_ours
from robustbench_rkhs.nodes.node import Node


def own_classes(value: Any) -> list[type]:
    """Classes of nodes in a recipe that are not of this package, each once, in their order."""
    return list(dict.fromkeys(type(node) for node in _nodes(value) if not is_ours(type(node))))


def code_of(recipe: Node) -> Code:
    """Permission for the modules that a recipe object already uses."""
    return Code(tuple(dict.fromkeys(kind.__module__ for kind in own_classes(recipe))))


def own_code_digest(value: Any) -> str:
    """sha256 over the source of the user's own methods in a recipe; empty if all are built in.

    Reads the files of their classes and of loaded modules next to them. Code without source, such as typed at a prompt, gets a
    new digest in each process, so that its results are never reused.
    """
    kinds = own_classes(value)
    return hashlib.sha256("".join(map(source_digest, kinds)).encode()).hexdigest() if kinds else ""


def _nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
        value = [part for _, part in value]
    elif isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _nodes(part)


def source_digest(thing: Any) -> str:
    """sha256 over the source of a class (with its base classes) or function, and of loaded modules next to it."""
    sha = hashlib.sha256()
    for one in thing.__mro__ if isinstance(thing, type) else (thing,):
        name = getattr(one, "__module__", None) or "builtins"
        if name.partition(".")[0] in sys.stdlib_module_names | {"pydantic", PACKAGE}:
            continue
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and Path(file).is_file():
            for path in sorted(_beside(name, Path(file))):
                sha.update(path.read_bytes())
            continue
        try:
            sha.update(inspect.getsource(one).encode())
        except (OSError, TypeError):
            return unknown()
    return sha.hexdigest()


def unknown() -> str:
    """Stands in for a digest that cannot be computed: unique each time, so that nothing compares equal."""
    return uuid.uuid4().hex


def described(value: Any, depth: int = 5) -> Any:
    """Any object as JSON: its type and its contents. What cannot be described becomes a unique value, by `unknown`."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if depth == 0:
        return unknown()
    if isinstance(value, Mapping):
        return {str(key): described(part, depth - 1) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(part, depth - 1) for part in value]
    if isinstance(value, functools.partial):
        return described([value.func, value.args, value.keywords], depth)
    if isinstance(value, type):
        return code_name(value)
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        held = described([value.__defaults__, value.__kwdefaults__, cells], depth - 1)
        return [code_name(value), value.__code__.co_code.hex(), repr(value.__code__.co_names), held]
    if hasattr(value, "__dict__") and not inspect.ismodule(value):
        return [code_name(type(value)), described(vars(value), depth - 1)]
    words = repr(value)
    return words if "0x" not in words and "..." not in words else unknown()


def _beside(module: str, file: Path) -> Iterable[Path]:
    """The module's file and those of loaded modules of its package; where it has none, of those in its folder."""
    package = module.partition(".")[0] if "." in module and not module.endswith(".py") else None
    found = {str(file)}
    for name, other in list(sys.modules.items()):  # as texts: thousands of paths take a second
        path = getattr(other, "__file__", None)
        if path is None or not path.endswith(".py"):
            continue
        if name.partition(".")[0] == package if package else file.parent.name in path and Path(path).parent == file.parent:
            found.add(path)
    return map(Path, found)
