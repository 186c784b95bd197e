"""The supervisor: keeps a worker running, and gives back what a dead one held."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Sequence

from robustbench_rkhs.service import lifecycle
from robustbench_rkhs.service.database import Database
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.service.wakeups import WakeUps
from robustbench_rkhs.service.worker import told_of

LOOK = 0.1
"""Seconds between two looks at the worker."""
HEAL = 30.0
"""Seconds between two looks for lost messages and workers of other machines that died."""
STEADY = 10.0
"""Seconds after which a worker that ended is replaced at once; one that ended sooner, after longer and longer waits."""
LONGEST = 60.0
"""The longest wait, in seconds."""
DIED = "the worker died"
WORKER = (sys.executable, "-m", "robustbench_rkhs.service.worker")


class Supervisor:
    """A thread that runs one worker process, and another whenever it dies."""

    def __init__(self, settings: Settings, command: Sequence[str] = WORKER) -> None:
        self.settings, self.command = settings, command
        self.database, self.wakeups = Database(settings), WakeUps(settings)
        self.process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Give back what workers held when the service last stopped, and begin."""
        self._give_back(lifecycle.EVERY_WORKER, "the service was ended from outside")
        self._thread.start()

    def stop(self) -> None:
        """End the worker; what it works on is queued again, and its attempt doesn't count."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        wait = 0.0
        while not self._stop.wait(wait):
            began, name = time.monotonic(), uuid.uuid4().hex[:8]
            self.process = self._begun(name)
            worker = f"{name}-{self.process.pid}"
            ended = self._watched(self.process)
            while not self._given_back(worker, f"{DIED} ({ended})", counted=not self._stop.is_set()):
                if self._stop.wait(LONGEST / 10):
                    break  # the next start gives it back
            steady = time.monotonic() - began > STEADY or ended == "killed"
            wait = 0.0 if steady else min(max(2 * wait, 1.0), LONGEST)

    def _begun(self, name: str) -> "subprocess.Popen[bytes]":
        # a session of its own: Ctrl-C in a terminal reaches the service alone, which ends the worker
        process = subprocess.Popen(self.command, stdin=subprocess.PIPE, start_new_session=True)
        given = {"settings": self.settings.model_dump(mode="json"), "name": name, "parent": os.getpid()}
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(given).encode())
            process.stdin.close()
        except OSError:
            pass  # it has ended already
        return process

    def _watched(self, process: "subprocess.Popen[bytes]") -> str:
        """Wait until it ends, or end it; how it ended."""
        healed = time.monotonic()
        while process.poll() is None:
            if self._stop.wait(LOOK):
                process.kill()
                process.wait()
            elif time.monotonic() - healed > HEAL:
                healed = time.monotonic()
                self._given_back("", DIED)
        return "killed" if process.returncode == -signal.SIGKILL else f"code {process.returncode}"

    def _given_back(self, worker: str, why: str, counted: bool = True) -> bool:
        """As `_give_back`; False, with the traceback on stderr, where the database or the queue is away."""
        try:
            self._give_back(worker, why, counted)
        except Exception:  # of any database or queue: whatever it is, workers must be watched
            traceback.print_exc()
            return False
        return True

    def _give_back(self, worker: str, why: str, counted: bool = True) -> None:
        """Queue again what this worker held, and whatever has no sign of life; then wake as often as something waits."""
        changed = lifecycle.give_back(self.database, self.settings.attempts, worker=worker or "-", why=why, counted=counted)
        told_of(self.settings, self.database, changed)
        self.wakeups.wake_all(len(lifecycle.queue(self.database).waiting))
