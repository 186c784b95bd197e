"""Reader of a proof's two files, proof.json and proof.npz, which are untrusted input.

proof.json: text whose `digest` is the sha256 of the file itself with 64 zeros in the digest's place; `npz` names the size and
sha256 of proof.npz, `arrays` those of each array in it. proof.npz: plain arrays, stored and not compressed, never pickled.
Numbers may be stored as float16 or float32 where that loses nothing; they count as float64.
"""

import hashlib
import io
import json
import math
import tokenize
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .operations import Malformed, Shape, expected, reason

FORMAT, VERSION = "robustbench_rkhs proof", 2
LARGEST = 2**33
"""Largest file in bytes that is read."""
LONGEST = 2**23
"""Largest proof.json in bytes that is read: about 100,000 images."""
UNREADABLE = (
    *(ValueError, TypeError, OSError, KeyError, EOFError, SyntaxError, OverflowError, MemoryError),
    *(RecursionError, NotImplementedError, tokenize.TokenError, zipfile.BadZipFile),
)
"""Exceptions that NumPy and zipfile raise on malformed input."""
TYPES = ("<f2", "<f4", "<f8", "<i8")
KEYS = {
    *("digest", "format", "version", "model", "weights", "data", "preprocessing", "norm", "epsilons", "shape", "classes"),
    *("npz", "arrays", "layers", "images", "certificates", "adversarial", "made_by"),
}


OPTIONAL = {"function", "box"}
"""Identity of the network's function: its key, and its logits on eight fixed images. `box`: `unit` where radii are about images in
[0, 1] alone."""


class Rejected(Exception):
    """A well-formed proof that is false, or was changed after it was written."""


@dataclass(frozen=True)
class Proof:
    """The contents of a proof, after all digests were checked."""

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]
    shape: Shape
    classes: int

    def numbers(self, name: Any, *shape: int | None) -> np.ndarray:
        """An array as float64, of this shape where given."""
        array = self.array(name, *shape)
        expected(array.dtype.kind == "f", f"array {name!r} holds {array.dtype}, expected numbers")
        return array.astype(np.float64)

    def array(self, name: Any, *shape: int | None) -> np.ndarray:
        """An array as stored, of this shape where given."""
        expected(isinstance(name, str) and name in self.arrays, f"there is no array {name!r}")
        array = self.arrays[name]
        fits = not shape or (array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True)))
        expected(fits, f"array {name!r} has shape {array.shape}, expected {shape}")
        return array


def read(folder: Path) -> Proof:
    """The proof in a folder. Raises Malformed if it is not a proof, Rejected if a digest does not match."""
    if not folder.is_dir():
        raise Malformed(
            "there is no such file or folder" if not folder.exists() else "expected the folder of a proof, found a file"
        )
    if (folder / "model.safetensors").is_file() and not (folder / "proof.json").exists():
        raise Malformed("this is a checkpoint, not a proof (rkhs-eval --model CHECKPOINT --eps EPS --certificate FOLDER writes it)")
    text = _bytes(folder / "proof.json", LONGEST)
    try:
        about = json.loads(text.decode("utf-8"), parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"proof.json is not JSON: {reason(error)}") from None
    expected(isinstance(about, dict) and about.get("format") == FORMAT, f"proof.json is not a {FORMAT!r}")
    expected(about.get("version") == VERSION, f"expected version {VERSION}, found {about.get('version')!r}")
    digest = about.get("digest")
    if not isinstance(digest, str) or digest != digest_of(text, digest):
        raise Rejected("proof.json was changed: its digest does not fit")
    expected(KEYS <= set(about) <= KEYS | OPTIONAL, f"expected the keys {sorted(KEYS)}, found {sorted(about)}")
    said = about["npz"].get("bytes") if isinstance(about["npz"], dict) else None
    stored = _bytes(folder / "proof.npz", LARGEST, said)
    if about["npz"] != {"bytes": len(stored), "sha256": hashlib.sha256(stored).hexdigest()}:
        raise Rejected("proof.npz was changed: its sha256 does not fit")
    shape, classes = shape_of(about["shape"]), whole(about["classes"], "classes")
    expected(classes >= 2, f"expected two classes or more, found {classes}")
    return Proof(about, _arrays(stored, about["arrays"]), shape, classes)


def digest_of(text: bytes, digest: str) -> str:
    """sha256 of the file with zeros in place of its own digest."""
    return hashlib.sha256(text.replace(digest.encode(), b"0" * 64, 1)).hexdigest()


def array_digest(array: np.ndarray) -> str:
    """sha256 over type, shape and bytes."""
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def shape_of(value: Any) -> Shape:
    """A shape: a list of one to three positive whole numbers."""
    expected(isinstance(value, list) and 1 <= len(value) <= 3, f"expected a shape, found {value!r}")
    return tuple(whole(side, "a side", 1) for side in value)


def whole(value: Any, name: str, least: int = 0) -> int:
    """A whole number of at least `least`."""
    fine = isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31
    expected(fine, f"expected {name} to be a whole number of at least {least}, found {value!r}")
    return int(value)


def number(value: Any, name: str) -> float:
    """A finite number."""
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    expected(fine, f"expected {name} to be a finite number, found {value!r}")
    return float(value)


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def _bytes(path: Path, most: int, said: int | None = None) -> bytes:
    """The bytes of a file. Raises Malformed beyond `most` bytes, Rejected if its size is not the stated one."""
    try:
        size = path.stat().st_size
        expected(size <= most, f"{path.name} is larger than {most} bytes")
        if said is not None and said != size:
            raise Rejected(f"{path.name} was changed: it has {size} bytes, not {str(said)[:20]}")
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise Malformed(f"cannot read {path}: {error.strerror}") from None


def _arrays(stored: bytes, table: Any) -> dict[str, np.ndarray]:
    expected(isinstance(table, dict), "arrays is not a mapping")
    try:
        with zipfile.ZipFile(io.BytesIO(stored)) as archive:
            members = archive.infolist()
            plain = all(member.compress_type == zipfile.ZIP_STORED and member.file_size <= len(stored) for member in members)
            expected(plain, "proof.npz is compressed")
            expected(sorted(member.filename for member in members) == sorted(f"{name}.npy" for name in table), "arrays are missing")
        with np.load(io.BytesIO(stored), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in table}
    except UNREADABLE as error:
        raise Malformed(f"proof.npz is not readable: {reason(error)}") from None
    for name, array in arrays.items():
        expected(array.dtype.str in TYPES, f"array {name!r} has type {array.dtype}")
        row = table[name]
        expected(isinstance(row, dict) and set(row) == {"sha256", "tensor"}, f"array {name!r}: expected its sha256 and tensor")
        if row["sha256"] != array_digest(array):
            raise Rejected(f"array {name!r} was changed: its sha256 does not fit")
    return arrays
