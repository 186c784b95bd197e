"""The guard at the door: whatever is raised while something foreign is read is one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause


@contextmanager
def guarded(source: object) -> Iterator[None]:
    """Inside, `source` is read, which anybody may have written. Raises UserError for any exception that is raised there.

    What is read is bounded by `Limits` before; this is for what nobody foresaw, which a stranger's bytes must not turn into a
    traceback. The exception is kept as its cause.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{source} cannot be read: {cause(error)}") from error
