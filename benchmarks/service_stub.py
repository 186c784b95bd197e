"""The service of benchmarks/service.py: the real one, with stubs in place of guard and evaluation, but for models named real-N.

`serve FOLDER PORT` is the server, `work` its worker, with the settings on standard input.
"""

import os
import random
import sys
import time
from pathlib import Path

from robustbench_rkhs.runtime.events import Between, BoundsChanged, Message, Progress
from robustbench_rkhs.service import evaluating, guarding
from robustbench_rkhs.service.bundles import Bundle
from robustbench_rkhs.service.evaluating import Tell
from robustbench_rkhs.service.lifecycle import Outcome
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.service.submission import Status, Submission
from robustbench_rkhs.service.worker import main as work

REAL = "real-"
"""Beginning of the names of checkpoints that are really guarded and evaluated."""
PROTOCOL = {"eps": ["0.25"], "effort": "quick", "certificates": ["margin"], "diagnostics": False, "samples": 12}
STEPS = 5
"""Steps of an evaluation, of 10 to 30 ms each."""


def settings_of(folder: Path) -> Settings:
    return Settings(folder=folder / "service", out=folder / "out", readers=1000, protocol=PROTOCOL, sample=8)


def evaluate(settings: Settings, one: Submission, tell: Tell) -> Outcome:
    """A real one as ever. Others: work for a while; every tenth is refused, the rest are published: a table that is there stays."""
    if one.name.startswith(REAL):
        (settings.folder / "real").write_text(one.name)
        return evaluating.evaluate(settings, one, tell)
    for step in range(STEPS):
        time.sleep(random.uniform(0.01, 0.03))
        tell(Progress(phase="attacks", method="stub", done=step + 1, total=STEPS, seconds=0.0))
        tell(BoundsChanged(images=STEPS, bounds=(Between(eps=0.5, low=0.0, high=1 - step / STEPS),)))
    tell(Message(text="evaluated"))
    if int(one.name.rpartition("-")[2]) % 10 == 0:
        return Outcome(Status.REFUSED, "the stub refuses every tenth")
    tables = settings.out / "verdicts" / one.name
    tables.mkdir(parents=True, exist_ok=True)
    if not list(tables.iterdir()):
        part = settings.out / f"{one.number}.part"
        part.write_text("table")
        os.replace(part, tables / f"{time.time_ns()}.txt")  # a second one would have another name, and be seen
    return Outcome(Status.ACCEPTED)


def checked(bundle: Bundle, settings: Settings) -> Bundle:
    """A real one passes the guard, others pass."""
    return guarding.guard(bundle, settings) if bundle.name.startswith(REAL) else bundle


def began(settings: Settings) -> None:
    """Say who works, for whoever kills it."""
    (settings.folder / "worker.pid").write_text(str(os.getpid()))


def serve(folder: Path, port: int) -> None:
    # here, as the real worker imports none of these
    import uvicorn

    from robustbench_rkhs.service.app import create_app
    from robustbench_rkhs.service.desk import Desk
    from robustbench_rkhs.service.supervisor import Supervisor
    from robustbench_rkhs.service.token import make_token, tokens

    settings = settings_of(folder)
    desk, supervisor = Desk(settings, checked), Supervisor(settings, [sys.executable, __file__, "work"])
    if not tokens(desk.database):
        (folder / "token").write_text(make_token(desk.database, "sender", ["checkpoint"], 1_000_000))
    supervisor.start()
    (folder / "server.pid").write_text(str(os.getpid()))
    uvicorn.run(create_app(desk), host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(evaluate, began)
    else:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
