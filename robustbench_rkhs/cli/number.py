"""Numbers as people type them."""

from robustbench_rkhs.nodes.node import Real, as_number


def number(text: str) -> Real:
    """A number or a fraction. Raises UserError for anything else."""
    return as_number(text)
