"""The site in a real browser, from disk: no error, nothing from the network, no fault found by axe, our own tests' numbers."""

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from browsing import SIZES, WIDER, faults_of, needs_chromium
from test_places import stored
from test_report import EPSILONS, synthetic, trio

from robustbench_rkhs import verdicts
from robustbench_rkhs.site import build_site

pytestmark = needs_chromium
PAGES = ("index", "boards/digits-l2-eps0.5", "models/plain", "compare", "methods", "methods/attacks-pgd", "glossary", "trust")


@pytest.fixture(scope="module")
def site(built):
    return built[0] / "site"


class Visit:
    """A page that was opened from disk, and what went wrong in it."""

    def __init__(self, browser, site: Path, width=1280, height=900, scheme="light", **more):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, **more)
        self.site, self.page = site, context.new_page()
        self.faults = faults_of(self.page, "file:")

    def open(self, name: str, state: str = ""):
        self.page.goto(f"file://{self.site}/{name}.html{state}")
        self.page.wait_for_load_state("load")
        if name == "compare":
            self.page.wait_for_selector("#front svg, #ranked[hidden]", state="attached")  # no trade-off of one ranked model
        return self.page


@pytest.mark.parametrize("size", SIZES)
def test_every_page_works_offline_and_axe_finds_no_fault(site, browser, size):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    width, height, scheme = SIZES[size]
    visit = Visit(browser, site, width, height, scheme)
    for name in PAGES:
        page = visit.open(name)
        assert page.evaluate(WIDER) <= 0, f"{name} is wider than the screen"
        faults = [
            f"{one['id']}: {one['nodes'][0]['html'][:200]}"
            for one in axe.run(page, options={"preload": False}).response["violations"]
        ]
        assert not faults and not visit.faults, f"{name}: {faults} {visit.faults}"


@pytest.mark.parametrize("width", [390, 1280])
def test_a_board_sorts_searches_and_keeps_its_state_in_the_address(site, browser, width):
    visit = Visit(browser, site, width)
    page = visit.open("boards/digits-l2-eps0.5")
    names = lambda: page.locator("#ranked tbody th a").all_inner_texts()  # noqa: E731
    assert sorted(names()) == ["plain", "robust_vgg", "sandwich_cnn"]
    for way in ("asc", "desc"):
        page.get_by_role("button", name="Certified").first.click()
        page.wait_for_function(f"location.hash.includes('sort=certified%3A{way}')")
    stated = json.loads((site / "boards" / "digits-l2-eps0.5.json").read_text())["ranked"]
    by_certified = [one["model"] for one in sorted(stated, key=lambda one: one["certified"], reverse=True)]
    assert names() == by_certified
    page.get_by_label("Search:").fill("sandwich")
    page.get_by_text("Columns").click()
    page.get_by_label("Seed").check()
    assert names() == ["sandwich_cnn"] and "q=sandwich" in page.url and "seed" in page.url
    again = Visit(browser, site, width)
    other = again.open("boards/digits-l2-eps0.5", "#" + page.url.partition("#")[2])
    assert other.locator("#ranked tbody th a").all_inner_texts() == ["sandwich_cnn"]
    assert other.get_by_role("columnheader", name="Seed").is_visible() and not visit.faults + again.faults


def test_the_search_looks_in_what_is_shown_and_never_in_commands(browser, tmp_path):
    """One command names all its models, and a cell that is not shown does not explain why a row is found."""
    for digit, (name, device) in enumerate((("gloro", "CPU, 1 thread"), ("conv", "H100 & <A100>"), ("mlp", "CPU, 1 thread")), 1):
        stored(tmp_path, name, str(digit), key=str(digit) * 64, device=device, command="rkhs-eval --model gloro conv mlp")
    build_site(tmp_path, tmp_path / "site")
    visit = Visit(browser, tmp_path / "site")
    page = visit.open("boards/digits-l2-eps0.5")
    found = lambda text: (page.get_by_label("Search:").fill(text), sorted(page.locator("#ranked tbody th").all_inner_texts()))[1]  # noqa: E731
    assert found("gloro") == ["gloro"] and found("H100") == []
    page.get_by_text("Columns").click()
    for column in ("Command", "Function", "Device"):
        page.locator(".choices").get_by_label(column).check()
    assert found("GLORO") == ["gloro"] and found("H100 conv") == ["conv"] and found("2" * 8) == []
    assert "q=" in page.url and found("") == ["conv", "gloro", "mlp"] and "q=" not in page.url
    page.locator("#controls select").select_option("H100 & <A100>")
    assert page.locator("#ranked tbody th").all_inner_texts() == ["conv"] and not visit.faults


