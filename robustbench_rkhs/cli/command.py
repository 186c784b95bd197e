"""A console script from a function: flags from its signature, one line and exit code 2 for bad input."""

import errno
import functools
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from robustbench_rkhs.nodes.node import UserError

Names = tuple[str, ...]
"""A flag that takes several words."""


def command(main: Callable[..., int | None], overrides: bool = False) -> Callable[[], None]:
    """A console script: flags from the signature, one line and exit code 2 for bad input."""

    @functools.wraps(main)
    def script() -> None:
        try:
            if overrides:
                call, rest = tyro.cli(_bound(main), return_unknown_args=True)
                code = call(_pairs(rest))
            else:
                code = tyro.cli(_bound(main))()
        except UserError as error:
            _fail(str(error))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            _fail(f"cannot write {error.filename or ''}: {error.strerror}")
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            code = 130
        raise SystemExit(code or 0)

    return script


def _bound(main: Callable[..., Any]) -> Callable[..., Callable[..., Any]]:
    """`main`'s signature, returning a call, so that tyro's own errors and ours stay apart."""

    @functools.wraps(main)
    def bind(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        return functools.partial(main, *args, **kwargs)

    bind.__annotations__ = {k: v for k, v in main.__annotations__.items() if k not in ("return", "fields")}
    import inspect

    signature = inspect.signature(main)
    kept = [p for p in signature.parameters.values() if p.name != "fields"]
    bind.__signature__ = signature.replace(parameters=kept, return_annotation=Callable)  # type: ignore[attr-defined]
    return bind


def _fail(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


def _pairs(rest: list[str]) -> dict[str, str]:
    """`--attack.eps 1.0` and `--attack.eps=1.0` as a mapping."""
    fields, position = {}, 0
    while position < len(rest):
        flag, equals, value = rest[position].partition("=")
        if not flag.startswith("--"):
            raise UserError(f"unexpected argument {rest[position]!r}; expected flags such as --epochs 3 or --attack.eps 1.0")
        if not equals:
            position += 1
            if position == len(rest):
                raise UserError(f"{flag} needs a value")
            value = rest[position]
        fields[flag[2:]] = value
        position += 1
    return fields


def usable_device(name: str) -> str:
    """The device of this name, `auto` resolved. Raises UserError where it cannot be used here."""
    from robustbench_rkhs.runtime.devices import usable

    return usable(name)


def note(line: str) -> None:
    """A line beside what was asked for, on stderr."""
    print(f"note: {line}", file=sys.stderr)


def typed_command() -> str:
    """The command as it was typed, for the files it writes."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
