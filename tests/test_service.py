"""The service: what is sent is kept, evaluated once, and never lost; no token, no write; nothing hostile gets through."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

for package in ("fastapi", "sqlmodel", "huey", "python_multipart", "httpx2"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra `serve`)")

from fastapi.testclient import TestClient  # noqa: E402
from test_cli import rkhs  # noqa: E402

from robustbench_rkhs.cli import serve  # noqa: E402
from robustbench_rkhs.nodes.node import UserError  # noqa: E402
from robustbench_rkhs.runtime.events import Between, BoundsChanged, Finished, Message, PhaseStarted, Progress  # noqa: E402
from robustbench_rkhs.service import evaluating, guarding, lifecycle, serving  # noqa: E402
from robustbench_rkhs.service.access import GUESSES  # noqa: E402
from robustbench_rkhs.service.admin import Admin  # noqa: E402
from robustbench_rkhs.service.app import create_app  # noqa: E402
from robustbench_rkhs.service.asked_words import asked_words  # noqa: E402
from robustbench_rkhs.service.bundles import Bundle  # noqa: E402
from robustbench_rkhs.service.database import Database  # noqa: E402
from robustbench_rkhs.service.desk import Desk  # noqa: E402
from robustbench_rkhs.service.evaluating import EvaluationFailed  # noqa: E402
from robustbench_rkhs.service.headers import HEADERS  # noqa: E402
from robustbench_rkhs.service.lifecycle import Outcome  # noqa: E402
from robustbench_rkhs.service.live import Live  # noqa: E402
from robustbench_rkhs.service.public_text import public  # noqa: E402
from robustbench_rkhs.service.serving import keep_settings  # noqa: E402
from robustbench_rkhs.service.settings import Settings  # noqa: E402
from robustbench_rkhs.service.submission import Status  # noqa: E402
from robustbench_rkhs.service.supervisor import Supervisor  # noqa: E402
from robustbench_rkhs.service.token import make_token, revoke_token  # noqa: E402
from robustbench_rkhs.service.wakeups import WakeUps  # noqa: E402
from robustbench_rkhs.service.worker import Worker  # noqa: E402

CAP = 100_000


class Home:
    """A service in a folder, without its processes: a client, two tokens, and a worker to call."""

    def __init__(self, folder, guard=lambda bundle, settings: bundle, **settings):
        self.settings = Settings(folder=folder / "service", out=folder / "out", upload=CAP, **settings)
        self.desk = Desk(self.settings, guard)
        self.desk.fresh = 0.0
        self.alice = make_token(self.desk.database, "alice", ["checkpoint", "adversarials"], 50)
        self.bob = make_token(self.desk.database, "bob", ["checkpoint"], 3)
        self.client = TestClient(create_app(self.desk), raise_server_exceptions=False)

    def send(self, name="mine", content=b"weights", token=None, files=None, **headers):
        files = files or [("files", ("model.safetensors", content))]
        headers["Authorization"] = f"Bearer {token or self.alice}"
        return self.client.post("/api/submissions/checkpoint", data={"name": name}, files=files, headers=headers)

    def state(self, number=1):
        return self.client.get(f"/api/submissions/{number}").json()

    def work(self, evaluate=lambda settings, one, tell: Outcome(Status.ACCEPTED), name="w"):
        return Worker(self.settings, name, evaluate).work()

    def kept(self):
        """Every file of the uploads, half-way ones too."""
        return sorted(
            path for place in ("incoming", "bundles") for path in (self.settings.folder / place).rglob("*") if path.is_file()
        )


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def test_a_submission_is_queued_evaluated_and_shown(home):
    first, second = home.send("one"), home.send("two")
    assert first.status_code == 201 and first.headers["location"] == "/submissions/1"
    assert (first.json()["position"], second.json()["position"]) == (1, 2) and first.json()["estimated_start"] is None

    def evaluate(settings, one, tell):
        tell(Message(text="a line"))
        tell(PhaseStarted(phase="attacks"))
        tell(Progress(phase="attacks", method="pgd", done=3, total=8, seconds=1.0))
        tell(BoundsChanged(images=8, bounds=(Between(eps=0.5, low=0.25, high=0.75),)))
        during = home.state()
        assert during["status"] == "running" and during["attempt"] == 1 and home.state(2)["position"] == 1
        return Outcome(Status.REFUSED, "3 certified images were broken")

    assert home.work(evaluate)
    found = home.state()
    assert (found["status"], found["reason"], found["over"]) == ("refused", "3 certified images were broken", True)
    assert found["live"]["bounds"] == [{"eps": 0.5, "low": 0.25, "high": 0.75}] and found["live"]["steps"] == []
    assert [line.split(" ", 1)[1] for line in found["log"]][1:3] == ["attempt 1 of 3 begins", "a line"]
    assert json.loads((home.settings.states / "1" / "state.json").read_text()) == found
    assert json.loads((home.settings.states / "queue.json").read_text())["waiting"] == [2]
    text = home.client.get("/submissions/1").text
    assert "3 certified images were broken" in text and "3 of 8" not in text and "between 25.0% and 75.0%" in text
    assert home.state(2)["estimated_start"] is not None  # one evaluation was measured
    assert home.work() and not home.work() and home.state(2)["status"] == "accepted"
    listed = home.client.get("/api/submissions", params={"status": "accepted"}).json()
    assert listed["total"] == 1 and listed["submissions"][0]["id"] == 2
    with home.client.stream("GET", "/api/submissions/2/events") as stream:
        (event,) = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert event == home.state(2)


def test_duplicates_and_replays_change_nothing(home):
    home.send()
    again = home.send()
    assert again.status_code == 200 and again.json()["id"] == 1
    home.work()
    before = home.state()
    assert home.send().json() == before and len(home.kept()) == 1 and not home.work()
    assert home.send(content=b"others").json()["id"] == 2 and home.send(name="other").json()["id"] == 3


def test_no_token_no_write(home):
    client, files = home.client, {"files": ("model.safetensors", b"x")}
    for headers in (
        {},
        {"Authorization": "Bearer rkhs_wrong"},
        {"Authorization": "Basic eDp5"},
        {"Cookie": "rkhs_token=rkhs_wrong"},
    ):
        for path in ("/api/submissions/checkpoint", "/api/submissions/adversarials", "/submit/checkpoint", "/submit/adversarials"):
            assert client.post(path, data={"name": "x"}, files=files, headers=headers).status_code in (401, 429)
    sent = client.post("/api/submissions/adversarials", files=files, headers={"Authorization": f"Bearer {home.bob}"})
    assert sent.status_code == 403 and "may not send adversarials" in sent.json()["detail"]
    revoke_token(home.desk.database, "alice")
    assert home.send().status_code == 401 and home.kept() == [] and home.client.get("/api/submissions").json()["total"] == 0
    again = make_token(home.desk.database, "alice", ["checkpoint"], 5)
    assert home.send(token=again).status_code == 201 and home.send(token=home.alice).status_code == 401
    with pytest.raises(UserError, match="a token named 'alice' already"):
        make_token(home.desk.database, "alice", ["checkpoint"], 5)


def test_only_hashes_of_tokens_are_stored(home):
    home.send()
    for path in home.settings.folder.rglob("*"):
        assert not path.is_file() or home.alice.encode() not in path.read_bytes()


def test_uploads_and_guesses_are_limited(home):
    sent = [home.send(f"m{number}", token=home.bob) for number in range(4)]
    assert [one.status_code for one in sent] == [201, 201, 201, 429] and int(sent[3].headers["retry-after"]) > 3000
    assert home.send().status_code == 201  # of another token
    codes = [home.send(token="rkhs_guess").status_code for _ in range(GUESSES + 1)]
    assert codes == [401] * GUESSES + [429] and home.send("another").status_code == 201


@pytest.mark.parametrize(
    ("files", "data", "code", "word"),
    [
        ([("files", ("model.safetensors", b"x" * CAP))], {"name": "m"}, 413, "larger than"),
        ([("files", ("../model.safetensors", b"x"))], {"name": "m"}, 422, "file name"),
        ([("files", (".hidden", b"x"))], {"name": "m"}, 422, "file name"),
        ([("files", ("a", b"x")), ("files", ("a", b"y"))], {"name": "m"}, 422, "twice"),
        ([("files", ("a", b"x"))], {"name": "../../m"}, 422, "name"),
        ([("files", ("a", b"x"))], {}, 422, "name"),
        ([("files", ("a", b"x"))], {"name": "m" * 2000}, 413, "longer than"),
        ([("files", (f"a{number}", b"x")) for number in range(17)], {"name": "m"}, 413, "parts"),
    ],
)
def test_what_is_no_upload_is_refused_and_not_kept(home, files, data, code, word):
    sent = home.client.post(
        "/api/submissions/checkpoint", data=data, files=files, headers={"Authorization": f"Bearer {home.alice}"}
    )
    assert sent.status_code == code and word in sent.json()["detail"]
    assert (
        home.kept() == []
        and not list(home.settings.incoming.iterdir())
        and home.client.get("/api/submissions").json()["total"] == 0
    )


def test_forms_that_break_off_are_refused(home):
    headers = {"Authorization": f"Bearer {home.alice}", "Content-Type": "multipart/form-data; boundary=xx"}
    part = b'--xx\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nhello'

    def chunks(count):
        yield from [part, *[b"y" * 10_000] * count]

    for body, code in (
        (part, 400),
        (b"", 400),
        (b"garbage", 400),
        (b"--xx\r\n" + b"h" * 5000, 400),
        (chunks(20), 413),
        (chunks(2), 400),
    ):
        sent = home.client.post("/api/submissions/checkpoint", content=body, headers=headers)
        assert sent.status_code == code and home.kept() == []
    sent = home.client.post("/api/submissions/checkpoint", content=b"{}", headers={**headers, "Content-Type": "application/json"})
    assert sent.status_code == 415


def guard_here(bundle, settings):
    """The guard without a process of its own, which takes seconds to begin."""
    job = {"kind": bundle.kind, "name": bundle.name, "path": str(bundle.path), "asked": settings.asked}
    job |= {"protocol": settings.protocol, "limits": settings.limits.model_dump(mode="json")}
    return replace(bundle, **guarding._work(job))


def test_the_guard_refuses_code_and_foreign_files_before_anything_is_kept(tmp_path):
    guarding.confine, before = lambda *_, **__: None, guarding.confine
    try:
        home = Home(tmp_path, guard_here)
        refused = home.send(files=[("files", ("run.py", b"print()"))])
        assert refused.status_code == 422 and "unexpected file 'run.py'" in refused.json()["detail"]
        refused = home.send(files=[("files", ("recipe.yaml", b"network: evil:build")), ("files", ("config.json", b"{}"))])
        assert refused.status_code == 422
        headers = {"Authorization": f"Bearer {home.alice}"}
        refused = home.client.post("/api/submissions/adversarials", files={"file": ("a.npz", b"PK")}, headers=headers)
        assert refused.status_code == 422 and str(tmp_path) not in refused.text and home.kept() == []
    finally:
        guarding.confine = before


def test_the_process_that_guards_refuses_in_one_line(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, images=np.zeros(1))
    with pytest.raises(UserError, match=r"a\.npz"):
        guarding.guard(Bundle("adversarials", "a.npz", file), Settings(folder=tmp_path, out=tmp_path))


def test_a_worker_that_dies_is_retried_and_says_so_and_three_times_waits_for_a_person(home):
    home.send()
    for attempt in (1, 2, 3):
        assert lifecycle.claim(home.desk.database, f"w{attempt}", 60).attempt == attempt
        lifecycle.give_back(home.desk.database, 3, worker="other", why="the worker died")
        assert home.state()["status"] == "running"
        lifecycle.give_back(home.desk.database, 3, worker=f"w{attempt}", why="the worker died")
        assert attempt == 3 or home.state()["reason"] == f"the worker died: attempt {attempt + 1} of 3 follows"
    failed = home.state()
    assert failed["status"] == "failed" and "3 times: it waits for a person" in failed["reason"] and not home.work()
    admin = Admin(home.settings)
    assert "1  checkpoint mine of alice, failed" in admin.waiting()[0]
    admin.approve(1)
    assert home.work() and home.state()["status"] == "accepted" and home.state()["attempt"] == 1


def test_a_stopped_worker_does_not_count_and_a_silent_one_is_dead(home):
    home.send()
    lifecycle.claim(home.desk.database, "w", 60)
    lifecycle.give_back(home.desk.database, 3, worker="w", why="", counted=False)
    assert home.state()["attempt"] == 0 and home.state()["position"] == 1
    lifecycle.claim(home.desk.database, "silent", -1)
    assert [one.id for one in lifecycle.give_back(home.desk.database, 3, why="the worker died")] == [1]
    assert not lifecycle.end(home.desk.database, 1, "silent", Outcome(Status.ACCEPTED)) and home.state()["status"] == "queued"


def test_an_evaluation_that_fails_is_tried_again(home):
    home.send()

    def fails(settings, one, tell):
        raise EvaluationFailed("the evaluating process ended with code 1")

    def faulty(settings, one, tell):
        raise ZeroDivisionError(f"in {settings.folder}/x")

    home.work(fails)
    assert home.state()["status"] == "queued" and "ended with code 1" in home.state()["reason"]
    home.work(faulty)
    assert home.state()["attempt"] == 2 and str(home.settings.folder) not in json.dumps(home.state())
    home.work(fails)
    assert home.state()["status"] == "failed"


def test_adversarial_images_are_of_a_model_that_was_accepted_here(home, monkeypatch):
    named = SimpleNamespace(about=SimpleNamespace(model="mine~smoothed"))
    monkeypatch.setattr("robustbench_rkhs.verdicts.read_adversarials", lambda path, limits: named)
    home.send("mine")
    assert evaluating._model_of(home.settings, home.settings.folder / "a.npz") is None
    home.work()
    (weights,) = home.kept()
    assert evaluating._model_of(home.settings, home.settings.folder / "a.npz") == str(weights.parent)
    assert weights.parent.name == "mine"


def test_a_full_disk_is_said_and_nothing_is_kept(home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "/srv/secret")

    monkeypatch.setattr("robustbench_rkhs.service.desk.keep", full)
    sent = home.send()
    assert sent.status_code == 507 and "secret" not in sent.text and home.kept() == []


def test_only_what_the_gate_held_is_published_without_its_word(home):
    approved = []
    for ended in (Status.FAILED, Status.HELD):
        home.send(ended)
        home.work(lambda settings, one, tell, ended=ended: Outcome(ended, "why"))
        number = home.client.get("/api/submissions").json()["submissions"][0]["id"]
        Admin(home.settings).approve(number)
        home.work(lambda settings, one, tell: approved.append(one.approved) or Outcome(Status.ACCEPTED))
    assert approved == [False, True]


def test_a_name_belongs_to_whoever_sent_it_first(home):
    home.send("digits_best")
    taken = home.send("Digits-Best", b"other", token=home.bob)
    assert taken.status_code == 409 and "belongs to whoever sent it first" in taken.json()["detail"] and len(home.kept()) == 1
    assert home.send("digits_best", b"newer").status_code == 201


def test_no_path_of_the_server_is_told(home):
    home.send()
    out, folder = home.settings.out, home.settings.folder
    home.work(lambda settings, one, tell: Outcome(Status.HELD, f"held (kept in {out}/submissions/x and /tmp/a/b.npz, {folder})"))
    assert home.state()["reason"] == "held (kept in x and b.npz, )"
    kept = f"{folder}/bundles/{'8d' * 32}/alpha/model.safetensors"
    for text, expected in {
        f"{folder}/incoming/tmpkc83nfxf/.bundle/q: unexpected file 'a/b'": "q: unexpected file 'a/b'",
        f"'{kept}' holds 4 tensors, {kept} too": "'model.safetensors' holds 4 tensors, model.safetensors too",
        f"accepted: {out}/verdicts/alpha/l2-1.parquet": "accepted: l2-1.parquet",
        f"{folder}2/x and {out}.": f"x and {out.name}.",
        "36/255 and 1/2": "36/255 and 1/2",
        "see https://example.org/a/b": "see https://example.org/a/b",
        "'/etc/passwd'": "'passwd'",
        "in /usr": "in ",
        "~/x/y": "y",
    }.items():
        assert public(text, home.settings) == expected


def test_pages_have_their_style_before_there_is_a_site(home):
    page = home.client.get("/submit").text
    links = re.findall(r'<(?:link rel="stylesheet" href|script src)="(/[^"]+)"', page)
    assert len(links) >= 3 and not home.settings.site.exists()
    for link in links:
        assert home.client.get(link).status_code == 200, link
    assert home.client.get("/assets/none.css").status_code == home.client.get("/assets/%2e%2e/pages.py").status_code == 404


def test_every_answer_has_the_security_headers(home):
    home.send()
    (home.settings.site / "boards").mkdir(parents=True)
    (home.settings.site / "boards" / "a.html").write_text("<nav></nav>")
    (home.settings.site / "drawn.txt").symlink_to(home.settings.folder / "service.db")
    for path, code in {
        "/": 200, "/submissions": 200, "/submissions/1": 200, "/submissions/9": 404, "/submit": 200, "/boards/a.html": 200,
        "/api/queue": 200, "/api/openapi.json": 200, "/api/submissions/x": 422, "/api/none": 404, "/drawn.txt": 404,
        "/../service.db": 404, "/%2e%2e/service.db": 404, "/service/follow.js": 200, "/service/..%2fapp.py": 404, "/a%00.html": 404,
    }.items():  # fmt: skip
        answer = home.client.get(path, follow_redirects=True)
        assert answer.status_code == code, path
        assert all(answer.headers[name] == value for name, value in HEADERS.items()), path
        assert str(home.settings.folder) not in answer.text
    assert 'href="/submit"' in home.client.get("/boards/a.html").text
    assert "'unsafe-inline'" not in re.search("script-src[^;]*", HEADERS["Content-Security-Policy"])[0]


def test_a_page_sends_with_a_cookie_but_not_for_another_site(home):
    client = home.client
    assert client.post("/login", data={"token": "rkhs_wrong"}).status_code == 401
    answer = client.post("/login", data={"token": home.alice}, follow_redirects=False)
    cookie = answer.headers["set-cookie"].lower()
    assert answer.status_code == 303 and "httponly" in cookie and "samesite=strict" in cookie
    assert "Sent as <strong>alice" in client.get("/submit").text
    form = {"data": {"name": "m"}, "files": {"files": ("a", b"x")}, "follow_redirects": False}
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.post("/submit/checkpoint", headers=headers, **form).status_code == 403
    assert (
        client.post("/submit/checkpoint", headers={"Origin": "http://testserver"}, **form).headers["location"] == "/submissions/1"
    )
    client.post("/logout")
    assert client.post("/submit/checkpoint", **form).status_code == 401


def test_what_an_admin_decides(tmp_path, monkeypatch):
    home = Home(tmp_path, moderated=True)
    home.send()
    assert home.state()["status"] == "waiting" and not home.work()
    admin = Admin(home.settings)
    with pytest.raises(UserError, match="there is no submission 7"):
        admin.approve(7)
    admin.approve(1)
    with pytest.raises(UserError, match="submission 1 is queued; expected one that is waiting, held, failed"):
        admin.approve(1)
    table = home.settings.out / "verdicts" / "mine" / "a.parquet"
    table.parent.mkdir(parents=True)
    table.write_bytes(b"table")
    home.work(lambda settings, one, tell: Outcome(Status.ACCEPTED, tables=("verdicts/mine/a.parquet",)))
    monkeypatch.setattr("robustbench_rkhs.service.board_tables.draw", lambda settings: None)
    admin.hide(1, "a <b>copy</b>")
    (line,) = home.client.get("/api/submissions").json()["submissions"]  # nothing vanishes
    assert not table.exists() and (line["id"], line["name"], line["sender"], line["words"]) == (
        1,
        "hidden",
        "",
        "hidden by a person",
    )
    listed = home.client.get("/submissions").text
    assert "hidden by a person" in listed and "mine" not in listed and "alice" not in listed
    page = home.client.get("/submissions/1").text
    assert "a &lt;b&gt;copy" in page and "mine" not in page and "<h2" not in page and home.state()["name"] == "hidden"
    with pytest.raises(UserError, match="hidden: show it first"):
        admin.rerun(1)
    admin.show(1)
    assert table.read_bytes() == b"table" and home.state()["name"] == "mine"
    admin.rerun(1)
    assert home.state()["status"] == "queued"


def test_progress_of_a_first_look_gives_way_to_that_of_the_whole():
    live = Live()
    for event in (
        PhaseStarted(phase="attacks"),
        Progress(phase="attacks", method="pgd", done=8, total=8, seconds=1.0),
        Progress(phase="attacks", method="fab", done=0, total=8, seconds=0.0),
        Finished(seconds=1.0),
    ):
        live.note(event)
    assert [(one.method, one.done) for one in live.steps] == [("pgd", 8), ("fab", 0)]
    live.note(PhaseStarted(phase="predictions"))
    assert [one.phase for one in live.steps] == ["predictions"]


def test_messages_are_json_and_one_too_many_finds_nothing(home):
    home.send()
    (row,) = sqlite3.connect(home.settings.folder / "queue.db").execute("select data from task").fetchall()
    assert json.loads(bytes(row[0]))[1].endswith("evaluate_next")
    wakeups = WakeUps(home.settings)
    wakeups.wake_all(3)
    assert wakeups.huey.pending_count() == 3
    with pytest.raises(UserError, match=r"expected redis://"):
        WakeUps(home.settings.model_copy(update={"queue": "amqp://x"}))
    with pytest.raises(UserError, match="database cannot be opened"):
        Database(home.settings.model_copy(update={"database": "nonsense"}))


STUB = """
import time
from robustbench_rkhs.service.lifecycle import Outcome
from robustbench_rkhs.service.submission import Status
from robustbench_rkhs.service.worker import main

