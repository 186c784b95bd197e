"""The site: its numbers are those of the tables, only what changed is made again, hostile text stays text, no torch."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_places import stored
from test_report import EPSILONS, synthetic, trio

from robustbench_rkhs import verdicts
from robustbench_rkhs.listing import KINDS, cards
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.site import build_site, publication, side_by_side, text_pages
from robustbench_rkhs.site.assets import classic
from robustbench_rkhs.site.board_images import ranked_images
from robustbench_rkhs.site.boards import Board
from robustbench_rkhs.site.charts import curve_chart, typed_ticks
from robustbench_rkhs.site.diagnosis_words import WORDS, in_words
from robustbench_rkhs.site.markup import docstring, formula, markdown
from robustbench_rkhs.site.model_data import curve_rows
from robustbench_rkhs.site.model_files import tightness_grid
from robustbench_rkhs.site.pages import environment
from robustbench_rkhs.site.site_models import site_models
from robustbench_rkhs.site.training_facts import training_facts
from robustbench_rkhs.verdicts import Brief

ROOT = Path(__file__).parents[1]


def keep(folder: Path, one: verdicts.Evaluation) -> Path:
    return verdicts.write(one, folder / "verdicts" / one.about.model / f"l2-{one.about.job}.parquet")


def test_a_board_holds_the_numbers_of_the_tables(built):
    folder, site = built
    assert (site.boards, site.models, site.unread) == (3, 3, [])
    for one in trio():
        for row in one.summary().to_dict("records"):
            stated = json.loads((folder / "site" / "boards" / f"digits-l2-eps{row['eps']:g}.json").read_text())
            own = next(entry for entry in stated["ranked"] if entry["model"] == one.about.model)
            for share in ("clean", "robust", "certified", "open", "robust_low", "certified_high"):
                assert own[share] == pytest.approx(row[share], abs=1e-15)
            page = (folder / "site" / "boards" / f"digits-l2-eps{row['eps']:g}.html").read_text()
            cell = f'{100 * row["robust"]:.1f}% <span class="ci">[{100 * row["robust_low"]:.1f}, {100 * row["robust_high"]:.1f}]'
            assert cell in page and one.about.model in page
            assert f'{100 * row["open"]:.1f}% <span class="ci">[{100 * row["open_low"]:.1f}, {100 * row["open_high"]:.1f}]' in page
    frame = pd.read_csv(folder / "site" / "boards" / "digits-l2-eps0.25.csv")
    assert list(frame["rank"]) == sorted(frame["rank"]) and set(frame["status"]) == {"ranked"}


def test_only_what_changed_is_made_again(built):
    folder, site = built
    before = {path: path.stat().st_mtime_ns for path in (folder / "site").rglob("*") if path.is_file()}
    assert build_site(folder, folder / "site").files == site.files
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_entries_by_other_attacks_are_apart_with_the_command_that_completes_them(tmp_path):
    for one, digit in (("a", "1"), ("b", "2")):
        stored(tmp_path, one, digit, key=digit * 64)
    stored(tmp_path, "few", "3", images=40, key="3" * 64)
    build_site(tmp_path, tmp_path / "site")
    stated = json.loads((tmp_path / "site" / "boards" / "digits-l2-eps0.5.json").read_text())
    assert [one["model"] for one in stated["ranked"]] == ["a", "b"]
    (apart,) = stated["not_comparable"]
    assert apart["reason"] == "40 images, those ranked have 60" and apart["completes"] == "rkhs-eval --model few"
    page = (tmp_path / "site" / "boards" / "digits-l2-eps0.5.html").read_text()
    assert "Not comparable" in page and "rkhs-eval --model few" in page


@pytest.mark.parametrize(
    ("settings", "which", "flags"),
    [
        ({"samples": 60, "order": "first", "seed": 0}, "the first 60 test images, in the order of the data set", "--order first"),
        ({"samples": None, "order": "stratified", "seed": 0}, "all 60 test images", "--order stratified"),
        ({}, "the first 60 test images, in the order of the data set", ""),
    ],
)
def test_a_board_says_how_many_images_it_asks_for_at_least_and_which(tmp_path, settings, which, flags):
    """One on fewer is apart, and the command that completes it asks for the images that the board says."""
    command = f"rkhs-eval --model a --eps 1/4 0.5 --samples 60 {flags}".strip()
    stored(tmp_path, "a", "1", key="1" * 64, command=command, settings=settings)
    stored(tmp_path, "few", "3", images=59, key="3" * 64, command="rkhs-eval --model few --samples 59", settings=settings)
    build_site(tmp_path, tmp_path / "site")
    stated = json.loads((tmp_path / "site" / "boards" / "digits-l2-eps0.5.json").read_text())
    assert stated["images"] == {"minimum": 60, "which": which, "indices": [[0, 60]]}
    assert (stated["protocol"]["Minimum images"], stated["protocol"]["Which images"]) == ("60", which)
    asked = command.removeprefix("rkhs-eval --model a ")
    (apart,) = stated["not_comparable"]
    assert apart["reason"] == "59 images, those ranked have 60" and apart["completes"] == f"rkhs-eval --model few {asked}"
    assert stated["command"] == f"rkhs-eval --model MODEL {asked}"
    page = (tmp_path / "site" / "boards" / "digits-l2-eps0.5.html").read_text()
    assert f"Minimum images: 60. Which images: {which}" in page and stated["command"] in page


@pytest.mark.parametrize(
    ("settings", "which"),
    [
        ({"order": "stratified"}, "drawn from the test images with seed 7, so that each class has its share"),
        ({"order": "first"}, "chosen from the test images; the JSON file has their indices"),
    ],
)
def test_images_that_are_not_the_first_are_never_called_so(settings, which):
    one = synthetic("a", seed=7, settings={"samples": 4} | settings)
    some = replace(one, table=one.table[one.table["index"].isin([3, 4, 5, 9])], about=one.about.but(seed=7))
    assert ranked_images(verdicts.Brief.of(some)) == {"minimum": 4, "which": which, "indices": [[3, 3], [9, 1]]}


def test_more_images_take_the_place_of_the_others(tmp_path):
    """As a board says of what it ranks."""
    for one, digit in (("a", "1"), ("b", "2")):
        stored(tmp_path, one, digit, key=digit * 64)
    stored(tmp_path, "more", "3", images=61, key="3" * 64)
    build_site(tmp_path, tmp_path / "site")
    stated = json.loads((tmp_path / "site" / "boards" / "digits-l2-eps0.5.json").read_text())
    assert [one["model"] for one in stated["ranked"]] == ["more"] and stated["images"]["minimum"] == 61
    reasons = {one["model"]: one["reason"] for one in stated["not_comparable"]}
    assert reasons == dict.fromkeys("ab", "60 images, those ranked have 61")


@pytest.mark.parametrize("dates", [("2026-01-01", "2026-01-01"), ("2026-01-02", "2026-01-01")])
def test_a_page_shows_the_evaluation_of_most_radii(tmp_path, dates):
    few, all_ = [0.25], list(EPSILONS)
    for job, epsilons, date in (("1", few, dates[0]), ("2", all_, dates[1])):
        stored(tmp_path, "a", job, epsilons=epsilons, date=date)
    lesser = {"images": 30}, {"complete": False, "date": "2026-01-03"}, {"certificates": []}  # fewer images, cut short, no proof
    for job, words in zip("345", lesser, strict=True):
        stored(tmp_path, "a", job, **{"epsilons": [*all_, 9.0], "date": "2026-01-01"} | words)
    model = next(iter(site_models([Brief.of(one) for one in verdicts.read_all(tmp_path / "verdicts")]).values()))
    assert [one.brief.about.job for one in model.domains] == ["2" * 12]


def test_what_is_not_ranked_is_said_so_on_its_page_and_no_place_of_the_host_is_told(tmp_path):
    """The fault: a refused model had accuracies on its page, which a certificate or an attack denies."""
    stored(tmp_path, "a", "1", key="1" * 64)
    stored(tmp_path, "few", "2", key="2" * 64, images=40)
    keep(tmp_path, synthetic("unsound", key="3" * 64, job="3" * 12, proved=1.4))
    (tmp_path / "verdicts" / "cut").mkdir()
    (tmp_path / "verdicts" / "cut" / f"l2-{'4' * 12}.parquet").write_bytes(b"no table")
    build_site(tmp_path, tmp_path / "site")
    page = lambda name: (tmp_path / "site" / "models" / f"{name}.html").read_text()  # noqa: E731
    count = len(verdicts.breaches(synthetic("unsound", proved=1.4)))
    assert f"Not ranked at eps 0.25, 0.5, 1: refused, {count} breaches" in page("unsound") and "Not ranked" not in page("a")
    shares = [find in page(name) for name in ("a", "few", "unsound") for find in ("Accuracy with 95% limits", ">Classes<", ".svg")]
    assert shares == [True] * 6 + [False] * 3 and "Its accuracies are not shown" in page("unsound")
    assert "Attacks, each on the images left to it" in page("unsound") and "images nearest to falling" in page("unsound")
    assert "Not ranked at eps 0.25, 0.5, 1: not comparable, 40 images, those ranked have 60" in page("few")
    index = (tmp_path / "site" / "index.html").read_text()
    assert "cannot read verdicts verdicts/cut/" in index and str(tmp_path) not in index
    stored(tmp_path, "few", "5", key="2" * 64)
    build_site(tmp_path, tmp_path / "site")
    assert "Not ranked" not in page("few")


def test_every_diagnosis_is_told_in_words_with_its_name(tmp_path):
    """The fault: a board's protocol said `softmaxed, randomised, zero_gradients, random_direction ...`."""
    from robustbench_rkhs.evaluation.diagnostics.diagnosis import CHECKS

    assert set(WORDS) == {*CHECKS, verdicts.TEST_ABOVE_TRAINING} and in_words("of_tomorrow") == "of_tomorrow"
    plain = {"value": 0.0, "threshold": 0.05, "tripped": False, "words": "0 of 60", "cost": 1}
    stored(tmp_path, "a", "1", diagnostics=[plain | {"name": name} for name in CHECKS])
    build_site(tmp_path, tmp_path / "site")
    stated = json.loads((tmp_path / "site" / "boards" / "digits-l2-eps0.5.json").read_text())["protocol"]["Diagnosis"]
    page = (tmp_path / "site" / "models" / "a.html").read_text()
    assert stated == ", ".join(f"{WORDS[name]} ({name})" for name in CHECKS)
    assert all(f"{html.escape(WORDS[name])} ({name})" in page.replace("&#39;", "&#x27;") for name in CHECKS)


