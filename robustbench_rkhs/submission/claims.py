"""A sender's own table, read without trust and compared with what was found here on a random sample of its images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from scipy.special import bdtr
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.data import Split
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.identity import identity_of
from robustbench_rkhs.nodes.guard import guarded
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.radius_text import radius_text
from robustbench_rkhs.verdicts import COLUMNS, Evaluation
from robustbench_rkhs.verdicts.image_states import Evidence
from robustbench_rkhs.verdicts.store import METADATA

ROWS, BYTES, ABOUT = 2_000_000, 1 << 30, 16 << 20
"""Most rows of a sender's table, bytes of it in memory, and bytes of what it says of itself."""
SLACK = 0.02
"""Share of the sample that may be classified otherwise: devices round differently, and at least one image may be."""
UNPROVED = 0.1
"""Share of the sample whose proofs may not be repeated: a portfolio leaves out other certificates after another pilot."""
RARE = 1e-3
"""Probability, under a fair coin for each image that only one of the two tables calls robust, below which a table overstates."""


@dataclass(frozen=True)
class Compared:
    """What the sample says of the sender's table."""

    lines: tuple[str, ...]
    reason: str
    """Why the table claims more than is true; empty where it does not."""


def read_claims(path: Path, weights: str, key: str, data_digest: str) -> Evaluation:
    """The sender's table of this model and data. Raises UserError for one that is too large, damaged, unsound or of something else.

    Sizes are checked before anything of that size is taken: rows, columns and text, as they will be in memory.
    """
    with guarded(path):
        _check_size(path)
        found = verdicts.read(path)
    about = found.about
    if not found.sealed:
        raise UserError(f"{path}: the sender's table is not sealed")
    if (about.weights, about.key) != (weights, key):
        said = f"weights {about.weights[:12]}, function {about.key[:12] or 'unknown'}"
        raise UserError(f"{path}: the sender's table is of another model: {said}; sent were {weights[:12]}, {key[:12]}")
    if about.data_digest != data_digest:
        raise UserError(f"{path}: the sender's table is of data {about.data_digest[:12]}, ours are {data_digest[:12]}")
    broken = verdicts.breaches(found)
    if len(broken):
        raise UserError(
            f"{path}: the sender's own table contradicts itself on {len(broken)} images, first {broken.iloc[0].to_dict()}"
        )
    return found


def evaluate_sample(
    table: Path, count: int, seed: int, model: nn.Module, test: Split, recipe: EvalRecipe, **where: Any
) -> tuple[Evaluation, Compared]:
    """The evaluation of a random sample of the images that the sender's table speaks of, and what it says of that table.

    where: further arguments of `evaluate`. Raises UserError where the table is not of this model, or claims more than is true; an
    evaluation that did not end is not compared.
    """
    identity = identity_of(model, test.shape)
    claims = read_claims(table, identity.weights, identity.key, test.digest)
    index = drawn(claims, count, seed, test.index.numpy())
    chosen = test.take(torch.isin(test.index, torch.from_numpy(index)).nonzero().flatten())
    done = evaluate(model, chosen, recipe, **where)
    found = compared(done, claims) if done.about.complete else Compared((), "")
    if found.reason:
        raise UserError(f"the sender's table claims more than is true: {found.reason}")
    return done, found


def drawn(claims: Evaluation, sample: int, seed: int, available: np.ndarray) -> np.ndarray:
    """Indices of a random sample of the images that the sender's table speaks of. Raises UserError for one that is not there."""
    index = np.unique(claims.table["index"].to_numpy())
    unknown = np.setdiff1d(index, available)
    if len(unknown):
        raise UserError(f"the sender's table speaks of image {unknown[0]}, which the data set does not have")
    if not len(index):
        raise UserError("the sender's table speaks of no image")
    return np.sort(np.random.default_rng(seed).choice(index, min(sample, len(index)), replace=False))


