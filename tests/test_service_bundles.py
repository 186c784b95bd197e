"""Signed bundles sent to the service: unpacked, guarded, evaluated with the sender's table, and owned by a key."""

import shutil
import tarfile

import pytest

for package in ("fastapi", "sqlmodel", "huey", "python_multipart", "httpx2", "cryptography"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra `serve`)")

from test_archive import zipped  # noqa: E402
from test_bundles import SETTINGS, place, sent  # noqa: E402, F401
from test_service import Home, guard_here  # noqa: E402

from robustbench_rkhs.evaluation.recipe import EvalRecipe  # noqa: E402
from robustbench_rkhs.evaluation.run import evaluate  # noqa: E402
from robustbench_rkhs.nodes.limits import Limits  # noqa: E402
from robustbench_rkhs.nodes.node import UserError  # noqa: E402
from robustbench_rkhs.service import desk, evaluating, guarding  # noqa: E402
from robustbench_rkhs.service.lifecycle import Outcome  # noqa: E402
from robustbench_rkhs.service.submission import Status  # noqa: E402
from robustbench_rkhs.service.token import make_token  # noqa: E402
from robustbench_rkhs.submission.archive import unpack  # noqa: E402
from robustbench_rkhs.submission.bundle import read_bundle  # noqa: E402
from robustbench_rkhs.submission.owners import owner_of  # noqa: E402
from robustbench_rkhs.submission.packing import pack_adversarials  # noqa: E402
from robustbench_rkhs.training import checkpoint  # noqa: E402

PROTOCOL = {"eps": ["0.05", "0.5"], "attacks": [{"name": "ddn", "steps": 5}], "diagnostics": False, "samples": 12}


@pytest.fixture
def home(place, monkeypatch):  # noqa: F811
    """A service whose guard, archive and gate need no process of their own."""
    monkeypatch.setattr(guarding, "confine", lambda *_, **__: None)
    monkeypatch.setattr(evaluating, "confine", lambda *_, **__: None)
    monkeypatch.setattr(desk, "unpack_alone", unpack)
    found = Home(place / "home", guard_here, protocol=PROTOCOL, sample=8)
    object.__setattr__(found.settings, "upload", 10 << 20)
    return found


def packed(folder, ending="tar.gz"):
    """The bundle as an archive."""
    path = folder.parent / f"theirs.{ending}"
    if ending == "zip":
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        return zipped(path, [(file.relative_to(folder).as_posix(), file.read_bytes()) for file in files])
    with tarfile.open(path, "w:gz") as opened:
        opened.add(folder, "theirs")
    return path


def send(home, path, token=None, name=None):
    headers = {"Authorization": f"Bearer {token or home.alice}"}
    files = {"file": (name or path.name, path.read_bytes())}
    return home.client.post("/api/submissions/bundle", files=files, headers=headers)


def gated(settings, one, tell):
    """The gate's work, in this process."""
    told = []
    job = {"settings": settings.model_dump(mode="json"), "kind": one.kind, "name": one.name, "approved": one.approved}
    evaluating._work(job | {"path": str(evaluating.kept(settings, one.digest))}, lambda **message: told.append(message))
    for message in told[:-1]:
        tell(evaluating.EVENT.validate_python(message["event"]))
    return Outcome(Status(told[-1]["status"]), told[-1]["reason"], tuple(told[-1]["tables"]))


