"""The table of verdicts: one radius per image and method; all published numbers are computed from it."""

from robustbench_rkhs.verdicts.about import About, Breach, Described, Diagnosis, Rechecked, typed
from robustbench_rkhs.verdicts.adversarials import Adversarials, read_adversarials, write_adversarials
from robustbench_rkhs.verdicts.brief_cache import BriefCache
from robustbench_rkhs.verdicts.briefs import Brief
from robustbench_rkhs.verdicts.comparability import Apart, Choice, called, comparable, ranked_together, unfit
from robustbench_rkhs.verdicts.evaluation import AdversarialImages, Evaluation
from robustbench_rkhs.verdicts.image_radii import by_certificate, images
from robustbench_rkhs.verdicts.image_states import STATES, states
from robustbench_rkhs.verdicts.keeping import keep
from robustbench_rkhs.verdicts.kept_adversarials import Kept, Nearest, holding
from robustbench_rkhs.verdicts.kinship import functions, same_function
from robustbench_rkhs.verdicts.merging import merge
from robustbench_rkhs.verdicts.model_marks import (
    BATCH_DEPENDENT,
    NO_FUNCTION,
    RANDOMISED,
    TEST_ABOVE_TRAINING,
    UNDIAGNOSED,
    diagnosed,
    doubts,
    marks,
    no_function,
)
from robustbench_rkhs.verdicts.parts import Noticed, Part
from robustbench_rkhs.verdicts.provenance import evaluator, stale
from robustbench_rkhs.verdicts.published import Published
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verdicts.schema import COLUMNS, KEY, Verdicts, validate
from robustbench_rkhs.verdicts.soundness import breaches, pooled
from robustbench_rkhs.verdicts.statistics import Proportion, clopper_pearson, holm, mcnemar, mcnemar_all, mcnemar_between
from robustbench_rkhs.verdicts.step_curves import AccuracySteps, Steps, accuracy_steps
from robustbench_rkhs.verdicts.store import digest, read, read_all, read_part, set_part_aside, write, write_part
from robustbench_rkhs.verdicts.summaries import (
    accuracy_at,
    by_attack,
    certified_at,
    curve,
    protocol_failed,
    robust_images,
    robust_range,
    summary,
)

__all__ = [
    "BATCH_DEPENDENT",
    "COLUMNS",
    "KEY",
    "NO_FUNCTION",
    "RANDOMISED",
    "STATES",
    "TEST_ABOVE_TRAINING",
    "UNDIAGNOSED",
    "About",
    "AccuracySteps",
    "AdversarialImages",
    "Adversarials",
    "Apart",
    "Breach",
    "Brief",
    "BriefCache",
    "Choice",
    "Described",
    "Diagnosis",
    "Evaluation",
    "Kept",
    "Nearest",
    "Noticed",
    "Part",
    "Proportion",
    "Published",
    "Rechecked",
    "Record",
    "Steps",
    "Verdicts",
    "accuracy_at",
    "accuracy_steps",
    "breaches",
    "by_attack",
    "by_certificate",
    "called",
    "certified_at",
    "clopper_pearson",
    "comparable",
    "curve",
    "diagnosed",
    "digest",
    "doubts",
    "evaluator",
    "functions",
    "holding",
    "holm",
    "images",
    "keep",
    "marks",
    "mcnemar",
    "mcnemar_all",
    "mcnemar_between",
    "merge",
    "no_function",
    "pooled",
    "protocol_failed",
    "ranked_together",
    "read",
    "read_adversarials",
    "read_all",
    "read_part",
    "robust_images",
    "robust_range",
    "same_function",
    "set_part_aside",
    "stale",
    "states",
    "summary",
    "typed",
    "unfit",
    "validate",
    "write",
    "write_adversarials",
    "write_part",
]
