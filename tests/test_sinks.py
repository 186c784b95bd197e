"""A hostile name, command and reason through every writer: text stays text in Markdown, HTML, LaTeX, csv and on a terminal."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from test_audit import split as audited_split
from test_norms import FEW, affine, split
from test_report import synthetic
from test_tightness import loose

from robustbench_rkhs.audit import Claim, audit, tightness
from robustbench_rkhs.cli import screen
from robustbench_rkhs.reports import report
from robustbench_rkhs.reports.audit import console_audit, write_audit
from robustbench_rkhs.reports.leaderboard import READ
from robustbench_rkhs.reports.rkhs_norm import console_norms, write_norms
from robustbench_rkhs.reports.sweep import write_sweep
from robustbench_rkhs.reports.tables import console, console_attacks, console_certificates
from robustbench_rkhs.reports.tightness import console_tightness, write_tightness
from robustbench_rkhs.rkhs_norm import norm_report
from robustbench_rkhs.runtime.sinks import for_csv, for_html, for_latex, for_line, for_markdown, for_markdown_code, for_terminal

HOSTILE = (
    "=cmd|'/C calc'!A1 <script>alert(1)</script> <b onclick=x> [x](javascript:alert(1)) ![i](http://e) `co``de` *b* __u__ ~~s~~ "
    "&lt;i&gt; [red]r[/red] \\input{secret} $m$ 50% a_b ^ # {x} \x1b[31m\x1b]0;title\x07\x1b \u202egnp.exe \u2066 \x9b \u200b"
    "\n# head\n\n- item | cell\n> quote\n\n    code\n[ref]: http://evil\n<http://auto>\t\r=1+1"
)
UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def rendered(text):
    """As CommonMark and GitHub's tables show it, HTML let through: the tags, and what is read."""
    found = Tags(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))
    return found.tags, "".join(found.text)


def is_plain_markdown(text):
    tags, shown = rendered(text.replace(READ, ""))
    assert not set(tags) & {"script", "b", "a", "img", "em", "strong", "s", "i", "blockquote", "hr"}, set(tags)
    assert "alert(1)" in shown and "![i](http://e)" in shown and not UNSEEN.search(text)


def is_plain_csv(text):
    assert not UNSEEN.search(text)
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    assert any("alert(1)" in cell for cell in cells)
    for cell in cells:
        if cell.startswith(("=", "+", "-", "@", "\t", "\r")) and cell != "-":
            float(cell)


def is_plain_latex(text):
    assert not UNSEEN.search(text) and "alert(1)" in text and "\\input" not in text
    rows = [
        line for line in text.splitlines() if not line.startswith(("%", "\\begin", "\\end", "\\toprule", "\\midrule", "\\bottom"))
    ]
    for row in rows:
        bare = re.sub(r"\\[&%$#_{}]|\\text(?:backslash|asciitilde|asciicircum)\{\}|\\\\$", "", row)
        assert not re.search(r"[\\%$#_^~]", bare), bare


PLAIN = {".md": is_plain_markdown, ".csv": is_plain_csv, ".tex": is_plain_latex}


def all_plain(paths):
    texts = [path for path in paths if path.suffix in PLAIN]
    assert texts and all(path.is_file() for path in paths)
    for path in texts:
        PLAIN[path.suffix](path.read_text(encoding="utf-8"))


def shown(*tables, monkeypatch):
    """What a terminal would get of these tables."""
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    console = screen.console_of_width(200, stderr=False)
    for table in tables:
        console.print(table)
    screen.told(console, HOSTILE)
    screen.printed(HOSTILE)
    return output.getvalue()


def is_plain_terminal(text):
    assert not UNSEEN.search(text.replace("\n", "")) and "[red]r[/red]" in text


def test_tables_images_curves_and_the_board(tmp_path, monkeypatch):
    said = {"command": HOSTILE, "device": HOSTILE, "data": HOSTILE, "date": HOSTILE}
    said |= {"outside": {HOSTILE: 3}, "failed": (HOSTILE,), "protocol": ["pgd", HOSTILE]}
    many = [
        synthetic(HOSTILE, **said),
        synthetic(f"{HOSTILE}2", seed=1, **said),
        synthetic(HOSTILE[::-1], seed=2, complete=False, **said),
    ]
    many = [replace(one, table=one.table.replace({"method": {"margin": HOSTILE}})) for one in many]
    written = report(many, tmp_path)
    for kind in ("tables", "images", "leaderboard"):
        all_plain(written[kind])
    outside = {path for paths in written.values() for path in paths if not path.resolve().is_relative_to(tmp_path.resolve())}
    assert not outside
    tables = [make(many[0]) for make in (console, console_attacks, console_certificates)]
    is_plain_terminal(shown(*tables, monkeypatch=monkeypatch))
    found = Tags(many[0]._repr_html_())
    assert set(found.tags) <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"} and "alert(1)" in "".join(found.text)


