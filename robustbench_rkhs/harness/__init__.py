"""The harness: asks the model, counts adversarial images, keeps finished parts."""

from robustbench_rkhs.harness.asking import answered, ask, classes_of, counting, fallen
from robustbench_rkhs.harness.breaches import believed, replay
from robustbench_rkhs.harness.identity import ELSEWHERE, SOURCES, digest_of, sources_digest
from robustbench_rkhs.harness.subject import Subject
from robustbench_rkhs.harness.tally import outside, run_attack

__all__ = [
    "ELSEWHERE",
    "SOURCES",
    "Subject",
    "answered",
    "ask",
    "believed",
    "classes_of",
    "counting",
    "digest_of",
    "fallen",
    "outside",
    "replay",
    "run_attack",
    "sources_digest",
]
