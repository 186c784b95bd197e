"""The pages of text: methods from their cards, the glossary, and why the numbers can be trusted."""

import hashlib
import re
from pathlib import Path
from typing import Any

from markupsafe import Markup

from robustbench_rkhs.listing import KINDS, PACKAGE, cards
from robustbench_rkhs.nodes.documents import json_of, read_text
from robustbench_rkhs.nodes.limits import OWN
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import BESIDE
from robustbench_rkhs.site.markup import docstring, markdown, sentence
from robustbench_rkhs.site.pages import write_page

FAULTS = {
    "lost": "A result was lost",
    "doubled": "A result was counted twice",
    "silently_changed": "A result was changed, and nothing said so",
    "executed": "Code inside a file that was sent was executed",
    "over_memory": "To refuse a file took more than 300 MB of memory",
    "over_time": "To refuse a file took more than 5 seconds",
    "tracebacks": "A command ended with the insides of an error instead of one clear line",
    "orphans": "A process went on after its command was killed",
    "stuck": "A command that was started again did not finish",
}
"""What a campaign of faults counts, in words."""
PARTS = {
    "kills": "A command was killed at a random moment, and started again",
    "flips": "One bit of a stored file was changed, and the file was read",
    "bundles": "A submission was made hostile in one place, and sent",
}
"""What a campaign of faults does, in words."""


def write_methods(folder: Path) -> list[Path]:
    """FOLDER/methods.html, and a page for each method in methods/. Raises Unwritable. Cost: 1 s."""
    kinds = {kind: cards(kind) for kind in KINDS}
    listed = {kind: {name: sentence(card.first_line) for name, card in known.items()} for kind, known in kinds.items()}
    pages = [write_page(folder / "methods.html", "methods.html", "", title="Methods", kinds=listed)]
    for kind, known in kinds.items():
        for name, card in known.items():
            fields = [(field, form, docstring(meaning)) for field, form, meaning in card.fields]
            values = {"kind": kind, "card": card, "text": docstring(card.text), "fields": fields}
            pages.append(write_page(folder / "methods" / f"{kind}-{name}.html", "method.html", "../", title=name, **values))
    return pages


def methods_digest() -> str:
    """sha256 over the sources that the cards are read from."""
    sha = hashlib.sha256()
    for kind, place in KINDS.items():
        source = PACKAGE / place
        for path in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            sha.update(kind.encode() + path.read_bytes())
    return sha.hexdigest()


def write_glossary(folder: Path) -> list[Path]:
    """FOLDER/glossary.html, from docs/glossary.md. Raises Unwritable."""
    return [write_page(folder / "glossary.html", "glossary.html", "", title="Glossary", terms=glossary())]


def glossary() -> list[tuple[str, Markup]]:
    """Each term and its meaning."""
    text = _document("glossary.md")
    found = re.findall(r"^(\S.*)\n((?:  .*\n|\n(?=  ))+)", text.partition("```{glossary}\n")[2].partition("```")[0], re.M)
    plain = [(term, re.sub(r"\{term\}`([^`]*)`", r"\1", " ".join(meaning.split()))) for term, meaning in found]
    return [(term, markdown(meaning)) for term, meaning in plain]


def write_trust(folder: Path, out: Path) -> list[Path]:
    """FOLDER/trust.html, from docs/trust.md and the last campaign of faults in OUT/faults. Raises Unwritable."""
    text = _document("trust.md").partition("\n")[2]
    values = {"text": markdown(text, 2), "campaign": campaign(out)}
    return [write_page(folder / "trust.html", "trust.html", "", title="Why you can trust this", **values)]


def trust_digest(out: Path) -> str:
    """What the page on trust depends on."""
    return _document("trust.md") + repr(campaign(out))


def campaign(out: Path) -> dict[str, Any] | None:
    """The sums of OUT/faults/campaign.jsonl in words: what was done, and how often each harm was seen; None without a campaign."""
    lines = _lines(out / "faults" / "campaign.jsonl")
    if not lines:
        return None
    tried: dict[str, int] = {}
    for line in lines:
        part = str(line.get("part", "others"))
        tried[part] = tried.get(part, 0) + sum(map(int, line["tried"].values()))
    done = [(PARTS.get(part, part), count) for part, count in tried.items()]
    seen = [(words, sum(int(line.get(fault, 0)) for line in lines)) for fault, words in FAULTS.items()]
    return {"tried": done, "total": sum(tried.values()), "seen": seen, "date": max(str(line.get("date", "")) for line in lines)}


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        found = [json_of(line, str(path), OWN) for line in path.read_text().splitlines() if line.strip()]
        return [one for one in found if isinstance(one, dict) and isinstance(one.get("tried"), dict)]
    except (UserError, OSError, ValueError):
        return []


def _document(name: str) -> str:
    """A page of docs/, which lies beside the package or was installed with it; empty where it is not there."""
    try:
        return read_text(BESIDE / "docs" / name)
    except UserError:
        return ""
