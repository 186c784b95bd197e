"""Where the checkpoints of accepted submissions are kept: OUT/accepted/KEY/NAME, KEY the first digits of the function's key."""

from pathlib import Path

from robustbench_rkhs.nodes.names import folder_of, plain_name
from robustbench_rkhs.nodes.node import UserError

DIGITS = 16
"""Of the key, in the folder's name."""


def accepted_folder(out: Path, name: str, key: str) -> Path:
    """The folder of the checkpoint that was accepted as this function under this name. Raises UserError for what is no name."""
    if not key:
        raise UserError(f"{name[:64]!r} has no key of its function")
    return folder_of(out / "accepted" / plain_name(key[:DIGITS], "key"), name)
