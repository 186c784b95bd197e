"""Text that anyone may read: one line, without the paths of the machine that wrote it."""

import re
from pathlib import Path

from robustbench_rkhs.runtime.sinks import for_line
from robustbench_rkhs.service.settings import Settings

_ROOTS = "etc|home|mnt|opt|root|srv|tmp|usr|var"
_PART = r"""[^\s/'"():,;]"""
_REST = rf"(?:{_PART}+/)*({_PART}*)"
PATH = re.compile(rf"(?<![\w./~-])(?:~?/(?:{_PART}+/)+({_PART}*)|/(?:{_ROOTS})\b)")
"""An absolute path. Only its last part stays."""
LONGEST = 2000
"""Characters of a line."""


def public(text: object, settings: Settings) -> str:
    """The text in one line; of every path of this machine only the last part stays, also of those below the service's folders."""
    found = for_line(text)[: 4 * LONGEST]
    for known in sorted({settings.folder, settings.out, Path.cwd(), Path.home()}, key=lambda path: -len(str(path))):
        if len(known.parts) > 1:  # its own name may hold what ends a path elsewhere, such as a space
            found = re.sub(rf"{re.escape(str(known))}(?:/{_REST}|(?![\w.-]))", lambda path: path[1] or "", found)
    return PATH.sub(lambda path: path[1] or "", found)[:LONGEST]
