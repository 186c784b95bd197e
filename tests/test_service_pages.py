"""Pages of the service: every file that the site offers is sent, the list reaches all, HEAD is answered."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import urljoin

import pytest

for package in ("fastapi", "sqlmodel", "huey", "python_multipart", "httpx2"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra `serve`)")

from test_report import synthetic, trio  # noqa: E402
from test_service import Home  # noqa: E402
from test_site import keep  # noqa: E402

from robustbench_rkhs.runtime.events import Between, BoundsChanged, Progress  # noqa: E402
from robustbench_rkhs.service import lifecycle, views  # noqa: E402
from robustbench_rkhs.service.admin import Admin  # noqa: E402
from robustbench_rkhs.service.headers import HEADERS  # noqa: E402
from robustbench_rkhs.service.lifecycle import Outcome  # noqa: E402
from robustbench_rkhs.service.submission import Status  # noqa: E402
from robustbench_rkhs.site import build_site, model_files  # noqa: E402

LINK = re.compile(r'(?:href|src|action)="([^"]+)"')


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def test_every_file_that_the_site_offers_is_sent(home, monkeypatch):
    """Also what lies beside a model: adversarial images, a certificate's two files and a picture."""
    out, (one, *_) = home.settings.out, trio()
    keep(out, replace(one, about=one.about.but(key="1" * 64)))
    named = SimpleNamespace(about=SimpleNamespace(others={"key": "1" * 64}, weights=""))
    monkeypatch.setattr(model_files, "read_adversarials", lambda *_: named)
    for name, content in {
        "adversarials/found.npz": b"PK found",
        f"proofs/{one.about.model}/proof.npz": b"PK proof",
        f"proofs/{one.about.model}/proof.json": json.dumps({"function": {"key": "1" * 64}}).encode(),
        "pictures/nearest-found.png": b"\x89PNG",
    }.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    build_site(out, home.settings.site)
    todo, seen, offered = ["/", *_written(home.settings.site)], dict[str, object](), set[str]()
    while todo:
        if (path := todo.pop()) in seen:
            continue
        answer = seen[path] = home.client.get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code}"
        assert all(answer.headers[name] == value for name, value in HEADERS.items()), path
        if "text/html" in answer.headers["content-type"]:
            links = {urljoin(path, link).partition("#")[0] for link in LINK.findall(answer.text) if "//" not in link}
            offered |= links
            todo += [link for link in links if link.startswith("/") and link not in ("/login", "/logout")]
    found = {link.rpartition("/")[2]: link for link in offered}
    for name in ("found.npz", "proof.npz", "proof.json", "nearest-found.png"):
        assert name in found, f"the model's page does not offer {name}"
    images = seen[found["found.npz"]]
    assert images.content == b"PK found" and images.headers["content-type"] == "application/octet-stream"
    assert images.headers["content-disposition"] == 'attachment; filename="found.npz"'
    assert {link.rpartition(".")[2] for link in offered} >= {"html", "css", "js", "json", "csv", "svg", "png", "parquet", "npz"}


def _written(site):
    """Addresses of all files of the site."""
    files = [path.relative_to(site) for path in site.rglob("*") if path.is_file()]
    return [f"/{path.as_posix()}" for path in files if not any(part.startswith(".") for part in path.parts)]


def test_head_is_answered_as_get(home, built):
    shutil.copytree(built[0] / "site", home.settings.site)
    home.send()
    for path in (
        "/",
        "/boards/digits-l2-eps0.25.csv",
        "/models/plain.html",
        "/submissions",
        "/submissions/1",
        "/submit",
        "/service/follow.js",
    ):
        whole, head = home.client.get(path), home.client.head(path)
        assert head.status_code == 200 and head.headers["content-type"] == whole.headers["content-type"], path
        assert head.headers["content-length"] == whole.headers["content-length"], path
    assert home.client.head("/none.html").status_code == 404
    assert not any("head" in path for path in home.client.get("/api/openapi.json").json()["paths"].values())


def test_the_list_reaches_every_submission_the_running_and_waiting_first_in_their_order(home, monkeypatch):
    monkeypatch.setattr(views, "LIST", 3)
    for number in range(1, 9):
        home.send(f"m{number}")
        if number <= 4:
            home.work()
    Admin(home.settings).rerun(2)  # to the end of the queue
    Admin(home.settings).hide(3, "a copy")
    lifecycle.claim(home.desk.database, "w", 3600)  # 5
    for _ in range(2):
        path, pages = "/submissions", []
        while path:
            text = home.client.get(path).text
            pages.append([int(number) for number in re.findall(r'<th scope="row"><a href="/submissions/(\d+)"', text)])
            path = next(iter(re.findall(r'href="([^"]+)">Next<', text)), None)
        assert pages == [[5, 6, 7], [8, 2, 4], [3, 1]]
    assert '<a href="/submissions">Previous</a>' in home.client.get("/submissions?offset=3").text
    assert '<a href="/submissions?offset=6">Last</a>' in home.client.get("/submissions").text
    beyond = home.client.get("/submissions?offset=99").text
    assert "There are no more submissions" in beyond and '<a href="/submissions?offset=6">Previous</a>' in beyond
    for offset in ("-1", "x", str(2**40)):
        assert home.client.get("/submissions", params={"offset": offset}).status_code == 422


def test_an_accepted_submission_leads_to_its_pages_and_shows_no_old_progress(home, built):
    home.send("plain")
    text = home.client.get("/submissions/1").text
    assert "/models/" not in text

    def evaluate(settings, one, tell):
        tell(Progress(phase="diagnosis", method="", done=0, total=12, seconds=1.0))
        tell(BoundsChanged(images=12, bounds=(Between(eps=0.5, low=0.25, high=0.75),)))
        shutil.copytree(built[0] / "site", home.settings.site)
        assert "diagnosis, 0 of 12 images" in home.client.get("/submissions/1").text
        return Outcome(Status.ACCEPTED, tables=("verdicts/plain/l2-1.parquet",))

    home.work(evaluate)
    text = home.client.get("/submissions/1").text
    assert "0 of 12" not in text and "between 25.0% and 75.0%" in text
    links = re.findall(r'href="(/(?:models|boards)/[^"]+)"', text)
    assert links[0] == "/models/plain.html" and len(links) == 4  # and a board for each eps
    assert all(home.client.get(link).status_code == 200 for link in links)
    Admin(home.settings).rerun(1)
    assert "75.0%" not in home.client.get("/submissions/1").text  # of the attempt before


def test_a_name_that_several_models_bear_leads_to_all_of_them(home):
    for digit in "12":
        one = synthetic("plain", seed=int(digit))
        keep(home.settings.out, replace(one, about=one.about.but(key=digit * 64, job=digit * 12)))
    build_site(home.settings.out, home.settings.site)
    home.send("plain")
    home.work(lambda settings, one, tell: Outcome(Status.ACCEPTED))
    links = re.findall(r'href="(/models/[^"]+)"', home.client.get("/submissions/1").text)
    assert links == [f"/models/plain-{digit * 12}.html" for digit in "12"]
