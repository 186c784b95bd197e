"""The service on PostgreSQL and Redis: the same life of a submission, also while either is away; one line where it can't begin."""

import json
import re
import sys

import pytest

for package in ("fastapi", "sqlmodel", "huey", "python_multipart", "httpx2"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra `serve`)")

from servers import free_port, postgres, redis  # noqa: E402
from sqlmodel import select  # noqa: E402
from test_cli import rkhs  # noqa: E402
from test_service import STUB, Home, until  # noqa: E402

from robustbench_rkhs.nodes.node import UserError  # noqa: E402
from robustbench_rkhs.service import lifecycle, supervisor  # noqa: E402
from robustbench_rkhs.service.admin import Admin  # noqa: E402
from robustbench_rkhs.service.database import Database  # noqa: E402
from robustbench_rkhs.service.lifecycle import Outcome  # noqa: E402
from robustbench_rkhs.service.settings import Settings  # noqa: E402
from robustbench_rkhs.service.submission import Status, Submission  # noqa: E402
from robustbench_rkhs.service.supervisor import Supervisor  # noqa: E402
from robustbench_rkhs.service.wakeups import WakeUps  # noqa: E402


@pytest.fixture(scope="module")
def elsewhere():
    with postgres() as database, redis() as queue:
        yield database, queue


@pytest.fixture
def home(elsewhere, tmp_path):
    database, queue = elsewhere
    return Home(tmp_path, database=database.database(), queue=queue.url)


def test_a_submission_lives_there_as_in_sqlite(home):
    assert home.send().status_code == 201 and home.send().json()["id"] == 1 and home.send("other").json()["id"] == 2
    assert home.send("MINE", b"others", token=home.bob).status_code == 409  # alice's name
    assert [home.send("mine", number, token=home.bob).status_code for number in (b"1", b"2", b"3")] == [409, 409, 429]

    def dies(settings, one, tell):
        raise RuntimeError("no such luck")

    for _ in range(3):
        home.work(dies)
    assert home.state()["status"] == "failed" and "3 times: it waits for a person" in home.state()["reason"]
    Admin(home.settings).rerun(1)
    assert home.state()["position"] == 2 and home.work() and home.state(2)["status"] == "accepted"
    assert home.work(lambda settings, one, tell: Outcome(Status.REFUSED, "a \u202e reason, \0 too"), name="v")
    assert home.state()["status"] == "refused" and home.client.get("/api/submissions").json()["total"] == 2
    assert not (home.settings.folder / "service.db").exists() and not (home.settings.folder / "queue.db").exists()


def test_bytes_beyond_two_gigabytes_are_stored(home):
    one = Submission(digest="d", kind="checkpoint", name="large", size=3 << 30, token=1, sender="a", status="queued", queued_at=0.0)
    lifecycle.add(home.desk.database, one)
    with home.desk.database.reading() as session:
        assert session.exec(select(Submission.size)).all() == [3 << 30]


def test_services_that_share_a_redis_do_not_take_each_others_messages(home, elsewhere, tmp_path):
    home.send()
    one, other = WakeUps(home.settings), WakeUps(home.settings.model_copy(update={"folder": tmp_path / "other"}))
    assert (one.huey.pending_count(), other.huey.pending_count()) == (1, 0)
    (message,) = one.huey.storage.enqueued_items()
    assert json.loads(message)[1].endswith("evaluate_next")  # and no pickle


def test_database_and_queue_that_were_away_lose_nothing(home, elsewhere, monkeypatch):
    database, queue = elsewhere
    monkeypatch.setattr(supervisor, "HEAL", 0.5)
    running = Supervisor(home.settings, [sys.executable, "-c", STUB])
    running.start()
    try:
        (home.settings.folder / "slow").touch()
        sent = [home.send("one").json()["id"]]
        until(lambda: home.state()["status"] == "running")
        database.stop()
        for path in ("/api/submissions/1", "/submissions/1"):
            answer = home.client.get(path)
            assert answer.status_code == 503 and "database is away" in answer.text and "127.0.0.1" not in answer.text
        database.start()
        queue.stop()
        sent.append(home.send("two").json()["id"])  # nobody can be woken: it is stored all the same
        queue.start()  # without the messages that it held
        (home.settings.folder / "slow").unlink()
        until(lambda: all(home.state(number)["over"] for number in sent))
        running.process.kill()
        sent.append(home.send("three").json()["id"])
        until(lambda: home.state(sent[2])["over"])
    finally:
        running.stop()
    assert [home.state(number)["status"] for number in sent] == ["accepted"] * 3


def test_what_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    address = f"127.0.0.1:{free_port()}"
    for package, words, line in (
        ("psycopg", ("--database", f"postgresql+psycopg://me:secret@{address}/x"), "database cannot be opened: OperationalError"),
        ("redis", ("--queue", f"redis://:secret@{address}/0"), "queue cannot be reached: ConnectionError"),
        ("redis", ("--queue", "redis://host:port/0"), "queue's URL cannot be read"),
    ):
        pytest.importorskip(package, reason=f"{package} is not installed (an extra)")
        _, errors = rkhs("serve", "--port", "0", "--eps", "0.5", *words, folder=tmp_path, code=2)
        assert line in errors and "secret" not in errors and errors.count("\n") == 1, errors


def test_without_a_driver_there_is_one_line(tmp_path, monkeypatch):
    settings = Settings(folder=tmp_path, out=tmp_path, database="postgresql://x", queue="redis://x")
    for make, package, extra in ((Database, "psycopg", "postgresql"), (WakeUps, "redis", "redis")):
        monkeypatch.setitem(sys.modules, package, None)
        line = f"needs {package}, which is not installed: pip install -e '.[{extra}]' in the clone"
        with pytest.raises(UserError, match=re.escape(line)):
            make(settings)
