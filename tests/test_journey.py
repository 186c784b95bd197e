"""The whole journey of a newcomer in a real browser, on a desktop and on a phone: from the board to an own row on it.

Two visitors send the same checkpoint, so that it is evaluated once: by the real worker. Each number that they read on the way is
compared with the verdict table that it comes from.
"""

import io
import json
from pathlib import Path

import pandas as pd
import pytest

for package in ("fastapi", "uvicorn", "sqlmodel", "huey", "python_multipart", "httpx2"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra `serve`)")

from browsing import SIZES, Visitor, needs_chromium  # noqa: E402
from test_service import Home  # noqa: E402
from test_service_browser import served  # noqa: E402

from robustbench_rkhs import verdicts  # noqa: E402
from robustbench_rkhs.evaluation.recipe import EvalRecipe  # noqa: E402
from robustbench_rkhs.evaluation.run import evaluate  # noqa: E402
from robustbench_rkhs.service.guarding import guard  # noqa: E402
from robustbench_rkhs.service.supervisor import Supervisor  # noqa: E402
from robustbench_rkhs.site import build_site  # noqa: E402
from robustbench_rkhs.training import checkpoint  # noqa: E402

pytestmark = needs_chromium
ROOT = Path(__file__).parents[1]
PROTOCOL = {"eps": [0.25, 0.5], "samples": 12, "attacks": [{"name": "ddn", "steps": 5}], "certificates": ["margin"]}
PROTOCOL |= {"diagnostics": False}
FILES = [ROOT / "examples" / "theirs" / name for name in ("model.safetensors", "config.json", "recipe.yaml")]
WATCH = """() => {
  const of = (id) => document.getElementById(id), look = () => seen.push([of("words").textContent, of("log").textContent]);
  window.seen = [];
  look();
  new MutationObserver(look).observe(of("state"), {subtree: true, childList: true});
}"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A board with two small models that were evaluated by its protocol, and its service, whose worker waits."""
    found = Home(tmp_path_factory.mktemp("journey"), guard, protocol=PROTOCOL, sample=8)
    recipe = EvalRecipe(**PROTOCOL)
    for name in ("digits_mlp", "digits_sandwich"):
        stored = checkpoint.load(ROOT / "checkpoints" / name)
        evaluate(stored.model, stored.recipe.data.test(), recipe, name=name, folder=found.settings.out / "verdicts")
    build_site(found.settings.out, found.settings.site)
    supervisor = Supervisor(found.settings)
    supervisor.start()
    yield found
    supervisor.stop()


@pytest.fixture(scope="module")
def address(home):
    with served(home) as found:
        yield found


class Newcomer(Visitor):
    """A visitor who can look up the truth."""

    def __init__(self, browser, address, size, home):
        super().__init__(browser, address, *size)
        self.home = home

    @property
    def tables(self):
        """The verdict tables as they are now, by model."""
        return {one.about.model: one for one in verdicts.read_all(self.home.settings.out / "verdicts")}


def shares(evaluation, eps):
    """What a board says of a model, counted from the states of its images."""
    state = verdicts.states(evaluation, eps)["state"]
    clean, certified, survived = (state != "wrong").mean(), (state == "certified").mean(), (state == "survived").mean()
    return {"clean": clean, "robust": certified + survived, "certified": certified, "open": survived}


def check_board(visit, eps):
    """The board as it is shown, and its files, say what the verdict tables say."""
    visit.arrived(f"/boards/digits-l2-eps{eps:g}.html")
    truth = {name: shares(one, eps) for name, one in visit.tables.items()}
    for row in visit.page.locator("#ranked tbody tr").all():
        said = truth[row.locator("th a").inner_text()]
        for share in ("robust", "certified"):
            assert row.locator(f"td.{share}").inner_text().startswith(f"{100 * said[share]:.1f}%")
    csv = pd.read_csv(io.BytesIO(visit.downloaded("CSV"))).to_dict("records")
    for rows in (csv, json.loads(visit.downloaded("JSON"))["ranked"]):
        assert {row["model"]: {share: row[share] for share in said} for row in rows} == {
            name: pytest.approx(one, abs=1e-12) for name, one in truth.items()
        }
        assert {row["images"] for row in rows} == {12}
    assert visit.page.locator("#ranked tbody tr").count() == len(truth)
    visit.fine()


def check_images(visit, name):
    """The page of a model shows every image as its table has it, also sorted."""
    visit.arrived(f"/models/{name}.html")
    visit.page.wait_for_selector(".chart svg")
    evaluation = visit.tables[name]
    rows = evaluation.table[evaluation.table["method"] != "prediction"]
    certified, broken = (
        rows[rows["kind"] == kind].groupby("index")["radius"].agg(way) for kind, way in (("certificate", "max"), ("attack", "min"))
    )
    states = {eps: verdicts.states(evaluation, eps)["state"] for eps in PROTOCOL["eps"]}
    assert not any((one == "wrong").any() for one in states.values())  # their radii would be 0 here
    visit.page.locator(".images").get_by_role("button", name="Certified radius").click()
    visit.page.locator(".images th[aria-sort=ascending]", has_text="Certified radius").wait_for()
    shown = [row.locator("td").all_inner_texts() for row in visit.page.locator(".images tbody tr").all()]
    assert [int(row[0]) for row in shown] == list(certified.sort_values().index)
    for index, _, _, radius, _, distance, _, *words in ([int(row[0]), *row[1:]] for row in shown):
        assert float(radius) == pytest.approx(certified[index], rel=1e-5) and float(radius) <= certified[index]
        far = float("inf") if distance == "none known" else float(distance)
        assert far == pytest.approx(broken[index], rel=1e-5) and far >= broken[index]
        assert words == [states[eps][index] for eps in PROTOCOL["eps"]]
    visit.fine()


