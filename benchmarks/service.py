"""The service under load, on this machine alone: a queue of submissions, readers at the same time, worker and server killed.

The last ten submissions are a real checkpoint, with the real guard and gate; of the others guard and evaluation are stubs (0.1 s).
Everything else is the real service. Half of the real ones lose their worker once, in the midst of their evaluation. Counted: what
was lost, and what was doubled.
"""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from common import ROOT, arguments, finish
from service_stub import REAL, settings_of
from sqlmodel import select

from robustbench_rkhs.service.database import Database
from robustbench_rkhs.service.submission import Submission

SOURCES = ["benchmarks/service.py", "benchmarks/service_stub.py", "robustbench_rkhs/service/lifecycle.py"]
SIZES = {"submissions": 1000, "real": 10, "readers": 200, "worker_kills": 100, "server_kills": 4}
QUICK = {"submissions": 30, "real": 1, "readers": 5, "worker_kills": 3, "server_kills": 1}
PAUSE = 2.0
"""Seconds between two reads of a reader, while submissions are evaluated."""
PEAK = 10.0
"""Seconds for which all readers read without a pause, at the end."""
LONGEST = 1140.0
"""Seconds after which the benchmark gives up: what is still queued then counts as lost."""
PUBLISHED = ["/", "/boards/digits-l2-eps0.25.html", f"/models/{REAL}1.html"]
"""Pages of the site that are read, too; all but the first are 404 until a real submission is accepted."""
LINK = re.compile(r'(?:href|src)="([^"#]+)')
STUB = str(Path(__file__).parent / "service_stub.py")


class Server:
    """The server, on a port of the loopback; a killed one is begun again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.begin()

    def begin(self) -> None:
        self.process = subprocess.Popen([sys.executable, STUB, "serve", str(self.folder), str(self.port)])
        ended = time.monotonic() + 120
        while time.monotonic() < ended:
            with contextlib.suppress(OSError):
                return self._answers()
            time.sleep(0.1)
        raise RuntimeError("the server does not answer")

    def _answers(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("GET", "/api/queue")
        connection.getresponse().read()
        connection.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Client:
    """A connection that is opened again where it was lost."""

    def __init__(self, server: Server) -> None:
        self.server, self.connection = server, None
        self.lost = 0

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and content; status 0 where the server was not there."""
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
            self.connection.request(method, path, body, headers or {})
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self.lost += 1
            self.connection = None
            time.sleep(0.05)
            return 0, b""


def form(name: str) -> tuple[bytes, str]:
    """An upload as multipart/form-data, and its content type."""
    files = {"model.safetensors": name.encode() * 50}
    if name.startswith(REAL):
        files = {path.name: path.read_bytes() for path in sorted((ROOT / "examples" / "theirs").iterdir())}
    parts = [f'--xyz\r\nContent-Disposition: form-data; name="name"\r\n\r\n{name}\r\n'.encode()]
    for file, content in files.items():
        parts += [f'--xyz\r\nContent-Disposition: form-data; name="files"; filename="{file}"\r\n\r\n'.encode(), content, b"\r\n"]
    return b"".join([*parts, b"--xyz--\r\n"]), "multipart/form-data; boundary=xyz"


def send_all(server: Server, sizes: dict[str, int], token: str, sent: dict[str, float], replays: list[int]) -> None:
    """Send every submission, each fifth twice, the real ones last; one whose answer is lost is sent again."""
    client, stubs = Client(server), sizes["submissions"] - sizes["real"]
    for number in range(1, sizes["submissions"] + 1):
        name = f"model-{number}" if number <= stubs else f"{REAL}{number - stubs}"
        body, kind = form(name)
        sent[name] = time.time()
        for again in range(2 if number % 5 == 0 else 1):
            code = 0
            while code == 0:
                code, content = client.ask(
                    "POST", "/api/submissions/checkpoint", body, {"Authorization": f"Bearer {token}", "Content-Type": kind}
                )
            assert code in (200, 201), content
            replays.append(again)