def test_the_audit_is_that_of_all_ranked_not_of_the_first(tmp_path):
    """The first may have nothing certified while the second has."""
    stored(tmp_path, "a", "1", key="1" * 64, scale=9.0, proved=0.0)
    stored(tmp_path, "b", "2", key="2" * 64)
    build_site(tmp_path, tmp_path / "site")
    stated = json.loads((tmp_path / "site" / "boards" / "digits-l2-eps0.5.json").read_text())
    assert [(one["model"], one["certified"] > 0) for one in stated["ranked"]] == [("a", False), ("b", True)]
    assert stated["protocol"]["Audit"] == "a minimal-norm attack on every certified image"


def test_two_functions_of_one_name_are_told_apart_and_one_alone_is_not(tmp_path):
    stored(tmp_path, "net", "1", key="1" * 64)
    stored(tmp_path, "other", "3", key="3" * 64)
    build_site(tmp_path, tmp_path / "site")
    (page,) = (tmp_path / "site" / "models").glob("net*")
    assert "<h1>net</h1>" in page.read_text()
    stored(tmp_path, "net", "2", key="2" * 64)
    build_site(tmp_path, tmp_path / "site")
    titles = {re.search("<h1>(.*?)</h1>", path.read_text())[1] for path in (tmp_path / "site" / "models").glob("*.html")}
    assert titles == {"net (111111)", "net (222222)", "other"}
    places = json.loads((tmp_path / "site" / "data" / "models.js").read_text().partition("=")[2][:-2])["places"]
    (place,) = places.values()
    assert {one["name"] for one in place["models"]} == titles
    for one in place["models"]:
        assert f'"model":"{one["name"]}"' in (tmp_path / "site" / "data" / f"{one['stem']}.js").read_text()


