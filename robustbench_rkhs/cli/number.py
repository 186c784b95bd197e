"""Numbers as people type them."""

from robustbench_rkhs.nodes.node import Real, UserError, real


def number(text: str) -> Real:
    """A number or a fraction. Raises UserError for anything else."""
    try:
        return float(real(text))
    except ValueError:
        raise UserError(f"expected a number or a fraction such as 36/255, found {text!r}") from None
