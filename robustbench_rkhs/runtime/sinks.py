"""Escaping of untrusted text, with one function per output format.

Names, commands and reasons may be untrusted. Each writer passes every text through the function of its format, so that it stays
plain text: no markup, formulas, terminal control or changes of the reading direction.
"""

import html
import re
from functools import lru_cache
from typing import Any

from robustbench_rkhs.nodes.reasons import ESCAPES

UNSEEN = {0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180E, 0x2028, 0x2029, 0x3164, 0xFEFF, 0xFFA0}
"""Invisible characters outside the ranges below."""
HIDDEN = ((0x00, 0x1F), (0x7F, 0x9F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xD800, 0xDFFF), (0xFFF9, 0xFFFB))
"""Ranges of control characters, direction marks and overrides, and surrogates."""
STARTS = re.compile(r"^([#+=-](?=\s|[#=-]|$)|\d+(?=[.)](?:\s|$)))")
"""Line starts that Markdown reads as a heading, a list or a rule."""
TAGS = ((0xFE00, 0xFE0F), (0xE0000, 0xE0FFF), (0xFFFE, 0xFFFF))
"""Ranges of variation selectors and tags, also invisible, and what is no character."""


def for_line(text: Any) -> str:
    """Plain text on one line: whitespace collapses to one blank, invisible characters become escapes (`\\u202e`)."""
    found = str(text)
    if found.isascii() and found.isprintable():
        return " ".join(found.split())
    found = ESCAPES.sub("", found)
    return " ".join("".join(one if _seen(one) else _written(one) for one in found).split())


def for_terminal(text: Any) -> str:
    """Plain text for a terminal: as `for_line`, but line breaks and blanks are kept."""
    found = ESCAPES.sub("", str(text)).replace("\r\n", "\n")
    return "".join(one if one == "\n" or _seen(one) else " " if one == "\t" else _written(one) for one in found)


def for_markdown(text: Any) -> str:
    """One line in a Markdown paragraph, heading or cell: markup, HTML, links and cell separators are escaped."""
    return _markdown(str(text))


@lru_cache(4096)
def _markdown(text: str) -> str:
    """The same, remembered: tables of many rows repeat most of their words."""
    found = re.sub(r"[\\`*|>~$]", lambda sign: f"\\{sign[0]}", for_line(text).replace("&", "&amp;"))
    found = found.replace("<", "&lt;").replace("](", "]\\(").replace("][", "]\\[").replace("]:", "]\\:")
    found = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", found)  # inside a word an underscore is not emphasis
    return found if found == "-" else STARTS.sub(lambda start: _at_start(start[0]), found)


def for_markdown_code(text: Any) -> str:
    """One line between backticks, also valid in a table cell."""
    found = for_line(text).replace("`", "'").replace("|", "\\|")
    return f"`{found}`" if found else ""


def for_html(text: Any) -> str:
    """Text for an HTML element or attribute."""
    return html.escape(for_line(text))


def for_latex(text: Any) -> str:
    """One line of LaTeX text: escapes the ten special characters and a leading bracket, which could follow a line break."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    found = re.sub(r"[\\~^&%$#_{}]", lambda sign: special.get(sign[0], f"\\{sign[0]}"), for_line(text))
    return f"{{}}{found}" if found.startswith(("[", "*")) else found


def for_csv(value: Any) -> Any:
    """A CSV cell: text that a spreadsheet would read as a formula gets a leading apostrophe; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = for_line(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not _is_number(text) and text != "-" else text


def _seen(one: str) -> bool:
    """Whether a character is visible, a blank, or joins visible ones."""
    code = ord(one)
    return code not in UNSEEN and not any(low <= code <= high for low, high in (*HIDDEN, *TAGS))


def _written(one: str) -> str:
    """An invisible character as its escape; blanks and line breaks as a blank."""
    return " " if one in "\t\n\v\f\r\x85\u2028\u2029" else f"\\u{ord(one):04x}"


def _at_start(sign: str) -> str:
    """Escape a line start that Markdown reads as a heading, a list or a rule."""
    return f"{sign}\\" if sign.isdigit() else f"\\{sign}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
