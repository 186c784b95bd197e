"""What a finished part depends on, as digests."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

SOURCES = (
    "attacks",
    "certificates",
    "diagnostics",
    "layers",
    "lipschitz",
    "relaxations",
    "smoothing.py",
    "arithmetic.py",
    "counters.py",
    "modes.py",
    "shelf.py",
    "verdicts/nearest.py",
    "verdicts/schema.py",
    "verdicts/store.py",
    "harness",
    "portfolio.py",
    "attacking.py",
    "scrutiny.py",
    "evaluate.py",
)
"""What a part's contents depend on, in this package."""
ELSEWHERE = {
    "adaptive": "trains",
    "card": "trains",
    "checkpoint": "weights and clean logits are in the identity",
    "data": "the images' digest is in the identity",
    "distributed": "trains",
    "files": "writes whole files or none",
    "losses": "train",
    "networks": "weights and clean logits are in the identity",
    "node": "settings are in the identity as they were understood",
    "optimizers": "train",
    "penalties": "train",
    "places": "finds files by name",
    "projections": "train",
    "ramps": "trains",
    "ranking": "trains",
    "recipe": "settings are in the identity as they were understood",
    "samplers": "train",
    "train": "describes the device",
    "validation": "trains",
    "verdicts": "says what rows amount to; which images are asked is in the identity",
}
"""What else is imported on the way, and why a finished part stays what it is when that changes."""


@cache
def sources_digest() -> str:
    """sha256 over the source files that a part depends on."""
    sha, package = hashlib.sha256(), Path(__file__).parent.parent
    for source in SOURCES:
        path = package / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            sha.update(file.read_bytes())
    return sha.hexdigest()


def digest_of(value: Any, length: int = 16) -> str:
    """The first hex digits of the sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]
