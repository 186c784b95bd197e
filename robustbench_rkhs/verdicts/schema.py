"""The table's columns, and the constraints on every row."""

import re

import pandas as pd
import pandera.errors
import pandera.pandas as pa
from pandera.typing.pandas import Series

from robustbench_rkhs.nodes.node import UserError

KEY = ["model", "weights", "data", "split", "norm", "box", "kind", "method", "settings", "eps", "index"]
"""The columns that identify a row, which also give the canonical order."""
ANSWERS = ["", "unknown"]
"""`state_reason` of a method that ran to its end; after `timeout`, `refused` and `error` it did not. Nor after `unconfirmed`: the
attack stopped at an adversarial example that further queries of the model did not confirm, in further runs too."""


class Verdicts(pa.DataFrameModel):
    """One row for each image, method, settings and eps: a radius.

    Certificates bound the robust radius from below, attacks from above. Every image has one certificate row of method
    `prediction` and radius 0, which carries its label and the model's prediction. Methods that start with `audit:`,
    `check:` or `first:`, and `transfer`, break images and test soundness, but are not part of the protocol.
    """

    model: Series[str]
    weights: Series[str]
    """Digest of the weights."""
    data: Series[str]
    split: Series[str]
    norm: Series[str] = pa.Field(isin=["l2", "linf"])
    """Norm of `eps` and `radius`, with pixels in [0, 1]."""
    box: Series[str] = pa.Field(isin=["unit", "none"])
    """Search domain of an attack, or domain of a certificate: [0, 1], or anywhere."""
    kind: Series[str] = pa.Field(isin=["attack", "certificate"])
    method: Series[str] = pa.Field(str_length={"min_value": 1})
    settings: Series[str]
    """Digest of the method's settings."""
    eps: Series[float] = pa.Field(ge=0, nullable=True)
    """Budget of a fixed-budget attack; null otherwise."""
    index: Series[int] = pa.Field(ge=0)
    """Position of the image in the original arrays."""
    input_sha256: Series[str]
    label: Series[int] = pa.Field(ge=0)
    predicted: Series[int] = pa.Field(ge=0)
    state_reason: Series[str] = pa.Field(isin=["", "unknown", "timeout", "refused", "error", "unconfirmed"])
    radius: Series[float] = pa.Field(ge=0)
    """Certificate: the proved radius. Attack: distance of the nearest counted adversarial image, inf if none."""
    distance_l2: Series[float] = pa.Field(ge=0, nullable=True)
    distance_linf: Series[float] = pa.Field(ge=0, nullable=True)
    forwards: Series[int] = pa.Field(ge=0)
    backwards: Series[int] = pa.Field(ge=0)
    seconds: Series[float] = pa.Field(ge=0)
    arithmetic: Series[str]
    """The arithmetic for which a certificate holds: real, float32 on CPU ..."""
    failure_probability: Series[float] = pa.Field(ge=0, le=1)

    class Config:
        strict = True
        coerce = True
        unique = KEY

    @pa.dataframe_check(error="a certificate has neither eps nor distances")
    def _certificates_have_no_budget(cls, table: pd.DataFrame) -> Series[bool]:
        empty = table[["eps", "distance_l2", "distance_linf"]].isna().all(axis=1)
        return empty | (table["kind"] != "certificate")  # type: ignore[return-value]

    @pa.dataframe_check(error="an attack's radius is its distance in its norm; inf and no distances if none")
    def _attacks_measure(cls, table: pd.DataFrame) -> Series[bool]:
        own = table["distance_l2"].where(table["norm"] == "l2", table["distance_linf"])
        nothing = table[["distance_l2", "distance_linf"]].isna().all(axis=1) & (table["radius"] == float("inf"))
        found = table[["distance_l2", "distance_linf"]].notna().all(axis=1) & (table["radius"] == own)
        return nothing | found | (table["kind"] != "attack")  # type: ignore[return-value]

    @pa.dataframe_check(error="the prediction row has radius 0")
    def _predictions_prove_nothing(cls, table: pd.DataFrame) -> Series[bool]:
        return (table["method"] != "prediction") | (table["radius"] == 0)  # type: ignore[return-value]


