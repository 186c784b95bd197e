"""Resource limits for untrusted files, checked before anything of that size is read or allocated."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from robustbench_rkhs.nodes.node import Node, Seconds

UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
"""Exponents of two."""


def bytes_of(value: Any) -> Any:
    """`300MB`, `4GiB` or a plain number as bytes; anything else unchanged for pydantic to refuse."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(?:i?b)?\s*", value.lower()) if isinstance(value, str) else None
    if isinstance(value, str) and found is None:
        raise ValueError(f"expected bytes such as 300MB or 4GiB, found {value[:40]!r}")
    return int(float(found[1]) * 2 ** UNITS[found[2]]) if found else value


def bytes_in_words(value: int) -> str:
    """A number of bytes as it is typed: `2 GiB`, `300 MiB`; the bytes themselves where it is no round number of these."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if value >= 2**power and value * 10 % 2**power == 0:
            return f"{value / 2**power:,.10g} {unit}"
    return f"{value:,} bytes"


Bytes = Annotated[int, BeforeValidator(bytes_of), Field(ge=1, lt=2**63)]
"""A size in bytes; `300MB` and `4GiB` are accepted (powers of two)."""
Most = Annotated[int, Field(ge=1, lt=2**63)]
"""An upper limit on a number."""


class Limits(Node):
    """Limits on what an untrusted file may ask for, and on what its evaluation may use."""

    text: Bytes = 1 << 20
    """Bytes of a recipe, a configuration or a header of adversarial images (YAML or JSON)."""
    depth: Most = 64
    """Nesting depth of lists and mappings."""
    entries: Most = 50_000
    """Values in a document, with YAML aliases expanded."""
    tensors: Most = 20_000
    """Tensors in a weights file, and parameters of a network."""
    header: Bytes = 8 << 20
    """Bytes of the header of a weights file."""
    weights: Bytes = 1 << 30
    """Bytes of a weights file."""
    images: Bytes = 2 << 30
    """Bytes of a file of adversarial images."""
    votes: Most = 1_000_000_000
    """Noise samples of a smoothed model, over all adversarial images of a file."""
    memory: Bytes = 32 << 30
    """Address space of the process that evaluates a bundle; PyTorch itself takes about 4 GiB of it."""
    seconds: Seconds = 86400.0
    """Wall-clock seconds of one evaluation; also CPU seconds per thread."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 8
    """Threads of the process that evaluates a bundle; fewer on machines with fewer cores."""


STRANGERS = Limits()
"""Defaults for untrusted files."""
OWN = Limits(text=1 << 28, entries=10_000_000, tensors=1_000_000, header=1 << 28, weights=1 << 42, images=1 << 33, votes=1 << 62)
"""Limits for the user's own files: practically none."""
