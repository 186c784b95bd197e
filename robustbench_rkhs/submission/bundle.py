"""A bundle: one folder with all that is sent, the content of a pull request. It is read without trust.

submission.yaml     what is sent, under which name, for which norm and eps, and the sha256 of every other file
sender.pub          the sender's public key
signature           of submission.yaml, with that key
verdicts.parquet    the sender's own sealed table
NAME/               a checkpoint: model.safetensors, config.json, recipe.yaml (README.md, metrics.jsonl)
adversarials.npz    or adversarial images of a model that is listed
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.settings import Radius
from robustbench_rkhs.nodes.code_names import SUBMITTED
from robustbench_rkhs.nodes.documents import read_text, yaml_of
from robustbench_rkhs.nodes.guard import guarded
from robustbench_rkhs.nodes.limits import STRANGERS, Limits
from robustbench_rkhs.nodes.node import Node, UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.runtime.seals import sha256_of
from robustbench_rkhs.submission.bundle_names import (
    BESIDE,
    IMAGES,
    MOST,
    NAME,
    OF_MODEL,
    PUBLIC,
    SIGNATURE,
    STATED,
    VERDICTS,
    check_checkpoint,
    is_bundle,
)
from robustbench_rkhs.submission.keys import LARGEST, signer

TABLE = 256 << 20
"""Bytes of the sender's table."""


class Asked(Node):
    """What the sender evaluated: the same is evaluated again."""

    norm: Norm
    eps: Annotated[tuple[Radius, ...], Field(min_length=1, max_length=32)]
    certificates: Annotated[tuple[Any, ...], Field(max_length=32)] = ()


class Stated(Node):
    """submission.yaml."""

    format: Literal[1]
    kind: Literal["checkpoint", "adversarials"]
    name: str
    """The model's."""
    evaluation: Asked | None = None
    """Of a checkpoint."""
    files: Annotated[dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]], Field(max_length=MOST)]
    """sha256 of every file but this one and its signature, by its path in the bundle."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those that its sender signed."""

    path: Path
    stated: Stated
    sender: str
    """sha256 of the sender's public key."""

    @property
    def content(self) -> Path:
        """The checkpoint folder, or the file of adversarial images."""
        return self.path / (self.stated.name if self.stated.kind == "checkpoint" else IMAGES)

    @property
    def verdicts(self) -> Path:
        """The sender's table."""
        return self.path / VERDICTS

    def recipe(self, **settings: Any) -> EvalRecipe:
        """How a checkpoint is evaluated: what the sender asked for, with other settings where given. No code can be named."""
        asked = self.stated.evaluation
        if asked is None:
            raise UserError(f"{self.path / STATED}: evaluation: expected the norm and eps of a checkpoint, found none")
        said = {"norm": asked.norm, "eps": asked.eps, "certificates": asked.certificates}
        return parse(EvalRecipe, {**said, **settings}, f"{self.path / STATED}: evaluation", SUBMITTED)


def read_bundle(path: Path, limits: Limits = STRANGERS) -> Bundle:
    """A bundle, once its files are plain, of allowed names and sizes, and those that its sender signed. Raises UserError.

    Nothing in it is run, unpickled or unpacked. Cost: reads each file once, after all sizes were checked.
    """
    with guarded(f"bundle {str(path)!r}"):
        return _read(path, limits)


def _read(path: Path, limits: Limits) -> Bundle:
    if path.is_symlink() or not path.is_dir():
        raise UserError(f"no bundle {str(path)!r}: expected a folder with {STATED}")
    if not is_bundle(path):
        raise UserError(f"{path} is no bundle: {STATED} is missing; rkhs-submit checkpoint PATH --bundle OUT writes one")
    top = _entries(path, {STATED: limits.text, PUBLIC: LARGEST, SIGNATURE: LARGEST})
    stated = parse(Stated, _mapping(path / STATED, limits), str(path / STATED))
    if not NAME.fullmatch(stated.name):
        raise UserError(f"{path / STATED}: name: expected letters, digits, _ . - (64 at most), found {stated.name[:80]!r}")
    if (stated.kind == "checkpoint") != (stated.evaluation is not None):
        raise UserError(f"{path / STATED}: evaluation: expected for a checkpoint, and for nothing else")
    if missing := [name for name in (PUBLIC, SIGNATURE, VERDICTS) if name not in top]:
        raise UserError(f"{path}: {', '.join(missing)} missing")
    found = {PUBLIC, VERDICTS, *(_of_model(path, stated.name, limits) if stated.kind == "checkpoint" else [IMAGES])}
    known = {STATED, SIGNATURE, *(name.partition("/")[0] for name in found)}
    if unknown := sorted(set(top) - known):
        raise UserError(f"{path}: unexpected {unknown[0][:80]!r}; expected only {', '.join(sorted(known))}")
    if missing := sorted(known - set(top)):
        raise UserError(f"{path}: {', '.join(missing)} missing")
    _plain(path / VERDICTS, min(TABLE, limits.images))
    if stated.kind == "adversarials":
        _plain(path / IMAGES, limits.images)
    if differ := sorted(found ^ set(stated.files)):
        raise UserError(f"{path / STATED}: files: {differ[0][:80]!r} is listed or there, expected both")
    sender = signer((path / STATED).read_bytes(), read_text(path / PUBLIC, limits), read_text(path / SIGNATURE, limits))
    for name, digest in sorted(stated.files.items()):
        if (ours := sha256_of(path / name)) != digest:
            raise UserError(f"{path / name}: its sha256 is {ours[:12]}, {STATED} names {digest[:12]}: it is not what was signed")
    return Bundle(path, stated, sender)


def _mapping(path: Path, limits: Limits) -> dict[str, Any]:
    stored = yaml_of(read_text(path, limits), str(path), limits)
    if not isinstance(stored, dict):
        raise UserError(f"{path}: expected fields, found a {type(stored).__name__}")
    return {str(key): value for key, value in stored.items()}


def _entries(path: Path, most: dict[str, int]) -> list[str]:
    """The names in a folder, those of `most` being plain files of at most so many bytes."""
    names = sorted(entry.name for entry in islice(path.iterdir(), MOST + 1))
    if len(names) > MOST:
        raise UserError(f"{path} holds more than {MOST} files")
    for name in names:
        if name in most:
            _plain(path / name, most[name])
    return names


def _plain(path: Path, most: int) -> None:
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{path} is not a plain file")
    if (size := path.stat().st_size) > most:
        raise UserError(f"{path} has {size:,} bytes, expected at most {most:,}")


def _of_model(path: Path, name: str, limits: Limits) -> list[str]:
    """The files of the checkpoint, by their path in the bundle."""
    folder = path / name
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{path}: expected the checkpoint in a folder {name!r}, as {STATED} names it")
    names = _entries(folder, {})
    check_checkpoint(names, str(folder), OF_MODEL | BESIDE)
    for one in names:
        _plain(folder / one, limits.weights if one == "model.safetensors" else max(limits.text, 16 << 20))
    return [f"{name}/{one}" for one in names]
