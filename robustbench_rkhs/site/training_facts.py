"""What a model's own checkpoint says of its training: read as plain text and JSON, where the folder is at hand.

What came as a submission is kept in OUT/accepted; all but its size is said to be its sender's word.
"""

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.accepted import DIGITS, accepted_folder
from robustbench_rkhs.nodes.documents import read_text, yaml_of
from robustbench_rkhs.nodes.limits import STRANGERS
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import checkpoints_folders
from robustbench_rkhs.runtime.seals import read_record
from robustbench_rkhs.runtime.sinks import for_line
from robustbench_rkhs.verdicts import About

UNREADABLE = (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error)
SENT = "said by the sender: "
"""Before what nobody here has measured."""
LONGEST, CARD = 200, 20_000
"""Characters of a line, and of a card, of a sender's."""


@dataclass(frozen=True)
class TrainingFacts:
    """Size, cost and method of a training; `None` or empty where the checkpoint does not say it."""

    parameters: int | None = None
    """Numbers in the weights file."""
    seconds: float | None = None
    device: str = ""
    how: str = ""
    """Loss, attack, penalties and projections, in words."""
    extra: str = ""
    """Images beyond the training split, in words."""
    card: str = ""
    """The README of the folder (Markdown)."""
    digest: str = ""
    """Seals of the files this was read from."""
    sent: bool = False
    """It came as a submission."""

    @property
    def cost(self) -> str:
        """Time and device, in words."""
        if self.seconds is None:
            return ""
        time = f"{self.seconds:.0f} s" if self.seconds < 600 else f"{self.seconds / 3600:.1f} h"
        return (SENT if self.sent else "") + (f"{time} on {self.device}" if self.device else time)


class Shelf:
    """The folders of checkpoints, and those of what was accepted in OUT, listed once."""

    def __init__(self, out: Path) -> None:
        self.out, self.trained = out, [(folder, _names(folder)) for folder in checkpoints_folders()]
        self.accepted = _names(out / "accepted")

    def facts(self, about: About) -> TrainingFacts:
        """As `training_facts`."""
        folders = [folder for folder, names in self.trained if about.model in names]
        accepted = about.key[:DIGITS] in self.accepted
        return _facts(about, folders, self.out) if folders or accepted else TrainingFacts()


def training_facts(about: About, out: Path = Path("reports")) -> TrainingFacts:
    """What checkpoints/NAME says, if it is the checkpoint of this very function, or what was accepted in OUT; else nothing."""
    return Shelf(out).facts(about)


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _facts(about: About, folders: Sequence[Path], out: Path) -> TrainingFacts:
    for folder in folders:
        try:
            config = read_record(folder / about.model / "config.json")
            # the function, not its weights: those in a file of half precision have another digest than those evaluated
            one = "key" if about.key else "weights"
            if config.get(one) == getattr(about, one):
                return _read(folder / about.model, config)
        except UNREADABLE:
            continue  # a folder without a readable checkpoint says nothing
    try:
        kept = accepted_folder(out, about.model, about.key)  # named by the key that was found here, not by what it says
        return _as_said(_read(kept, read_record(kept / "config.json")))
    except UNREADABLE:
        return TrainingFacts()


def _as_said(facts: TrainingFacts) -> TrainingFacts:
    """The facts of a submission: each text on one line, marked as its sender's."""
    how, extra = (SENT + for_line(text)[:LONGEST] if text else "" for text in (facts.how, facts.extra))
    card = f"*{SENT.capitalize().strip()}*\n\n{facts.card[:CARD]}" if facts.card.strip() else ""
    found = replace(facts, device=for_line(facts.device)[:LONGEST], how=how, extra=extra, card=card, sent=True)
    return replace(found, digest=hashlib.sha256(repr(found).encode(errors="replace")).hexdigest())  # a card has no seal


def _read(folder: Path, config: dict[str, Any]) -> TrainingFacts:
    recipe, card = folder / "recipe.yaml", folder / "README.md"
    trained, said = config.get("trained") or {}, yaml_of(read_text(recipe), str(recipe)) if recipe.is_file() else {}
    seconds = trained.get("seconds")
    return TrainingFacts(
        _parameters(folder / "model.safetensors"),
        float(seconds) if isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0 else None,
        re.sub(r"\b1 threads\b", "1 thread", str(trained.get("device", ""))),
        _how(said) if isinstance(said, dict) else "",
        _extra(said.get("data")) if isinstance(said, dict) else "",
        read_text(card) if card.is_file() else "",
        json.dumps(config.get("seals", {}), sort_keys=True),
    )


def _parameters(path: Path) -> int | None:
    """The numbers in a safetensors file, from its header alone."""
    if not path.is_file():
        return None
    with path.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        if length > STRANGERS.header:
            return None
        header = json.loads(handle.read(length))
    return sum(int(prod(one["shape"])) for name, one in header.items() if name != "__metadata__")


def _how(recipe: dict[str, Any]) -> str:
    """The recipe's loss, attack, noise, penalties and projections, by name."""
    named = [recipe.get("loss"), recipe.get("attack"), *(recipe.get("penalties") or []), *(recipe.get("projections") or [])]
    words = [str(one["name"]) for one in named if isinstance(one, dict) and "name" in one]
    words += [f"noise {recipe['noise']:g}"] if recipe.get("noise") else []
    network = recipe.get("network")
    kind = [f"{network['name']}:"] if isinstance(network, dict) and "name" in network else []
    return " ".join([*kind, ", ".join(words)])


def _extra(data: Any) -> str:
    """What the recipe's data set adds to the training split; `none` where it says nothing of it."""
    if not isinstance(data, dict):
        return ""
    return ", ".join(f"{name}: {data[name]}" for name in ("extra", "generated", "second") if data.get(name)) or "none"
