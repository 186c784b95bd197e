"""Where results lie: what is published, and what only this machine has."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_rkhs.runtime.ignored import ignored
from robustbench_rkhs.verdicts import Brief, BriefCache, Evaluation

PASSING = ("date", "torch", "versions", "device")
"""What may differ between two runs of one command: they have one name."""


@dataclass(frozen=True)
class Places:
    """Where results lie: OUT itself holds what is published, OUT/local all other reports, which git ignores."""

    out: Path

    @property
    def verdicts(self) -> Path:
        """The tables; git ignores those that are not published."""
        return self.out / "verdicts"

    @property
    def submitted(self) -> Path:
        """Adversarial images that were submitted; git ignores those that are not published."""
        return self.out / "submitted"

    @property
    def owners(self) -> Path:
        """Whom names belong to, a file for each; git ignores those of models without a published table."""
        return self.out / "owners"

    @property
    def claims(self) -> Path:
        """What is claimed elsewhere (`reports/claimed.py`)."""
        return self.out / "claims"

    @property
    def local(self) -> Path:
        """The reports of this machine."""
        return self.out / "local"

    def cache(self) -> BriefCache:
        """The briefs of the tables."""
        return BriefCache(self.local / "briefs")

    def run(self, one: Evaluation | Brief) -> Path:
        """The folder of the figures and tables of one evaluation: named after its model and the digest of its settings."""
        stem = one.path.stem if one.path is not None else one.about.norm
        return ignored(self.local) / f"{one.about.model}-{stem}"

    def stem(self, kind: str, name: str, about: Mapping[str, Any]) -> Path:
        """Where a report of another kind goes, without suffix: OUT/local/KIND/NAME-DIGEST, the digest that of what it is about."""
        text = json.dumps({key: one for key, one in about.items() if key not in PASSING}, sort_keys=True, default=str)
        return ignored(self.local) / kind / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
