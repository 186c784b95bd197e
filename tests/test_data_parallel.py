"""Two processes that share each batch train the model that one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_parallel_worker import train_each
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("data_parallel_worker.py")
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_two_processes_train_what_one_does(tmp_path):
    """Losses of every step to 1e-6, weights to 1e-4, one checkpoint; also after a resume."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*LAUNCH, str(SCRIPT), str(tmp_path / "two")], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    train_each(tmp_path / "one")
    for folder in sorted(path.name for path in (tmp_path / "one").iterdir()):
        ours, theirs = (tmp_path / which / folder for which in ("one", "two"))
        losses = [[json.loads(line)["loss"] for line in (place / "metrics.jsonl").open()] for place in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6), folder
        first, second = (load_file(place / "last.safetensors") for place in (ours, theirs))
        assert all((first[name] - second[name]).abs().max() < 1e-4 for name in first), folder
        assert (theirs / "config.json").is_file()
