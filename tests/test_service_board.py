"""What later decisions do to a submission's tables on the board: a refusal withdraws them, and hiding always finds them."""

import json

import pytest

for package in ("fastapi", "sqlmodel", "huey", "python_multipart", "httpx2"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra `serve`)")

from test_report import trio  # noqa: E402
from test_service import Home  # noqa: E402
from test_site import keep  # noqa: E402

from robustbench_rkhs.nodes.node import UserError  # noqa: E402
from robustbench_rkhs.service import board_tables  # noqa: E402
from robustbench_rkhs.service.admin import Admin  # noqa: E402
from robustbench_rkhs.service.lifecycle import Outcome, of_number  # noqa: E402
from robustbench_rkhs.service.submission import Status  # noqa: E402
from robustbench_rkhs.site import build_site  # noqa: E402


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A service whose board is drawn here, with two models on it; `plain` is submission 1, and was accepted."""
    found = Home(tmp_path)
    monkeypatch.setattr(board_tables, "draw", lambda settings: build_site(settings.out, settings.site))
    found.tables = {one.about.model: keep(found.settings.out, one) for one in trio()[1:]}
    build_site(found.settings.out, found.settings.site)
    found.send("plain")
    ended(found, Status.ACCEPTED, tables=[found.tables["plain"]])
    return found


def ended(home, status, reason="", tables=()):
    """The worker evaluates the next one, to this end."""
    paths = tuple(path.relative_to(home.settings.out).as_posix() for path in tables)
    assert home.work(lambda settings, one, tell: Outcome(status, reason, paths))


def shown(home):
    """The models on the boards of the site."""
    pages = [json.loads(path.read_text()) for path in sorted((home.settings.site / "boards").glob("*.json"))]
    return {row["model"] for page in pages for kind in ("ranked", "not_comparable", "not_ranked") for row in page[kind]}


def test_a_refusal_after_an_acceptance_takes_the_tables_off_the_board(home):
    assert shown(home) == {"plain", "sandwich_cnn"}
    admin = Admin(home.settings)
    admin.rerun(1)
    assert shown(home) == {"plain", "sandwich_cnn"}  # nothing is decided yet
    ended(home, Status.REFUSED, "model.safetensors holds 4 tensors, expected at most 1")
    assert home.state()["status"] == "refused" and shown(home) == {"sandwich_cnn"}
    assert not home.client.get("/models/plain.html").is_success
    kept = home.settings.folder / "withdrawn/1/verdicts/plain"
    assert not home.tables["plain"].exists() and [path.name for path in kept.iterdir()] == [home.tables["plain"].name]
    assert any("taken off the board: 1 table of an earlier acceptance" in line for line in home.state()["log"])
    assert "no tables taken off the board" in admin.hide(1, "a copy")
    admin.show(1)
    assert shown(home) == {"sandwich_cnn"}  # what was refused does not come back


@pytest.mark.parametrize("status", [Status.HELD, Status.FAILED])
def test_hiding_takes_off_what_was_accepted_before_a_later_end(home, status):
    admin = Admin(home.settings)
    admin.rerun(1)
    ended(home, status, "out of its budget")
    assert shown(home) == {"plain", "sandwich_cnn"}
    assert "1 table taken off the board" in admin.hide(1, "a copy")
    assert shown(home) == {"sandwich_cnn"} and not home.tables["plain"].exists()
    assert "1 table put back on the board" in admin.show(1) and shown(home) == {"plain", "sandwich_cnn"}


def test_tables_of_every_acceptance_are_known(home):
    admin, (robust, *_) = Admin(home.settings), trio()
    admin.rerun(1)
    ended(home, Status.ACCEPTED, tables=[keep(home.settings.out, robust)])  # of another protocol, say
    assert "2 tables taken off the board" in admin.hide(1, "a copy") and shown(home) == {"sandwich_cnn"}


def test_a_table_that_another_accepted_submission_shares_stays(home):
    home.send("plain", b"the same weights, another card")
    ended(home, Status.ACCEPTED, tables=[home.tables["plain"]])
    Admin(home.settings).rerun(1)
    ended(home, Status.REFUSED, "an odd file")
    assert shown(home) == {"plain", "sandwich_cnn"} and home.tables["plain"].is_file()


def test_a_worker_that_dies_while_it_withdraws_is_followed_by_one_that_ends_it(home, monkeypatch):
    def dies(settings):
        raise UserError("killed")

    Admin(home.settings).rerun(1)
    with monkeypatch.context() as patched:
        patched.setattr(board_tables, "draw", dies)
        with pytest.raises(UserError, match="killed"):
            board_tables.withdraw(home.settings, home.desk.database, of_number(home.desk.database, 1))
    assert shown(home) == {"plain", "sandwich_cnn"} and not home.tables["plain"].exists()
    ended(home, Status.REFUSED, "again")
    assert shown(home) == {"sandwich_cnn"}


def test_a_board_that_cannot_be_drawn_is_said_and_the_refusal_stands(home, monkeypatch):
    def broken(settings):
        raise UserError("no room")

    monkeypatch.setattr(board_tables, "draw", broken)
    Admin(home.settings).rerun(1)
    ended(home, Status.REFUSED, "again")
    assert home.state()["status"] == "refused" and not home.tables["plain"].exists()
    assert any("the board could not be brought up to date: no room" in line for line in home.state()["log"])