def test_images_of_others_are_in_the_table_of_attacks_and_in_the_history(tmp_path):
    """Three images, two of them within the eps 0.5 and 1."""
    one = stored(tmp_path, "net", "1", key="1" * 64)
    said = one.table[(one.table["method"] == "prediction") & (one.table["predicted"] == one.table["label"])].head(3)
    about = one.about.but(epsilons=(), protocol=(), certificates=(), date="2026-02-02", job="2" * 12)
    fall = said.assign(kind="attack", method="submitted", state_reason="", radius=[0.4, 0.45, 3.0])
    fall = fall.assign(distance_l2=fall["radius"], distance_linf=fall["radius"])
    keep(tmp_path, verdicts.Evaluation(verdicts.merge([said, fall]), about))
    build_site(tmp_path, tmp_path / "site")
    page = (tmp_path / "site" / "models" / "net.html").read_text()
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", page)]
    found = [row[1:4] for row in cells if row[0] == "check:submitted"]
    assert found == [["0.5", "3", "2"], ["1", "3", "2"]]
    assert ["3 adversarial images", "submitted", "accepted"] in [row[4:] for row in cells if row[0] == "2026-02-02"]


@pytest.mark.parametrize(("models", "told"), [(201, False), (202, True)])
def test_a_board_says_that_it_lists_the_first_of_many_neighbours(models, told):
    """201 models have 200 pairs of neighbours."""
    pairs = tuple(f"{place} and {place + 1} differ" for place in range(models - 1))
    one = Board(("digits", "", "l2", "unit", 0.5), "b", "B", "0.5", (), (), pairs, (), (), (), False, ())
    values = {"board": one, "columns": [], "rows": "", "read": (), "filters": {}, "compare": ""}
    page = environment().get_template("board.html").render(root="../", title="B", **values)
    assert page.count(" differ</li>") == 200 and ("The first 200 of 201" in page) == told


