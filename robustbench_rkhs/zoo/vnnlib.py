"""VNN-LIB: the open images of an evaluation as ONNX and VNN-LIB for verifiers of others, and their answers read back."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.guard import guarded
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.files import write_whole
from robustbench_rkhs.verdicts import Evaluation
from robustbench_rkhs.verdicts.image_states import Evidence
from robustbench_rkhs.zoo.plain import plain_export

SECONDS = 300
"""Time limit for each instance, as the competition's instances.csv names it."""
PROVED, FOUND = frozenset({"unsat", "holds", "verified"}), frozenset({"sat", "violated", "falsified"})
OTHER = frozenset({"unknown", "timeout", "error"})
"""Answers of verifiers: no adversarial image exists; one exists; neither."""


class Answers(NamedTuple):
    """What a verifier of others said about the open images. None of it is a verdict of this package."""

    lines: list[str]
    """In one line for each eps, and one for each contradiction."""
    contradictions: int


def write_vnnlib(model: Any, split: Split, done: Evaluation, folder: Path) -> Path:
    """Write the network (`NAME.onnx`), a property for each image that is open at an eps (`NAME-INDEX-eps-N.vnnlib`), and
    `instances.csv` as the verification competition has it; `images.csv` says which image each file is about.

    A property asks for an image in the linf ball (in [0, 1] where the evaluation's box is) with another class's logit at least the
    label's: `unsat` proves the image. Its bounds are rounded outwards. Raises UserError for l2: the
    format's arithmetic is linear, and a verdict on a box around the ball would be about other images.
    """
    about = done.about
    if about.norm != "linf":
        raise UserError(
            f"--vnnlib: VNN-LIB is linear: it describes boxes and no squares of pixels, so it takes --norm linf, found {about.norm}"
        )
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    plain_export(model, split.shape, folder / f"{about.model}.onnx")
    places = {index: place for place, index in enumerate(split.index.tolist())}
    for number, eps in enumerate(about.epsilons):
        for index in _open(done, eps):
            x, label = split.x[[places[index]]][0].double().numpy(), int(split.y[places[index]])
            name = f"{about.model}-{index}-eps-{number}.vnnlib"
            text = property_of(x, label, split.classes, eps, about.box == "unit")
            write_whole(folder / name, lambda path, text=text: path.write_text(text))  # type: ignore[misc]
            rows.append([name, index, repr(eps), label, about.weights])
    _write(folder / "images.csv", [["vnnlib", "index", "eps", "label", "weights"], *rows])
    _write(folder / "instances.csv", [[f"{about.model}.onnx", row[0], SECONDS] for row in rows])
    return folder / "instances.csv"


def property_of(x: np.ndarray, label: int, classes: int, eps: float, unit: bool) -> str:
    """The property of one image, in VNN-LIB: what an adversarial image fulfils."""
    low, high = (np.nextafter(x.flatten() + sign * eps, sign * np.inf) for sign in (-1, 1))
    if unit:
        low, high = np.minimum(np.maximum(low, 0.0), x.flatten()), np.maximum(np.minimum(high, 1.0), x.flatten())
    lines = [f"; an image within linf {eps!r} whose class is not {label}"]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(low))] + [f"(declare-const Y_{j} Real)" for j in range(classes)]
    for i, (least, most) in enumerate(zip(low, high, strict=True)):
        lines += [f"(assert (>= X_{i} {_number(least)}))", f"(assert (<= X_{i} {_number(most)}))"]
    others = " ".join(f"(and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label)
    return "\n".join([*lines, f"(assert (or {others}))", ""])


def _number(value: float) -> str:
    """Seventeen digits without an exponent, which the format's grammar lacks."""
    return np.format_float_positional(value, trim="0")


def read_answers(path: Path, done: Evaluation, folder: Path) -> Answers:
    """The answers of a verifier of others, from its CSV: one row for each instance, with the name of its .vnnlib and a word.

    They are marked as foreign: counted beside the verdicts and never among them. An image that it proves and an attack broke, or
    that it breaks and a certificate proved, is a contradiction. `folder`: what `write_vnnlib` wrote. Raises UserError.
    """
    with guarded(f"--answers: {path}, or the images.csv of {folder},"):  # csv raises errors of its own, also for a NUL
        return _read_answers(path, done, folder)


def _read_answers(path: Path, done: Evaluation, folder: Path) -> Answers:
    known = {row["vnnlib"]: row for row in _rows(folder / "images.csv")}
    said = _said(path, known)
    evidence, about = Evidence.of(done), done.about
    states = {eps: evidence.states(eps)["state"].to_dict() for eps in about.epsilons}
    lines, contradictions, written = [], [], [["index", "eps", "answer", "state"]]
    for eps in about.epsilons:
        asked = [row for row in known.values() if float(row["eps"]) == eps]
        counts = {"proved": 0, "broken": 0, "undecided": 0}
        for row in asked:
            if row["weights"] != about.weights:
                raise UserError(f"{folder / 'images.csv'} is about other weights than {about.model!r} has now: write it again")
            word, state = said.get(row["vnnlib"], "unknown"), str(states[eps].get(int(row["index"]), "untested"))
            kind = "proved" if word in PROVED else "broken" if word in FOUND else "undecided"
            counts[kind] += 1
            written.append([row["index"], row["eps"], word, state])
            if (kind, state) in (("proved", "broken"), ("broken", "certified")):
                where = f"image {row['index']} at eps {about.words(eps)}"
                contradictions.append(f"CONTRADICTION: {where}: {path.name} says {word}, here {state}")
        if asked:
            shares = ", ".join(f"{count} {name}" for name, count in counts.items())
            start = f"foreign answers ({path.name}) at eps {about.words(eps)}"
            lines.append(f"{start}: {shares} of {len(asked)}; not counted as verdicts")
    _write(folder / f"{path.stem}-foreign.csv", written)
    return Answers([*lines, *contradictions], len(contradictions))


def _said(path: Path, known: Mapping[str, Any]) -> dict[str, str]:
    """The answer for each instance. Raises UserError for a row without one, and for two that differ."""
    found: dict[str, str] = {}
    if not path.is_file():
        raise UserError(f"--answers: no file {str(path)!r}")
    with path.open(newline="", encoding="utf-8", errors="replace") as handle:
        for number, row in enumerate(csv.reader(handle), 1):
            cells = [cell.strip().removesuffix(".gz") for cell in row]
            names = [Path(cell).name for cell in cells if cell.endswith(".vnnlib")]
            words = [cell.lower() for cell in cells if cell.lower() in PROVED | FOUND | OTHER]
            if not names and number == 1:
                continue  # a header
            if len(names) != 1 or len(words) != 1:
                raise UserError(f"{path}, line {number}: expected a .vnnlib and one of {', '.join(sorted(PROVED | FOUND | OTHER))}")
            if names[0] in known and found.setdefault(names[0], words[0]) != words[0]:
                raise UserError(f"{path}, line {number}: {names[0]} has two answers, {found[names[0]]} and {words[0]}")
    return found


def _open(done: Evaluation, eps: float) -> list[int]:
    states = Evidence.of(done).states(eps)["state"]
    return [int(index) for index in states.index[states.isin(["survived", "untested"])]]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise UserError(f"--answers: no {str(path)!r}, which --vnnlib writes")
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def _write(path: Path, rows: list[list[Any]]) -> None:
    def fill(temporary: Path) -> None:
        with temporary.open("w", newline="") as handle:
            csv.writer(handle).writerows(rows)

    write_whole(path, fill)
