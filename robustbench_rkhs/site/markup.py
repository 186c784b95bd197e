"""Markdown and docstrings as HTML: plain text stays text, formulas become MathML, which browsers draw themselves."""

import re
from typing import Literal

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

MATH = re.compile(r"^\.\. math::[ \t]*(.*(?:\n(?:[ \t]+.*|[ \t]*(?=\n[ \t])))*)", re.M)
INLINE = re.compile(r":math:`([^`]+)`")
ROLE = re.compile(r":[a-z:]+:(?=`)")
"""What a word in backticks is, to Sphinx."""
SCROLLED = '<div class="scroll" role="region" tabindex="0" aria-label="Table"><table>'
"""A wide table scrolls by itself, also by keyboard."""
UNKNOWN = (
    (re.compile(r"\\arg(?![a-zA-Z])"), r"\\operatorname{arg}\\,"),
    (re.compile(r"(\\[bB]igg?[lr]?)\s*\\(?:[lr]?Vert|\|)"), r"\1‖"),
)
"""What the converter leaves as it was typed, and what says the same."""
_READER = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def markdown(text: str, level: int = 2) -> Markup:
    """Markdown without HTML of its own, images or links to anywhere but the web; its highest heading becomes <hLEVEL>."""
    tokens = _READER.parse(text)
    headings = [int(token.tag[1]) for token in tokens if token.type == "heading_open"]
    more = level - min(headings, default=level)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + more, 6)}"
        token.children = _without_files(token.children) if token.children else token.children
    text = _READER.renderer.render(tokens, _READER.options, {})
    return Markup(text.replace("<table>", SCROLLED).replace("</table>", "</table></div>"))


def _without_files(tokens: list[Token]) -> list[Token]:
    """Without links to files of the source tree, which the site has not; their words stay."""
    kept, open_ = [], list[bool]()
    for token in tokens:
        if token.type == "link_open":
            open_.append(str(token.attrGet("href")).startswith(("http://", "https://", "#")))
        inside = open_.pop() if token.type == "link_close" else open_[-1] if token.type == "link_open" else True
        kept += [token] if inside else []
    return kept


def docstring(text: str) -> Markup:
    """A card: paragraphs, `code`, and formulas."""
    parts, at = [], 0
    for found in MATH.finditer(text):
        parts += [_paragraphs(text[at : found.start()]), formula(" ".join(found[1].split()))]
        at = found.end()
    return Markup("").join([*parts, _paragraphs(text[at:])])


def formula(latex: str) -> Markup:
    """A formula as MathML; as it was typed where it cannot be converted."""
    try:
        return Markup(f'<p class="formula" tabindex="0">{_mathml(latex, "block")}</p>')
    except Exception:  # the converter raises many kinds of errors
        return Markup("<pre>{}</pre>").format(latex)


def _mathml(latex: str, display: Literal["block", "inline"]) -> str:
    for found, same in UNKNOWN:
        latex = found.sub(same, latex)
    return str(convert(latex, display=display))


def _paragraphs(text: str) -> Markup:
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text.strip())]
    return Markup("").join(Markup("<p>{}</p>").format(sentence(block)) for block in blocks if block)


def sentence(text: str) -> Markup:
    """A paragraph's words, code and short formulas."""
    parts, at = [], 0
    for found in INLINE.finditer(text):
        parts += [_words(text[at : found.start()]), _inline(found[1])]
        at = found.end()
    return Markup("").join([*parts, _words(text[at:])])


def _words(text: str) -> Markup:
    return Markup(re.sub(r"`+([^`]+)`+", r"<code>\1</code>", str(escape(ROLE.sub("", text)))))


def _inline(latex: str) -> Markup:
    try:
        return Markup(_mathml(latex, "inline"))
    except Exception:  # the converter raises many kinds of errors
        return Markup("<code>{}</code>").format(latex)
