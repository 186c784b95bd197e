"""Whom a name belongs to: OUT/owners holds, for each name that was sent with a key, the sha256 of that key.

Git ignores those files until a table of the model is published.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from robustbench_rkhs.nodes.names import plain_name
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.runtime.files import Unwritable
from robustbench_rkhs.verdicts import Published


def owner_of(out: Path, name: str) -> str:
    """sha256 of the key of a name's owner; empty where nobody has sent it with a key."""
    try:
        found = _file(out, name).read_text()[:200].strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {_file(out, name)}: {reason(error)}") from None
    if not re.fullmatch("[0-9a-f]{64}", found):
        raise UserError(f"{_file(out, name)}: expected the sha256 of a key, found {found[:40]!r}")
    return found


def names_owned(out: Path) -> list[str]:
    """The names that have an owner."""
    folder = Places(out).owners
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def check_owner(out: Path, name: str, sender: str) -> None:
    """Raises UserError where a name belongs to another key than the sender's (empty: it was sent without a key)."""
    owner = owner_of(out, name)
    if owner and owner != sender:
        found = f"another key ({sender[:12]})" if sender else "no key"
        raise UserError(
            f"{name!r} belongs to whoever sent it first, with the key {owner[:12]}; this was sent with {found}: "
            f"sign it with that key (--key FILE), or choose another name; what is listed stays as it is"
        )


@contextmanager
def claimed(out: Path, name: str, sender: str, new: bool, undecided: tuple[type[UserError], ...] = ()) -> Iterator[None]:
    """Context manager: the name is the sender's from now on, and stays it unless what was sent under it is refused:
    a UserError that is none of `undecided`.

    `new`: nothing is known under it yet, and what is sent is to be published; else nothing is claimed. The claim is made before
    the evaluation, so that the first to send has the name, not the first to be done. Of two processes one gets it. Raises
    UserError as `check_owner`.
    """
    mine = new and bool(sender) and not owner_of(out, name) and _made(out, name, sender)
    check_owner(out, name, sender)
    try:
        yield
    except BaseException as error:
        if mine and isinstance(error, UserError) and not isinstance(error, undecided):
            with suppress(OSError):
                _file(out, name).unlink()
        raise


def _made(out: Path, name: str, sender: str) -> bool:
    """Whether the file of a name was made here: a hard link of a whole file, which fails where there is one."""
    path = _file(out, name)
    try:
        Published(path.parent).begin()
        handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            with open(handle, "w") as file:
                file.write(f"{sender}\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.link(temporary, path)
        finally:
            os.unlink(temporary)
    except FileExistsError:
        return False
    except OSError as error:
        raise Unwritable(f"cannot write {path}: {reason(error)}") from None
    return True


def _file(out: Path, name: str) -> Path:
    return Places(out).owners / plain_name(name)
