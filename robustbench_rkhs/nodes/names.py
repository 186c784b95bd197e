"""Names of models and of the files named after them: checked once, so that no result lands outside its folder."""

import hashlib
import re
from pathlib import Path

from robustbench_rkhs.nodes.node import UserError

LONGEST = 100
"""Characters of a name; a file system takes 255 bytes, with endings and temporary names."""
SIGNS = re.compile(r"[\w.@~+=,()\[\] -]+")
"""What a name is made of."""


def plain_name(name: str, what: str = "model name") -> str:
    """The name as it is. Raises UserError for one that is no plain name of a file: empty, `.`, `..`, a path, control characters."""
    if fault := _fault(name):
        raise UserError(f"{what} {name[:40]!r}: {fault}; expected 1 to {LONGEST} letters, digits, and _ . - @ ~ + inside of it")
    return name


def folder_of(parent: str | Path, name: str) -> Path:
    """parent/name, where results of this name go. Raises UserError for a name that is none, or a link that leads elsewhere."""
    folder = Path(parent) / plain_name(name)
    if folder.is_symlink():
        raise UserError(f"{folder} is a link to {folder.resolve()}: results of {name!r} would land elsewhere; remove the link")
    return folder


def file_word(text: str) -> str:
    """Any text as a word of a file's name; where it had to be shortened, with a few digits of its sha256."""
    word, most = re.sub(r"[^A-Za-z0-9_.]+", "_", text), LONGEST // 2
    sha = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    return word if len(word) <= most else f"{word[:most]}_{sha[:8]}"


def _fault(name: str) -> str:
    """What is wrong with a name; empty where nothing is."""
    if not name:
        return "it is empty"
    if len(name) > LONGEST or len(name.encode(errors="replace")) > 2 * LONGEST:
        return f"it has {len(name)} characters"
    if name[0] in ".- " or name[-1] == " ":
        return "it begins with a dot, a dash or a blank, or ends in a blank"
    return "" if SIGNS.fullmatch(name) else "it holds other signs"
