"""Names in a bundle, for whoever looks at one without reading it."""

import os
import re
from pathlib import Path

STATED = "submission.yaml"
"""The file that says what is sent."""
IMAGES = "adversarials.npz"
"""The file of adversarial images, where such are sent."""
MOST = 16
"""Most entries of a folder in a bundle."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Of a model, and of everything in a bundle."""


def is_bundle(path: Path) -> bool:
    """Whether a folder says that it is a bundle."""
    return os.path.lexists(path / STATED)
