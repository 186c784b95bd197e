"""A finished part of an evaluation under way: rows of the table, and what was noticed beside them."""

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
    """What a part noticed besides its rows."""

    breaches: tuple[Breach, ...] = ()
    outside: dict[str, tuple[int, ...]] = Field({})
    """Of each attack, the indices of the images it returned outside box or ball."""
    refused: tuple[str, ...] = ()
    """Why a certificate was refused, or failed."""
    failed: tuple[str, ...] = ()
    """Errors that an attack ended in."""
    diagnostics: tuple[Diagnosis, ...] = ()
    said: tuple[str, ...] = ()
    """Lines for the user."""
    decided: dict[str, Any] = Field({})
    """What a plan decided."""
    part: dict[str, Any] = Field({})
    """What the rows depend on: the part's identity."""

    @classmethod
    def read(cls, stored: Mapping[str, Any], source: str) -> "Noticed":
        """From the JSON of a file. Raises UserError in one line."""
        noticed: Noticed = parse(cls, {key: value for key, value in stored.items() if key in cls.model_fields}, source)
        return noticed


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of a table and what was noticed beside them."""

    table: pd.DataFrame
    noticed: Noticed = field(default_factory=Noticed)
    kept: Kept | None = None
    """The adversarial images of its rows, where they are asked for."""
    logits: Any = None
    """Of predictions: what the model returned. Not stored."""

    def of(self, identity: dict[str, Any]) -> "Part":
        """The same, which says what its rows depend on."""
        return replace(self, noticed=self.noticed.model_copy(update={"part": identity}))
