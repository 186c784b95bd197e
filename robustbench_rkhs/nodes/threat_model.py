"""Threat model types: the norm of the perturbation, the box of valid pixels, and the effort of an evaluation."""

import re
from typing import Any, Literal

Norm = Literal["l2", "linf"]
"""Distance between images: l2 or linf, in pixels of [0, 1]."""
SPELLINGS = {"l2": "l2", "2": "l2", "linf": "linf", "inf": "linf", "linfinity": "linf"}
"""Other spellings of norms, without case, blanks, dashes and underscores."""
Box = Literal["unit", "none"]
"""Where adversarial images may lie: [0, 1], or anywhere (only to reproduce a published number)."""

Order = Literal["stratified", "first"]
"""Which images of a set a smaller number takes: a seeded subset with the classes in proportion, or the first ones."""

Effort = Literal["quick", "adaptive", "standard"]
"""How much work an evaluation spends on open images."""


def norm_named(value: Any) -> Any:
    """The canonical name of a norm given as `Linf`, `L2`, `l_inf`, 2 or infinity; anything else unchanged, to be refused."""
    word = str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    return SPELLINGS.get(re.sub(r"[\s_-]", "", word).lower(), value) if isinstance(word, str) else value
