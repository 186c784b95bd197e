"""The state files of submissions that wait: they say what the API says, also after the queue moved, at a bounded cost."""

import json
import os
import time
from datetime import datetime

import pytest

for package in ("fastapi", "sqlmodel", "huey", "python_multipart", "httpx2"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra `serve`)")

from test_service import Home  # noqa: E402

from robustbench_rkhs.service import lifecycle, state_files  # noqa: E402
from robustbench_rkhs.service.admin import Admin  # noqa: E402
from robustbench_rkhs.service.lifecycle import Outcome  # noqa: E402
from robustbench_rkhs.service.state_files import APART, tell_states  # noqa: E402
from robustbench_rkhs.service.submission import Status, Submission  # noqa: E402


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def check(home, numbers):
    """Every file says what the API says, an estimated start within its tolerance."""
    for number in numbers:
        file, now = json.loads((home.settings.states / str(number) / "state.json").read_text()), home.state(number)
        starts = [one.pop("estimated_start") for one in (file, now)]
        assert file == now, number
        assert (starts[0] is None) == (starts[1] is None), number
        if starts[0]:
            assert abs((datetime.fromisoformat(starts[0]) - datetime.fromisoformat(starts[1])).total_seconds()) <= APART + 2


def test_files_of_those_that_wait_follow_the_queue(home):
    numbers = [home.send(f"m{number}").json()["id"] for number in range(4)]
    check(home, numbers)

    def evaluate(settings, one, tell):
        check(home, numbers)
        assert json.loads((settings.states / "3" / "state.json").read_text())["position"] == 3 - one.number
        return Outcome(Status.REFUSED, "no")

    home.work(evaluate)
    check(home, numbers)
    assert json.loads((home.settings.states / "4" / "state.json").read_text())["estimated_start"]  # one was measured
    home.work(evaluate)
    Admin(home.settings).rerun(1)  # to the end of the queue
    check(home, numbers)
    lifecycle.claim(home.desk.database, "w", 3600)
    tell_states(home.settings, home.desk.database, 3)
    lifecycle.give_back(home.desk.database, 3, worker="w", why="it died")
    tell_states(home.settings, home.desk.database, 3)
    check(home, numbers)


def test_an_estimate_that_grows_while_an_evaluation_takes_longer_is_rewritten(home):
    for number in range(3):
        home.send(f"m{number}")
    home.work()
    lifecycle.claim(home.desk.database, "w", 3600)
    tell_states(home.settings, home.desk.database, 2)
    lifecycle.change(home.desk.database, 1, started_at=time.time() - 1000, ended_at=time.time())  # the mean is now 1,000 s
    tell_states(home.settings, home.desk.database)
    check(home, [2, 3])


def test_of_many_that_wait_a_share_is_rewritten_at_a_time_and_soon_all(home, monkeypatch):
    count = 300
    with home.desk.database.writing() as session:
        for number in range(count):
            one = Submission(digest=str(number), kind="checkpoint", name="m", size=1, token=1, sender="a", status="queued")
            one.queued_at = time.time()
            session.add(one)
    written, write = [], state_files._write
    monkeypatch.setattr(
        state_files, "_write", lambda settings, one, queue: written.append(one.number) or write(settings, one, queue)
    )

    def told(seconds):
        """How many files a call writes, this long after the last one."""
        written.clear()
        path = home.settings.states / "told.json"
        if path.exists():
            os.utime(path, (time.time() - seconds,) * 2)
        tell_states(home.settings, home.desk.database)
        return len(written)

    shares = [told(1), told(1)]  # a little more where this machine is slow
    assert all(100 <= share < 150 for share in shares) and told(60) == count - sum(shares) and told(60) == 0
    check(home, range(1, count + 1))
    first = lifecycle.claim(home.desk.database, "w", 3600).number  # now every file is stale
    few, more = told(0.05), told(1)
    assert 5 <= few < 55 and 100 <= more < 150 and told(60) == count - 1 - few - more
    tell_states(home.settings, home.desk.database, first)
    check(home, range(1, count + 1))
