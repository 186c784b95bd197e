"""Files of adversarial images: one .npz of plain arrays, saved by evaluations or submitted by anyone; read without trust."""

import json
import re
import tokenize
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_rkhs.nodes.documents import json_of
from robustbench_rkhs.nodes.limits import OWN, STRANGERS, Limits
from robustbench_rkhs.nodes.missing import missing as missing_file
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason as reason_of
from robustbench_rkhs.runtime.seals import Damaged, seal_of, write_archive

FORMAT, VERSION = "robustbench_rkhs adversarials", 1
MOST_BITS = 16
"""Most bits a pixel that images are rounded to."""
PIECE = 1 << 22
"""Bytes per read."""
TYPES = {
    "index": ("<i8",),
    "images": ("<f4", "<f8"),
    "label": ("<i8",),
    "predicted": ("<i8",),
    "predicted_adversarial": ("<i8",),
    "distance_l2": ("<f8",),
    "distance_linf": ("<f8",),
    "method": ("<U",),
    "input_sha256": ("<U",),
    "header": ("|u1",),
}
"""The arrays of a file with their types; all but `header` have one entry per image."""
OPTIONAL = {"bits": ("<i8",)}
"""Arrays that a file need not have."""
WORDS = ("model", "weights", "data", "split", "data_digest", "date", "command")
"""What the header says in words."""
UNREADABLE = (
    *(ValueError, TypeError, OSError, KeyError, EOFError, SyntaxError, OverflowError, MemoryError),
    *(RecursionError, NotImplementedError, tokenize.TokenError, RuntimeError, zipfile.BadZipFile),
)
"""Exceptions of NumPy and zipfile for foreign bytes."""


@dataclass(frozen=True)
class Header:
    """The header of a file of adversarial images: the model, data and threat model that it names."""

    model: str
    weights: str
    """Digest of the weights."""
    data: str
    split: str
    data_digest: str
    norm: str
    """`l2` or `linf`."""
    box: str
    """`unit` or `none`."""
    date: str
    command: str
    versions: Mapping[str, Any]
    others: Mapping[str, Any]
    """Fields that a file need not have: `key` of the model's function, `smoothed`, `samples`, and those of other versions."""

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "Header":
        """The header in a mapping. Raises ValueError naming the first fault."""
        if fault := _header_fault(fields):
            raise ValueError(fault)
        known = (*WORDS, "norm", "box", "versions")
        others = {name: value for name, value in fields.items() if name not in known}
        return cls(**{name: fields[name] for name in known}, others=others)

    def plain(self) -> dict[str, Any]:
        """As a JSON value: the fields as they were read."""
        return {name: getattr(self, name) for name in (*WORDS, "norm", "box", "versions")} | dict(self.others)


@dataclass(frozen=True)
class Adversarials:
    """One adversarial image for each of some images of a data set, with claims about it. Made by `checked`."""

    about: Header
    index: np.ndarray
    """Position of the clean image in the original arrays."""
    images: np.ndarray
    """(count, *shape), exactly as queried: float32, or float64 for float64 data."""
    label: np.ndarray
    predicted: np.ndarray
    """Predicted class of the clean image."""
    predicted_adversarial: np.ndarray
    """Predicted class of the adversarial image; -1 where the logits are not finite."""
    distance_l2: np.ndarray
    distance_linf: np.ndarray
    method: np.ndarray
    """The attack that found it; `clean` for an image that is misclassified without attack, at distance 0."""
    input_sha256: np.ndarray
    """sha256 of the clean image's bytes."""
    bits: np.ndarray | None = None
    """Per image: its pixels are k / (2^bits - 1), so that a file of that many bits a pixel holds it; 0 where they are floats, as no
    rounding of them was found to be adversarial. None where nobody asked."""

    @classmethod
    def checked(cls, about: Mapping[str, Any], arrays: dict[str, np.ndarray], where: str = "these arrays") -> "Adversarials":
        """The images, after every check that needs neither data nor model. Raises UserError naming the first fault."""
        try:
            header = Header.read(about)
        except ValueError as fault:
            raise UserError(f"{where}: not a file of adversarial images: {fault}") from None
        if found := _arrays_fault(arrays):
            raise UserError(f"{where}: not a file of adversarial images: {found}")
        return cls(header, **arrays)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, without the header."""
        held = {name: getattr(self, name) for name in (*TYPES, *OPTIONAL) if name != "header"}
        return {name: array for name, array in held.items() if array is not None}

    @property
    def distance(self) -> np.ndarray:
        """Claimed distances in the norm of the header."""
        return self.distance_l2 if self.about.norm == "l2" else self.distance_linf


def write_adversarials(stored: Adversarials, path: str | Path) -> Path:
    """Writes the file, sealed and atomically; the same images give the same bytes. Raises UserError where not writable."""
    about = {"format": FORMAT, "version": VERSION} | stored.about.plain()
    header = np.frombuffer(json.dumps(about, sort_keys=True).encode(), dtype=np.uint8)
    write_arrays(Path(path), {**stored.arrays, "header": header})
    return Path(path)


def read_adversarials(path: str | Path, limits: Limits = STRANGERS) -> Adversarials:
    """The images in a file; nothing is unpickled. Raises UserError, in one line, for another kind of file or beyond the limits.

    Names, types and shapes are checked before the images are read, and images are checked to be finite before they are kept.
    """
    path = Path(path)
    arrays = read_arrays(path, TYPES, "a file of adversarial images", limits, _shapes_fault, OPTIONAL)
    header = arrays.pop("header").tobytes().decode("utf-8", "replace")
    about = json_of(header, f"{path}: not a file of adversarial images: its header", limits)
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("version") != VERSION:
        raise UserError(f"{path}: not a file of adversarial images: expected a header of format {FORMAT!r}, version {VERSION}")
    return Adversarials.checked({key: value for key, value in about.items() if key not in ("format", "version")}, arrays, str(path))


def check_kind(path: Path) -> None:
    """Raises UserError where a .npz archive holds none of the arrays of such a file, by the names alone: a data set, say."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy")[:40] for name in archive.namelist()]
    except UNREADABLE:
        return  # `read_adversarials` says why
    if "header" not in names:
        found, more = ", ".join(names[:8]) or "none", " ..." if len(names) > 8 else ""
        raise UserError(f"{path}: expected adversarial images (of rkhs-eval --save-adversarials), found the arrays {found}{more}")


