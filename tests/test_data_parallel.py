"""Two processes that share each batch train the model that one process trains."""

import json
import signal

import pytest
import torch
from data_parallel_worker import train_each
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


@pytest.fixture
def handlers():
    """What an agent of torchrun does with signals ends with the test."""
    taken = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(one) for one in taken]
    yield
    for one, handler in zip(taken, before, strict=True):
        signal.signal(one, handler)


def rank(folder):
    torch.set_num_threads(1)
    train_each(folder)


def test_two_processes_train_what_one_does(tmp_path, handlers):
    """Losses of every step to 1e-6, weights to 1e-4, one checkpoint; also after a resume.

    By torchrun's own agent, whose ranks are forks here: new processes would import torch again.
    """
    there = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test", "start_method": "fork"}
    torchrun = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=0, monitor_interval=0.1, **there)
    elastic_launch(torchrun, rank)(tmp_path / "two")
    train_each(tmp_path / "one")
    for folder in sorted(path.name for path in (tmp_path / "one").iterdir()):
        ours, theirs = (tmp_path / which / folder for which in ("one", "two"))
        losses = [[json.loads(line)["loss"] for line in (place / "metrics.jsonl").open()] for place in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6), folder
        first, second = (load_file(place / "last.safetensors") for place in (ours, theirs))
        assert all((first[name] - second[name]).abs().max() < 1e-4 for name in first), folder
        assert (theirs / "config.json").is_file()