def test_boards_of_trials_are_apart_from_published_ones(tmp_path):
    stored(tmp_path, "a", "1", key="1" * 64)
    shown, trial = stored(tmp_path, "b", "2", key="2" * 64), stored(tmp_path, "b", "3", key="2" * 64, epsilons=(0.3,), images=8)
    (tmp_path / "site").mkdir()
    build_site(tmp_path, tmp_path / "site")
    index = tmp_path / "site" / "index.html"
    assert "Trials" not in index.read_text()  # as long as nothing is published, nothing is told apart
    verdicts.Published(tmp_path / "verdicts").add(shown.path)
    build_site(tmp_path, tmp_path / "site")
    before, after = index.read_text().split("<caption>Trials, not published</caption>")
    assert "digits-l2-eps0.5.html" in before and "digits-l2-eps0.3.html" in after and "digits-l2-eps0.3.html" not in before
    first, second = (tmp_path / "site" / "models" / "b.html").read_text().split("Trials, not published:")
    assert "eps 0.5</a>" in first and "eps 0.3</a>" not in first and "eps 0.3</a>" in second and trial.path.is_file()
    for eps, told in (("0.5", False), ("0.3", True)):
        assert ("A trial" in (tmp_path / "site" / "boards" / f"digits-l2-eps{eps}.html").read_text()) == told


def test_eps_that_were_typed_as_fractions_are_the_ticks_of_the_curve():
    about = synthetic("m", images=2).about.but(epsilons=(2 / 255, 8 / 255), eps_text=("2/255", "8/255"))
    assert typed_ticks(about) == ((0.0, "0"), (8 / 255, "8/255"), (2 / 255, "2/255"))
    axis = curve_chart("linf", ticks=typed_ticks(about), largest=8 / 255)["layer"][0]["encoding"]["x"]["axis"]
    assert axis["values"] == [0.0, 8 / 255, 2 / 255] and "8/255" in axis["labelExpr"]
    assert typed_ticks(synthetic("m", images=2).about) == ()


def test_hostile_text_stays_text(tmp_path):
    one = synthetic(
        "plain", command="<script>alert(1)</script> \u202e", device='"><img src=x onerror=alert(1)>', key="1" * 64, job="1" * 12
    )
    keep(tmp_path, one)
    build_site(tmp_path, tmp_path / "site")
    for path in (tmp_path / "site").rglob("*.html"):
        text = path.read_text()
        assert "<script>alert" not in text and "<img src=x" not in text and "\u202e" not in text


