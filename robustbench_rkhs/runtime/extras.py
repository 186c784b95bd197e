"""Optional dependencies, installed by extras of the package."""

import importlib.util

from robustbench_rkhs.nodes.node import UserError


def require(package: str, extra: str, wanted_by: str) -> None:
    """Raises UserError with the install command if the package is missing."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{wanted_by} needs {package}, which is not installed: pip install 'robustbench_rkhs[{extra}]'")
