"""Storage: one parquet file per evaluation, with the table and, in the schema's metadata, its description."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robustbench_rkhs.nodes.documents import json_of
from robustbench_rkhs.nodes.limits import OWN
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime import seals
from robustbench_rkhs.verdicts.about import About
from robustbench_rkhs.verdicts.agreement import check_agreement
from robustbench_rkhs.verdicts.evaluation import Evaluation
from robustbench_rkhs.verdicts.kept_adversarials import Kept, holding, read_kept, write_kept
from robustbench_rkhs.verdicts.parts import Noticed, Part
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verdicts.schema import COLUMNS, KEY, telling, validate
from robustbench_rkhs.verdicts.table_text import text_blocks

METADATA, SEAL = b"robustbench_rkhs", b"robustbench_rkhs seal"
FORMAT = 2
"""Version of a file's metadata; since 2 the file is sealed."""
LASTING = 1.0
"""Seconds of work from which a part is synced to disk: shorter parts are recomputed as fast as they are synced."""
MOST = 20_000_000
"""Most rows of a table that is read: a small file may claim any number."""
GROUP = 10_000
"""Rows per row group of a file."""


class WithoutImages(UserError):
    """Raised for a part that is intact, but was computed without keeping its adversarial images."""


def write(evaluation: Record, path: str | Path) -> Path:
    """One parquet file, sealed, whole or absent. Raises UserError for an invalid table, a full disk, no permission."""
    _write(validate(evaluation.table), evaluation.about.plain(), Path(path))
    return Path(path)