def test_marks_are_told_under_the_name_where_their_column_is_not_shown(browser, tmp_path):
    stored(tmp_path, "plain", "1", key="1" * 64)
    build_site(tmp_path, tmp_path / "site")
    page = Visit(browser, tmp_path / "site", 390).open("boards/digits-l2-eps0.5")
    (said,) = json.loads((tmp_path / "site" / "boards" / "digits-l2-eps0.5.json").read_text())["ranked"]
    sign = page.locator("#ranked .sign")
    assert said["marks"] and all(mark.partition(":")[0] in sign.inner_text() for mark in said["marks"])
    assert sign.is_visible() and page.evaluate(WIDER) <= 0
    page.get_by_text("Columns").click()
    page.locator(".choices").get_by_label("Marks").check()
    assert not sign.is_visible() and page.locator("#ranked td.marks li").first.is_visible()


def test_models_of_one_name_have_a_curve_a_box_and_a_row_each(browser, tmp_path):
    for digit in "12":
        stored(tmp_path, "net", digit, key=digit * 64, seed=int(digit))
    build_site(tmp_path, tmp_path / "site")
    page, names = Visit(browser, tmp_path / "site").open("compare"), ["net (111111)", "net (222222)"]
    assert [one.inner_text().strip() for one in page.locator("#models label").all()] == [f"{name} (60 images)" for name in names]
    assert page.locator("#chart .role-legend-label text").all_text_contents() == names
    assert page.locator("#pairs tbody td").all_inner_texts()[:2] == names and not page.locator("#unlike").is_visible()


def test_models_that_were_attacked_otherwise_get_a_warning_and_no_p(browser, tmp_path):
    stored(tmp_path, "first", "1", key="1" * 64)
    stored(tmp_path, "alike", "2", key="2" * 64, seed=1)
    stored(tmp_path, "quick", "3", key="3" * 64, seed=2, settings={"effort": "quick"})
    stored(tmp_path, "few", "4", key="4" * 64, seed=3, images=40)
    build_site(tmp_path, tmp_path / "site")
    visit = Visit(browser, tmp_path / "site")
    page = visit.open("compare", "#m=first,alike,quick,few&eps=0.5")
    told = page.locator("#unlike").inner_text()
    assert "with first. Attacked otherwise: quick. Evaluated on other images: few." in told and "alike" not in told
    rows = [row.inner_text().split("\t") for row in page.locator("#pairs tbody tr").all()]
    assert [row[-1] for row in rows][1:] == ["not comparable"] * 2 and 0 <= float(rows[0][-1]) <= 1
    page.locator("#models").get_by_label("quick").uncheck()
    page.locator("#models").get_by_label("few").uncheck()
    page.wait_for_function("document.querySelectorAll('#pairs tbody tr').length === 1")
    assert not page.locator("#unlike").is_visible() and not visit.faults


