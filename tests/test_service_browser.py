"""The service in a real browser: submit, watch it run, see the verdict; hostile text stays text, and nothing breaks the policy."""

import shutil
import socket
import threading
import time
from contextlib import contextmanager

import pytest

for package in ("fastapi", "uvicorn", "sqlmodel", "huey", "python_multipart", "httpx2"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra `serve`)")

import uvicorn  # noqa: E402
from browsing import WIDER, faults_of, needs_chromium  # noqa: E402
from test_service import Home  # noqa: E402

from robustbench_rkhs.runtime.events import Between, BoundsChanged, Message, PhaseStarted, Progress  # noqa: E402
from robustbench_rkhs.service import lifecycle  # noqa: E402
from robustbench_rkhs.service.admin import Admin  # noqa: E402
from robustbench_rkhs.service.app import create_app  # noqa: E402
from robustbench_rkhs.service.lifecycle import Outcome  # noqa: E402
from robustbench_rkhs.service.live import Live  # noqa: E402
from robustbench_rkhs.service.state import add_to_log, write_live  # noqa: E402
from robustbench_rkhs.service.submission import Status  # noqa: E402
from robustbench_rkhs.service.token import make_token  # noqa: E402

pytestmark = needs_chromium
HOSTILE = "</pre><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><a href=javascript:x>x</a>"


@pytest.fixture(scope="module")
def home(built, tmp_path_factory):
    found = Home(tmp_path_factory.mktemp("served"))
    shutil.copytree(built[0] / "verdicts", found.settings.out / "verdicts")
    shutil.copytree(built[0] / "site", found.settings.site)
    return found


@contextmanager
def served(home):
    """Context manager: its address, while it is served."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(home.desk), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def address(home):
    with served(home) as found:
        yield found


@pytest.fixture
def visit(browser, address):
    """A page, and what went wrong in it; requests to elsewhere count as faults."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, base_url=address)
    page = context.new_page()
    faults = faults_of(page, address)
    yield page, faults
    context.close()
    assert not faults


def test_a_newcomer_submits_and_watches(home, visit, tmp_path):
    page, faults = visit
    page.goto("/submit")
    page.get_by_label("Token").fill("rkhs_wrong")
    page.get_by_role("button", name="Go on").click()
    page.get_by_text("the token is unknown").wait_for()
    assert "401" in faults.pop()  # the browser tells it, too
    page.goto("/submit")
    page.get_by_label("Token").fill(home.alice)
    page.get_by_role("button", name="Go on").click()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    page.get_by_label("Name of the model").fill("mine")
    page.get_by_label("Its files").set_input_files(tmp_path / "model.safetensors")
    page.get_by_role("button", name="Send the checkpoint").click()
    page.get_by_text("queued", exact=True).wait_for()
    assert page.url.endswith("/submissions/1") and page.locator("#position").inner_text() == "1"
    seen = threading.Event()

    def evaluate(settings, one, tell):
        tell(Progress(phase="attacks", method="pgd", done=3, total=8, seconds=1.0))
        tell(BoundsChanged(images=8, bounds=(Between(eps=0.5, low=0.25, high=0.75),)))
        seen.wait(30)
        return Outcome(Status.REFUSED, "images are untested")

    working = threading.Thread(target=home.work, args=(evaluate,))
    working.start()
    try:
        page.get_by_text("being evaluated").wait_for()
        page.get_by_text("attacks: pgd, 3 of 8 images").wait_for()
    finally:
        seen.set()
        working.join()
    page.get_by_text("refused", exact=True).wait_for()
    page.get_by_text("images are untested").first.wait_for()
    assert page.evaluate(WIDER) <= 0
    page.goto("/submissions")
    state = page.get_by_role("cell", name="refused", exact=True)
    at = state.bounding_box()  # the fault: it was the last column, beside a phone's screen
    assert at["x"] + at["width"] <= 390


def test_hostile_text_stays_text(home, visit):
    page, _ = visit
    token = make_token(home.desk.database, "<b onclick=x>eve</b>", ["checkpoint"], 50)
    number = home.send("hostile", token=token).json()["id"]
    page.goto(f"/submissions/{number}")

    def evaluate(settings, one, tell):
        tell(PhaseStarted(phase=HOSTILE))
        tell(Progress(phase=HOSTILE, method=HOSTILE, done=1, total=2, seconds=1.0, detail=HOSTILE))
        tell(Message(text=HOSTILE))
        return Outcome(Status.HELD, HOSTILE)

    while home.work(evaluate):
        pass
    page.get_by_text("evaluated, and held for a person").wait_for()
    for path in (f"/submissions/{number}", "/submissions"):
        for _ in range(2):  # as the script wrote it, and as the server does
            assert "owned" not in page.title() and not page.locator("main :is(script, img, b, a[href^=javascript])").count()
            page.goto(path)
    assert "<b onclick=x>eve</b>" in page.inner_text("main")


