"""What is claimed elsewhere: entries in the form of RobustBench's model_info, shown beside what is measured, never among it.

A file is model_info/DATA/NORM/NAME.json with the fields of `Claimed`; NORM is L2 or Linf. Nothing in it was evaluated here.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from robustbench_rkhs.nodes.documents import json_of, read_text
from robustbench_rkhs.nodes.names import plain_name
from robustbench_rkhs.nodes.node import Node, Real, UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.radius_text import radius_text
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.runtime.files import write_text

NORMS: dict[str, Norm] = {"l2": "l2", "linf": "linf"}
FOLDERS = {"l2": "L2", "linf": "Linf"}
MOST = 10_000
"""Most files of a folder."""


def _share(value: Any) -> Any:
    """A percentage, as number or text, as a share; None where it says nothing."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "-", "n/a", "none", "nan")):
        return None
    try:
        found = float(str(value).strip().rstrip("%"))
    except ValueError:
        raise ValueError(f"expected a percentage, found {str(value)[:40]!r}") from None
    if not 0 <= found <= 100:
        raise ValueError(f"expected a percentage from 0 to 100, found {str(value)[:40]!r}")
    return found / 100


def _plain_link(value: str) -> str:
    return value if re.fullmatch(r"https?://[^\s\"'<>]{1,500}", value) else ""


def _text(value: Any) -> Any:
    return "" if value is None else str(value)[:1000] if isinstance(value, (str, int, float)) else value


Share = Annotated[float | None, BeforeValidator(_share)]
Text = Annotated[str, BeforeValidator(_text)]


class Claimed(Node):
    """A claim of robust accuracy that was not measured here."""

    model: str
    """Its identifier: the file's name."""
    norm: Norm
    dataset: str
    eps: Annotated[Real, Field(gt=0)]
    clean_acc: Share
    autoattack_acc: Share
    """By AutoAttack, as its board evaluated it."""
    reported: Share = None
    """As its authors did."""
    name: Text = ""
    """Title of the paper."""
    authors: Text = ""
    venue: Text = ""
    architecture: Text = ""
    link: Annotated[Text, AfterValidator(_plain_link)] = ""
    additional_data: Annotated[bool | None, BeforeValidator(lambda value: value if isinstance(value, bool) else None)] = None
    unreliable: Annotated[bool, BeforeValidator(lambda value: value is True)] = False
    """Its board says that the evaluation may not be trusted."""
    footnote: Text = ""

    @property
    def row(self) -> dict[str, Any]:
        """What boards show."""
        said = {"model": self.model, "clean": self.clean_acc, "robust": self.autoattack_acc, "reported": self.reported}
        said |= {"title": self.name, "venue": self.venue, "architecture": self.architecture, "link": self.link}
        extra = {True: "yes", False: "no", None: ""}[self.additional_data]
        return said | {"extra": extra, "unreliable": self.unreliable, "footnote": self.footnote}


def read_claim(path: Path) -> Claimed:
    """One entry. Raises UserError for a file that is none, of another norm than l2 and linf, or that claims nothing."""
    stored = json_of(read_text(path), str(path))
    if not isinstance(stored, dict):
        raise UserError(f"{path}: expected the fields of a model_info entry, found a {type(stored).__name__}")
    norm = NORMS.get(path.parent.name.lower())
    if norm is None:
        raise UserError(f"{path}: expected a folder L2 or Linf around it, found {path.parent.name[:40]!r}")
    known = {key: value for key, value in stored.items() if key in Claimed.model_fields and key not in ("model", "norm")}
    found = parse(Claimed, {"model": plain_name(path.stem), "norm": norm, **known}, str(path))
    if found.autoattack_acc is None and found.reported is None:
        raise UserError(f"{path}: it claims no robust accuracy (autoattack_acc, reported)")
    plain_name(found.dataset, "data set")
    return found


def read_claims(folder: Path, unread: Callable[[str], object]) -> list[Claimed]:
    """Every entry under a folder, in its order; `unread` is called with a line on each file that is none."""
    found = []
    for path in sorted(islice(folder.rglob("*.json"), MOST)) if folder.is_dir() else []:
        try:
            found.append(read_claim(path))
        except UserError as error:
            unread(str(error))
    return found


def import_claims(path: Path, out: Path, unread: Callable[[str], object]) -> list[Claimed]:
    """Copy a file, or a folder of files, to OUT/claims, each as the fields that are known. Raises UserError where there is none."""
    if not path.exists():
        raise UserError(f"no file or folder {str(path)!r}")
    found = [read_claim(path)] if path.is_file() else read_claims(path, unread)
    if not found:
        raise UserError(f"{path} holds no entry: expected model_info/DATA/L2 or Linf/NAME.json, as RobustBench has them")
    for one in found:
        said = one.model_dump(mode="json", exclude={"model", "norm"}, exclude_none=True)
        said |= {key: f"{100 * said[key]:.6g}" for key in ("clean_acc", "autoattack_acc", "reported") if key in said}
        said |= {"eps": radius_text(one.eps)}
        target = Places(out).claims / one.dataset / FOLDERS[one.norm] / f"{one.model}.json"
        write_text(target, json.dumps(said, indent=1) + "\n")
    return found


def claims_of(claims: Iterable[Claimed], section: Sequence[Any]) -> list[Claimed]:
    """The claims about the data, norm, box and eps of a board, by claimed robust accuracy."""
    data, _, norm, box, eps = section
    if box != "unit":
        return []
    found = [one for one in claims if (one.dataset, one.norm) == (data, norm) and abs(one.eps - eps) <= 1e-9 * eps]
    return sorted(found, key=lambda one: (-(one.autoattack_acc or one.reported or 0.0), one.model))
