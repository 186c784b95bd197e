"""Guard around reading untrusted input: every exception becomes a one-line UserError."""

from collections.abc import Iterator
from contextlib import contextmanager

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause


@contextmanager
def guarded(source: object) -> Iterator[None]:
    """Context manager for reading the untrusted `source`. Raises UserError for any exception inside, chained as its cause.

    `Limits` bound what is read beforehand; this catches unforeseen malformed input, which must not end in a traceback.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{source} cannot be read: {cause(error)}") from error
