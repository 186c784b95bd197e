"""The code blocks of the documentation, and how each is run: shell lines as commands, Python in a fresh namespace.

An HTML comment on the line before a block says what is special about it:
`<!-- main -->`, `<!-- test -->`: install lines, run word for word by `.ci/run`;
`<!-- needs: FOLDER -->`: a data set, which lies in FOLDER of the data root; the block is skipped where it is missing;
`<!-- output -->`: a `text` block that shows what the block before it printed (`...` stands for anything);
`<!-- exit: N -->`: the last command of the block ends with this exit code.
A block whose first line is a comment with a path, such as `# mine/nets.py`, is a file of that name.
"""

import configparser
import contextlib
import doctest
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from robustbench_rkhs.evaluation.diagnostics import CHECKS
from robustbench_rkhs.nodes.limits import Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports import figures
from robustbench_rkhs.submission import confined

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)$")
COMMENT = re.compile(r"^ *<!-- (?P<kind>[a-z]+)(?:: (?P<value>.*?))? -->$")
SAMPLES = re.compile(r"(--samples |\bsamples=)(\d+)")
FEW = 4
"""Images in place of those that a block asks for, where nothing that it shows or demands depends on them."""
DEAR = ("single_step", "transfer", "black_box", "convergence")
"""Diagnoses that such a block leaves out, as they take most of its time: tests/test_diagnostics.py is about them."""
NAMED_FILE = re.compile(r"^# (?P<path>[\w./-]+\.(?:py|yaml|csv))(?:\s|$)")
FOR_A_SHELL = re.compile(r"[|&;<>$`*?(){}]")
INSTALL = ("main", "test")
KINDS = {*INSTALL, "needs", "output", "exit"}
LANGUAGES = {"sh", "python", "yaml", "text"}


@dataclass(frozen=True)
class Block:
    """A fenced block of code, and the comment before it."""

    page: str
    line: int
    language: str
    text: str
    kind: str = ""
    value: str = ""
    small: bool = False

    def in_small(self, shown: bool) -> "Block":
        """The block in brief, with fewer images unless its output is `shown`; as it is where it demands something of numbers."""
        if self.kind == "exit" or "--require" in self.text or "assert" in self.text or (shown and "diagnos" in self.text):
            return self
        if shown:
            return replace(self, small=True)
        return replace(self, small=True, text=SAMPLES.sub(lambda found: found[1] + str(min(int(found[2]), FEW)), self.text))

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The path of the file that the block shows, if it shows one."""
        named = NAMED_FILE.match(self.text)
        return named["path"] if named else None

    def lacks(self) -> str:
        """Why the block can't be run here; empty where it can."""
        if self.kind in INSTALL:
            return "an install line: .ci/run runs it word for word"
        place = Path(os.environ.get("RKHS_DATA") or ROOT / "data")
        if self.kind == "needs" and not (place / self.value).exists():
            return f"data root {str(place)!r} has no {self.value} (set RKHS_DATA)"
        return ""


def pages() -> list[Path]:
    """Every page of documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, text: str | None = None) -> Iterator[Block]:
    """The fenced blocks of a Markdown page, but for MyST's directives."""
    lines = (page.read_text() if text is None else text).splitlines()
    name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name
    at, before = 0, ""
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence is None:
            before = lines[at] if lines[at].strip() else before
            at += 1
            continue
        indent, start = len(fence["indent"]), at
        at += 1
        while lines[at].strip() != "```":
            at += 1
        body = "\n".join(line[indent:] for line in lines[start + 1 : at]) + "\n"
        comment = COMMENT.match(before)
        kind, value = (comment["kind"], comment["value"] or "") if comment else ("", "")
        if not fence["language"].startswith("{"):
            yield Block(name, start + 1, fence["language"].strip(), body, kind, value)
        at, before = at + 1, ""


