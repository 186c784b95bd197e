"""Flipped bits: one bit of one stored file, then the file is read; the same value, or a refusal in one line, is right."""

import hashlib
import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from fault_counts import Counts

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.row_cache import RowCache
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.runtime.seals import SetAside
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.verifier.check import verify
from robustbench_rkhs.verifier.operations import Malformed
from robustbench_rkhs.verifier.proof import Rejected

Read = Callable[[Path], str]
"""What a folder's file says, as text; raises UserError where it refuses it."""
ABSENT = "set aside"
"""What a reader says of a file that it put away, to be made again."""


@dataclass(frozen=True)
class Kind:
    """A kind of file, where one stands in the stage, and how it is read."""

    name: str
    folder: str
    """What is copied for a try, of the stage."""
    file: str
    """Pattern of the file inside it."""
    read: Read
    """From the copied folder."""


def table(folder: Path) -> str:
    found = verdicts.read(next(folder.rglob("l2-*.parquet")))
    return verdicts.digest(found.table) + json.dumps(found.about.plain(), sort_keys=True, default=str)


def parts(folder: Path) -> str:
    """The rows that a second run of the evaluation would find in the cache; damaged ones are made again."""
    said = []
    for job in sorted({path.parent for path in folder.glob("*/*.parquet")}):
        RowCache(job)  # sets damaged ones aside
        for path in job.glob("*.parquet"):
            said += verdicts.read_part(path, images=False).table.drop(columns="seconds").to_csv(header=False).splitlines()
    return "\n".join(sorted(said)) or ABSENT


def folder_of_weights(folder: Path) -> str:
    loaded = checkpoint.load(folder)
    logits = loaded.model(torch.zeros(1, *loaded.config["shape"]).add(0.5)).tolist()
    return (
        weights_digest(loaded.model.state_dict()) + loaded.recipe.yaml() + json.dumps(loaded.config, sort_keys=True) + str(logits)
    )


def adversarials(folder: Path) -> str:
    stored = verdicts.read_adversarials(folder / "found.npz")
    sha = hashlib.sha256(str(stored.about).encode())
    for name, array in stored.arrays.items():
        sha.update(name.encode() + array.tobytes())
    return sha.hexdigest()


def proof(folder: Path) -> str:
    return json.dumps(verify(next(folder.rglob("proof.json")).parent), sort_keys=True, default=str)


KINDS = [
    Kind("verdict table", "reports/verdicts/tiny", "l2-*.parquet", table),
    Kind("part", "reports/verdicts/tiny/parts", "*/*.parquet", parts),
    Kind("weights", "theirs", "model.safetensors", folder_of_weights),
    Kind("config", "theirs", "config.json", folder_of_weights),
    Kind("recipe", "theirs", "recipe.yaml", folder_of_weights),
    Kind("adversarial images", "found.npz", "found.npz", adversarials),
    Kind("proof", "proofs", "**/proof.npz", proof),
    Kind("proof's claims", "proofs", "**/proof.json", proof),
]


def flips(stage: Path, scratch: Path, count: int, seed: int, only: str | None = None) -> Counts:
    """`count` flips, shared among the kinds by turns."""
    draw, counts = random.Random(seed), Counts()
    warnings.simplefilter("ignore", SetAside)
    chosen = [kind for kind in KINDS if only in (None, kind.name)]
    for turn in range(count):
        kind = chosen[turn % len(chosen)]
        place = scratch / "flip"
        shutil.rmtree(place, ignore_errors=True)
        source = stage / kind.folder
        if source.is_dir():
            shutil.copytree(source, place)
        else:
            place.mkdir()
            shutil.copy2(source, place / source.name)
        wanted = kind.read(place)
        path = draw.choice(sorted(place.glob(kind.file)))
        content = bytearray(path.read_bytes())
        bit = draw.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        counts.tried[kind.name] += 1
        where = f"{kind.name}, bit {bit} of {path.name}, turn {turn}, seed {seed}"
        try:
            got = kind.read(place)
        except (UserError, Malformed, Rejected) as refusal:
            counts.fault("tracebacks", f"{where}: a refusal of several lines", "\n" in str(refusal))
            continue
        except Exception as error:
            counts.fault("tracebacks", f"{where}: {type(error).__name__}: {error}")
            continue
        rows = set(wanted.splitlines())
        if got not in (wanted, ABSENT) and not (kind.read is parts and set(got.splitlines()) <= rows):
            counts.fault("silently_changed", where)
    return counts