def test_norms_and_tightness(tmp_path, monkeypatch):
    model, x, y, *_ = affine(classes=3)
    made = norm_report(HOSTILE, model, split(x, y, 3), split(x, y, 3, "train"), eps=(0.5,), deformations=FEW, command=HOSTILE)
    made["refusals"] = {HOSTILE: HOSTILE}
    all_plain(write_norms(made, tmp_path / "norms"))
    is_plain_terminal(shown(console_norms(made), monkeypatch=monkeypatch))
    steep = tightness(HOSTILE, *loose(), command=HOSTILE)
    steep["layers"][0]["layer"] = steep["network"][0]["bound"] = HOSTILE
    all_plain(write_tightness(steep, tmp_path / "tight"))
    is_plain_terminal(shown(*console_tightness(steep), monkeypatch=monkeypatch))


def test_audits(tmp_path, monkeypatch):
    model, x, y, *_ = affine(classes=2)
    found = audit(model, audited_split(x, y, 2), [Claim.read("clean=0.5")], name=HOSTILE, command=HOSTILE)
    found["notes"] = [HOSTILE]
    all_plain(write_audit(found, tmp_path / "audit"))
    is_plain_terminal(shown(*console_audit(found), monkeypatch=monkeypatch))


def test_sweeps(tmp_path):
    words = ("name", "about", "recipe", "data", "data_digest", "device", "date", "command", "torch", "best")
    about = dict.fromkeys(words, HOSTILE) | {"pick": "validation_robust", "sampler": "grid", "fields": [HOSTILE]}
    about |= {"values": {HOSTILE: [HOSTILE]}, "seeds": [0], "eps": 0.1, "norm": "l2", "steps": 2, "images": 5}
    run = {"seed": 0, "clean": 0.5, "robust": 0.5, "certified": None, "refused": HOSTILE, "folder": HOSTILE}
    row = {"trial": 0, "state": "complete", "reason": HOSTILE, "setting": {HOSTILE: HOSTILE}, "runs": [run]}
    numbers = {f"{key}{end}": 0.5 for key in ("clean", "robust", "certified") for end in ("", "_std", "_worst")}
    found = {"about": about, "finished": True, "settings": [row | numbers | {"front": True, "picked": True}]}
    all_plain(write_sweep(found, tmp_path / "sweep"))


@pytest.mark.parametrize("start", ["#", "-", "+", "1.", "2)", "=", ">", "```", "---", "***", "[a]: b", "    ", "<!--", "|", "~~~"])
def test_a_line_begins_nothing(start):
    for text in (f"{start} x", f"{start}x", start):
        tags, seen = rendered(for_markdown(text))
        assert set(tags) <= {"p"} or text == "-", text
        assert "".join(seen.split()) == ("" if text == "-" else "".join(text.split())), text
        tags, _ = rendered(f"- {for_markdown(text)}")
        assert set(tags) <= {"ul", "li", "p"} or text == "-", text


def test_each_sink_leaves_plain_text_alone():
    for text in ("digits_mlp", "robust at 0.5: 12.3% to 14%", "l2, no box", "Ünïcödé 模型", "a - b", "-", "PGD (40 steps)"):
        assert for_line(text) == for_terminal(text) == for_csv(text) == for_markdown(text) == text
        assert for_html(text) == text
        assert for_latex(text).replace("\\", "") == text
    assert for_csv("-0.5") == "-0.5" and for_csv(0.5) == 0.5 and for_csv("=1") == "'=1" and for_csv(" @x") == "'@x"
    assert for_line("a\ud800b") == for_terminal("a\ud800b") == r"a\ud800b"
    assert for_markdown_code("a`b|c") == r"`a'b\|c`" and for_markdown_code("") == ""


def test_a_card_is_plain(tmp_path):
    from robustbench_rkhs.training.card import training_card
    from robustbench_rkhs.training.recipe import TrainRecipe

    recipe = TrainRecipe.parse({"about": HOSTILE, "data": {"name": "digits"}, "network": {"name": "mlp"}, "start_from": HOSTILE})
    trained = {"device": "cpu", "seconds": 1, "date": "today", "torch": "2", "started_from": {"weights": "0" * 64}}
    is_plain_markdown(training_card(recipe, [{"loss": 1.0}], 0, trained, HOSTILE, 10, "0" * 64))


def test_no_writer_forgets_its_sink():
    """Every csv of the reports is written by one function, and nothing else escapes on its own."""
    for path in (Path(screen.__file__).parent.parent / "reports").glob("*.py"):
        text = path.read_text()
        assert text.count(".to_csv(") == (path.name == "tables.py") and "html" not in text, path
