"""Pages are put in their places together, at the end of a build: none leads to one that is not there yet."""

import os
from collections.abc import Collection
from pathlib import Path

from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime.files import Unwritable
from robustbench_rkhs.site.pages import NEW

FOLDERS = ("methods", "models", "boards", "")
"""Where pages are, in the order in which they are put there: the index comes last."""


def publish(folder: Path, pages: Collection[Path]) -> None:
    """Put what waits beside these pages in its place, also what an interrupted build left, and remove what waits for no page.

    Raises Unwritable. Cost: 50 us a page.
    """
    known = set(pages)
    for part in FOLDERS:
        for waiting in sorted((folder / part).glob(f".*.html{NEW}")):
            path = waiting.with_name(waiting.name[1 : -len(NEW)])
            try:
                if path in known:
                    os.replace(waiting, path)
                else:
                    waiting.unlink()
            except OSError as error:
                raise Unwritable(f"cannot write {path}: {reason(error)}") from None
