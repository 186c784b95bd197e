"""How the pages are built: sphinx-build -W -b html docs docs/_build. The cards in docs/methods/ are written from the source."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from robustbench_rkhs import __version__  # noqa: E402
from robustbench_rkhs.listing import KINDS, Card, cards  # noqa: E402

project, author, release = "robustbench_rkhs", "the robustbench_rkhs authors", __version__
copyright = f"2026, {author}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme, html_title = "furo", f"robustbench_rkhs {release}"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"

OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)\s]+)\)")
"""A link to a file of the repository outside docs/."""
CARDS = {f"../robustbench_rkhs/{source}": f"methods/{kind}.rst" for kind, source in KINDS.items()}
"""Where a link to the source of a kind of method leads in the built pages: to its cards."""


def offer_files(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to files outside docs/ lead to copies of them, so that the site stands alone."""
    folder = (HERE / page).parent

    def offered(found: re.Match[str]) -> str:
        text, link = found[1], found[2]
        if page.count("/") == 0 and link in CARDS:
            return f"[{text}]({CARDS[link]})"
        return f"{{download}}`{text.strip('`')} <{link}>`" if (folder / link).is_file() else text

    source[0] = OUTSIDE.sub(offered, source[0])


def write_cards(app: Sphinx) -> None:
    """One page for each kind of method: its cards, as `rkhs-list KIND NAME` prints them."""
    folder = HERE / "methods"
    folder.mkdir(exist_ok=True)
    for kind in KINDS:
        parts = [f"{kind.capitalize()}\n{'=' * len(kind)}", *map(as_text, cards(kind).values())]
        written = "\n\n".join(parts) + "\n"
        path = folder / f"{kind}.rst"
        if not path.is_file() or path.read_text() != written:
            path.write_text(written)


def as_text(card: Card) -> str:
    """A card in reStructuredText: the docstring is that already, fields become a definition list."""
    lines = [card.name, "-" * len(card.name), "", card.text]
    for field, form, meaning in card.fields:
        lines += ["", f"``{field}: {form}``", *(f"   {line}".rstrip() for line in (meaning or "\\").splitlines())]
    return "\n".join(lines)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_cards)
    app.connect("source-read", offer_files)