@dataclass
class Place:
    """The folder in which the blocks of one page are run, one after the other: a fresh clone of the repository."""

    folder: Path
    clone: bool = True
    printed: str = ""

    def __post_init__(self) -> None:
        self.cloned = self.clone and (ROOT / ".git").exists()
        if self.cloned:
            self._clone()
        else:  # the sources without their repository
            shutil.copytree(ROOT / "examples", self.folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        self.commands = _commands()
        scripts = self.folder / ".scripts"
        scripts.mkdir()
        for name, (module, function) in self.commands.items():
            (scripts / name).write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
            (scripts / name).chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{scripts}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RKHS_DOWNLOAD": "0",
            "RKHS_DATA": str(Path(os.environ.get("RKHS_DATA") or ROOT / "data").resolve()),
        }

    def _clone(self) -> None:
        """A fresh clone of the repository, with what is changed in this working tree committed."""
        _git(ROOT, "clone", "-q", "--shared", str(ROOT), str(self.folder))
        changed = _git(ROOT, "ls-files", "-z", "--modified", "--others", "--exclude-standard").split("\0")
        for name in sorted(set(changed) - {""}):
            target = self.folder / name
            target.unlink(missing_ok=True)
            if (ROOT / name).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        _git(self.folder, "add", "-A")
        _git(self.folder, "-c", "user.name=test", "-c", "user.email=test", "commit", "-q", "--allow-empty", "-m", "as it stands")

    def changes(self) -> list[str]:
        """What git says of tracked files that the blocks have changed or removed; nothing where this is no clone."""
        return _git(self.folder, "status", "--porcelain", "--untracked-files=no").splitlines() if self.cloned else []

    def run(self, block: Block) -> None:
        """Run a block, write the file it shows, or compare the output it shows. Raises AssertionError with the place."""
        assert block.language in LANGUAGES, f"{block.where}: expected a block of {sorted(LANGUAGES)}, found {block.language!r}"
        assert not block.kind or block.kind in KINDS, f"{block.where}: unknown comment {block.kind!r} before the block"
        if block.kind == "output":
            self._compare(block)
            return
        if block.file is not None:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        out = io.StringIO()
        with briefly("--limits" not in block.text) if block.small else contextlib.nullcontext():
            self._run(block, out)
        self.printed = out.getvalue()

    def _run(self, block: Block, out: io.StringIO) -> None:
        if block.language == "python":
            with self._inside(), contextlib.redirect_stdout(out):
                exec(compile(block.text, block.where, "exec"), {"__name__": "__main__"})
        elif block.language == "sh":
            *all_but_last, last = _lines(block.text)
            for line in all_but_last:
                self._line(block, line, out, 0)
            self._line(block, last, out, int(block.value) if block.kind == "exit" else 0)
        else:
            assert block.file is not None, f"{block.where}: a {block.language} block is a file (first line `# its/name`) or output"

    def _compare(self, block: Block) -> None:
        same = doctest.OutputChecker().check_output(block.text, self.printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        assert same, f"{block.where} shows\n{block.text}\nbut the block before it printed\n{self.printed}"

    def _line(self, block: Block, line: str, out: io.StringIO, expected: int) -> None:
        """One command: ours in this process, which is quicker, also where it ends in `> FILE`; anything else by a shell."""
        words = shlex.split(line, comments=True)
        if not words:
            return
        *_, into, target = ["", "", *words]
        bare = re.sub(r"'[^']*'|\"[^\"]*\"| #.*", "", line)
        if words[0] in self.commands and not FOR_A_SHELL.search(bare):
            code, errors = self._ours(words, out)
        elif words[0] in self.commands and into == ">" and not FOR_A_SHELL.search(bare.replace(f" > {target}", "", 1)):
            code, errors = self._ours(words[:-2], printed := io.StringIO())
            (self.folder / target).write_text(printed.getvalue())
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", line], cwd=self.folder, env=self.environment, capture_output=True, text=True
            )
            code, errors = done.returncode, done.stderr
            out.write(done.stdout)
        assert code == expected, f"{block.where}: `{line}` ended with {code}, expected {expected}\n{errors[-3000:]}"

    def _ours(self, words: list[str], out: io.StringIO) -> tuple[int, str]:
        module, function = self.commands[words[0]]
        errors, before = io.StringIO(), sys.argv
        sys.argv = words
        try:
            with self._inside(), self.undrawn(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
                getattr(importlib.import_module(module), function)()
        except SystemExit as end:
            return (end.code if isinstance(end.code, int) else int(end.code is not None)), errors.getvalue()
        finally:
            sys.argv = before
        return 0, errors.getvalue()

    @contextlib.contextmanager
    def undrawn(self) -> Iterator[None]:
        """Figures are made, laid out by nobody and saved as empty files: tests/test_report.py looks at figures."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(figures, "lay_out", lambda figure: None)
            patched.setattr(Figure, "savefig", lambda figure, target, **settings: Path(target).touch())
            yield

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """The folder as working directory and import path; what was imported from it is forgotten afterwards."""
        path, environment, where = list(sys.path), dict(os.environ), Path.cwd()
        os.environ.update({name: self.environment[name] for name in ("RKHS_DATA", "RKHS_DOWNLOAD")})
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            os.chdir(where)
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(environment)
            for name, module in list(sys.modules.items()):
                if str(getattr(module, "__file__", None) or "").startswith(str(self.folder)):
                    del sys.modules[name]


@contextlib.contextmanager
def briefly(confined_too: bool = True) -> Iterator[None]:
    """In this process: evaluations skip the dear diagnoses, and report them as passed; a site is drawn without other processes.

    `confined_too`: a submission is evaluated in this process as well. A process of its own takes seconds to begin.
    """
    with pytest.MonkeyPatch.context() as patched:
        for name in DEAR:
            patched.setitem(CHECKS, name, lambda scene, name=name: scene.broken_more(name, 0, "left out of this test", 0.0))
        patched.setattr(importlib.import_module("robustbench_rkhs.site.side_by_side"), "MANY", sys.maxsize)
        if confined_too:
            patched.setattr(confined, "messages", _worked_here)
        yield


def _worked_here(module: str, job: dict[str, Any], limits: Limits) -> Iterator[dict[str, Any]]:
    """What the process of a submission does and says, without the process and its limits."""
    said: list[dict[str, Any]] = []
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(confined, "confine", lambda limits, memory: None)
        patched.setattr(confined, "_tell", lambda **message: said.append(json.loads(json.dumps(message))))
        try:
            confined._work(json.loads(json.dumps(job)))
        except UserError as refused:
            said.append({"refused": str(refused)})
        finally:
            torch.set_num_threads(threads)
    yield from said


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def _lines(text: str) -> list[str]:
    """The commands of a shell block: one a line, continued by a backslash; comments alone are left out."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in joined if line.strip() and not line.strip().startswith("#")]


def _commands() -> dict[str, tuple[str, str]]:
    """Our console scripts: the module and function of each."""
    stated = configparser.ConfigParser()
    stated.read(ROOT / "setup.cfg")
    rows = [line.split("=") for line in stated["options.entry_points"]["console_scripts"].splitlines() if line.strip()]
    return {name.strip(): tuple(target.strip().split(":")) for name, target in rows}