def read_all(server: Server, until: threading.Event, pause: float, found: dict[str, Any], lock: threading.Lock) -> None:
    """Read random pages until the end; count them, and whether each is whole."""
    client, seconds, broken, half = Client(server), [], 0, 0
    while not until.wait(pause * random.uniform(0.5, 1.5)):
        number = random.randint(1, 50)
        service = [f"/submissions/{number}", f"/api/submissions/{number}", "/submissions", "/api/queue", "/submit"]
        path = random.choice(service + PUBLISHED)
        begun = time.perf_counter()
        code, content = client.ask("GET", path)
        if code:
            seconds.append(time.perf_counter() - begun)
            broken += not _whole(path, code, content)
            half += path in PUBLISHED and code == 200 and not _leads(client, path, content)
    with lock:
        found["seconds"] += seconds
        found["broken"] += broken
        found["half"] += half
        found["unanswered"] += client.lost


def _whole(path: str, code: int, content: bytes) -> bool:
    if code == 307:  # of / before there is a site
        return path == "/"
    if code not in (200, 404):
        return False
    if path.startswith("/api/"):
        try:
            return isinstance(json.loads(content), dict)
        except ValueError:
            return False
    return content.rstrip().endswith(b"</html>")


def _leads(client: Client, path: str, content: bytes) -> bool:
    """Whether a file that a page of the site names, one chosen at random, is there."""
    links = [link for link in LINK.findall(content.decode()) if ":" not in link]
    return client.ask("HEAD", urljoin(path, random.choice(links)).partition("#")[0])[0] != 404


def kill_workers(folder: Path, sizes: dict[str, int], until: threading.Event, killed: list[int]) -> None:
    """Kill the worker at random moments, each process once; the last times while it evaluates every other real submission."""
    last, stabbed, kept = 0, set[str](), sizes["real"] // 2
    while len(killed) < sizes["worker_kills"] and not until.is_set():
        with contextlib.suppress(OSError, ValueError):
            pid = int((folder / "service" / "worker.pid").read_text())
            early = len(killed) < sizes["worker_kills"] - kept
            name = "" if early else (folder / "service" / "real").read_text()
            if pid != last and (early or (name not in stabbed and int(name.removeprefix(REAL)) % 2 == 0)):
                time.sleep(random.uniform(0.0, 2.0 if early else 8.0))
                os.kill(pid, signal.SIGKILL)
                last = pid
                killed.append(pid)
                stabbed.add(name)
        time.sleep(0.05)


def measured(sizes: dict[str, int]) -> dict[str, Any]:
    random.seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        server = Server(folder)
        sent, replays, killed = dict[str, float](), list[int](), list[int]()
        found, over = reads(), threading.Event()
        token = (folder / "token").read_text()
        sender = threading.Thread(target=send_all, args=(server, sizes, token, sent, replays))
        readers = reading(server, sizes["readers"], over, PAUSE, found)
        killer = threading.Thread(target=kill_workers, args=(folder, sizes, over, killed))
        begun = time.perf_counter()
        try:
            for thread in (sender, *readers, killer):
                thread.start()
            for _ in range(sizes["server_kills"]):
                time.sleep(random.uniform(3.0, 8.0))
                server.kill()
                server.begin()
            sender.join()
            client = Client(server)
            while _open(client) and time.perf_counter() - begun < LONGEST:
                time.sleep(0.5)
        finally:
            over.set()
            for thread in (*readers, killer):
                thread.join()
            took = time.perf_counter() - begun
        peak = reads_at_peak(server, sizes["readers"])
        server.kill()
        return {"reads_per_second_at_peak": peak, **_figures(folder, sent, replays, killed, found, took)}


def reads() -> dict[str, Any]:
    """What readers count."""
    return {"seconds": [], "broken": 0, "half": 0, "unanswered": 0}


