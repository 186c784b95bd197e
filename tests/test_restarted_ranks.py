"""A data-parallel training that loses a rank starts again and ends at the bits of one that lost none."""

import json
from datetime import timedelta
from threading import Thread

import torch
from restarted_ranks import train_both
from safetensors.torch import load_file
from torch import distributed as dist

from robustbench_rkhs.runtime.meeting import ANSWER, HELLO, fresh


def test_a_training_that_lost_ranks_ends_at_the_same_bits(tmp_path):
    """Weights and metrics (but their seconds) after three losses; each start is seen to have resumed."""
    train_both(tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for name in ("last.safetensors", "model.safetensors"):
        first, second = load_file(whole / name), load_file(broken / name)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first), name
    records = [[json.loads(line) | {"seconds": 0} for line in (place / "metrics.jsonl").open()] for place in (whole, broken)]
    assert len(records[0]) == 4 and records[0] == records[1]


def test_ranks_meet_apart_from_an_earlier_start():
    """Rank 0 answers the words of the dead first, and still all ranks of a start meet, where no earlier one wrote."""
    store = dist.HashStore()
    assert len({met(store, dead=f"dead {start}") for start in range(3)}) == 3


def met(store: dist.Store, dead: str) -> str:
    """The name of a start of three ranks on a store where a start was lost before its ranks were answered."""
    parts: dict[int, dist.Store] = {}
    ranks = [Thread(target=lambda rank=rank: parts.update({rank: fresh(store, rank, 3)}), daemon=True) for rank in range(3)]
    store.set(f"{HELLO}/1", dead)
    ranks[0].start()
    store.wait([f"{ANSWER}/{dead}"], timedelta(seconds=30))
    for rank in ranks[1:]:
        rank.start()
    for rank in ranks:
        rank.join(30)
    assert parts.keys() == {0, 1, 2}
    assert not any(part.check(["address"]) for part in parts.values())
    parts[1].set("address", dead)
    assert all(part.get("address").decode() == dead for part in parts.values())
    return store.get(f"{ANSWER}/{dead}").decode()