def check_comparison(visit, eps):
    """The paired counts of two models are those of their tables."""
    visit.arrived("/compare.html")
    visit.page.wait_for_selector("#front svg")
    first, second, *said = visit.page.locator("#pairs tbody td").all_inner_texts()
    one, other = (verdicts.robust_images(visit.tables[name], eps) for name in (first, second))
    counts = [len(one), (one & other).sum(), (one & ~other).sum(), (~one & other).sum(), (~one & ~other).sum()]
    assert {first, second} == set(visit.tables) and list(map(int, said[:5])) == counts and len(said) == 7
    visit.fine()


def look_around(visit):
    """From the front page to a board, sorted and filtered; to a model's images; to a comparison of two."""
    page = visit.page
    page.goto("/")
    visit.arrived("/")
    page.locator("main table").get_by_role("link", name="0.5", exact=False).click()
    check_board(visit, 0.5)
    names = lambda: page.locator("#ranked tbody th a").all_inner_texts()  # noqa: E731
    for way in ("asc", "desc"):
        page.get_by_role("button", name="Certified").first.click()
        page.wait_for_url(f"**sort=certified%3A{way}**")
        truth = sorted((shares(one, 0.5)["certified"], name) for name, one in visit.tables.items())
        assert names() == [name for _, name in truth][:: 1 if way == "asc" else -1]
    page.locator("#controls select").last.select_option(index=1)
    assert names() == ["digits_sandwich"]
    page.locator("#controls select").last.select_option(index=0)
    page.get_by_label("Search:").fill("mlp")
    assert names() == ["digits_mlp"]
    visit.fine()
    page.get_by_role("link", name="digits_mlp").click()
    check_images(visit, "digits_mlp")
    page.go_back()
    page.get_by_text("of 2").wait_for()
    assert names() == ["digits_mlp"]  # the search is kept in the address
    page.get_by_role("link", name="Compare these models").click()
    check_comparison(visit, 0.5)


def send(visit):
    """With a token, by the form; a wait for the guard."""
    page = visit.page
    page.get_by_role("link", name="Submit").click()
    visit.arrived("/submit")
    page.get_by_label("Token").fill(visit.home.alice)
    page.get_by_role("button", name="Go on").click()
    page.get_by_label("Name of the model").fill("theirs")
    page.get_by_label("Its files").set_input_files(FILES)
    visit.fine()
    page.get_by_role("button", name="Send the checkpoint").click()
    visit.arrived("/submissions/1")
    page.evaluate(WATCH)


def watch(visit):
    """Until it is accepted: the same page, never read again, has shown how it went."""
    page = visit.page
    page.get_by_text("accepted", exact=True).wait_for(timeout=600_000)  # a loaded machine evaluates for minutes
    page.get_by_role("link", name="Its page: theirs").wait_for()
    seen = page.evaluate("seen")  # gone, had the page been loaded again
    assert list(dict.fromkeys(words for words, _ in seen))[-2:] == ["being evaluated", "accepted"]
    lines = [log.count("\n") for words, log in seen if words == "being evaluated"]
    assert lines == sorted(lines) and len(set(lines)) > 2
    for eps in PROTOCOL["eps"]:
        said = shares(visit.tables["theirs"], eps)
        between = f"Robust at {eps:.4g}: between {100 * said['certified']:.1f}% and {100 * said['robust']:.1f}%."
        assert between in page.locator("#bounds").inner_text()
    visit.fine()


def find_it(visit):
    """By the links of the submission: the board with a row more, the page of the model."""
    page = visit.page
    page.get_by_role("link", name="Board at eps 0.5").click()
    check_board(visit, 0.5)
    assert "theirs" in page.locator("#ranked tbody th a").all_inner_texts()
    page.get_by_role("link", name="theirs", exact=True).click()
    check_images(visit, "theirs")
    page.goto("/submissions/1")
    page.get_by_role("link", name="Its page: theirs").click()
    visit.arrived("/models/theirs.html")


def test_a_newcomer_comes_reads_submits_watches_and_finds_the_own_row(home, browser, address):
    visits = [Newcomer(browser, address, size, home) for size in SIZES.values()]
    for step in (look_around, send, watch, find_it):
        for visit in visits:
            step(visit)
    assert set(visits[0].tables) == {"digits_mlp", "digits_sandwich", "theirs"}
    assert home.client.get("/api/submissions").json()["total"] == 1 and home.state()["attempt"] == 1
