"""Runs by name, folder or glob (--model), grouped so that seeds of one recipe are drawn together."""

import fnmatch
import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.paths import checkpoints_folder

T = TypeVar("T")
SEED = re.compile(r"[-_.]?seed[-_]?\d+$")
"""The end of a name that contains the seed."""


def labelled(text: str) -> tuple[str | None, str]:
    """`LABEL=GLOB` or `GLOB`."""
    label, equals, pattern = text.partition("=")
    return (label, pattern) if equals else (None, text)


def folders(texts: Sequence[str], needed: str) -> list[tuple[str | None, Path]]:
    """Checkpoint folders with their typed labels, each once. Raises UserError where a pattern finds none.

    `needed`: the file that a folder must have.
    """
    if not texts:
        raise UserError("no runs given: add --model with names in checkpoints/, folders or globs such as 'sweeps/mine/trials/*/*'")
    found: dict[Path, str | None] = {}
    for text in texts:
        label, pattern = labelled(text)
        places = [
            Path(path) for at in (pattern, checkpoints_folder() / pattern) for path in sorted(glob.glob(str(at), recursive=True))
        ]
        there = [place for place in places if place.is_dir()]
        kept = [place for place in there if (place / needed).is_file()]
        if not kept and there:
            raise UserError(f"--model {text!r}: {there[0]} holds no {needed}; expected the folder of a run")
        if not kept:
            known = [path.parent.name for path in checkpoints_folder().glob(f"*/{needed}")]
            raise UserError(f"--model {text!r}: no such run; {did_you_mean(pattern, known)}")
        for place in kept:
            found.setdefault(place.resolve(), label)
    return [(label, _shown(place)) for place, label in found.items()]


def matching(texts: Sequence[str], known: Sequence[str], where: str) -> list[tuple[str | None, str]]:
    """Names that match the patterns, with their typed labels, each once. Raises UserError where a pattern finds none."""
    if not texts:
        raise UserError(
            f"no models given: add --model with names or globs of what is in {where}; known: {', '.join(known) or 'none'}"
        )
    found: dict[str, str | None] = {}
    for text in texts:
        label, pattern = labelled(text)
        names = fnmatch.filter(known, pattern)
        if not names:
            raise UserError(f"--model {text!r}: no verdicts in {where}; {did_you_mean(pattern, known)}")
        for name in names:
            found.setdefault(name, label)
    return [(label, name) for name, label in found.items()]


def grouped(runs: Sequence[tuple[str | None, str, str, T]]) -> dict[str, list[T]]:
    """(label or None, name, common recipe, run) as label -> runs: grouped by the typed label, else by the common recipe.

    A group without a label is named by the common prefix of its runs' names; groups of the same name are numbered.
    """
    groups: dict[tuple[str, str], list[T]] = {}
    called: dict[tuple[str, str], list[str]] = {}
    for label, name, shared, run in runs:
        key = ("label", label) if label is not None else ("shared", shared)
        groups.setdefault(key, []).append(run)
        called.setdefault(key, []).append(label if label is not None else name)
    counts: dict[str, int] = {}
    named = {}
    for key, members in groups.items():
        name = _beginning(called[key])
        counts[name] = counts.get(name, 0) + 1
        named[name if counts[name] == 1 else f"{name} #{counts[name]}"] = members
    return named


def without_seed(name: str, parent: str = "") -> str:
    """`plain-seed-2` as `plain`; `seed-2` alone as the folder it lies in."""
    return SEED.sub("", name) or parent or name


def stem(out: Path, kind: str, name: str | None, labels: Sequence[str]) -> Path:
    """OUT/KIND-NAME; the default name is made of the labels, shortened for a file name."""
    words = name or "-".join(labels)
    return out / f"{kind}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', words)[:60].strip('_')}"


def each_once(items: Sequence[T], key: Callable[[T], str]) -> list[str]:
    """The names of items in their order, each once."""
    return list(dict.fromkeys(key(item) for item in items))


def _beginning(names: Sequence[str]) -> str:
    """The common prefix of all names, or the first name if there is none."""
    first, last = min(names), max(names)
    same = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same].rstrip("-_.") or names[0]


def _shown(place: Path) -> Path:
    return place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place
