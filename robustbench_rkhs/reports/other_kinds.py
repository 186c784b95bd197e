"""Publishing reports that are no tables of verdicts: norms, tightness, audits, sweeps, ranking, pictures."""

import csv
import re
import shutil
from functools import partial
from pathlib import Path

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.runtime.files import write_whole

KINDS = ("norms", "tightness", "audits", "sweeps", "ranking", "pictures")
COUNTS = ("samples", "images")
"""Columns of a csv that say how many images a report is about."""


def is_other(name: str) -> bool:
    """Whether a name that is to be published is KIND/FILE rather than a model's."""
    return name.partition("/")[0] in KINDS


def publish_other(places: Places, name: str) -> list[str]:
    """Copies OUT/local/KIND/NAME-DIGEST.* to OUT/KIND/NAME.*, which git sees. Returns a line for it.

    Raises UserError where there is no such report, or where the one that is there already is about more images.
    """
    kind, _, file = name.partition("/")
    found = _files(places.local / kind, file)
    if not found:
        known = sorted({path.stem for path in (places.local / kind).glob("*") if path.is_file()})
        raise UserError(f"no report {file!r} in {places.local / kind}; known: {', '.join(known) or 'none'}")
    plain = re.sub(r"-[0-9a-f]{8}$", "", file)
    new, old = _images(found), _images(_files(places.out / kind, plain))
    if old is not None and new is not None and new < old:
        raise UserError(
            f"{places.local / kind / file} is about {new} images, the published {places.out / kind / plain} about {old}: "
            "remove its files first if it is to be replaced"
        )
    for path in found:
        write_whole(places.out / kind / f"{plain}{path.suffix}", partial(shutil.copyfile, path))
    replaced = "" if old is None else f", in place of that about {old}"
    about = "" if new is None else f" ({new} images{replaced})"
    return [f"published: {places.out / kind / plain}.*{about}"]


def _files(folder: Path, stem: str) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file() and path.stem == stem) if folder.is_dir() else []


def _images(files: list[Path]) -> int | None:
    """How many images a report is about, as its csv says; None where it does not say."""
    for path in files:
        if path.suffix == ".csv":
            try:
                with path.open(newline="") as handle:
                    first = next(csv.DictReader(handle), {})
            except (UnicodeDecodeError, csv.Error):
                return None
            counts = [first[column] for column in COUNTS if first.get(column)]
            return int(float(counts[0])) if counts and counts[0].replace(".", "", 1).isdigit() else None
    return None