def test_a_diagnosis_or_audit_that_only_one_of_two_went_through_is_named_as_on_boards(browser, tmp_path):
    """The board sets the two apart that lack it; the compare page gives no p for them, whichever of the two comes first."""
    diagnosed = [{"name": "zero_gradients", "value": 0.0, "threshold": 0.5, "tripped": False, "words": "gradients", "cost": 64}]
    stored(tmp_path, "first", "1", key="1" * 64, diagnostics=diagnosed)
    stored(tmp_path, "alike", "2", key="2" * 64, seed=1, diagnostics=diagnosed)
    stored(tmp_path, "blind", "3", key="3" * 64, seed=2, marks=["undiagnosed"])
    hasty = synthetic("hasty", key="4" * 64, seed=3, diagnostics=diagnosed, job="4" * 12)
    table, proved = hasty.table, hasty.table.loc[hasty.table["method"] == "margin"].set_index("index")["radius"]
    missed = (table["kind"] == "attack") & table["index"].isin(proved.index[proved >= 0.5])
    verdicts.write(replace(hasty, table=table[~missed]), tmp_path / "verdicts" / "hasty" / f"l2-{'4' * 12}.parquet")
    build_site(tmp_path, tmp_path / "site")
    stated = json.loads((tmp_path / "site" / "boards" / "digits-l2-eps0.5.json").read_text())
    assert {one["model"] for one in stated["ranked"]} == {"first", "alike"}
    assert {one["model"] for one in stated["not_comparable"]} == {"blind", "hasty"}
    visit = Visit(browser, tmp_path / "site")
    page = visit.open("compare", "#m=first,alike,blind,hasty&eps=0.5")
    told = page.locator("#unlike").inner_text()
    assert "with first. No diagnosis was run: blind. Certified images were not audited: hasty." in told and "alike" not in told
    rows = [row.inner_text().split("\t")[-1] for row in page.locator("#pairs tbody tr").all()]
    assert rows[1:] == ["not comparable"] * 2 and 0 <= float(rows[0]) <= 1
    page = visit.open("compare", "#m=hasty,first&eps=0.5")
    page.wait_for_function("document.querySelector('#unlike').textContent.includes('with hasty')")
    assert "Certified images were audited, which those of the first one were not: first." in page.locator("#unlike").inner_text()
    page = visit.open("compare", "#m=blind,first&eps=0.5")
    page.wait_for_function("document.querySelector('#unlike').textContent.includes('with blind')")
    assert "Diagnosed, which the first one was not: first." in page.locator("#unlike").inner_text() and not visit.faults


@pytest.mark.parametrize("width", [390, 1300, 1920])
def test_a_board_shows_every_column_that_says_something_whole(site, browser, width):
    visit = Visit(browser, site, width)
    page = visit.open("boards/digits-l2-eps0.5")
    heads = [one.inner_text() for one in page.locator("#ranked thead th").all()]
    phone = ["Rank", "Model", "Robust", "Certified"]
    assert heads == (phone if width < 640 else [*phone[:2], "Clean", *phone[2:], "Open", "Marks", "Evaluated"])
    assert page.evaluate("(([one]) => one.scrollWidth <= one.clientWidth)([document.querySelector('#ranked').closest('.scroll')])")
    cut = "one => one.clientWidth && one.scrollWidth > one.clientWidth + 1"
    found = page.evaluate(f"[...document.querySelectorAll('a, button, th, td')].filter({cut}).map((one) => one.textContent)")
    assert found == [] and not visit.faults


def test_the_last_tick_of_a_curve_is_the_largest_eps_and_is_seen_whole(site, browser):
    for width in (390, 1300):
        for name, place in (("models/plain", ".chart"), ("compare", "#chart")):
            page = Visit(browser, site, width).open(name)
            page.wait_for_selector(f"{place} svg")
            labels = [(one.text_content(), one.bounding_box()) for one in page.locator(f"{place} .role-axis-label text").all()]
            box = page.locator(f"{place} svg").bounding_box()
            right, found = box["x"] + box["width"], [(text, at["x"] + at["width"]) for text, at in labels if at]
            numbers = [(float(text), at) for text, at in found if text and not text.endswith("%")]
            assert max(numbers)[0] == max(EPSILONS) and max(numbers)[1] <= right, (width, name, numbers)


