"""What a campaign of faults counts, and the JSON line it ends with."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

FAULTS = ("lost", "doubled", "silently_changed", "executed", "over_memory", "over_time", "tracebacks", "orphans", "stuck")
"""lost, doubled, silently_changed: items of a result against an undisturbed run; executed: code of a file ran; over_memory,
over_time: a refusal took more than 300 MB or 5 CPU seconds; orphans: processes that outlived a killed command; stuck: the same
command started again did not finish with exit code 0."""


@dataclass
class Counts:
    """Faults found, and how many tries of each kind there were."""

    tried: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    """How tries were run, and how their processes ended."""
    found: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    """The first faults in words, at most twenty."""

    def fault(self, kind: str, where: str, times: int = 1) -> None:
        """Count a fault; `where` says how to see it again."""
        if times:
            self.found[kind] += times
            if len(self.examples) < 20:
                self.examples.append(f"{kind}: {where}")

    def compare(self, wanted: Mapping[str, str], got: Mapping[str, str], where: str) -> None:
        """A result, item by item, against that of an undisturbed run."""
        lost, more = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
        changed = sorted(item for item in set(wanted) & set(got) if wanted[item] != got[item])
        self.fault("lost", f"{where}: {lost[:2]}", len(lost))
        self.fault("doubled", f"{where}: {more[:2]}", len(more))
        self.fault("silently_changed", f"{where}: {changed[:2]}", len(changed))

    def line(self, part: str, seed: int, **more: Any) -> str:
        """The JSON line of a run."""
        said = {"part": part, "date": date.today().isoformat(), "seed": seed, "tried": dict(sorted(self.tried.items()))}
        said["ways"] = dict(sorted(self.ways.items()))
        return json.dumps(said | {kind: self.found[kind] for kind in FAULTS} | more | {"examples": self.examples})

    @property
    def clean(self) -> bool:
        return not any(self.found.values())
