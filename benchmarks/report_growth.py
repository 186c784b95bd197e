"""What one more evaluation costs a board: the CPU time of adding the 2nd and the 301st.

$ python benchmarks/report_growth.py            300 models, and a first addition of one more
$ python benchmarks/report_growth.py --quick    30 models

Synthetic tables (200 images, three eps, a certificate and an attack; robust radii are exponential) are stored where rkhs-eval puts
them. An addition is what rkhs-submit does after the evaluation, in a process of its own: the check that no other row changes, the
new table, its own figures, the figures of several models where they change, and the leaderboard. Measured for a new model of the
highest robust accuracy, which joins every figure, and for one in the middle; the figures of the models before it are not drawn, but
marked as drawn. `cpu_seconds` are user and system time of the process, imports included. Ends with one JSON line; a full run writes
reports/benchmarks/report_growth.json.
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from common import arguments, finish

from robustbench_rkhs import verdicts
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.reports.update import update
from robustbench_rkhs.submission.effect import refused_change
from robustbench_rkhs.verdicts import About, Evaluation, Published

IMAGES, EPSILONS, ALLOWED = 200, (0.25, 0.5, 1.0), 2.0
SOURCES = [
    "benchmarks/report_growth.py",
    *(f"robustbench_rkhs/reports/{name}.py" for name in ("drawn", "entries", "leaderboard", "own_files", "together", "update")),
    *(f"robustbench_rkhs/verdicts/{name}.py" for name in ("brief_cache", "briefs", "comparability", "soundness")),
    "robustbench_rkhs/submission/effect.py",
]


def synthetic(number: int, scale: float) -> Evaluation:
    """A model of its own whose robust radii are exponential, with a certificate of half of each and an exact attack."""
    random = np.random.default_rng(number)
    truth, right = random.exponential(scale, IMAGES), random.random(IMAGES) < 0.95
    name, key = f"model_{number:03d}", f"{number:064x}"
    image = {"model": name, "weights": key, "data": "synthetic", "split": "test", "norm": "l2", "box": "unit", "settings": ""}
    base = pd.DataFrame({"index": np.arange(IMAGES), "label": 1, "predicted": right.astype(int)}).assign(**image)
    base["input_sha256"] = [f"{place:064x}" for place in range(IMAGES)]
    base = base.assign(eps=np.nan, state_reason="", distance_l2=np.nan, distance_linf=np.nan, forwards=1, backwards=1)
    base = base.assign(seconds=0.1, arithmetic="", failure_probability=0.0, kind="certificate", radius=0.0)
    parts = [base.assign(method="prediction"), base.assign(method="margin", radius=np.where(right, 0.5 * truth, 0.0))]
    for eps in EPSILONS:
        distance = np.where(truth <= eps, truth, np.nan)
        found = {"distance_l2": distance, "distance_linf": distance / 3, "radius": np.where(truth <= eps, truth, np.inf)}
        parts.append(base.assign(kind="attack", method="pgd", **found).assign(eps=eps))
    about = {"model": name, "weights": key, "key": key, "data": "synthetic", "data_digest": "d" * 64, "norm": "l2", "box": "unit"}
    about |= {"epsilons": list(EPSILONS), "protocol": ["pgd"], "certificates": ["margin"], "samples": IMAGES, "date": "2026-01-01"}
    about |= {"command": "synthetic", "device": "cpu", "logits": random.normal(size=(8, 10)).tolist()}
    return Evaluation(verdicts.merge(parts), About.read(about, "synthetic"))


def place(out: Path, one: Evaluation) -> Path:
    """Where rkhs-eval would store it."""
    return Published(out / "verdicts").begin() / one.about.model / "l2-000000000000.parquet"


def add(out: Path, number: int, scale: float) -> float:
    """Add an evaluation to a board; the CPU seconds of this process so far."""
    new, places = synthetic(number, scale), Places(out)
    cache, unread = places.cache(), list[str]()
    reason = refused_change(cache.read_all(places.verdicts, unread.append), new, cache=cache)
    assert not reason and not unread, (reason, unread)
    verdicts.write(new, place(out, new))
    found = update(out)
    assert not found.unread and (out / "local/leaderboard.md").is_file()
    assert found.tables == len(list((out / "verdicts").glob("*/*.parquet")))
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def marked(evaluations: list[Evaluation], *where: object) -> list[Path]:
    """Stands for drawing a figure."""
    path = Path(f"{where[-1]}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return [path]


def grown(out: Path, models: int) -> None:
    """A board of so many models, whose figures count as drawn."""
    for number in range(models):
        one = synthetic(number, 0.3 + 0.5 * number / max(models, 2))
        verdicts.write(one, place(out, one))
    rooms = ("robustbench_rkhs.reports.own_files.draw_curve", "robustbench_rkhs.reports.together.draw_curve")
    with patch(rooms[0], marked), patch(rooms[1], marked), patch("robustbench_rkhs.reports.together.draw_tradeoff", marked):
        update(out)


def measured(board: Path, models: int, scale: float) -> float:
    """CPU seconds of adding one evaluation to a copy of this board of so many, in a process of its own; the least of two."""
    seconds = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "reports"
            shutil.copytree(board, copy)
            words = [sys.executable, __file__, "--add", str(copy), str(models), str(scale)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            seconds.append(float(json.loads(done.stdout.splitlines()[-1])))
    return min(seconds)


def main() -> None:
    if sys.argv[1:2] == ["--add"]:
        print(json.dumps(add(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
        return
    given = arguments((__doc__ or "").splitlines()[0], threads=1)
    models = 30 if given.quick else 300
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        grown(small, 1)
        grown(large, models)
        for kind, scale in (("joins_every_figure", 3.0), ("in_the_middle", 0.55)):
            second, last = measured(small, 1, scale), measured(large, models, scale)
            figures[kind] = {"cpu_seconds_2nd": round(second, 2), f"cpu_seconds_{models + 1}th": round(last, 2)}
            figures[kind]["more"] = round(last - second, 2)
            print(kind, figures[kind], flush=True)
    holds = all(one["more"] <= ALLOWED for one in figures.values())
    finish("report_growth", {"models": models, "images": IMAGES, **figures, "allowed": ALLOWED, "holds": holds}, given, SOURCES)


if __name__ == "__main__":
    main()