def write_arrays(path: Path, arrays: dict[str, np.ndarray], durable: bool = True) -> str:
    """Writes plain arrays as an uncompressed .npz, sealed and atomically. Returns its seal."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            np.savez(handle, allow_pickle=False, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})

    return write_archive(path, write, durable)


def read_arrays(
    path: Path,
    types: dict[str, tuple[str, ...]],
    what: str,
    limits: Limits = OWN,
    fault: Callable[[Mapping[str, tuple[int, ...]]], str | None] = lambda shapes: None,
    optional: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, np.ndarray]:
    """Exactly these arrays of an uncompressed .npz and any of the optional ones, each of one of its types, with headers checked
    before the data are loaded.

    `fault`: returns a problem with the shapes in the headers, or None. Raises UserError where the file is missing,
    truncated, compressed, pickled, or lacks an array, or where an array is not finite.
    """
    known = types | dict(optional or {})
    try:
        if path.stat().st_size > limits.images:
            raise UserError(f"{path}: not {what}: larger than {limits.images:,} bytes")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename.removesuffix(".npy") for member in members]
            missing = [name for name in types if name not in names]
            unknown = sorted({name for name in names if name not in known or names.count(name) > 1})
            if missing or unknown:
                faults = [f"{word} {', '.join(found)}" for word, found in (("missing", missing), ("unexpected", unknown)) if found]
                raise UserError(f"{path}: not {what}: arrays {'; '.join(faults)[:200]}")
            told = {name: _told(archive, member, known[name]) for name, member in zip(names, members, strict=True)}
            if wrong := fault({name: one.shape for name, one in told.items()}):
                raise UserError(f"{path}: not {what}: {wrong}")
            arrays = {name: one.read(archive) for name, one in told.items()}
        seal_of(path)
        return arrays
    except FileNotFoundError:
        raise missing_file("file", str(path)) from None
    except Damaged as damaged:
        raise UserError(f"{path}: not {what}: {damaged.fault}") from None
    except UNREADABLE as error:
        reason = reason_of(error)
        raise UserError(f"{path}: not {what}: {reason}") from None


@dataclass(frozen=True)
class _Told:
    """The header of an array, consistent with its size; the data are not read yet."""

    member: zipfile.ZipInfo
    begin: int
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    def read(self, archive: zipfile.ZipFile) -> np.ndarray:
        """The array. Raises ValueError where a number in it is NaN or infinite."""
        if self.dtype.kind == "f":
            for piece in self._pieces(archive):
                if not np.isfinite(np.frombuffer(piece, self.dtype)).all():
                    raise ValueError(f"array {self.member.filename.removesuffix('.npy')!r} holds NaN or infinity")
        stored = b"".join(self._pieces(archive))
        return np.frombuffer(stored, self.dtype).reshape(self.shape, order="F" if self.fortran else "C")

    def _pieces(self, archive: zipfile.ZipFile) -> Iterator[bytes]:
        with archive.open(self.member) as handle:
            handle.seek(self.begin)
            while piece := handle.read(PIECE):
                yield piece


def _told(archive: zipfile.ZipFile, member: zipfile.ZipInfo, types: tuple[str, ...]) -> _Told:
    """The header of one array. Raises ValueError."""
    name = member.filename.removesuffix(".npy")
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise ValueError(f"array {name!r} is compressed, expected it stored (np.savez)")
    with archive.open(member) as handle:
        version = np.lib.format.read_magic(handle)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"array {name!r} is of NumPy format {version}, expected 1.0 or 2.0")
        shape, fortran, dtype = readers[version](handle)
        if dtype.hasobject or not any(dtype.str.startswith(one) if one == "<U" else dtype.str == one for one in types):
            raise ValueError(f"array {name!r} holds {dtype}, expected {' or '.join(types)}")
        begin, entries = handle.tell(), int(prod(list(shape)))
    if len(shape) > 8 or any(side < 0 for side in shape) or member.file_size - begin != entries * dtype.itemsize:
        raise ValueError(f"array {name!r} of shape {str(shape)[:80]} has {member.file_size - begin} bytes")
    if not dtype.itemsize and entries:
        raise ValueError(f"array {name!r} of {entries:,} entries holds no bytes")
    return _Told(member, begin, shape, fortran, dtype)


def _shapes_fault(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first problem with the shapes of a file's arrays, or None."""
    for name, shape in {"index": shapes["index"], **shapes}.items():
        sides = (2, 3, 4) if name == "images" else (1,)
        if len(shape) not in sides:
            return f"{name} has shape {shape}"
        if name != "header" and shape[0] != shapes["index"][0]:
            return f"{name} has {shape[0]} entries, index {shapes['index'][0]}"
    return None


