"""Names in a bundle, for whoever looks at one without reading it."""

import os
import re
from collections.abc import Iterable, Sequence, Set
from itertools import islice
from pathlib import Path

from robustbench_rkhs.nodes.node import UserError

STATED = "submission.yaml"
"""The file that says what is sent."""
IMAGES = "adversarials.npz"
"""The file of adversarial images, where such are sent."""
MOST = 16
"""Most entries of a folder in a bundle."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Of a model, and of everything in a bundle."""
PUBLIC, SIGNATURE, VERDICTS = "sender.pub", "signature", "verdicts.parquet"
OF_MODEL = {"config.json", "model.safetensors", "recipe.yaml"}
BESIDE = {"metrics.jsonl", "README.md"}
"""Files of a checkpoint that a bundle has to hold, and those that it may."""
ALLOWED = OF_MODEL | BESIDE | {"last.safetensors"}
"""Of a checkpoint folder as a training leaves it."""


def check_checkpoint(names: Iterable[str], where: str, allowed: Set[str] = frozenset(ALLOWED)) -> None:
    """Raises UserError for a file that a checkpoint may not hold, and for those that it lacks, all at once."""
    found = set(names)
    if unknown := sorted(found - allowed):
        raise UserError(f"{where}: unexpected file {unknown[0][:80]!r}; expected only {', '.join(sorted(allowed))}")
    if missing := sorted(OF_MODEL - found):
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{where} is incomplete: {listed(missing)} {verb} missing; expected {listed(sorted(OF_MODEL))}")


def check_bundle(path: Path) -> None:
    """Raises UserError where the names of a bundle's files alone say that it is none: what is missing, all at once."""
    top = sorted(entry.name for entry in islice(path.iterdir(), MOST + 1))
    if len(top) > MOST:
        raise UserError(f"the bundle holds more than {MOST} files and folders; expected what rkhs-submit ... --bundle writes")
    needed = [STATED, PUBLIC, SIGNATURE, VERDICTS]
    folders = [name for name in top if (path / name).is_dir() and not (path / name).is_symlink()]
    if missing := [name for name in needed if name not in top] + (
        [] if folders or IMAGES in top else [f"{IMAGES} or a checkpoint"]
    ):
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"the bundle is incomplete: {listed(missing)} {verb} missing; expected the folder that rkhs-submit ... --bundle writes"
        )
    for name in folders:
        inside = [entry.name for entry in islice((path / name).iterdir(), MOST + 1)]
        check_checkpoint(inside, repr(name[:64]), frozenset(OF_MODEL | BESIDE))


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def is_bundle(path: Path) -> bool:
    """Whether a folder says that it is a bundle."""
    return os.path.lexists(path / STATED)