def compared(ours: Evaluation, theirs: Evaluation) -> Compared:
    """What the sender's table says of the images of ours, at the radii of ours.

    It claims more than is true where an image is another than the data set's, a certified radius is contradicted by an adversarial
    image, more than SLACK of the images are classified otherwise, or more than UNPROVED of them not proved by the same
    certificates; and where attacks here break so many of the images that it calls robust, and so few the other way, that chance
    explains it with at most RARE.
    """
    about, said = ours.about, theirs.about
    if (said.norm, said.box) != (about.norm, about.box):
        return Compared((), f"it is of {said.norm}, box {said.box}, evaluated was {about.norm}, box {about.box}")
    if missing := [about.words(eps) for eps in about.epsilons if eps not in said.epsilons]:
        return Compared((), f"it says nothing of eps {', '.join(missing)}")
    part = theirs.table[theirs.table["index"].isin(ours.table["index"].unique())]
    theirs = Evaluation(part.reset_index(drop=True), said)
    if reason := _other_images(ours, theirs):
        return Compared((), reason)
    own, claim = Evidence.of(ours), Evidence.of(theirs)
    if list(own.index) != list(claim.index):
        return Compared((), "it lacks a prediction of an image of the sample")
    most = max(1, int(SLACK * len(own.index)))
    other = int((own.correct != claim.correct).sum())
    if other > most:
        return Compared((), f"{other} of {len(own.index)} images are classified otherwise here than it says")
    false = np.flatnonzero(claim.correct & (claim.certified > 0) & (claim.certified >= own.broken))
    if len(false):
        at = false[0]
        found = f"certified up to {claim.certified[at]:.6g}, an adversarial image is at {own.broken[at]:.6g}"
        return Compared((), f"{len(false)} of its certified radii are false, first image {own.index[at]}: {found}")
    lines, reasons = [f"sender's table on these images: {other} classified otherwise"], list[str]()
    for eps in about.epsilons:
        line, reason = _at(eps, own, claim, radius_text(eps))
        lines.append(line)
        reasons += [reason] if reason else []
    return Compared(tuple(lines), "; ".join(reasons))


def _at(eps: float, own: Evidence, claim: Evidence, word: str) -> tuple[str, str]:
    """A line on the two tables at one eps, and why the sender's claims too much."""
    ours, theirs = own.states(eps)["state"].to_numpy(), claim.states(eps)["state"].to_numpy()
    robust = ("certified", "survived")
    fell = int((np.isin(theirs, robust) & (ours == "broken")).sum())
    held = int((np.isin(ours, robust) & (theirs == "broken")).sum())
    unproved = int(((theirs == "certified") & (ours != "certified")).sum())
    line = f"sender's table at {word}: {fell} that it calls robust are broken here, {held} the other way"
    line += f", {unproved} of its proofs not repeated"
    if unproved > max(1, UNPROVED * len(ours)):
        return (
            line,
            f"at {word}, {unproved} of {int((theirs == 'certified').sum())} images that it calls certified are not proved here",
        )
    chance = float(bdtr(held, fell + held, 0.5)) if fell else 1.0
    if chance <= RARE:
        total = int(np.isin(theirs, robust).sum())
        return line, f"at {word}, {fell} of {total} images that it calls robust are broken here, {held} the other way"
    return line, ""


def _other_images(ours: Evaluation, theirs: Evaluation) -> str:
    columns = ["index", "label", "input_sha256"]
    one, other = (frame.table[columns].drop_duplicates().sort_values("index", ignore_index=True) for frame in (ours, theirs))
    if len(one) == len(other) and (one == other).to_numpy().all():
        return ""
    return "its images or labels are not those of the data set"


def _check_size(path: Path) -> None:
    """Raises UserError for a table that takes more memory than a table may, before it is read into it."""
    with pq.ParquetFile(path) as file:
        about, schema = file.metadata, file.schema_arrow
        unknown = sorted(set(schema.names) - set(COLUMNS))
        if unknown or len(schema.names) > len(COLUMNS):
            raise UserError(f"{path}: unexpected column {str((unknown or schema.names)[0])[:40]!r}")
        if about.num_rows > ROWS:
            raise UserError(f"{path} has {about.num_rows:,} rows, expected at most {ROWS:,}")
        if len((about.metadata or {}).get(METADATA, b"")) > ABOUT:
            raise UserError(f"{path} says more of itself than {ABOUT:,} bytes")
        stored = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
        if stored > BYTES:
            raise UserError(f"{path} holds {stored:,} bytes unpacked, expected at most {BYTES:,}")
        texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
        plain = (pa.types.is_integer, pa.types.is_floating)
        if others := [one.name for one in schema if one.name not in texts and not any(kind(one.type) for kind in plain)]:
            raise UserError(f"{path}: column {others[0]!r} holds neither text nor numbers")
    size = sum(_text_bytes(path, name) for name in texts)
    if size > BYTES:
        raise UserError(f"{path} holds {size:,} bytes of text, expected at most {BYTES:,}")


def _text_bytes(path: Path, name: str) -> int:
    """Bytes of a column of text, each row's text counted, though equal ones are held once here."""
    found = pq.read_table(path, columns=[name], read_dictionary=[name]).column(name)
    return sum(int(pc.sum(_lengths(chunk)).as_py() or 0) for chunk in found.chunks)


def _lengths(chunk: pa.DictionaryArray) -> pa.Array:
    return pc.binary_length(chunk.dictionary).take(chunk.indices)
