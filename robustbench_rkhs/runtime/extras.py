"""Packages that only some methods need, and that an extra installs."""

import importlib.util

from robustbench_rkhs.nodes.node import UserError


def require(package: str, extra: str, wanted_by: str) -> None:
    """Raises UserError, with the command that installs it, where the package is missing."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{wanted_by} needs {package}, which is not installed: pip install 'robustbench_rkhs[{extra}]'")
