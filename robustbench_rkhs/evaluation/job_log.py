"""The log of jobs: where each was computed, one JSON line per job, in a file of its own for each process that gives out work."""

import json
from datetime import datetime
from pathlib import Path

from robustbench_rkhs.evaluation.engines import Outcome, Place
from robustbench_rkhs.verdicts import Part


class JobLog:
    """FOLDER/HOST-PID.jsonl: engine, machine, process, seconds, phase, method and images of each job that was computed.

    So an engine that computed elsewhere than meant is seen. Nothing is read back from it, and nothing in a table depends on it.
    """

    def __init__(self, folder: Path | None, engine: str) -> None:
        """Without a folder nothing is written."""
        mine = Place.here()
        self.path, self.engine = folder and folder / f"{mine.host}-{mine.pid}.jsonl", engine

    def note(self, outcome: Outcome) -> None:
        """Write the line of a job that ended, if it was computed."""
        if self.path is None or outcome.place is None:
            return
        job, found = outcome.job, outcome.found
        line = {
            "engine": self.engine,
            "host": outcome.place.host,
            "pid": outcome.place.pid,
            "seconds": round(outcome.seconds, 3),
            "ended": datetime.now().isoformat("T", "seconds"),
            "phase": job.phase,
            "method": job.label,
            "images": len(job.index),
            "job": job.name,
            "error": "" if isinstance(found, Part) else type(found).__name__,
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError:  # a full disk: where a job ran matters less than the table
            return