WORDS = (
    (r"greater_than_or_equal_to\((.*)\)", r"at least \1"),
    (r"less_than_or_equal_to\((.*)\)", r"at most \1"),
    (r"isin\(\[(.*)\]\)", r"one of \1"),
    (r"coerce_dtype\('(.*)'\)", r"\1"),
    (r"str_length\(.*\)", "a name"),
    (r"not_nullable", "a value"),
)
"""Descriptions of pandera's rules."""
ROWS = 50_000
"""Rows that are checked at once: a check takes several times their memory, and 30 ms to begin."""
COLUMNS = list(Verdicts.to_schema().columns)
"""The columns, in the table's order."""


def validate(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its columns typed and ordered. Raises UserError naming the first fault."""
    check_columns(table)
    check_keys(table)
    table = table.reset_index(drop=True)
    table = table if list(table) == COLUMNS else table[COLUMNS]  # which is a copy
    parts = (_valid(table.iloc[start : start + ROWS]) for start in range(0, max(len(table), 1), ROWS))
    first = next(parts)
    if len(first) < len(table) and (first.dtypes == table.dtypes).all():
        for _ in parts:  # typed already: no second copy
            pass
        return table
    return pd.concat([first, *parts], ignore_index=True) if len(first) < len(table) else first


def _valid(rows: pd.DataFrame) -> pd.DataFrame:
    try:
        return Verdicts.validate(rows)[COLUMNS]
    except (pandera.errors.SchemaError, pandera.errors.SchemaErrors) as error:
        first = error.schema_errors[0] if isinstance(error, pandera.errors.SchemaErrors) else error
        raise UserError(f"not a table of verdicts: {_reason(first)}") from None


def check_columns(table: pd.DataFrame) -> None:
    """Raises UserError naming columns that are missing or unknown."""
    missing, unknown = [c for c in COLUMNS if c not in table], [str(c) for c in table if c not in COLUMNS]
    if missing or unknown:
        faults = [f"{word} {', '.join(which)}" for word, which in (("missing", missing), ("unknown", unknown)) if which]
        raise UserError(f"not a table of verdicts: columns {'; '.join(faults)}")


def check_keys(table: pd.DataFrame) -> None:
    """Raises UserError naming the first row whose key another row has."""
    twice = table.duplicated(telling(table)).to_numpy()
    if twice.any():  # not chosen where there are none: texts would take their memory a second time
        row = table.iloc[int(twice.argmax())]
        raise UserError(f"not a table of verdicts: two rows of {row['method']!r} at eps {row['eps']} for image {row['index']}")


def telling(table: pd.DataFrame) -> list[str]:
    """The columns of the key that are not the same in all rows; the first one where all are."""
    return [name for name in KEY if not (table[name].isna().all() or (table[name] == table[name].iloc[0]).all())] or KEY[:1]


def _reason(error: pandera.errors.SchemaError) -> str:
    """One line for any number of rows: the column, the rule's expectation, and the value found."""
    rule = " ".join(str(getattr(error.check, "error", None) or error.check).split())
    for name, words in WORDS:
        rule = re.sub(f"^{name}$", words, rule)
    column = getattr(error.schema, "name", None)
    cases = getattr(error.failure_cases, "failure_case", None)
    if column not in COLUMNS and "'" in str(error):  # of a column that could not be read, the schema is the table's
        column = next((name for name in COLUMNS if f"'{name}'" in str(error)), None)
    if column is None or cases is None or not len(cases):
        return rule
    found = repr(str(cases.iloc[0])[:80]) + (f" in the first of {len(cases)} rows" if len(cases) > 1 else "")
    return f"column {column!r}: expected {rule}, found {found}"