@pytest.mark.parametrize("name, place", [("models/plain", ".chart"), ("compare", "#chart")])
def test_on_a_phone_the_words_of_an_axis_lie_apart(site, browser, name, place):
    """The fault: eleven numbers on 300 pixels, which nearly touched."""
    page = Visit(browser, site, 390).open(name)
    page.wait_for_selector(f"{place} svg")
    labels = [one for one in page.locator(f"{place} .role-axis-label text").all() if not one.text_content().endswith("%")]
    boxes = sorted((one.bounding_box() for one in labels), key=lambda one: one["x"])
    gaps = [right["x"] - left["x"] - left["width"] for left, right in pairwise(boxes)]
    assert len(boxes) >= 4 and min(gaps) >= max(one["width"] for one in boxes) / 2, gaps


def test_on_a_phone_no_row_is_high_because_of_what_lies_beside_the_screen(site, browser):
    """The fault: columns to the right were pressed narrow, so that each row of a few numbers was three lines high."""
    for name, rows in (("models/plain", ".domain table tbody tr"), ("compare", "#images tbody tr")):
        page = Visit(browser, site, 390).open(name)
        lines = (
            "rows => rows.map((row) => row.clientHeight / parseFloat(getComputedStyle(row).lineHeight)).filter((one) => one > 0)"
        )
        heights = page.locator(rows).evaluate_all(lines)
        assert heights and max(heights) < 2, (name, heights)
        if name == "models/plain":
            at = page.locator(".images thead th", has_text="Certified radius").bounding_box()
            assert at["x"] + at["width"] <= 390


def test_the_images_of_a_model_keep_their_order_in_the_address(site, browser):
    """The fault: only the search was kept, so that a link showed another order."""
    visit = Visit(browser, site)
    page = visit.open("models/plain")
    column = lambda one: one.locator(".images tbody td:nth-child(4)").all_inner_texts()  # noqa: E731
    assert "#" not in page.url
    for way in ("asc", "desc"):
        page.locator(".images").get_by_role("button", name="Certified radius").click()
        page.wait_for_function(f"location.hash.includes('sort=certified%3A{way}')")
    page.get_by_label("Search:").fill("margin")
    page.wait_for_function("location.hash.includes('q=margin')")
    found = column(page)
    assert list(map(float, found)) == sorted(map(float, found), reverse=True)
    again = Visit(browser, site)
    assert column(again.open("models/plain", "#" + page.url.partition("#")[2])) == found and not visit.faults + again.faults


def test_a_state_pasted_into_the_same_tab_is_shown(site, browser):
    """As a link in an open tab: the page is the same, only what is behind # changes."""
    visit = Visit(browser, site)
    page = visit.open("boards/digits-l2-eps0.5", "#q=plain")
    paste = lambda state: page.evaluate("state => { location.hash = state; }", state)  # noqa: E731
    paste("q=sandwich&cols=model,seed")
    page.wait_for_function("document.querySelector('#ranked tbody')?.innerText.trim().startsWith('sandwich_cnn')")
    assert page.locator("#ranked thead th").all_inner_texts() == ["Model", "Seed"]
    page.evaluate("window.same = true")
    page.get_by_text("Whole protocol").click()
    page.get_by_label("Search:").fill("sand")
    assert page.evaluate("window.same") and page.url.endswith("q=sand&cols=model%2Cseed")  # an anchor is no state
    page = visit.open("models/plain")
    paste("q=margin")
    page.wait_for_function("document.querySelector('.images input[type=search]')?.value === 'margin'")
    page = visit.open("compare", "#m=robust_vgg,plain&eps=0.5")
    paste("m=sandwich_cnn,plain&eps=0.25")
    page.wait_for_function("document.querySelector('#pairs tbody')?.innerText.startsWith('sandwich_cnn')")
    assert page.locator("#eps").input_value() == "0.25" and not visit.faults


