"""Which evaluator made a table, and whether its code has changed since: then the same command may find more."""

from robustbench_rkhs.runtime.sources import code_digest
from robustbench_rkhs.verdicts.about import Described

PARTS = {
    "attacks": ("attacks",),
    "certificates": ("bounds", "certificates", "layers", "lipschitz", "relaxations"),
    "evaluation": ("evaluation",),
}
"""The parts of an evaluator, with their folders."""
CARRIERS = tuple(
    f"evaluation/engines/{name}.py"
    for name in ("base", "cluster", "here", "pool", "processes", "ranks", "ray", "start", "submitit")
)
"""What brings jobs to processes and results back: a table is the same whichever did, so that it finds no more when these change."""
UNKNOWN = "made before tables named their evaluator"


def evaluator() -> dict[str, str]:
    """The digest of the code of each part, as it is now; for `About.evaluator`."""
    return {part: code_digest(rooms, without=CARRIERS) for part, rooms in PARTS.items()}


def stale(one: Described) -> str:
    """Why the same command may find more today, in words; empty where the code is what made the table.

    Only what the table used counts: attacks, certificates, and what runs them. That code has changed does not say that it finds
    more: only evaluating again does.
    """
    about = one.about
    if not about.epsilons:
        return ""
    if not about.evaluator:
        return UNKNOWN
    used = {"attacks": about.protocol, "certificates": about.certificates, "evaluation": (True,)}
    now = evaluator()
    changed = [part for part in PARTS if used[part] and about.evaluator.get(part) != now[part]]
    return f"the code of {' and '.join(changed)} has changed since" if changed else ""
