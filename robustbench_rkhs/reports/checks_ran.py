"""Whether an evaluation went through the diagnosis and the audit: what boards and the compare page hold against each other."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_rkhs.verdicts import UNDIAGNOSED, Brief, diagnosed


@dataclass(frozen=True)
class ChecksRan:
    """Each True where it ran, False where it is missing, and None where there is nothing to check."""

    diagnosis: bool | None
    """None for a smoothed model, and where another evaluation of the function was diagnosed."""
    audit: bool | None
    """None where nothing is certified."""
    unaudited: int
    """Certified images that were not audited."""

    @classmethod
    def of(cls, one: Brief, doubts: Collection[str], row: Mapping[str, Any]) -> "ChecksRan":
        """Those of an evaluation at an eps. `doubts`: the names of the marks of its function; `row`: its summary at that eps."""
        certified = int(row["count_certified"])
        left = certified - int(row["count_audited"]) if row["eps"] > 0 else 0
        diagnosis = False if UNDIAGNOSED in doubts else True if diagnosed(one) else None
        return cls(diagnosis, False if left else True if certified else None, left)
