"""Code names, `package.module:Name` or `file.py:Name`: which ones may be imported, and loading the object."""

import importlib
import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from robustbench_rkhs.nodes import reasons
from robustbench_rkhs.nodes.missing import missing
from robustbench_rkhs.nodes.node import UserError, did_you_mean

PACKAGE = __name__.partition(".")[0]
HERE = Path(__file__).parent.parent
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
"""Folders of Python and of installed packages."""
CODE_NAME = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*|[^:]+\.py):([A-Za-z_][\w.]*)(?::(.*))?", re.DOTALL)
"""Module or file, name, and optional fields."""

OURS_ALONE = "a submission may only use the package's own networks and methods (rkhs-list networks), as its code is never run"
"""What whoever submits code is told."""


@dataclass(frozen=True)
class Code:
    """Permission to import the code that a recipe names. Default: none, so untrusted files import nothing."""

    prefixes: tuple[str, ...] = ()
    """Packages, modules, folders and .py files that the user named after --allow-code."""
    anything: bool = False
    """True for what was typed, passed in Python, or lies in the user's own models/."""
    submitted: bool = False
    """True for what is submitted: its sender is told that no flag lets its code in."""

    def allows(self, module: str) -> bool:
        """Whether this module (dotted, or a .py file) may be imported."""
        if self.anything:
            return True
        if module.endswith(".py"):
            return any(Path(module).resolve().is_relative_to(Path(one).resolve()) for one in self.prefixes if _is_path(one))
        return any(f"{module}.".startswith(f"{one}.") for one in self.prefixes if not _is_path(one))

    def refuse(self, name: str) -> None:
        """Raises UserError if the code of this name may not be imported."""
        module = split(name)[0]
        if not self.allows(module):
            if self.submitted:
                raise UserError(f"{name!r} names code: {OURS_ALONE}")
            prefix = module if module.endswith(".py") else module.partition(".")[0]
            raise UserError(
                f"{name!r} names code, which is only imported from what you type and from your own models/; "
                f"if the code is yours: --allow-code {prefix}"
            )


CLOSED = Code()
"""For a checkpoint folder, bundle, Hub repository, header, proof or table: nothing is imported."""
SUBMITTED = Code(submitted=True)
"""For what is submitted: nothing is imported, whatever is typed."""
TYPED = Code(anything=True)
"""For the command line, Python and the user's own models/: anything may be imported."""


def allowed(prefixes: Iterable[str]) -> Code:
    """The permission given by --allow-code PREFIX ... Raises UserError for a prefix that would allow everything."""
    for one in (found := tuple(prefixes)):
        if not (re.fullmatch(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*", one) or (_is_path(one) and Path(one).exists())):
            raise UserError(f"--allow-code: expected a package, a module, or a folder or .py file that is here, found {one!r}")
    return Code(found)


def code_in(value: Any) -> Code:
    """Permission for the modules of all code names in a mapping, at any depth; only for trusted mappings."""
    return Code(tuple(dict.fromkeys(split(text)[0] for text in _texts(value) if is_code_name(text))))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from _texts(one)


def is_code_name(text: str) -> bool:
    """Whether this is `package.module:Name` or `file.py:Name`, perhaps with fields, and not `name:field=value`."""
    return CODE_NAME.fullmatch(text) is not None


def split(text: str) -> tuple[str, str, str]:
    """Module or file, name, and the text of the fields."""
    found = CODE_NAME.fullmatch(text)
    if found is None:
        raise UserError(f"expected package.module:Name or file.py:Name, found {text!r}")
    return found[1], found[2], found[3] or ""


def code_name(kind: Any) -> str:
    """`package.module:Name` of a class or function."""
    return f"{kind.__module__}:{kind.__qualname__}"


def is_ours(kind: type) -> bool:
    """Whether a class belongs to this package."""
    return kind.__module__.partition(".")[0] == PACKAGE


def announced(kind: str) -> dict[str, str]:
    """Names that installed packages register at the entry point `robustbench_rkhs.KIND`, with the code name of each.

    Nothing is imported. Raises UserError if two packages register the same name.
    """
    found: dict[str, str] = {}
    for point in entry_points(group=f"{PACKAGE}.{kind}"):
        if found.setdefault(point.name, point.value) != point.value:
            raise UserError(f"{point.name!r} is announced twice: {found[point.name]} and {point.value}; name one of them")
    return found


def load(name: str, code: Code) -> Any:
    """The object that a code name refers to; imports its module, which runs it.

    Raises UserError if it may not be imported, if the import fails (with cause and line), or if the module has no such name.
    """
    code.refuse(name)
    module_name, path, _ = split(name)
    found: Any = _module(module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            known = _own_names(found)
            raise UserError(f"{module_name!r} has no {path!r}; {did_you_mean(part, known)[:200]}")
        found = getattr(found, part)
    return found


def _own_names(found: Any) -> list[str]:
    """The public names of an object: of a module, without modules, and without classes and functions of other packages."""
    public = {name: one for name, one in vars(found).items() if not name.startswith("_")}
    if not isinstance(found, ModuleType):
        return list(public)
    own = found.__name__.partition(".")[0]
    foreign = {
        name
        for name, one in public.items()
        if isinstance(one, ModuleType) or (isinstance(one, type | FunctionType) and one.__module__.partition(".")[0] != own)
    }
    return [name for name in public if name not in foreign]


def _module(name: str) -> ModuleType:
    """The module of a dotted name, or of a .py file. The working directory is searched too, as by `python -m`."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return _from_file(name) if name.endswith(".py") else importlib.import_module(name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise UserError(f"cannot import {name!r}: {cause(error)}") from None


def _from_file(name: str) -> ModuleType:
    """The module of a .py file, registered under its path, so that the names of its classes can be loaded again."""
    path = Path(name)
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise missing("Python file", name)
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # lets it import its neighbours, as when run as a script
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def cause(error: BaseException) -> str:
    """An error in user code as one line: its type, its first line, and the file and line where it was raised."""
    words = reasons.cause(error)
    frames = [one for one in traceback.extract_tb(error.__traceback__) if "importlib" not in one.filename]
    frames = [one for one in frames if not Path(one.filename).is_relative_to(HERE)]
    own = [one for one in frames if not any(Path(one.filename).is_relative_to(place) for place in LIBRARIES)]
    frames = own or frames  # prefer the line in the user's code
    if isinstance(error, SyntaxError) and error.filename:
        words = f"{type(error).__name__}: {error.msg}"
        return f"{words} ({Path(error.filename).name}, line {error.lineno})"
    return f"{words} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else words


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith(".py")
