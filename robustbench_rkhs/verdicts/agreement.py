"""Agreement of a table with its description: what reports and file names are made of is checked once, on reading."""

import math

import pandas as pd

from robustbench_rkhs.nodes.names import plain_name
from robustbench_rkhs.nodes.node import UserError, as_number
from robustbench_rkhs.nodes.radius_text import radius_text
from robustbench_rkhs.verdicts.about import About

SAID = ("model", "weights", "data", "norm", "box")
"""Columns that say on every row what the description says once."""
LONGEST = 300
"""Most characters of a text that titles and file names are made of."""
RADII, METHODS = 10_000, 1000
"""Most requested radii, and most attacks or certificates."""


def check_agreement(about: About, table: pd.DataFrame) -> None:
    """Raises UserError where a table is of another model, data or norm than its description, or these are no plain words.

    Whoever writes a table can seal it, so that a seal doesn't say that it came from here.
    """
    plain_name(about.model)
    for name in ("data", "weights", "key", "job"):
        text = getattr(about, name)
        if len(text) > LONGEST or not text.isprintable():
            raise UserError(f"its {name} {text[:40]!r} has control characters, or more than {LONGEST}")
    for name in SAID:
        other = table.loc[table[name] != getattr(about, name), name]
        if len(other):
            said, found = str(getattr(about, name))[:40], str(other.iloc[0])[:40]
            raise UserError(f"its rows are of the {name} {found!r}, its description says {said!r}")
    if table["split"].nunique() > 1:
        raise UserError("its rows are of several splits of the data, expected one")
    listed = about.settings.get("certificates", [])
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise UserError("its settings of certificates are no list of mappings")
    if max(len(about.protocol), len(about.certificates)) > METHODS:
        raise UserError(f"it names {max(len(about.protocol), len(about.certificates)):,} methods, expected at most {METHODS:,}")
    if len(about.epsilons) > RADII or not all(math.isfinite(eps) and eps >= 0 for eps in about.epsilons):
        raise UserError(f"its eps: expected at most {RADII:,} finite radii from 0 up")
    for text in about.eps_text:
        shown = {radius_text(eps) for eps in about.epsilons}  # four digits, where nobody typed it
        if len(text) > LONGEST or (text not in shown and as_number(text) not in about.epsilons):
            raise UserError(f"its eps_text {text[:40]!r} is none of its eps")
