"""Folders of results that git ignores, in any repository, by a .gitignore inside them."""

from pathlib import Path

from robustbench_rkhs.runtime.files import write_text

NAME = ".gitignore"
ALL = "# Results of this machine: rkhs-report --publish copies what is to be kept.\n*\n"


def ignored(folder: Path) -> Path:
    """The folder, in which git sees nothing from now on. An own .gitignore in it stays. Raises Unwritable."""
    if not (folder / NAME).is_file():
        write_text(folder / NAME, ALL)
    return folder
