"""Checks of model names and of the file names made from them, so that no result is written outside its folder."""

import hashlib
import re
from pathlib import Path

from robustbench_rkhs.nodes.node import UserError

LONGEST = 100
"""Most characters of a name; file systems allow 255 bytes, including suffixes and temporary names."""
SIGNS = re.compile(r"[\w.@~+=,()\[\] -]+")
"""Characters allowed in a name."""


def plain_name(name: str, what: str = "model name") -> str:
    """The name, unchanged. Raises UserError if it is not a plain file name: empty, `.`, `..`, a path, control characters."""
    if fault := _fault(name):
        raise UserError(f"{what} {name[:40]!r}: {fault}; expected 1 to {LONGEST} letters, digits, and _ . - @ ~ + inside of it")
    return name


def folder_of(parent: str | Path, name: str) -> Path:
    """The results folder parent/name. Raises UserError for an invalid name, or if the folder is a symbolic link."""
    folder = Path(parent) / plain_name(name)
    if folder.is_symlink():
        raise UserError(f"{folder} is a link to {folder.resolve()}: results of {name!r} would be written there; remove the link")
    return folder


def file_word(text: str) -> str:
    """Any text as part of a file name; if it has to be shortened, with eight digits of its sha256."""
    word, most = re.sub(r"[^A-Za-z0-9_.]+", "_", text), LONGEST // 2
    sha = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    return word if len(word) <= most else f"{word[:most]}_{sha[:8]}"


def _fault(name: str) -> str:
    """What is wrong with a name; empty if it is valid."""
    if not name:
        return "it is empty"
    if len(name) > LONGEST or len(name.encode(errors="replace")) > 2 * LONGEST:
        return f"it has {len(name)} characters"
    if name[0] in ".- " or name[-1] == " ":
        return "it begins with a dot, a dash or a blank, or ends in a blank"
    return "" if SIGNS.fullmatch(name) else "it contains other characters"
