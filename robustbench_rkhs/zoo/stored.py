"""Checkpoint folders in an object store: only data is fetched, and nothing is imported or unpickled."""

from pathlib import Path

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.object_store import ObjectStore
from robustbench_rkhs.zoo.hub import FILES


def is_stored(name: str) -> bool:
    """Whether this names a folder by URL: `s3://bucket/checkpoints/robust_vgg`."""
    return "://" in name


def copied(url: str, folder: Path) -> Path:
    """FOLDER, with the files of the checkpoint at a URL. Their seals are checked where they are read. Raises UserError."""
    store = ObjectStore(url)
    for name in FILES:
        if not store.fetch(name, folder / name):
            raise UserError(f"no checkpoint at {url}: expected {', '.join(FILES)} there, found no {name}")
    return folder
