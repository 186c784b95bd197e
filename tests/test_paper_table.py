"""Tables for papers: the best and its ties by the paired test, doubts printed with a dagger, LaTeX that compiles."""

import shutil
import subprocess

import pandas as pd
import pytest
from scipy.stats import binomtest
from test_accuracy_steps import told
from test_report import synthetic

from robustbench_rkhs import verdicts
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.paper_formats import as_latex, as_markdown, write_paper_table
from robustbench_rkhs.reports.paper_table import paper_table
from robustbench_rkhs.reports.table_models import table_models
from robustbench_rkhs.reports.table_request import columns_of
from robustbench_rkhs.verdicts import Brief, BriefCache, Diagnosis, states, summary

REQUEST = "clean robust@0.25,1/2 certified@36/255"


def made(models, request=REQUEST, names=(), wanted=()):
    columns = columns_of(request)
    briefs = [Brief.of(one) for one in models]
    wanted = wanted or [one.about.model for one in models]
    return paper_table(table_models(briefs, wanted, names, columns, BriefCache()), columns, "rkhs-report --table x")


def several():
    """Two alike, and one much weaker."""
    return [synthetic("a", 200, 0.95, 1.2, seed=1), synthetic("b", 200, 0.95, 1.1, seed=2), synthetic("c", 200, 0.95, 0.1, seed=3)]


def test_request():
    assert [(c.quantity, float(c.eps), c.text) for c in columns_of("robust@0.5,1.0 clean certified@36/255")] == [
        ("robust", 0.5, "0.5"),
        ("robust", 1.0, "1.0"),
        ("clean", 0.0, ""),
        ("certified", 36 / 255, "36/255"),
    ]
    for text, words in (
        ("robus@1", "did you mean 'robust'"),
        ("robust", "certified@EPS"),
        ("clean@1", "certified@EPS"),
        ("robust@1,", "certified@EPS"),
        ("robust@x", "expected a number"),
        ("robust@0", "above 0"),
        ("robust@0.5,1/2", "asked for twice"),
        ("", "found nothing"),
    ):
        with pytest.raises(UserError, match=words):
            columns_of(text)


def test_shares_best_and_ties_are_those_of_the_images():
    models = several()
    table = made(models)
    for place, column in enumerate(table.columns):
        cells = [cells[place] for _, cells in table.rows]
        expected = [summary(one, [column.eps]).iloc[0][column.quantity] for one in models]
        assert [cell.share for cell in cells] == pytest.approx(expected)
        assert all((cell.rank == "best") == (cell.share == max(expected)) for cell in cells)
    kept = ["certified", "survived"]
    right = [states(one, 0.25)["state"].isin(kept).to_numpy() for one in models]
    cells = [cells[1] for _, cells in table.rows]
    best = max(range(3), key=lambda place: cells[place].share)
    raw = {}
    for place in {0, 1, 2} - {best}:
        only = int((right[best] & ~right[place]).sum()), int((right[place] & ~right[best]).sum())
        raw[place] = binomtest(only[0], sum(only)).pvalue
    small, large = sorted(raw.values())
    holm = {small: min(2 * small, 1), large: max(min(2 * small, 1), large)}
    for place, p in raw.items():
        assert cells[place].p == pytest.approx(holm[p]) and (cells[place].rank == "tie") == (holm[p] > 0.05)
    assert {cell.rank for cell in cells} == {"best", "tie", ""}


def test_doubts_get_a_dagger_a_printed_note_and_no_rank():
    a, b, c = several()
    bad = Diagnosis("plateau", True, 0.5, 0.1, "5 of 10 gradients vanish", 1.0)
    table = made([told(a, diagnostics=(bad,), marks=("plateau",)), b, c])
    (doubted, cells), *_ = table.rows
    assert doubted.doubts and [cell.doubtful for cell in cells] == [False, True, True, False]
    assert not cells[1].rank and cells[0].rank and cells[3].rank  # what is proved stays proved
    assert table.rows[1][1][1].rank == "best"
    for text, sign in ((as_markdown(table), "†"), (as_latex(table), r"$^\dagger$")):
        printed = [line for line in text.splitlines() if not line.startswith("%")]
        assert any("5 of 10 gradients vanish" in line and sign in line for line in printed)
        assert any(line.count(sign) == 3 for line in printed)  # the name and two robust columns


def test_what_cannot_be_compared_or_is_not_known_is_told():
    a, b, _ = several()
    other = told(synthetic("few", 60, seed=5), epsilons=(0.25, 0.3, 0.5, 1.0))
    table = made([a, b, other], REQUEST + " robust@0.3")
    assert any(note.startswith("few: not comparable") and "60 images" in note for note in table.notes)
    assert "60 to 200 test images" in table.caption and "pgd" in table.caption
    assert any("robust@0.3 is not known: evaluated at eps 0.25, 0.5, 1" in note for note in table.notes)
    assert table.rows[0][1][-1].text == "-" and not table.rows[2][1][1].rank
    partial = a.table[~((a.table["index"] < 9) & (a.table["kind"] == "attack"))]
    cells = made([type(a)(partial, a.about), b]).rows[0][1]
    assert " to " in cells[1].text and cells[1].doubtful
    with pytest.raises(UserError, match="did you mean"):
        made([a, b], wanted=["bb"])
    with pytest.raises(UserError, match="one for each of the 2 models"):
        made([a, b], names=["x"])


