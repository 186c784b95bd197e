"""Cache keys: digests of everything a finished part depends on."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.node import Node
from robustbench_rkhs.nodes.own_code import own_code_digest

SOURCES = (
    "attacks",
    "bounds",
    "certificates",
    "evaluation",
    "layers",
    "lipschitz",
    "networks/smoothed.py",
    "relaxations",
    "runtime/allowance.py",
    "runtime/caller_context.py",
    "runtime/counter_rng.py",
    "runtime/modes.py",
    "runtime/multiply_adds.py",
    "runtime/precision.py",
    "verdicts/kept_adversarials.py",
    "verdicts/merging.py",
    "verdicts/parts.py",
    "verdicts/schema.py",
    "verdicts/store.py",
)
"""The source files on which the contents of a part depend."""
CARRIERS = tuple(
    f"evaluation/engines/{name}.py"
    for name in ("base", "cluster", "here", "pool", "processes", "ranks", "ray", "start", "submitit")
)
"""Files among them that bring jobs to processes and results back: no row depends on which of them did, which is tested."""
ELSEWHERE = {
    "identity": "the model's key is in the key",
    "data": "the digest of the images is in the key",
    "networks": "the weights and the clean logits are in the key",
    "nodes": "the parsed settings are in the key",
    "runtime": "digests, devices and whole files: no arithmetic, and no limit but seconds",
    "verifier": "eight fixed images, whose logits are beside the key",
    "verdicts": "summaries of rows; which images are asked for is in the key",
}
"""Other imported rooms, and why finished parts stay valid when they change."""


@cache
def sources_digest() -> str:
    """sha256 over the source files that a part depends on."""
    sha, package = hashlib.sha256(), Path(__file__).parent.parent
    for source in SOURCES:
        path = package / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if file.relative_to(package).as_posix() not in CARRIERS:
                sha.update(file.read_bytes())
    return sha.hexdigest()


def digest_of(value: Any, length: int = 16) -> str:
    """The first hex digits of the sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


def settings_of(method: Node, without: frozenset[str] = frozenset()) -> str:
    """The digest of a method's fields, except some; for users' own methods, also of their source."""
    stored, own = method.model_dump(mode="json", exclude=set(without)), own_code_digest(method)
    return digest_of(stored | {"source of its own": own} if own else stored)
