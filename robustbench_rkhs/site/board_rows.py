"""The rows of a board's table, as HTML: written here, as a template takes 1.5 ms a row."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from markupsafe import Markup, escape

from robustbench_rkhs.runtime.sinks import for_line
from robustbench_rkhs.site.boards import SHARES, Column


def rows_html(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> Markup:
    """The rows of the table's body; every text is escaped. Cost: 0.1 ms a row."""
    cells = [(column.key, *_around(column)) for column in columns]
    return Markup("\n".join(f"<tr>{''.join(_cell(row, *cell) for cell in cells)}</tr>" for row in rows))


def _around(column: Column) -> tuple[str, str, bool]:
    """The begin and the end of a column's cells, and whether they are sorted by a number."""
    kind = f"{'number' if column.numeric else ''} {'major' if column.major else 'minor'} {column.key}"
    begin, end = ("th scope=row", "th") if column.key == "model" else ("td", "td")
    return f'<{begin} class="{kind}"', f"</{end}>", column.numeric


def _cell(row: dict[str, Any], key: str, begin: str, end: str, numeric: bool) -> str:
    value = row[key]
    order = f' data-order="{-1 if value is None else _text(value)}"' if numeric else ""
    return f"{begin}{order}>{_content(row, key)}{end}"


def _content(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if key == "model":
        name, page = _text(value), row["page"]
        return (f'<a href="../models/{_text(page)}.html">{name}</a>' if page else name) + _sign(row["marks"])
    if key in SHARES:
        low, high = row[f"{key}_low"], row[f"{key}_high"]
        limits = "" if value is None or low is None else f' <span class="ci">[{100 * low:.1f}, {100 * high:.1f}]</span>'
        return _percent(value) + limits
    if key == "parameters":
        return "" if value is None else f"{value:,}"
    if key == "cost":
        return _text(row["cost_text"])
    if key == "marks":
        return f"<ul>{''.join(f'<li>{_text(mark)}</li>' for mark in value)}</ul>" if value else ""
    if key == "command":
        return f"<code>{_text(value)}</code>"
    return "" if value is None else _text(value)


def _sign(marks: Sequence[str]) -> str:
    """The marks in short, which are shown where their column is not, as on a phone."""
    words = "; ".join(dict.fromkeys(mark.partition(":")[0] for mark in marks))
    return f' <span class="sign">Marked: {_text(words)}</span>' if words else ""


def _percent(share: float | None) -> str:
    return "withheld" if share is None else f"{100 * share:.1f}%"


def _text(value: Any) -> str:
    """A text without invisible characters, escaped; numbers as they are."""
    return _escaped(value) if isinstance(value, str) else str(value)


@lru_cache(8192)
def _escaped(text: str) -> str:
    """Remembered: rows repeat most of their texts, and boards their rows."""
    return str(escape(for_line(text)))
