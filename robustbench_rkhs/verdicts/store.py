"""One parquet file an evaluation: the table, and in its schema's metadata what it is about."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime.files import write_whole
from robustbench_rkhs.verdicts.about import About
from robustbench_rkhs.verdicts.evaluation import Evaluation
from robustbench_rkhs.verdicts.nearest import Kept, holding, read_kept, write_kept
from robustbench_rkhs.verdicts.parts import Noticed, Part
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verdicts.schema import COLUMNS, KEY, validate

METADATA = b"robustbench_rkhs"
ROWS = 2000
"""Rows that are text at once: as text a table is larger."""


def write(evaluation: Record, path: str | Path) -> Path:
    """One parquet file, whole or absent. Raises UserError for an invalid table, a full disk, no permission."""
    return _write(validate(evaluation.table), evaluation.about.plain(), Path(path))


def read(path: str | Path) -> Evaluation:
    """The evaluation in a file. Raises UserError where it is missing, truncated, foreign or not a table of verdicts."""
    table, said = _read(Path(path))
    try:
        table = validate(table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Evaluation(table, About.read(said, str(path)), path=Path(path))


def write_part(part: Part, path: Path) -> None:
    """A part of an evaluation under way; its adversarial images, where it has any, first, in a file beside it.

    Its rows are checked when they are merged: a check takes longer than many attacks.
    """
    if part.kept is not None and len(part.kept.images):
        write_kept(part.kept, part.table, path.with_suffix(".npz"))
    _write(part.table, part.noticed.model_dump(exclude_unset=True), path)


def read_part(path: Path, images: bool) -> Part:
    """A part; with its adversarial `images` where they are asked for. Raises UserError where they are missing or another's."""
    table, said = _read(path)
    noticed = Noticed.read(said, str(path))
    if not images:
        return Part(table, noticed)
    some = len(holding(table)) > 0
    return Part(table, noticed, read_kept(table, path.with_suffix(".npz")) if some else Kept(np.zeros(0), np.zeros(0, np.int64)))


def read_all(folder: str | Path) -> list[Evaluation]:
    """Every evaluation under a folder, by path; unfinished parts (in folders named `parts`) and hidden files are left out."""
    folder = Path(folder)
    paths = sorted(folder.rglob("*.parquet"))
    inner = [path.relative_to(folder).parts for path in paths]
    kept = [not any(name == "parts" or name.startswith(".") for name in names) for names in inner]
    return [read(path) for path, keep in zip(paths, kept, strict=True) if keep]


def merge(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table in canonical order; rows that differ at most in their seconds are one.

    Raises UserError where two rows of one key disagree, or one index names two images.
    """
    filled = [table for table in tables if len(table)]
    whole = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame({column: [] for column in COLUMNS})
    said = [column for column in whole.columns if column != "seconds"]
    table = _sorted(validate(whole.drop_duplicates(said)))
    image = ["data", "split", "index"]
    named = table[[*image, "label", "input_sha256"]].drop_duplicates()
    twice = named[named.duplicated(image)]
    if len(twice):
        raise UserError(f"image {twice['index'].iloc[0]} stands for two different images or labels: expected one data set")
    return table


def digest(table: pd.DataFrame) -> str:
    """sha256 of the table in hex; row order and `seconds` play no part."""
    kept, sha = _sorted(table[COLUMNS]).drop(columns="seconds"), hashlib.sha256()
    for start in range(0, max(len(kept), 1), ROWS):
        sha.update(kept.iloc[start : start + ROWS].to_csv(index=False, header=start == 0, lineterminator="\n").encode())
    return sha.hexdigest()


def _write(table: pd.DataFrame, said: dict[str, Any], path: Path) -> Path:
    """A table with named fields in its metadata, as JSON."""
    whole = pa.Table.from_pandas(table, preserve_index=False)
    text = json.dumps(said, sort_keys=True, default=_plain)
    whole = whole.replace_schema_metadata({**(whole.schema.metadata or {}), METADATA: text.encode()})
    write_whole(path, lambda temporary: pq.write_table(whole, temporary, compression="zstd"))
    return path


def _read(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table in a file and the fields of its metadata. Raises UserError where there are none."""
    try:
        found = pq.read_table(path)
        text = (found.schema.metadata or {}).get(METADATA)
        if text is None:
            raise UserError(f"{path} is a parquet file of something else: expected metadata 'robustbench_rkhs'")
        said, table = json.loads(text), found.to_pandas()
    except FileNotFoundError:
        raise UserError(f"no verdicts at {path}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"cannot read verdicts {path}: {reason(error)}") from None
    if not isinstance(said, dict):
        raise UserError(f"{path}: expected metadata of named fields, found {type(said).__name__}")
    return table, said


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    rest = [column for column in COLUMNS if column not in KEY and column != "seconds"]
    return table.sort_values([*KEY, *rest, "seconds"], kind="stable", ignore_index=True)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
