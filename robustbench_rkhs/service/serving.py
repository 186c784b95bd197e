"""Running a service: the web server in this process, the worker in another."""

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime.ignored import ignored
from robustbench_rkhs.runtime.locks import alone
from robustbench_rkhs.service.app import create_app
from robustbench_rkhs.service.bundles import remove_leftovers
from robustbench_rkhs.service.desk import Desk
from robustbench_rkhs.service.settings import KINDS, Settings
from robustbench_rkhs.service.supervisor import Supervisor
from robustbench_rkhs.service.token import make_token, tokens

FIRST = 100
"""Uploads in an hour of the first token."""
MOST = 1000
"""Connections at once."""
PATIENCE = 60
"""Seconds to wait for a service to end."""
STOP = 3
"""Seconds for open answers to end when the service stops."""


Ready = Callable[[str, str], object]
"""What is called once the service listens: with its address, and the first token, which is empty at later starts."""


class Service:
    """A service, as one command starts it."""

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        self.settings, self.host, self.port = settings, host, port

    def run(self, ready: Ready) -> None:
        """Serve until Ctrl-C or SIGTERM. Raises UserError where the port or the folder is in use, or the queue is away."""
        settings = self.settings
        ignored(settings.folder)
        with alone(settings.folder, "a service"), _bound(self.host, self.port) as listener:
            remove_leftovers(settings)
            keep_settings(settings)
            desk, supervisor = Desk(settings), Supervisor(settings)
            desk.wakeups.check()
            token = "" if tokens(desk.database) else make_token(desk.database, "admin", KINDS, FIRST)
            more = {"server_header": False, "timeout_graceful_shutdown": STOP, "limit_concurrency": MOST}
            server = uvicorn.Server(uvicorn.Config(create_app(desk), log_level="warning", **more))  # type: ignore[arg-type]
            supervisor.start()
            ready(f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{listener.getsockname()[1]}", token)
            try:
                server.run(sockets=[listener])
            except KeyboardInterrupt:
                pass  # uvicorn has ended in order, and passes the signal on
            finally:
                supervisor.stop()


def keep_settings(settings: Settings) -> None:
    """Write the settings to the folder, where the admin command finds them; only the owner may read the databases' URLs."""
    path = settings.folder / "settings.json"
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(settings.model_dump_json(indent=1) + "\n")
    os.replace(part, path)


def kept_settings(folder: Path) -> Settings:
    """The settings of the service in this folder. Raises UserError where there is none."""
    path = folder / "settings.json"
    try:
        return parse(Settings, json.loads(path.read_bytes()), str(path))
    except (OSError, ValueError):
        raise UserError(f"no service in {str(folder)!r}: run rkhs-serve --folder {folder} first") from None


def stop(folder: Path) -> int:
    """End the service in this folder, on this machine, and wait for its end; its process. Raises UserError."""
    lock = folder.parent / f".{folder.name}.lock"
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the service holds it
    except BlockingIOError:
        owner = json.loads(lock.read_bytes())
    except OSError:
        raise UserError(f"no service runs in {folder}") from None
    else:
        raise UserError(f"no service runs in {folder}")
    if owner["host"] != socket.gethostname():
        raise UserError(f"the service in {folder} runs on {owner['host']}: stop it there")
    os.kill(owner["pid"], signal.SIGTERM)
    for _ in range(PATIENCE * 10):
        if not lock.exists():
            return int(owner["pid"])
        time.sleep(0.1)
    raise UserError(f"the service, process {owner['pid']}, has not ended after {PATIENCE} s")


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, reuse_port=False)
    except OSError as error:
        number = error.errno or 0  # the words of the error itself name the address once more
        why = reason(OSError(number, os.strerror(number)) if number > 0 else error)
        raise UserError(f"cannot listen on {host} port {port}: {why}; choose another with --port or --host") from None
