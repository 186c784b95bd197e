"""The commands: signatures and printing, a file each. Everything heavy is imported inside them, so that --help is quick."""

from robustbench_rkhs.cli.audit import audit
from robustbench_rkhs.cli.command import Names, command
from robustbench_rkhs.cli.condition import Condition
from robustbench_rkhs.cli.evaluate import evaluate
from robustbench_rkhs.cli.listing import listing
from robustbench_rkhs.cli.norms import norms
from robustbench_rkhs.cli.pictures import pictures
from robustbench_rkhs.cli.rank import rank
from robustbench_rkhs.cli.report import report
from robustbench_rkhs.cli.submit import submit
from robustbench_rkhs.cli.sweep import sweep
from robustbench_rkhs.cli.tightness import tightness
from robustbench_rkhs.cli.train import train
from robustbench_rkhs.cli.verify import verify

__all__ = [
    "Condition",
    "Names",
    "audit",
    "command",
    "evaluate",
    "listing",
    "norms",
    "pictures",
    "rank",
    "report",
    "submit",
    "sweep",
    "tightness",
    "train",
    "verify",
]