def test_a_column_without_any_value_is_refused_with_the_eps_that_were_evaluated():
    a, b, _ = several()
    with pytest.raises(
        UserError, match=r"robust@0.3 would be empty: a, b were evaluated at eps 0.25, 0.5, 1; ask for one of these"
    ):
        made([a, b], "clean robust@0.25,0.3")
    assert made([a, b], "certified@0.3").rows[0][1][0].text != "-"  # a certified radius answers for every eps


def test_the_domain_of_a_table_is_that_of_the_most_asked_radii_then_of_most_images():
    """A trial in another norm on a few images never takes the place of the evaluation on many."""
    large, other = synthetic("a", 200, seed=1), told(synthetic("a", 20, seed=2), norm="linf")
    elsewhere = told(synthetic("a", 60, seed=3), epsilons=(3.0,))
    for models in ([large, other, elsewhere], [other, elsewhere, large]):
        assert "200 test images" in made(models, "robust@0.25").caption
    with pytest.raises(UserError, match=r"evaluated on .*l2 at eps 0.25, 0.5, 1; .*infinity at eps 0.25, 0.5, 1: ask for robust@"):
        made([large, told(synthetic("a", 200, seed=2), norm="linf")], "robust@0.25")


def test_the_limits_of_the_caption_reach_as_far_as_those_of_any_share():
    table = made([synthetic("a", 20, 0.95, 0.4, seed=4)])
    cells = [cell for _, cells in table.rows for cell in cells if cell.share == cell.share]
    farthest = max(max(cell.high - cell.share, cell.share - cell.low) for cell in cells)
    assert f"at most {100 * farthest:.1f} points either way" in table.caption


def test_two_functions_of_one_name_are_told():
    a, b, _ = several()
    table = made([told(a, weights="first", key="first"), told(a, weights="second", key="second"), b], wanted=["a", "b"])
    assert any(note.startswith("a: 2 different functions have this name") for note in table.notes)
    assert not any(note.startswith("b:") for note in table.notes)


def test_files_are_the_same_twice_and_the_csv_has_everything(tmp_path):
    first = write_paper_table(made(several()), tmp_path / "x")
    again = write_paper_table(made(several()), tmp_path / "y")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    frame = pd.read_csv(first[2])
    assert len(frame) == 12 and set(frame["rank"].dropna()) == {"best", "tie"} and "36/255" in set(frame["eps_text"])


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed (texlive-latex-base)")
def test_latex_compiles_with_booktabs(tmp_path):
    if subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).returncode:
        pytest.skip("booktabs is not installed (texlive-latex-recommended)")
    a, b, c = several()
    bad = Diagnosis("plateau", True, 0.5, 0.1, r"100% of {weird} \gradients_ #1 ~ & $x^2$ vanish: αβ", 1.0)
    table = made([told(a, diagnostics=(bad,), marks=("plateau",)), b, c], names=["Ours_1 & é", "50% {b} ^~\\", "名前 [c]"])
    path = write_paper_table(table, tmp_path / "t")[0]
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (tmp_path / "all.tex").write_text(head + path.read_text() + "\\end{document}\n")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and (tmp_path / "all.pdf").stat().st_size > 1000, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_plain_tables_print_doubts_too(tmp_path):
    from robustbench_rkhs.reports import write_tables

    bad = Diagnosis("plateau", True, 0.5, 0.1, "5 of 10 gradients vanish", 1.0)
    _, md, tex = write_tables([told(synthetic("a"), diagnostics=(bad,), marks=("plateau",)), synthetic("b")], tmp_path / "t")
    for path, sign in ((md, "†"), (tex, r"$^\dagger$")):
        printed = [line for line in path.read_text().splitlines() if not line.startswith("%")]
        assert any("5 of 10 gradients vanish" in line and sign in line for line in printed)
        assert any(f"a{sign}" in line for line in printed) and not any(f"b{sign}" in line for line in printed)


def test_adversarial_images_of_other_evaluations_count_also_from_the_cache(tmp_path):
    weak = synthetic("m", images=50, scale=0.3, seed=1, key="k" * 64)  # breaks what the larger evaluation did not
    for name, one in (("a", synthetic("m", scale=3.0, seed=1, key="k" * 64)), ("b", weak)):
        verdicts.write(one, tmp_path / "verdicts" / "m" / f"l2-{name}.parquet")
    found = []
    for _ in range(2):
        cache = BriefCache(tmp_path / "briefs")
        briefs = cache.read_all(tmp_path / "verdicts", pytest.fail)
        (row,) = table_models(briefs, ["m"], [], columns_of("robust@0.25"), cache)
        found += [row.brief.row(0.25)["robust"], summary(row.evaluation, [0.25])["robust"].iloc[0]]
    assert len(set(found)) == 1 and found[0] < 0.6
