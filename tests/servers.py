"""A PostgreSQL and a Redis of our own, on the loopback, while a test runs; skipped, with the reason, where one is missing."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Postgres:
    """PostgreSQL in an empty folder, without a password; `database` makes a new one."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs, self.port, self.count = folder, programs, free_port(), 0
        self._call("initdb", "-D", folder / "data", "-U", "rkhs", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()

    def start(self) -> None:
        # a pipe would be inherited by the server, and never end
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._call("pg_ctl", "-D", self.folder / "data", "-l", self.folder / "log", "-w", "-o", options, "start")

    def stop(self) -> None:
        """End it at once; its connections break."""
        self._call("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")

    def database(self) -> str:
        """SQLAlchemy's URL of a new, empty database."""
        self.count += 1
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "rkhs", f"rkhs{self.count}")
        return f"postgresql+psycopg://rkhs@127.0.0.1:{self.port}/rkhs{self.count}"

    def _call(self, program: str, *words: object) -> None:
        # initdb and its server refuse to run as root
        more = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [self.programs / program, *map(str, words)], stdout=output, stderr=output, cwd=self.folder, **more
            )
            output.seek(0)
            assert done.returncode == 0, output.read()


class Redis:
    """Redis that keeps nothing on disk; `url` is its address."""

    def __init__(self, program: str) -> None:
        self.program, self.port = program, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--loglevel", "warning"]
        self.process = subprocess.Popen([self.program, *words], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                return socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                time.sleep(0.02)
        raise AssertionError("redis-server does not answer")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of our own. Skips where it, or psycopg, is missing."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'psycopg[binary]')")
    known = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    found = known or sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found or not (found[-1] / "initdb").is_file():
        pytest.skip("PostgreSQL is not installed (initdb)")
    folder = Path(tempfile.mkdtemp(prefix="rkhs-pg-", dir="/tmp"))  # a socket's path is short
    try:
        try:
            if os.geteuid() == 0:
                shutil.chown(folder, "postgres", "postgres")
            running = Postgres(folder, found[-1])
        except (OSError, LookupError, AssertionError) as error:  # such as a sandbox in which no process may change its user
            pytest.skip(f"PostgreSQL cannot be started here: {error}")
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def redis() -> Iterator[Redis]:
    """A Redis of our own. Skips where it, or its Python package, is missing."""
    pytest.importorskip("redis", reason="the package redis is not installed (pip install redis)")
    if (program := shutil.which("redis-server")) is None:
        pytest.skip("redis-server is not installed")
    running = Redis(program)
    try:
        yield running
    finally:
        running.stop()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
