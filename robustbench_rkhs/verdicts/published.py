"""The published tables of a folder: git ignores all others, by a .gitignore that names them."""

import re
from pathlib import Path

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime.files import write_text
from robustbench_rkhs.runtime.ignored import NAME

HEAD = """\
# Git ignores the tables here, except the published ones that are named below:
# rkhs-report --publish NAME adds lines, rkhs-report --withdraw NAME removes them.
*
!.gitignore
!*/
"""


class Published:
    """The tables under a folder that its .gitignore names. The file is written with the first table, so that git ignores it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / NAME

    def listed(self) -> list[Path]:
        """The published tables, by path, whether their files are there or not."""
        return sorted(map(self._path, self._lines()))

    def paths(self) -> list[Path]:
        """The published tables that are there, by path."""
        return [path for path in self.listed() if path.is_file()]

    def begin(self) -> Path:
        """The folder, in which git ignores what is not published from now on. Raises Unwritable."""
        if not self.file.is_file():
            write_text(self.file, HEAD)
        return self.folder

    def add(self, path: Path) -> None:
        """Publish a table of this folder. Raises Unwritable."""
        self._write({*self._lines(), self._line(path)})

    def remove(self, path: Path) -> None:
        """Withdraw a table. Its file stays where it is. Raises Unwritable."""
        self._write({*self._lines()} - {self._line(path)})

    def _lines(self) -> list[str]:
        try:
            text = self.file.read_text()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {self.file}: {reason(error)}") from None
        return [line for line in text.splitlines() if line.startswith("!/")]

    def _write(self, lines: set[str]) -> None:
        write_text(self.file, HEAD + "".join(f"{line}\n" for line in sorted(lines)))

    def _line(self, path: Path) -> str:
        return "!/" + re.sub(r"([\\\[\]*? ])", r"\\\1", path.relative_to(self.folder).as_posix())

    def _path(self, line: str) -> Path:
        return self.folder / re.sub(r"\\(.)", r"\1", line[2:])
