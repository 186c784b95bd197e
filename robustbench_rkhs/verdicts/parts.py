"""A finished part of a running evaluation: rows of the table, with notes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from pydantic import Field

from robustbench_rkhs.nodes.node import Node
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.verdicts.about import Breach, Diagnosis
from robustbench_rkhs.verdicts.kept_adversarials import Kept


class Noticed(Node):
    """The notes of a part, beside its rows."""

    breaches: tuple[Breach, ...] = ()
    outside: dict[str, tuple[int, ...]] = Field({})
    """Per attack, the indices of the images that it returned outside box or ball."""
    refused: tuple[str, ...] = ()
    """The reasons why a certificate was refused or failed."""
    failed: tuple[str, ...] = ()
    """Errors of attacks."""
    diagnostics: tuple[Diagnosis, ...] = ()
    said: tuple[str, ...] = ()
    """Lines for the user."""
    decided: dict[str, Any] = Field({})
    """The decision of a plan."""
    part: dict[str, Any] = Field({})
    """Everything that the rows depend on: the part's identity."""

    @classmethod
    def read(cls, stored: Mapping[str, Any], source: str) -> "Noticed":
        """From the JSON of a file. Raises UserError in one line."""
        noticed: Noticed = parse(cls, {key: value for key, value in stored.items() if key in cls.model_fields}, source)
        return noticed


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of a table, with notes."""

    table: pd.DataFrame
    noticed: Noticed = field(default_factory=Noticed)
    kept: Kept | None = None
    """The adversarial images of its rows, if wanted."""
    logits: Any = None
    """For predictions: the logits. Not stored."""

    def of(self, identity: dict[str, Any]) -> "Part":
        """The same part, with the identity of its rows."""
        return replace(self, noticed=self.noticed.model_copy(update={"part": identity}))