def reading(server: Server, count: int, until: threading.Event, pause: float, found: dict[str, Any]) -> list[threading.Thread]:
    """So many readers, not begun yet."""
    lock = threading.Lock()
    return [threading.Thread(target=read_all, args=(server, until, pause, found, lock)) for _ in range(count)]


def reads_at_peak(server: Server, count: int) -> float:
    """Reads per second by readers that never pause, after all verdicts."""
    found, over = reads(), threading.Event()
    readers = reading(server, count, over, 0.0, found)
    for thread in readers:
        thread.start()
    over.wait(PEAK)
    over.set()
    for thread in readers:
        thread.join()
    assert found["broken"] == found["half"] == 0
    return round(len(found["seconds"]) / PEAK, 1)


def _open(client: Client) -> bool:
    code, content = client.ask("GET", "/api/queue")
    return code != 200 or any(json.loads(content)[key] for key in ("waiting", "running"))


def _figures(
    folder: Path, sent: dict[str, float], replays: list[int], killed: list[int], found: dict[str, Any], took: float
) -> dict[str, Any]:
    settings = settings_of(folder)
    with Database(settings).reading() as session:
        rows = list(session.exec(select(Submission)))
    by_status = {one.status: sum(row.status == one.status for row in rows) for one in rows}
    folders = [path for path in (settings.out / "verdicts").iterdir() if path.is_dir()]
    tables = [sum(file.suffix in (".txt", ".parquet") for file in path.iterdir()) for path in folders]
    names = [row.name for row in rows]
    verdicts = sorted(row.ended_at - sent[row.name] for row in rows if row.ended_at is not None)
    seconds = sorted(found["seconds"])
    published = {path.name for path in folders}
    lost = len(set(sent) - set(names)) + sum(row.status in ("queued", "running") for row in rows)
    lost += sum(row.status == "accepted" and row.name not in published for row in rows)
    logs = [(settings.states / str(row.number) / "log.txt").read_text() for row in rows]
    return {
        "reads_per_second_meanwhile": round(len(seconds) / took, 1),
        "read_milliseconds": {"median": _ms(seconds, 0.5), "95%": _ms(seconds, 0.95), "99%": _ms(seconds, 0.99)},
        "seconds_to_verdict": {
            "median": round(statistics.median(verdicts), 1),
            "95%": round(verdicts[int(0.95 * len(verdicts))], 1),
        },
        "real": {
            "accepted": sum(row.name.startswith(REAL) and row.status == "accepted" for row in rows),
            "attempts": sum(row.attempt for row in rows if row.name.startswith(REAL)),
        },
        "tally": {
            "sent": len(sent),
            "replays": sum(replays),
            **by_status,
            "attempts": sum(row.attempt for row in rows),
            "deaths_told": sum("follows" in line or "waits for a person" in line for log in logs for line in log.splitlines()),
            "lost": lost,
            "doubled": len(names) - len(set(names)) + sum(count > 1 for count in tables),
            "pages_broken": found["broken"],
            "pages_half_published": found["half"],
        },
        "worker_kills_done": len(killed),
        "reads_without_server": found["unanswered"],
        "seconds": round(took, 1),
    }


def _ms(seconds: list[float], share: float) -> float:
    return round(1000 * seconds[int(share * (len(seconds) - 1))], 1)


def main() -> None:
    given = arguments((__doc__ or "").splitlines()[0], threads=1)
    sizes = QUICK if given.quick else SIZES
    figures = measured(sizes)
    print(json.dumps(figures), flush=True)
    tally = figures["tally"]
    assert tally["lost"] == tally["doubled"] == tally["pages_broken"] == tally["pages_half_published"] == 0, tally
    finish("service", {**sizes, "evaluation_seconds": 0.1, "reader_pause_seconds": PAUSE, **figures}, given, SOURCES)


if __name__ == "__main__":
    main()
