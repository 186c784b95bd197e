"""Files beside a model: its nearest adversarial images as a picture, certificates and adversarial images, layer tightness."""

import csv
import glob
from dataclasses import dataclass
from pathlib import Path

from robustbench_rkhs.nodes.documents import json_of
from robustbench_rkhs.nodes.limits import OWN, STRANGERS
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.seals import sha256_of
from robustbench_rkhs.site.model_tables import Grid
from robustbench_rkhs.site.site_models import SiteModel
from robustbench_rkhs.verdicts import read_adversarials

LARGEST = 64 << 20
"""Bytes of a file that is offered for download; of larger ones only the command is told."""
PROVED = "rkhs-verify ."
"""In the folder to which both files of a proof were downloaded."""


@dataclass(frozen=True)
class ModelFile:
    """A file about a model, with the command that checks it again."""

    path: Path
    what: str
    check: str


@dataclass(frozen=True)
class ModelFiles:
    """What lies about a function in OUT."""

    files: tuple[ModelFile, ...] = ()
    picture: Path | None = None
    """The nearest adversarial images: original, magnified perturbation, adversarial."""
    tightness: Path | None = None

    @property
    def digests(self) -> list[str]:
        """Digests of the content."""
        paths = [*(one.path for one in self.files), self.picture, self.tightness]
        return [sha256_of(path) for path in paths if path is not None]


class FilesOf:
    """The files of OUT, read once: which belong to which function."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._reports = [path for path in (out / "local" / "tightness", out / "tightness") if path.is_dir()]
        self._adversarials: list[tuple[str, Path]] = []
        for path in sorted((out / "adversarials").glob("*.npz")):
            try:
                header = read_adversarials(path, STRANGERS.model_copy(update={"images": OWN.images})).about
            except UserError:
                continue
            self._adversarials.append((str(header.others.get("key") or header.weights), path))

    def of(self, model: SiteModel) -> ModelFiles:
        """Those of a model."""
        found = [path for key, path in self._adversarials if key == model.key]
        files = [ModelFile(path, "adversarial images", f"rkhs-verify {path.name}") for path in found]
        proof = self.out / "proofs" / model.name
        if (proof / "proof.json").is_file() and self._is_of(proof / "proof.json", model):
            what = "certificate file, of two that belong into one folder"
            files += [ModelFile(path, what, PROVED) for path in (proof / "proof.json", proof / "proof.npz") if path.is_file()]
        shown = [self._beside("pictures", f"nearest-{path.stem}", ".png") for path in found]
        picture = next((path for path in shown if path is not None), None)
        return ModelFiles(tuple(files), picture, self._tightness(model))

    def _is_of(self, path: Path, model: SiteModel) -> bool:
        try:
            said = json_of(path.read_text(), str(path), OWN)
        except (UserError, OSError, ValueError):
            return False
        if not isinstance(said, dict):
            return False
        function = said.get("function")
        key = function.get("key") if isinstance(function, dict) else None
        if key:  # the same weights in another network are another function
            return bool(key == model.key)
        return said.get("weights") in {one.about.weights for one in model.history}

    def _tightness(self, model: SiteModel) -> Path | None:
        for path in (path for folder in self._reports for path in sorted(folder.glob(f"{glob.escape(model.name)}*.csv"))):
            rows = _rows(path)
            if rows and rows[0].get("weights") in {one.about.weights for one in model.history}:
                return path
        return None

    def _beside(self, kind: str, stem: str, suffix: str) -> Path | None:
        paths = (folder / kind / f"{stem}{suffix}" for folder in (self.out / "local", self.out))
        return next((path for path in paths if path.is_file()), None)


def tightness_grid(path: Path | None) -> Grid | None:
    """The layers of a tightness report: proven and empirical Lipschitz bounds."""
    rows = [] if path is None else [row for row in _rows(path) if row.get("row") == "layer"]
    cells = [[row.get("name") or "", *(_short(row.get(key) or "") for key in ("upper", "lower", "ratio"))] for row in rows]
    return (
        Grid.of("Layers: proven Lipschitz bound against the largest slope found", ["layer", "proven", "found", "ratio"], cells)
        if cells
        else None
    )


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as handle:
            return list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _short(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text