def read(path: str | Path, known: Callable[[Evaluation], bool] | None = None) -> Evaluation:
    """The evaluation in a file. Raises UserError where it is missing, damaged, foreign or not a table of verdicts.

    A file from before files were sealed is read too; its evaluation is then not `sealed`, and not ranked.
    `known`: whether this very evaluation was validated before, which takes most of the time.
    """
    table, said, sealed = _read(Path(path))
    if known is not None and list(table) == COLUMNS:
        found = Evaluation(table, About.read(said, str(path)), path=Path(path), sealed=sealed)
        if known(found):
            check_name(found.about, Path(path))
            return found
    try:
        table = validate(table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    about = About.read(said, str(path))
    try:
        check_agreement(about, table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    check_name(about, Path(path))
    return Evaluation(table, about, path=Path(path), sealed=sealed)


def check_name(about: About, path: Path) -> None:
    """Raises Damaged for a file that is named after another evaluation."""
    named = re.fullmatch(f"{about.norm}-([0-9a-f]{{12}})", path.stem)
    if about.job and named and named[1] != about.job:
        raise seals.Damaged(path, f"it is the table of the evaluation {about.job}")


def write_part(part: Part, path: Path) -> None:
    """Writes a part of a running evaluation, after its adversarial images, if any, in a file beside it. Both are sealed.

    Its rows are checked when they are merged, as a check takes longer than many attacks.
    """
    said, lasting = part.noticed.model_dump(exclude_unset=True), float(part.table["seconds"].sum()) >= LASTING
    if part.kept is not None and len(part.kept.images):
        said["images"] = write_kept(part.kept, part.table, path.with_suffix(".npz"), lasting)
    _write(part.table, said, path, lasting)


def read_part(path: Path, images: bool) -> Part:
    """Reads a part, with its adversarial `images` if wanted. Raises UserError where either is damaged."""
    table, said, sealed = _read(path)
    if not sealed:
        raise seals.Damaged(path, seals.NO_SEAL)
    noticed = Noticed.read(said, str(path))
    if not images:
        return Part(table, noticed)
    if not len(holding(table)):
        return Part(table, noticed, Kept(np.zeros(0), np.zeros(0, np.int64)))
    if "images" not in said:
        raise WithoutImages(f"{path} was made without adversarial images")
    return Part(table, noticed, read_kept(table, path.with_suffix(".npz"), str(said["images"])))


def set_part_aside(path: Path, why: UserError) -> None:
    """Make room for a new part: a damaged one is renamed, with the images beside it, and reported in one line."""
    if isinstance(why, WithoutImages):
        path.unlink(missing_ok=True)
    else:
        seals.set_aside(path, why, path.with_suffix(".npz"))


def read_all(folder: str | Path, unread: Callable[[str], None] | None = None) -> list[Evaluation]:
    """Every evaluation under a folder, by path; unfinished parts (in folders named `parts`) and hidden files are left out.

    `unread` is called for each file that cannot be read, which is left out; without it, such a file raises UserError.
    """
    found = []
    for path in table_paths(Path(folder)):
        try:
            found.append(read(path))
        except UserError as error:
            if unread is None:
                raise
            unread(str(error))
    return found


def table_paths(folder: Path) -> list[Path]:
    """The files of tables under a folder, sorted; neither parts nor hidden files."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "parts" and not name.startswith(".")]
        found += [Path(root, name) for name in names if name.endswith(".parquet") and not name.startswith(".")]
    return sorted(found)


def digest(table: pd.DataFrame) -> str:
    """sha256 of the table in hex, independent of row order and `seconds`."""
    sha = hashlib.sha256()
    for text in text_blocks(_sorted(table[COLUMNS]).drop(columns="seconds")):
        sha.update(text.encode())
    return sha.hexdigest()


def _write(table: pd.DataFrame, said: dict[str, Any], path: Path, durable: bool = True) -> None:
    """A table with named fields in its metadata, as JSON, sealed."""
    text = seals.unmarked(json.dumps({"format": FORMAT, **said}, sort_keys=True, default=_plain))
    plain = pa.Schema.from_pandas(table, preserve_index=False)
    types = plain.with_metadata({**(plain.metadata or {}), METADATA: text.encode(), SEAL: seals.BLANK.encode()})

    def write_rows(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, types, compression="zstd") as file:
            for start in range(0, max(len(table), 1), GROUP):  # the whole in Arrow's format would be a second copy
                file.write_table(pa.Table.from_pandas(table.iloc[start : start + GROUP], types, preserve_index=False))

    seals.write_sealed(path, write_rows, durable)


def _read(path: Path) -> tuple[pd.DataFrame, dict[str, Any], bool]:
    """The table in a file, the fields of its metadata, and whether it is sealed. Raises UserError where there are none."""
    try:
        sealed = bool(seals.seal_of(path))
        if (rows := pq.read_metadata(path).num_rows) > MOST:
            raise UserError(f"{path} has {rows:,} rows, expected at most {MOST:,}")
        found = pq.read_table(path)
        text = (found.schema.metadata or {}).get(METADATA)
        if text is None:
            raise UserError(f"{path} is a parquet file of something else: expected metadata 'robustbench_rkhs'")
        said, table = json_of(text.decode("utf-8"), f"{path}: its metadata", OWN), found.to_pandas()
    except FileNotFoundError:
        raise UserError(f"no verdicts at {path}") from None
    except seals.Damaged as damaged:
        raise UserError(f"cannot read verdicts {damaged}") from None
    except UserError:
        raise
    except Exception as error:  # pyarrow and pandas raise many kinds of errors for foreign bytes
        raise UserError(f"cannot read verdicts {path}: {reason(error)}") from None
    if not isinstance(said, dict):
        raise UserError(f"{path}: expected metadata of named fields, found {type(said).__name__}")
    if not sealed and "format" in said:
        raise seals.Damaged(path, seals.NO_SEAL)
    return table, said, sealed


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    rest = [column for column in COLUMNS if column not in KEY and column != "seconds"]
    order = [*telling(table), *rest, "seconds"] if len(table) else KEY  # what is the same in all rows decides nothing
    return table.sort_values(order, kind="stable", ignore_index=True)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
