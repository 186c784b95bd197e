"""Optional dependencies, installed by extras of the package."""

import importlib.util

from robustbench_rkhs.nodes.node import UserError


def install_line(extra: str) -> str:
    """What installs an extra. The package is in no registry, so its name alone would find nothing outside an installed clone."""
    return f"pip install -e '.[{extra}]' in the clone"


def require(package: str, extra: str, wanted_by: str) -> None:
    """Raises UserError with what installs the package if it is missing."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{wanted_by} needs {package}, which is not installed: {install_line(extra)}")