def test_a_refused_model_gets_no_p_whichever_comes_first_and_long_names_are_whole(browser, tmp_path):
    long = "a_network_whose_name_is_so_long"
    stored(tmp_path, long, "1", key="1" * 64)
    stored(tmp_path, "constructor", "3", key="3" * 64)  # a name that every object of JavaScript has
    unsound = synthetic("unsound", key="2" * 64, job="2" * 12, proved=1.4)
    verdicts.write(unsound, tmp_path / "verdicts" / "unsound" / f"l2-{'2' * 12}.parquet")
    build_site(tmp_path, tmp_path / "site")
    visit = Visit(browser, tmp_path / "site", 390)
    page = visit.open("compare", f"#m={long},unsound&eps=0.5")
    assert f"with {long}. Not ranked, as it is refused: unsound." in page.locator("#unlike").inner_text()
    assert page.locator("#pairs tbody td").last.inner_text() == "not comparable"
    labels = page.locator("#chart .role-legend-label text").all()
    assert {one.text_content() for one in labels} == {long, "unsound"}
    assert all(one.bounding_box()["x"] + one.bounding_box()["width"] <= 390 for one in labels)
    page = visit.open("models/unsound")
    page.wait_for_selector(".images tbody tr")
    assert page.locator(".chart").count() == 0 and not visit.faults
    page = visit.open("compare", f"#m=unsound,{long}&eps=0.5")
    page.wait_for_function("document.querySelector('#unlike').textContent.includes('with unsound')")
    assert f"The first one is refused: {long}." in page.locator("#unlike").inner_text()
    page = visit.open("compare", f"#m=constructor,{long}&eps=0.5")
    page.wait_for_function("document.querySelector('#pairs tbody td')?.textContent === 'constructor'")
    assert page.locator("#unlike").is_hidden() and not visit.faults


def test_on_a_phone_captions_are_read_whole_and_wide_tables_show_that_more_lies_to_the_right(site, browser):
    visit = Visit(browser, site, 390)
    shadow = "one => getComputedStyle(one).backgroundImage.includes('linear-gradient')"
    for name in ("index", "models/plain", "compare"):
        page = visit.open(name)
        page.wait_for_function("!document.querySelector('.images') || document.querySelector('.images caption')")
        for one in page.locator("caption:visible").all():
            at = one.bounding_box()
            assert at["x"] < 0 or at["x"] + at["width"] <= 390, (name, one.inner_text())  # those of details are off the screen
        wide = "[...document.querySelectorAll('main *')].filter(one => one.clientWidth && one.scrollWidth > one.clientWidth + 1)"
        assert page.evaluate(f"{wide}.filter(one => getComputedStyle(one).overflowX === 'auto').every({shadow})")
    page = visit.open("index")
    assert page.evaluate("(one => one.scrollWidth <= one.clientWidth)(document.querySelector('main .scroll'))")
    assert page.locator("thead th:visible").all_inner_texts() == ["Board", "First", "Robust", "Certified"] and not visit.faults


@pytest.mark.parametrize("width", [390, 1300])
def test_names_of_the_trade_off_are_seen_whole(browser, tmp_path, width):
    """The last point lies at the right end, where a name to its right would be cut."""
    for digit, (name, clean) in enumerate((("digits_first_of_all", 0.6), ("digits_sandwich_last", 0.95)), 1):
        stored(tmp_path, name, str(digit), key=str(digit) * 64, clean=clean)
    build_site(tmp_path, tmp_path / "site")
    page = Visit(browser, tmp_path / "site", width).open("compare")
    names = page.locator("#front .mark-text.role-mark text")
    assert sorted(names.all_text_contents()) == ["digits_first_of_all", "digits_sandwich_last"]
    box = page.locator("#front svg").bounding_box()
    for one in names.all():
        at = one.bounding_box()
        assert box["x"] <= at["x"] and at["x"] + at["width"] <= box["x"] + box["width"]


def test_without_javascript_there_is_a_table(site, browser):
    visit = Visit(browser, site, java_script_enabled=False)
    page = visit.open("boards/digits-l2-eps0.5")
    assert page.locator("#ranked tbody tr").count() == 3 and page.locator("#ranked tbody tr").first.is_visible()
    page = visit.open("models/plain")
    assert page.get_by_text("images nearest to falling").first.is_visible() and page.locator("img.still").first.is_visible()