def test_a_stream_that_is_refused_or_breaks_is_tried_again_and_the_page_says_so(home, visit):
    page, faults = visit
    number = home.send("followed").json()["id"]
    answers = [(502, "text/html", "<p>bad gateway</p>"), (200, "text/html", "a portal"), (503, "application/json", "{}")]

    def answered(route):
        if not answers:
            return route.continue_()
        code, kind, body = answers.pop(0)
        return route.fulfill(status=code, content_type=kind, body=body)

    page.route("**/events", answered)
    page.goto(f"/submissions/{number}")
    page.get_by_text("The connection is lost: this page tries again every few seconds.").wait_for()
    while home.work(lambda settings, one, tell: Outcome(Status.REFUSED, "images are untested")):
        pass
    page.get_by_text("refused", exact=True).wait_for(timeout=20_000)
    page.locator("#lost").wait_for(state="hidden")
    assert not answers
    page.unroute("**/events")
    assert all("50" in fault or "MIME" in fault for fault in faults), faults  # the browser tells of what was answered
    faults.clear()


def test_an_accepted_submission_gets_its_links_while_it_is_watched(home, visit):
    page, _ = visit
    number = home.send("plain").json()["id"]
    page.goto(f"/submissions/{number}")
    page.get_by_text("queued", exact=True).wait_for()
    while home.work(lambda settings, one, tell: Outcome(Status.ACCEPTED)):
        pass
    page.get_by_role("link", name="Its page: plain").click()
    page.wait_for_url("**/models/plain.html")
    page.go_back()
    page.get_by_role("link", name="Board at eps 0.5").click()
    page.wait_for_url("**/boards/digits-l2-eps0.5.html")


def test_the_static_site_works_under_the_policy(visit):
    page, _ = visit
    page.goto("/compare.html#m=robust_vgg,plain,sandwich_cnn&eps=0.5")
    page.wait_for_selector("#front svg")
    page.get_by_role("link", name="Submissions").click()
    page.wait_for_url("**/submissions")
    page.goto("/boards/digits-l2-eps0.5.html")
    page.get_by_label("Search:").fill("sandwich")
    page.get_by_text("Columns").click()
    page.goto("/models/plain.html")
    page.wait_for_selector(".chart svg")


@pytest.fixture(scope="module")
def states(home, tmp_path_factory):
    """A service with a submission in every state that a page shows."""
    found = Home(tmp_path_factory.mktemp("states"))
    shutil.copytree(home.settings.site, found.settings.site)
    for name, outcome in {
        "accepted": Outcome(Status.ACCEPTED),
        "refused": Outcome(Status.REFUSED, "3 certified images were broken"),
        "held": Outcome(Status.HELD, "another row would change"),
    }.items():
        found.send(name)
        found.work(lambda settings, one, tell, outcome=outcome: outcome)
    found.send("hidden")
    found.work()
    Admin(found.settings).hide(4, "a copy")
    found.send("running")
    lifecycle.claim(found.desk.database, "w", 3600)
    live = Live(bounds=(Between(eps=0.5, low=0.25, high=0.75),), images=8)
    live.note(PhaseStarted(phase="certificates"))
    live.note(Progress(phase="attacks", method="pgd", done=3, total=8, seconds=1.0))
    write_live(found.settings, 5, live)
    for line in range(60):
        add_to_log(found.settings, 5, f"a long line of the log, number {line}, " + "of several words " * 20)
    found.send("queued")
    with served(found) as address:
        yield found, address


PAGES = (
    "/submissions",
    "/submissions?offset=100",
    "/submit",
    *(f"/submissions/{number}" for number in range(1, 7)),
    "/submissions/99",
    "/nowhere.html",
)


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_axe_finds_no_fault_on_any_page_of_the_service(states, browser, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    home, address = states
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, base_url=address)
    page = context.new_page()
    for known in (False, True):
        if known:
            page.goto("/submit")
            page.get_by_label("Token").fill(home.alice)
            page.get_by_role("button", name="Go on").click()
            page.get_by_text("A signed bundle").wait_for()
        for path in PAGES if known else ["/submit"]:
            page.goto(path)
            assert page.evaluate(WIDER) <= 0, f"{path} is wider than the screen"
            found = axe.run(page, options={"preload": False}).response["violations"]
            faults = [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]
            assert not faults, f"{path}: {faults}"
    context.close()
