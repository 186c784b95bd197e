"""What a model's own checkpoint says of its training: read as plain text and JSON, where the folder is at hand."""

import json
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.documents import read_text, yaml_of
from robustbench_rkhs.nodes.limits import STRANGERS
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import checkpoints_folders
from robustbench_rkhs.runtime.seals import read_record
from robustbench_rkhs.verdicts import About


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

    @property
    def cost(self) -> str:
        """Time and device, in words."""
        if self.seconds is None:
            return ""
        time = f"{self.seconds:.0f} s" if self.seconds < 600 else f"{self.seconds / 3600:.1f} h"
        return f"{time} on {self.device}" if self.device else time


def training_facts(about: About) -> TrainingFacts:
    """What checkpoints/NAME says, if it is the checkpoint of this very function; else nothing."""
    for folder in checkpoints_folders():
        try:
            config = read_record(folder / about.model / "config.json")
            # the function, not its weights: those in a file of half precision have another digest than those evaluated
            one = "key" if about.key else "weights"
            if config.get(one) == getattr(about, one):
                return _read(folder / about.model, config)
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
            continue  # a folder without a readable checkpoint says nothing
    return TrainingFacts()


def _read(folder: Path, config: dict[str, Any]) -> TrainingFacts:
    recipe, card = folder / "recipe.yaml", folder / "README.md"
    trained, said = config.get("trained") or {}, yaml_of(read_text(recipe), str(recipe)) if recipe.is_file() else {}
    seconds = trained.get("seconds")
    return TrainingFacts(
        _parameters(folder / "model.safetensors"),
        float(seconds) if isinstance(seconds, int | float) else None,
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