def _header_fault(about: Mapping[str, Any]) -> str | None:
    lacking = [key for key in (*WORDS, "norm", "box", "versions") if key not in about]
    if lacking:
        return f"the header does not say its {', '.join(lacking)}"
    worded = [key for key in WORDS if not isinstance(about[key], str) or len(about[key]) > 10_000]
    if worded or not isinstance(about["versions"], dict):
        return f"the header's {worded[0] if worded else 'versions'} is no {'word' if worded else 'mapping'}"
    if about["norm"] not in ("l2", "linf") or about["box"] not in ("unit", "none"):
        return f"expected norm l2 or linf and box unit or none, found {str(about['norm'])[:20]!r} and {str(about['box'])[:20]!r}"
    return None


def _arrays_fault(arrays: dict[str, np.ndarray]) -> str | None:
    """The first problem, or None. Comparisons are written so that NaN fails them."""
    if set(arrays) - set(OPTIONAL) != set(TYPES) - {"header"}:
        return f"expected the arrays {', '.join(TYPES)}"
    count = len(arrays["index"]) if arrays["index"].ndim == 1 else -1
    for name, array in arrays.items():
        kinds = (TYPES | OPTIONAL)[name]
        if not any(array.dtype.str.startswith(one) if one == "<U" else array.dtype.str == one for one in kinds):
            return f"{name} holds {array.dtype}, expected {' or '.join(kinds)}"
        if array.ndim not in ((2, 3, 4) if name == "images" else (1,)):
            return f"{name} has shape {array.shape}"
        if len(array) != count:
            return f"{name} has {len(array)} entries, index {count}"
    if len(np.unique(arrays["index"])) < count:
        return "an index stands twice"
    for name, least in (("index", 0), ("label", 0), ("predicted", 0), ("predicted_adversarial", -1)):
        if not (arrays[name] >= least).all():
            return f"{name} holds {arrays[name].min()}"
    if "bits" in arrays and (off := off_grid(arrays["images"], arrays["bits"])).any():
        return f"bits says that pixels are k / (2^bits - 1), but those of image {arrays['index'][off][0]} are not"
    if not np.isfinite(arrays["images"]).all():
        bad = ~np.isfinite(arrays["images"].reshape(count, -1)).all(1)
        return f"{int(bad.sum())} images hold NaN or infinity, the first of index {arrays['index'][bad][0]}"
    for name in ("distance_l2", "distance_linf"):
        if not (np.isfinite(arrays[name]) & (arrays[name] >= 0)).all():
            return f"{name} holds NaN, infinity or a negative number"
    if not all(re.fullmatch("[0-9a-f]{64}", sha) for sha in arrays["input_sha256"].tolist()):
        return "input_sha256 holds something else than 64 hexadecimal digits"
    if not all(1 <= len(name) <= 200 and name.isprintable() for name in arrays["method"].tolist()):
        return "method holds something else than 1 to 200 printable characters"
    return None


def off_grid(images: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Which images do not lie on the grid that their entry of `bits` names; 0 names none."""
    off = ~((bits >= 0) & (bits <= MOST_BITS))
    for depth in sorted(set(bits[~off].tolist()) - {0}):
        rows, levels = bits == depth, images.dtype.type(2**depth - 1)
        snapped = (images[rows].astype(np.float64) * float(levels)).round().astype(images.dtype) / levels
        off[rows] |= (snapped != images[rows]).reshape(int(rows.sum()), -1).any(1)
    return off