def test_a_bundle_is_evaluated_with_its_senders_table_and_its_name_is_the_keys(home, place, sent):  # noqa: F811
    answer = send(home, packed(place / "bundle"))
    assert answer.status_code == 201, answer.json()
    assert (answer.json()["kind"], answer.json()["name"]) == ("checkpoint", "stranger")
    sender = read_bundle(place / "bundle").sender
    assert f"signed with the key {sender[:12]}" in answer.json()["log"][0]
    again = send(home, packed(place / "bundle", "zip"))
    assert again.status_code == 200 and again.json()["id"] == 1  # the same bundle, whatever it is packed as
    assert home.work(gated)
    state = home.state()
    assert state["status"] == "accepted", state["reason"]
    assert any("sender's table on these images: 0 classified otherwise" in line for line in state["log"])
    assert owner_of(home.settings.out, "stranger") == sender and len(list((home.settings.out / "verdicts/stranger").iterdir())) == 1

    loaded, recipe = checkpoint.load(sent / "stranger"), EvalRecipe(**SETTINGS, samples=10)
    where = {"name": "stranger", "folder": place / "their/verdicts", "adversarials": place / "its.npz"}
    evaluate(loaded.model, loaded.recipe.data.test(), recipe, **where)
    shutil.copytree(sent / "stranger", place / "checkpoints/stranger")
    pack_adversarials(place / "its.npz", place / "images", key=sent / "key.pem")
    shutil.rmtree(place / "checkpoints")  # the service has the model from its bundle
    answer = send(home, packed(place / "images"))
    assert (answer.json()["kind"], answer.json()["name"]) == ("adversarials", "stranger")
    assert home.work(gated) and home.state(2)["status"] == "accepted", home.state(2)["reason"]
    assert [path.parent.name for path in (home.settings.out / "submitted").glob("*/*.parquet")] == ["stranger"]


def test_what_a_bundle_holds_needs_the_tokens_scope(home, place):  # noqa: F811
    path = packed(place / "bundle")
    eve = make_token(home.desk.database, "eve", ["adversarials"], 50)
    refused = send(home, path, eve)
    assert refused.status_code == 403 and "may not send checkpoint" in refused.json()["detail"]
    assert send(home, path, "rkhs_none").status_code == 401 and home.kept() == []
    assert send(home, path, home.bob).status_code == 201


def test_a_bundle_that_is_none_is_refused_and_not_kept(home, place):  # noqa: F811
    (place / "bundle/stranger/metrics.jsonl").write_text("{}\n")
    unsigned = send(home, packed(place / "bundle"))
    bomb = send(home, zipped(place / "bomb.zip", [("submission.yaml", b"\0" * (11 << 20))]))
    above = send(home, zipped(place / "above.zip", [("../../../service.db", b"x")]))
    named = send(home, packed(place / "bundle"), name="bundle.rar")
    for answer, line in (
        (unsigned, "'stranger/metrics.jsonl' is listed or there, expected both"),
        (bomb, "it unpacks to more than 10,485,760 bytes"),
        (above, "the path '../../../service.db'"),
        (named, "expected one file, a bundle's folder as .zip"),
    ):
        assert answer.status_code == 422 and line in answer.json()["detail"], answer.json()
        assert str(home.settings.folder) not in answer.text
    assert home.kept() == [] and not list(home.settings.incoming.iterdir())
    assert home.client.get("/api/submissions").json()["total"] == 0


def test_a_bundle_whose_table_is_of_another_protocol_is_told_what_to_evaluate(home, place):  # noqa: F811
    object.__setattr__(home.settings, "protocol", PROTOCOL | {"eps": ["0.05", "1.5"]})
    refused = send(home, packed(place / "bundle"))
    assert refused.status_code == 422 and "evaluate with rkhs-eval --norm l2 --eps 0.05 1.5, and pack" in refused.json()["detail"]


def test_a_page_takes_a_bundle(home, place):  # noqa: F811
    home.client.post("/login", data={"token": home.alice})
    page = home.client.get("/submit").text
    assert 'action="/submit/bundle"' in page and "rkhs-eval --norm l2 --eps 0.05 0.5" in page
    path = packed(place / "bundle")
    answer = home.client.post("/submit/bundle", files={"file": (path.name, path.read_bytes())}, follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/submissions/1"
    assert home.state()["name"] == "stranger"


def test_limits_hold_for_what_a_bundle_holds(home, place):  # noqa: F811
    object.__setattr__(home.settings, "limits", Limits(weights=1000))
    refused = send(home, packed(place / "bundle"))
    assert refused.status_code == 422 and "expected at most 1,000" in refused.json()["detail"]
    with pytest.raises(UserError, match="no bundle"):
        read_bundle(place / "nowhere")
