"""The site at scale: 1,000 synthetic models of 10,000 images each, built at once, again, and after one model has changed.

    python benchmarks/site_scale.py            # 1,000 models x 10,000 images
    python benchmarks/site_scale.py --quick    # 20 models x 1,000 images

Each table has up to four rows per image: a prediction, a certificate and two budgets of an attack. Counted are CPU seconds and
memory of the build and of all its processes (reading tables, boards, model pages with their figures and data), and the seconds
until Chromium, without a network, has opened the board from disk, and until it answers a search. Writing tables is not counted.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import arguments, finish

from robustbench_rkhs import verdicts
from robustbench_rkhs.verdicts import About, Evaluation

SOURCES = [
    "benchmarks/site_scale.py",
    *(f"robustbench_rkhs/site/{name}.py" for name in ("build", "boards", "model_page", "model_data")),
]
SIZES = {False: (1000, 10_000), True: (20, 1000)}
EPSILONS = (0.5, 1.0)
BUILD = """
import json, resource, sys, time
from pathlib import Path
from robustbench_rkhs.site import build_site
began, out = time.perf_counter(), Path(sys.argv[1])
found = build_site(out, out / "site")
both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu = sum(one.ru_utime + one.ru_stime for one in both)
print(json.dumps({"cpu": cpu, "wall": time.perf_counter() - began, "boards": found.boards, "unread": found.unread}))
"""
FAR = 0.5
"""Seconds between two looks at the memory of a build."""


def table(number: int, images: int, seed: int) -> Evaluation:
    """A model with random radii: certified up to a part of the true radius, broken at the budgets beyond it."""
    chance = np.random.default_rng([number, seed])
    truth, right = chance.lognormal(-0.5, 0.6, images), chance.random(images) < 0.7 + 0.25 * chance.random()
    name, weights = f"model_{number:04d}", f"{number:08d}{seed:08d}" * 4
    index = np.arange(images)
    image = {"model": name, "weights": weights, "data": "cifar10", "split": "test", "norm": "l2", "box": "unit"}
    own = pd.DataFrame(image | {"index": index, "label": index % 10, "predicted": np.where(right, index % 10, (index + 1) % 10)})
    own["input_sha256"] = [f"{place:064x}" for place in index]
    own = own.assign(settings="", eps=np.nan, state_reason="", distance_l2=np.nan, distance_linf=np.nan, forwards=1, backwards=1)
    own = own.assign(seconds=0.001, arithmetic="", failure_probability=0.0)
    proved = np.where(right, truth * chance.uniform(0, 0.7, images), 0.0)
    parts = [own.assign(kind="certificate", method="prediction", radius=0.0)]
    parts.append(own.assign(kind="certificate", method="margin", radius=proved, arithmetic="float32 on cpu"))
    for eps in EPSILONS:
        fell = right & (truth <= eps)
        distance = np.where(fell, truth, np.nan)
        found = {"radius": np.where(fell, truth, np.inf), "distance_l2": distance, "distance_linf": distance / 3}
        parts.append(own.assign(kind="attack", method="pgd", eps=eps, **found)[right])
    said = {
        "model": name,
        "weights": weights,
        "key": weights,
        "data": "cifar10",
        "data_digest": "d" * 64,
        "norm": "l2",
        "box": "unit",
    }
    said |= {
        "epsilons": list(EPSILONS),
        "protocol": ["pgd"],
        "certificates": ["margin"],
        "samples": images,
        "seed": 0,
        "complete": True,
    }
    said |= {"device": "cpu", "date": "2026-11-28", "command": f"rkhs-eval --model {name} --eps 0.5 1.0", "job": weights[:12]}
    return Evaluation(verdicts.merge(parts), About.read(said, "synthetic"))


def write_table(out: str, number: int, images: int, seed: int) -> None:
    one = table(number, images, seed)
    folder = Path(out) / "verdicts" / one.about.model
    shutil.rmtree(folder, ignore_errors=True)
    verdicts.write(one, folder / f"l2-{seed:04d}.parquet")


def built(out: Path) -> dict[str, Any]:
    """A build in a process of its own: CPU and wall-clock seconds, and the most memory that it and its children held at once."""
    process = subprocess.Popen([sys.executable, "-c", BUILD, str(out)], stdout=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        most = max(most, _memory(process.pid))
        time.sleep(FAR)
    assert process.stdout is not None and process.returncode == 0
    found: dict[str, Any] = json.loads(process.stdout.read().splitlines()[-1])
    assert not found["unread"], found["unread"][:3]
    return found | {"gib": round(most / 2**30, 2), "cpu": round(found["cpu"], 2), "wall": round(found["wall"], 2)}


def _memory(pid: int) -> int:
    """Bytes of a process and its children, shared pages counted once."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return total
    return total + sum(_memory(int(one)) for one in children)


def opened(site: Path) -> dict[str, float]:
    """Seconds until the largest board is drawn, and until a search in it is answered; without a network, the median of three."""
    from playwright.sync_api import sync_playwright

    board = max((site / "boards").glob("*.html"), key=lambda path: path.stat().st_size)
    chromium = os.environ.get("RKHS_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    found = []
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(3):
            page = browser.new_context(viewport={"width": 1300, "height": 900}, offline=True).new_page()
            began = time.perf_counter()
            page.goto(f"file://{board}")
            page.wait_for_selector(".dt-container #ranked tbody tr")
            shown = time.perf_counter() - began
            page.get_by_label("Search:").fill("model_0007")
            page.wait_for_function("document.querySelectorAll('#ranked tbody tr').length === 1")
            found.append((shown, time.perf_counter() - began - shown))
        browser.close()
    return {
        "opens_seconds": round(sorted(one[0] for one in found)[1], 2),
        "search_seconds": round(sorted(one[1] for one in found)[1], 2),
    }


def measured(out: Path, models: int, images: int) -> dict[str, Any]:
    began = time.perf_counter()
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        list(pool.map(write_table, [str(out)] * models, range(models), [images] * models, [0] * models, chunksize=4))
    print(f"tables written in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    size = sum(path.stat().st_size for path in (out / "verdicts").rglob("*.parquet"))
    found: dict[str, Any] = {"models": models, "images": images, "tables_gb": round(size / 1e9, 2)}
    for name, change in {"first": None, "nothing_changed": None, "one_changed": models // 2}.items():
        if change is not None:
            write_table(str(out), change, images, 1)
        found[name] = built(out)
        print(name, found[name], file=sys.stderr, flush=True)
    boards = list((out / "site" / "boards").glob("*.html"))
    found["largest_board_mb"] = round(max(path.stat().st_size for path in boards) / 1e6, 2)
    found["site_mb"] = round(sum(path.stat().st_size for path in (out / "site").rglob("*") if path.is_file()) / 1e6)
    return found | opened(out / "site")


def main() -> None:
    given = arguments((__doc__ or "").splitlines()[0])
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), *SIZES[given.quick])
    finish("site_scale", found, given, SOURCES)


if __name__ == "__main__":
    main()
