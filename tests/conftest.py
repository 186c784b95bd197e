"""Shared by all tests: one thread, shapes and types checked at run time, repeatable examples, real data where there is any."""

import os
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings

jaxtyping.install_import_hook("robustbench_rkhs", "typechecker.check")

import torch  # noqa: E402
from method_table import store  # noqa: E402
from oracles import Trained, trained_digits  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


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
