"""Writing a table without losing a better one of the same evaluation."""

from pathlib import Path

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.verdicts.evaluation import Evaluation
from robustbench_rkhs.verdicts.store import digest, read, write


def keep(evaluation: Evaluation, path: Path) -> Path:
    """The file that holds the evaluation from now on: PATH, or one beside it where PATH holds other verdicts of equal worth.

    A complete table stays as it is, to the byte, when the same evaluation is repeated, cut short or interrupted. An incomplete or
    damaged one is replaced. Two complete tables that differ (another device or PyTorch) both stay: the second is PATH with the
    first digits of its content after the name. Raises UserError where it cannot be written.
    """
    try:
        before = read(path)
    except UserError:
        return write(evaluation, path)
    if not before.about.complete or not before.sealed:
        return write(evaluation, path)
    if not evaluation.about.complete or (content := digest(evaluation.table)) == digest(before.table):
        return path
    return write(evaluation, path.with_name(f"{path.stem}-{content[:8]}{path.suffix}"))