def test_the_site_is_built_without_torch(built, tmp_path):
    folder, _ = built
    code = "import sys; from robustbench_rkhs.site import build_site; from pathlib import Path; "
    code += (
        "build_site(Path(sys.argv[1]), Path(sys.argv[2])); assert not any(name.split('.')[0] == 'torch' for name in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "again")], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-800:]


def test_another_bundle_of_datatables_is_one_clear_line():
    assert classic("var a=1;export{a as default};").endswith("window.DataTable=a;\n})();\n")
    with pytest.raises(UserError, match="another DataTables bundle than expected"):
        classic("var a = 1;")


def test_a_model_page_holds_its_data_and_the_rows_of_every_image(built):
    folder, _ = built
    one = next(one for one in trio() if one.about.model == "sandwich_cnn")
    frame = pd.read_parquet(folder / "site" / "data" / "sandwich_cnn-digits-l2.parquet")
    pd.testing.assert_frame_equal(frame[list(verdicts.images(one))], verdicts.images(one), check_dtype=False)
    text = (folder / "site" / "data" / "sandwich_cnn-digits-l2.js").read_text()
    data = json.loads(text.removeprefix('rkhs.data["sandwich_cnn-digits-l2"]=').removesuffix(";\n"))
    assert data["index"] == frame["index"].tolist() and {len(one) for one in data["states"].values()} == {len(frame)}
    for rounded, exact, broken, distance in zip(
        data["certified"], frame["certified"], data["broken"], frame["broken"], strict=True
    ):
        assert exact * (1 - 1e-5) <= rounded <= exact and (broken is None or distance <= broken <= distance * (1 + 1e-5))
        assert (broken is None) == np.isinf(distance)
    page = (folder / "site" / "models" / "sandwich_cnn.html").read_text()
    for row in one.summary().to_dict("records"):
        assert f"{100 * row['certified']:.1f}% [{100 * row['certified_low']:.1f}" in page
    for kind in ("svg", "png"):
        assert (folder / "site" / "data" / f"sandwich_cnn-digits-l2.{kind}").stat().st_size > 2000


@pytest.mark.parametrize("count", [60, 3000])
def test_a_thinned_curve_is_on_the_safe_side(count):
    steps = verdicts.accuracy_steps(synthetic("many", images=count, seed=5, minimal=True, curve=True))
    rows = np.array(curve_rows(steps))
    assert len(rows) <= 402 and (np.diff(rows[:, 0]) > 0).all()
    asked = np.linspace(0, 1, 2001)
    at = np.searchsorted(rows[:, 0], asked, side="right") - 1
    assert (rows[at, 1] <= steps.certified.at(asked) + 1e-6).all() and (rows[at, 2] >= steps.empirical.at(asked) - 1e-6).all()
    assert np.abs(rows[at, 2] - steps.empirical.at(asked)).max() <= (0.01 if count > 400 else 1e-6)


def test_one_changed_model_leaves_the_pages_of_others(tmp_path):
    for name, digit in (("a", "1"), ("b", "2")):
        stored(tmp_path, name, digit, key=digit * 64)
    build_site(tmp_path, tmp_path / "site")
    pages = [tmp_path / "site" / "models" / f"{name}.html" for name in "ab"]
    before = [page.stat().st_mtime_ns for page in pages]
    stored(tmp_path, "b", "4", key="2" * 64, date="2026-02-01", clean=0.7)
    build_site(tmp_path, tmp_path / "site")
    after = [page.stat().st_mtime_ns for page in pages]
    assert after[0] == before[0] and after[1] != before[1]
    (tmp_path / "verdicts" / "a" / f"l2-{'1' * 12}.parquet").unlink()
    build_site(tmp_path, tmp_path / "site")
    assert not pages[0].exists() and pages[1].exists() and not list((tmp_path / "site" / "data").glob("a-*"))


def test_cards_and_pages_of_text_are_there(built):
    folder, _ = built
    page = (folder / "site" / "methods" / "attacks-pgd.html").read_text()
    assert "<math" in page and "Gradient steps of each restart." in page
    glossary = (folder / "site" / "glossary.html").read_text()
    assert "A certificate covers the ball of radius eps." in glossary and "{term}" not in glossary
    trust = (folder / "site" / "trust.html").read_text()
    assert "Five states, no sixth" in trust and "What happens when something goes wrong" not in trust  # no campaign was run here


def test_the_campaign_of_faults_follows_the_argument_in_plain_words(tmp_path):
    (tmp_path / "faults").mkdir()
    lines = [{"part": "kills", "date": "2026-01-02", "tried": {"train": 3, "sweep": 4}, "lost": 0, "orphans": 2}]
    (tmp_path / "faults" / "campaign.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (page,) = text_pages.write_trust(tmp_path, tmp_path)
    publication.publish(tmp_path, [page])
    text = page.read_text()
    assert text.index("Five states, no sixth") < text.index("made 7 faults on purpose") < text.index("A result was lost")
    rows = re.findall(r"<th scope=\"row\">(.*?)</th><td.*?>(.*?)</td>", text)
    assert ("A command was killed at a random moment, and started again", "7") in rows
    assert ("A process went on after its command was killed", "2") in rows and ("A result was lost", "0") in rows


def test_the_front_page_says_whose_it_is_what_its_numbers_mean_and_how_to_take_part(built):
    folder, _ = built
    page = (folder / "site" / "index.html").read_text()
    assert "<title>How robust are image classifiers? - robustbench_rkhs</title>" in page
    assert page.index("<b>Robust</b>") < page.index("95% limits") < page.index("<table>") < page.index("rkhs-submit checkpoint")


def test_every_published_model_of_the_shelf_shows_its_own_training():
    """One in half precision too, whose weights file has another digest than the weights that were evaluated."""
    published = verdicts.Published(ROOT / "reports" / "verdicts").paths()
    assert len(published) >= 6
    for path in published:
        about = verdicts.read(path).about
        facts = training_facts(about)
        assert facts.parameters and facts.cost and facts.card, about.model
        assert not training_facts(about.but(key="0" * 64)).card, "of another function"


def test_no_card_shows_the_marks_of_its_source():
    for kind in KINDS:
        for card in cards(kind).values():
            shown = docstring(card.text)
            assert not re.search(r":[a-z]+:(`|<code>)", shown), card.name
            assert "<pre>" not in shown and "<code>\\" not in shown, f"{card.name}: a formula that could not be converted"


def test_no_page_shows_how_a_formula_or_code_was_typed(built):
    """Neither LaTeX that the converter left as it was, nor backticks."""
    pages = [built[0] / "site" / "methods.html", *sorted((built[0] / "site" / "methods").glob("*.html"))]
    texts = {page.name: page.read_text() for page in pages}
    assert "<code>" in texts["methods.html"] and not [name for name, text in texts.items() if "`" in text]
    shown = {
        name: [re.sub("<[^>]*>", "", one) for one in re.findall(r"<math.*?</math>", text, re.S)] for name, text in texts.items()
    }
    assert sum(map(len, shown.values())) > 50 and not [name for name, formulas in shown.items() if "\\" in "".join(formulas)]


def test_markdown_and_formulas_are_text_and_nothing_else():
    text = markdown("# A\n<b>z</b> [k](javascript:alert) [f](file.md) ![i](http://x/y.png)")
    assert "<h2>A</h2>" in text and "<b>" not in text and "<img" not in text and " f " in text
    assert "href" not in text.replace('href="http://x/y.png"', "")
    assert "<code>a</code>" in docstring("`a` <i>") and "<i>" not in docstring("`a` <i>")
    short = docstring(r"margin :math:`f_y < 1`, of :class:`Node`, :math:`\frac{`")
    assert short.count("<math") == 1 and "f_y <" not in short and "<code>Node</code>" in short and ":class:" not in short
    assert str(formula(r"\frac{1}{")).startswith(("<p", "<pre>"))


def check_links(site):
    for path in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#]+)', path.read_text()):
            assert link.startswith("data:") or (path.parent / link).is_file(), f"{path}: {link}"


def test_links_lead_to_files_of_the_site(built):
    check_links(built[0] / "site")


def test_no_page_is_seen_before_those_it_leads_to(tmp_path, monkeypatch):
    """Looked at just before pages are put in their places: nothing is there at first, and then the site as it was."""
    put, seen = publication.publish, []

    def looked(site, pages, end=False):
        seen.append(sorted(path.name for path in site.rglob("*.html")))
        check_links(site)
        if end:
            raise KeyboardInterrupt
        put(site, pages)
        check_links(site)
        assert not list(site.rglob("*.new"))

    monkeypatch.setattr("robustbench_rkhs.site.build.publish", looked)
    stored(tmp_path, "a", "1", key="1" * 64)
    build_site(tmp_path, tmp_path / "site")
    first = sorted(path.name for path in (tmp_path / "site").rglob("*.html"))
    stored(tmp_path, "b", "2", key="2" * 64, epsilons=[*EPSILONS, 9.0])
    stored(tmp_path, "gone", "3", key="3" * 64)
    monkeypatch.setattr("robustbench_rkhs.site.build.publish", partial(looked, end=True))
    with pytest.raises(KeyboardInterrupt):
        build_site(tmp_path, tmp_path / "site")
    shutil.rmtree(tmp_path / "verdicts" / "gone")
    monkeypatch.setattr("robustbench_rkhs.site.build.publish", looked)
    build_site(tmp_path, tmp_path / "site")
    assert seen == [[], first, first]
    shutil.copytree(tmp_path / "verdicts", tmp_path / "fresh" / tmp_path.name / "verdicts")
    build_site(tmp_path / "fresh" / tmp_path.name, tmp_path / "plain")
    for path in (tmp_path / "plain").rglob("*.html"):
        assert (tmp_path / "site" / path.relative_to(tmp_path / "plain")).read_bytes() == path.read_bytes(), path


def test_several_processes_write_the_same_files(built, tmp_path, monkeypatch):
    folder, site = built
    monkeypatch.setattr(side_by_side, "MANY", 2)
    monkeypatch.setattr("robustbench_rkhs.site.build.MANY", 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    shutil.copytree(folder / "verdicts", tmp_path / "verdicts")
    again = build_site(tmp_path, tmp_path / "site")
    names = [path.relative_to(folder / "site") for path in site.files]
    assert names == [path.relative_to(tmp_path / "site") for path in again.files]
    for name in names:
        assert (folder / "site" / name).read_bytes() == (tmp_path / "site" / name).read_bytes(), name


def test_processes_stay_for_the_next_work_and_what_a_killed_one_leaves_is_done_here(monkeypatch):
    monkeypatch.setattr(side_by_side, "MANY", 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    pid, here = "__import__('os').getpid()", os.getpid()
    with side_by_side.staying():
        first, then = (set(side_by_side.side_by_side(eval, [pid] * 8)) for _ in range(2))
        assert here not in first | then and len(first | then) <= 2
        killed = "__import__('os')._exit(1) if __import__('multiprocessing').parent_process() else 7"
        assert list(side_by_side.side_by_side(eval, [killed] * 8)) == [7] * 8
        again = set(side_by_side.side_by_side(eval, [pid] * 8))
        assert not again & (first | {here})
    assert not any(Path(f"/proc/{one}").exists() for one in again)


def test_every_board_as_json_is_of_the_published_form(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    whole = [synthetic(name, seed=place, key=f"{place}" * 64, job=f"{place}" * 12) for place, name in enumerate("ab", 1)]
    few, cut = synthetic("few", images=8, key="3" * 64, job="3" * 12), synthetic("cut", complete=False, key="4" * 64, job="4" * 12)
    for one in (*whole, few, cut):
        keep(tmp_path, one)
    build_site(tmp_path, tmp_path / "site")
    checker = jsonschema.Draft202012Validator(json.loads((tmp_path / "site" / "assets" / "board.schema.json").read_text()))
    boards = [json.loads(path.read_text()) for path in sorted((tmp_path / "site" / "boards").glob("*.json"))]
    for stated in boards:
        checker.validate(stated)
        assert [len(stated[part]) for part in ("ranked", "not_comparable", "not_ranked")] == [2, 1, 1]
    assert len(boards) == 3 and not checker.is_valid(boards[0] | {"ranked": [boards[0]["ranked"][0] | {"robust": 1.5}]})


def test_a_tightness_report_without_its_columns_is_a_table_without_them(tmp_path):
    (tmp_path / "t.csv").write_text("row,name\nlayer,<b>\nlayer\nmodel,x\n")
    grid = tightness_grid(tmp_path / "t.csv")
    assert grid is not None and len(grid.rows) == 2 and tightness_grid(tmp_path / "absent.csv") is None
