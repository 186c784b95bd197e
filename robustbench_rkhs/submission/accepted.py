"""Checkpoints of accepted submissions, kept in OUT/accepted: what was evaluated, byte for byte, and no code."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustbench_rkhs.nodes.accepted import accepted_folder
from robustbench_rkhs.nodes.guard import guarded
from robustbench_rkhs.nodes.limits import STRANGERS, Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import checkpoints_folders
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.runtime.files import Unwritable, flush
from robustbench_rkhs.runtime.ignored import ignored
from robustbench_rkhs.submission.bundle_names import BESIDE, MOST, NAME, OF_MODEL
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.verdicts import Adversarials


@contextmanager
def copied(path: Path, name: str, weights: str, staged: Path, limits: Limits) -> Iterator[Path]:
    """Context manager: a copy of a checked checkpoint, which its sender cannot change any more; removed at the end, unless moved.

    It holds weights, recipe and configuration, and card and metrics where they are no larger than a text may be. Raises UserError
    where it is not of these weights: the folder was changed since it was checked.
    """
    holder = staged / ".sent"  # no model's name begins with a dot
    shutil.rmtree(holder, ignore_errors=True)  # of a process that was killed
    try:
        _copy(path, holder / name, limits)
        if checkpoint.described(holder / name, limits=limits).weights != weights:
            raise UserError(f"{path} was changed while it was read: send it again")
        yield holder / name
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _copy(path: Path, copy: Path, limits: Limits) -> None:
    try:
        copy.mkdir(parents=True)
        for file in sorted(OF_MODEL | BESIDE):
            source = path / file
            if source.is_file() and (file in OF_MODEL or source.stat().st_size <= limits.text):
                shutil.copyfile(source, copy / file, follow_symlinks=False)
                if (copy / file).is_symlink():
                    raise UserError(f"{path}: {file!r} is not a plain file")
    except OSError as error:
        raise Unwritable(f"cannot copy {path} to {copy}: {reason(error)}") from None


def keep(copy: Path, out: Path, key: str) -> Path:
    """Move the copy of an accepted checkpoint to its place, all or nothing. Of one function and name the first stays."""
    ignored(out / "accepted")
    place = accepted_folder(out, copy.name, key)
    if place.is_dir():
        return place
    try:
        for file in copy.iterdir():
            flush(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(copy, place)
        flush(place.parent)
    except OSError as error:
        if not place.is_dir():  # else another process was quicker
            raise Unwritable(f"cannot keep {place}: {reason(error)}") from None
    return place


def accepted_model(stored: Adversarials, out: Path, known: Path | None = None, limits: Limits = STRANGERS) -> str | None:
    """The folder of the accepted checkpoint that a file of adversarial images names, by name and function; None if there is none.

    It counts while a table of that function is in OUT/verdicts. `known`: a folder of merged bundles, which are asked too. Raises
    UserError where the name is known, here alone, as that of another function.
    """
    about = stored.about
    name, key = about.model.partition("~")[0], "" if about.others.get("smoothed") else str(about.others.get("key") or "")
    if not NAME.fullmatch(name):
        return None
    here = [*_kept(name, out), *_bundled(name, known, limits)]
    for function, weights, folder in here:
        if function == key or (not key and weights == about.weights):
            return str(folder)
    if here and not any((folder / name / "config.json").is_file() for folder in (Path(), *checkpoints_folders())):
        found = ", ".join(sorted({function[:12] for function, _, _ in here}))
        raise UserError(f"{name!r} is the function {found} here, the file is of {(key or about.weights)[:12]}")
    return None


def _kept(name: str, out: Path) -> list[tuple[str, str, Path]]:
    """Key, weights and folder of each checkpoint of this name that was accepted and is on the board."""
    if not any((out / "accepted").glob(f"*/{name}")):
        return []  # no table has to be read
    places, unread = Places(out), list[str]()
    tables = [one.about for one in places.cache().read_all(places.verdicts, unread.append) if one.about.model == name]
    found = [(one.key, one.weights, accepted_folder(out, name, one.key)) for one in tables if one.key]
    return [one for one in found if one[2].is_dir()]


def _bundled(name: str, known: Path | None, limits: Limits) -> Iterator[tuple[str, str, Path]]:
    """Key, weights and folder of each checkpoint of this name in a folder of bundles."""
    for folder in sorted(known.glob(f"*/{name}"))[: 100 * MOST] if known else ():
        with guarded(folder):
            if folder.is_symlink() or folder.parent.is_symlink() or not (folder / "config.json").is_file():
                continue
            said = checkpoint.described(folder, limits=limits)
        yield str(said.config.get("key") or ""), str(said.config.get("weights") or ""), folder