def evaluate(settings, one, tell):
    mark = settings.folder / "slow"
    while mark.exists():
        time.sleep(0.01)
    return Outcome(Status.ACCEPTED)

main(evaluate)
"""


def test_a_killed_worker_is_replaced_and_its_submission_evaluated_again(home):
    (home.settings.folder / "slow").touch()
    home.send()
    supervisor = Supervisor(home.settings, [sys.executable, "-c", STUB])
    supervisor.start()
    try:
        until(lambda: home.state()["status"] == "running")
        supervisor.process.kill()
        (home.settings.folder / "slow").unlink()
        until(lambda: home.state()["over"])
    finally:
        supervisor.stop()
    found = home.state()
    assert found["status"] == "accepted" and found["attempt"] == 2
    assert any("the worker died (killed): attempt 2 of 3 follows" in line for line in found["log"])


def until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    for words, line in {
        ("admin", "tokens"): "no service in",
        ("serv",): "expected admin or no word, found 'serv'",
        ("admin", "hid", "3"): "did you mean 'hide'",
        ("admin", "hide"): "expected rkhs-serve admin hide NUMBER, found nothing",
        ("--port", "99999"): "--port",
        ("--upload", "much"): "expected bytes such as",
        ("--host", "192.0.2.1"): "cannot listen on 192.0.2.1 port 8000: cannot assign requested address; choose another",
    }.items():
        _, errors = rkhs("serve", *words, folder=tmp_path, code=2)
        assert line in errors, (words, errors)
        assert not any(word in errors for word in ("Errno", "while attempting"))
        assert not ("admin" in words and "loading PyTorch" in errors)
    assert {path.name for path in tmp_path.iterdir()} <= {"service", ".service.lock"}


@pytest.mark.parametrize("tables", [0, 2])
def test_the_start_says_what_the_site_shows_everybody(tmp_path, monkeypatch, capsys, tables):
    for number in range(tables):
        path = tmp_path / f"out/verdicts/m/l2-{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(serving.Service, "run", lambda self, ready: ready("http://here", "rkhs_secret"))
    serve._run(Settings(folder=tmp_path / "service", out=tmp_path / "out"), "127.0.0.1", 0, False)
    said = capsys.readouterr().out
    assert "rkhs_secret" in said and ("shows everybody the 2 tables of out/verdicts" in said) == bool(tables)


def test_an_admins_commands_load_no_pytorch_and_suggest_the_near_name(tmp_path):
    home = Home(tmp_path)
    keep_settings(home.settings)
    code = "import sys; from robustbench_rkhs.cli.serve import main; sys.argv = ['rkhs-serve', *sys.argv[1:]]\n"
    code += "try: main()\nfinally: print('torch' in sys.modules)"
    for words, rc in (("tokens", 0), ("waiting", 0), ("token carol", 0), ("revoke alice", 0), ("revoke alise", 2)):
        asked = [sys.executable, "-c", code, "admin", *words.split(), "--folder", str(home.settings.folder)]
        done = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == rc and done.stdout.endswith("False\n") and "loading" not in done.stderr, done
    assert done.stderr == "error: no token is named 'alise'; did you mean 'alice'? known: alice, bob, carol\n"


def test_names_of_files_are_checked_before_anything_is_started_and_all_that_is_missing_is_named(tmp_path, monkeypatch):
    """The fault: an upload was silent for 8 to 30 s, and then told of one missing file."""
    monkeypatch.setattr(guarding, "messages", lambda *_: pytest.fail("a process was started"))
    home = Home(tmp_path, guarding.guard)
    needed = "expected config.json, model.safetensors and recipe.yaml"
    for names, line in (
        (["config.json"], f"the checkpoint 'mine' is incomplete: model.safetensors and recipe.yaml are missing; {needed}"),
        (["config.json", "model.safetensors"], f"the checkpoint 'mine' is incomplete: recipe.yaml is missing; {needed}"),
        (["config.json", "model.safetensors", "recipe.yaml", "setup.py"], "the checkpoint 'mine': unexpected file 'setup.py'"),
    ):
        refused = home.send(files=[("files", (name, b"x")) for name in names])
        assert refused.status_code == 422 and line in refused.json()["detail"] and home.kept() == []
    (tmp_path / "theirs").mkdir()
    for name, line in (
        ("submission.yaml", "sender.pub, signature, verdicts.parquet and adversarials.npz or a checkpoint are missing"),
        ("model/setup.py", "sender.pub, signature and verdicts.parquet are missing"),
        ("sender.pub", "signature and verdicts.parquet"),
        ("signature", "incomplete: verdicts.parquet is missing"),
        ("verdicts.parquet", "'model': unexpected file 'setup.py'"),
    ):
        (tmp_path / "theirs" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "theirs" / name).write_text("x")
        with pytest.raises(UserError, match=line):
            guarding.guard(Bundle("bundle", "theirs", tmp_path / "theirs"), home.settings)


def test_files_that_are_not_what_their_names_say_are_refused_before_pytorch_is_loaded(tmp_path):
    """The fault: a refusal for a config.json that is no JSON came after the import of PyTorch, 7 s where nothing else runs."""
    theirs = Path(__file__).parents[1] / "examples" / "theirs"
    code = (
        "import json, sys; from robustbench_rkhs.nodes.node import UserError; from robustbench_rkhs.service import guarding\n"
        "guarding.confine = lambda *_: None\n"
        "for job in json.loads(sys.argv[1]):\n"
        "    try: guarding._work(job)\n"
        "    except UserError as refused: print(refused)\n"
        "print('torch' in sys.modules)"
    )
    expected, jobs = [], []
    for name, content, line in (
        ("config.json", "network: mlp", "config.json is not JSON: line 1, column 1: expecting value"),
        ("config.json", "[1]", "config.json is not a mapping, found a list"),
        ("recipe.yaml", "a: [", "recipe.yaml is not readable YAML"),
        ("recipe.yaml", "a list", "recipe.yaml is not a mapping, found a str"),
        ("model.safetensors", "\x80\x04weights", "model.safetensors is not a readable safetensors file"),
    ):
        folder = tmp_path / str(len(jobs)) / "mine"
        shutil.copytree(theirs, folder)
        (folder / name).write_text(content)
        jobs.append({"kind": "checkpoint", "name": "mine", "path": str(folder), "limits": {}})
        expected.append(line)
    done = subprocess.run([sys.executable, "-c", code, json.dumps(jobs)], capture_output=True, text=True, cwd=tmp_path)
    *refused, loaded = done.stdout.splitlines()
    assert loaded == "False" and [line in found for line, found in zip(expected, refused, strict=True)] == [True] * 5, done


def test_reserved_names_are_refused_when_they_are_sent_not_when_they_are_evaluated(home, tmp_path, monkeypatch):
    """The fault: such a model waited in the queue to be refused, and the name of the host's own recipe was anybody's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "next_year.yaml").write_text("")
    for name, line in {
        "digits_mlp": "'digits_mlp' is the name of a model that comes with the package: choose another",
        "Digits-MLP": "'Digits-MLP' reads like 'digits_mlp', which is taken: choose another",
        "next_year": "'next_year' is the name of a model of whoever runs this service: choose another",
        "next.year": "'next.year' reads like 'next_year', which is taken: choose another",
    }.items():
        refused = home.send(name)
        assert (refused.status_code, refused.json()["detail"]) == (409, line) and home.kept() == []
    assert home.send("last_year").status_code == 201 and home.client.get("/api/submissions").json()["total"] == 1


