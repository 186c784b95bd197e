"""What a file from anybody may cost: sizes that are checked before anything of that size is read or made."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from robustbench_rkhs.nodes.node import Node, Seconds

UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
"""Powers of two."""


def bytes_of(value: Any) -> Any:
    """`300MB`, `4GiB` or a plain number as bytes; anything else unchanged for pydantic to refuse."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(?:i?b)?\s*", value.lower()) if isinstance(value, str) else None
    if isinstance(value, str) and found is None:
        raise ValueError(f"expected bytes such as 300MB or 4GiB, found {value[:40]!r}")
    return int(float(found[1]) * 2 ** UNITS[found[2]]) if found else value


Bytes = Annotated[int, BeforeValidator(bytes_of), Field(ge=1, lt=2**63)]
"""A size in bytes; `300MB` and `4GiB` are accepted (powers of two)."""
Most = Annotated[int, Field(ge=1, lt=2**63)]
"""A largest number."""


class Limits(Node):
    """The most that a stranger's file may ask for, and the most that evaluating it may use."""

    text: Bytes = 1 << 20
    """Of a recipe, a configuration or a header of adversarial images (YAML or JSON)."""
    depth: Most = 64
    """Of lists and mappings in one another."""
    entries: Most = 50_000
    """Values in a document, what YAML's aliases repeat counted each time."""
    tensors: Most = 20_000
    """In a file of weights, and parameters of a network."""
    header: Bytes = 8 << 20
    """Of a file of weights."""
    weights: Bytes = 1 << 30
    """Of a file of weights."""
    images: Bytes = 2 << 30
    """Of a file of adversarial images."""
    votes: Most = 1_000_000_000
    """Of a smoothed model over all adversarial images of a file."""
    memory: Bytes = 32 << 30
    """Of the process that evaluates a bundle: its address space, about 4 GiB of which are PyTorch's own."""
    seconds: Seconds = 86400.0
    """Of one evaluation, on the clock; as much on each thread's."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 8
    """Of the process that evaluates a bundle; fewer where there are fewer cores."""


STRANGERS = Limits()
"""For what strangers send."""
OWN = Limits(text=1 << 28, entries=10_000_000, tensors=1_000_000, header=1 << 28, weights=1 << 42, images=1 << 33, votes=1 << 62)
"""For what the user names: as much as there is room for."""
