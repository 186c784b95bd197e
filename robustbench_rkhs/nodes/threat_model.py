"""The threat model: in which norm an adversarial image may be how far away, and in which box it must lie."""

from typing import Literal

Norm = Literal["l2", "linf"]
"""Distance between images: l2 or linf, in pixels of [0, 1]."""
Box = Literal["unit", "none"]
"""Where adversarial images may lie: [0, 1], or anywhere (only to reproduce a published number)."""