def test_a_long_board_is_laid_out_page_by_page_and_whole_without_javascript(site, browser, tmp_path):
    """Rows beyond the first page are hidden only until the table is there: a board of 1,000 models opens in half the time."""
    copy, board = tmp_path / "site", "boards/digits-l2-eps0.5"
    shutil.copytree(site, copy)
    page = copy / f"{board}.html"
    row = re.search(r"<tbody>\s*(<tr>.*?</tr>)", page.read_text(), re.DOTALL)[1]
    page.write_text(page.read_text().replace(row, row * 148, 1))
    opened = Visit(browser, copy).open(board)
    rows = "#ranked > tbody > tr:visible"
    assert opened.locator(rows).count() == 100
    opened.locator(".dt-length select").select_option("-1")
    assert opened.locator(rows).count() == 150
    assert Visit(browser, copy, java_script_enabled=False).open(board).locator(rows).count() == 150


def test_what_needs_two_models_is_shown_where_there_are_two(site, browser):
    page = Visit(browser, site).open("compare", "#m=plain")
    heads = lambda: page.locator("main h2:visible").all_inner_texts()  # noqa: E731
    assert heads() == ["Accuracy against eps", "Trade-off"] and "choose another one" in page.locator("#told").inner_text()
    page.get_by_role("checkbox", name="robust_vgg").check()
    page.wait_for_selector("#pairs tbody tr")
    assert heads() == ["Accuracy against eps", "Paired difference", "Images on which they differ", "Trade-off"]


def test_radii_of_images_have_four_digits_and_stay_true(site, browser):
    page = Visit(browser, site).open("compare", "#m=robust_vgg,plain&eps=0.5")
    said = page.locator("#images tbody td").all_inner_texts()
    radii = [word for text in said if " to " in text for word in text.replace("none known", "0").split(" to ")]
    assert radii and all(len(word.partition("e")[0].replace("0.", "").replace(".", "").strip("0")) <= 4 for word in radii), radii
    data = page.evaluate("() => Object.values(rkhs.data).find((one) => one.model === 'plain')")
    for row in page.locator("#images tbody tr").all()[:20]:
        image, _, _, _, interval = row.locator("td").all_inner_texts()
        at = data["index"].index(int(image))
        low, high = interval.split(" to ")
        assert data["certified"][at] * 0.999 <= float(low) <= data["certified"][at]
        assert high == "none known" or data["broken"][at] <= float(high) <= data["broken"][at] * 1.001


def test_paired_numbers_are_those_of_our_own_tests(site, browser):
    visit = Visit(browser, site)
    page = visit.open("compare", "#m=robust_vgg,plain,sandwich_cnn&eps=0.5")
    models = {one.about.model: verdicts.robust_images(one, 0.5).to_numpy() for one in trio()}
    first = models["robust_vgg"]
    rows = [row.inner_text().split("\t") for row in page.locator("#pairs tbody tr").all()]
    assert [row[1] for row in rows] == ["plain", "sandwich_cnn"]
    for _, name, images, both, only_first, only_second, neither, difference, p in rows:
        other = models[name]
        counts = [len(first), (first & other).sum(), (first & ~other).sum(), (~first & other).sum(), (~first & ~other).sum()]
        assert list(map(int, (images, both, only_first, only_second, neither))) == counts
        share, low, high = map(float, difference.replace("[", "").replace("]", "").replace(",", "").split())
        assert share == pytest.approx(100 * (first.mean() - other.mean()), abs=0.051) and low < share < high
        assert float(p) == pytest.approx(verdicts.mcnemar(first, other), rel=0.06)
    cases = [(0, 0), (1, 0), (3, 3), (10, 4), (700, 620), (0, 1000)]
    found = page.evaluate("cases => cases.map(([b, c]) => rkhs.paired.mcnemar({only_first: b, only_second: c}))", cases)
    for (b, c), value in zip(cases, found, strict=True):
        right = np.array([[True, False]] * b + [[False, True]] * c, dtype=bool).reshape(-1, 2)
        assert value == pytest.approx(verdicts.mcnemar(right[:, 0], right[:, 1]), rel=1e-8)
    assert not visit.faults