def test_a_kind_that_there_is_none_of_is_told_the_kinds(home):
    for path, code in (("bundel", 404), ("x" * 200, 404), ("1", 405), ("1/events", 405)):
        answer = home.client.post(f"/api/submissions/{path}", headers={"Authorization": f"Bearer {home.alice}"})
        assert answer.status_code == code
    detail = home.client.post("/api/submissions/bundel").json()["detail"]
    assert detail == "unknown kind 'bundel'; did you mean 'bundle'? known: adversarials, bundle, checkpoint"


def test_the_pages_say_what_the_board_asks_and_lead_back_to_the_form(tmp_path):
    home = Home(tmp_path, protocol={"eps": ["0.25"], "samples": 1000, "attacks": [{"name": "ddn", "steps": 5}]})
    home.client.post("/login", data={"token": home.alice})
    page = home.client.get("/submit").text
    assert "1,000 test images of its data set at l2 0.25, attacked by ddn:steps=5" in page and "100,000 bytes" in page
    assert "rkhs-eval --model MODEL --eps 0.25 --samples 1000 --attack ddn:steps=5" in page and "never run" in page
    refused = home.client.post("/submit/checkpoint", data={"name": "a b"}, files={"files": ("a", b"x")})
    assert refused.status_code == 422 and '<a href="/submit">Back to the form</a>' in refused.text
    assert "Back to the form" not in home.client.get("/submissions/99").text
    every = asked_words(Settings(folder=tmp_path, out=tmp_path, protocol={"eps": ["1"], "norm": "linf"}))
    assert (every.upload, every.images) == ("2 GiB", "all test images of its data set")
    assert every.attacks.startswith("attacked with effort standard: ") and every.radii == "linf 1"


def test_a_submission_that_is_over_shows_no_place_in_the_queue(home):
    home.send()
    place = re.compile(r'<dd id="(position|estimated_start)" data-queued( hidden)?>')
    assert [hidden for _, hidden in place.findall(home.client.get("/submissions/1").text)] == ["", ""]
    home.work()
    over = home.client.get("/submissions/1").text
    assert [hidden for _, hidden in place.findall(over)] == [" hidden"] * 2
    assert re.search(r'<section id="progress"[^>]* hidden>', over)


def test_without_the_extra_there_is_one_line(monkeypatch, tmp_path):
    code = (
        "import sys; sys.modules['fastapi'] = None; sys.argv = ['rkhs-serve']; from robustbench_rkhs.cli.serve import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "pip install -e '.[serve]' in the clone" in done.stderr, done.stderr
