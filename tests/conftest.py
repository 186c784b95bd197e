"""Shared by all tests: one thread, shapes and types checked at run time, repeatable examples, real data where there is any."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typechecker
from hypothesis import settings

AS_TOLD = sys.dont_write_bytecode
sys.dont_write_bytecode = False  # the package with its checks, and pytest's assertions, are compiled once, not in every process
gc.disable()
typechecker.install("robustbench_rkhs")

import torch  # noqa: E402
from browsing import CHROMIUM  # noqa: E402
from method_table import store  # noqa: E402
from oracles import Trained, trained_digits  # noqa: E402

from robustbench_rkhs import certificates  # noqa: E402
from robustbench_rkhs.site import build_site  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """What was imported is never garbage: to look through it again and again takes 7% of the suite's time.

    From here on, files that tests write under one name one after the other leave no bytecode that could be taken for another's.
    """
    sys.dont_write_bytecode = AS_TOLD
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def brief_portfolio() -> Iterator[None]:
    """The default certificates with a short search of sdp_crown, in this process: its own tests run the whole of it."""
    brief = {"name": "sdp_crown", "search": False, "steps": 3, "intervals": 0, "couplings": 0, "domains": 0}
    with pytest.MonkeyPatch.context() as patched:
        usual = tuple(brief if one["name"] == "sdp_crown" else one for one in certificates.PORTFOLIO)
        patched.setattr(certificates, "PORTFOLIO", usual)
        yield


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """No wait until files are on the disk, in this process: what a killed process wrote stays, only a power cut needs it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with the tables of three models and their site, and what `build_site` said of it; never to be changed in place."""
    from test_report import trio
    from test_site import keep

    folder = tmp_path_factory.mktemp("three")
    for place, one in enumerate(trio()):
        digits = f"{place + 1}" * 64
        keep(folder, replace(one, about=one.about.but(key=digits, job=digits[:12])))
    return folder, build_site(folder, folder / "site")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright. No wider scope: its event loop would be that of the tests behind it, too."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def data_root() -> Callable[[str], Path]:
    """`data_root("cifar-10-batches-py")`: the data root, or a skipped test that says what it lacks."""

    def root(needed: str) -> Path:
        place = Path(os.environ.get("RKHS_DATA") or "data")
        if not (place / needed).exists():
            pytest.skip(f"data root {str(place)!r} has no {needed} (set RKHS_DATA)")
        return place

    return root


@pytest.fixture(scope="session")
def digits() -> Trained:
    """A small network trained on digits, and 60 test images that it gets right; never to be changed in place."""
    return trained_digits()


@pytest.fixture(scope="session")
def data_of_every_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a few random images of every data set."""
    folder = tmp_path_factory.mktemp("root")
    store(folder)
    return folder
