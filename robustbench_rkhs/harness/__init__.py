"""The harness: asks the model, counts adversarial images, keeps finished parts."""

from robustbench_rkhs.harness.asking import answered, ask, classes_of, counting, fallen
from robustbench_rkhs.harness.breaches import believed, replay
from robustbench_rkhs.harness.identity import ELSEWHERE, SOURCES, digest_of, sources_digest
from robustbench_rkhs.harness.subject import Subject
from robustbench_rkhs.harness.tally import outside, run_attack, share_of
from robustbench_rkhs.harness.workers import Workers, started

__all__ = [
    "ELSEWHERE",
    "SOURCES",
    "Subject",
    "Workers",
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
    "share_of",
    "sources_digest",
    "started",
]
