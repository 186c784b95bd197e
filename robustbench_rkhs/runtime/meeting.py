"""A meeting: the processes of one start of a training, told apart from those of an earlier start."""

import os
import time
from datetime import timedelta
from uuid import uuid4

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others."""

HELLO, ANSWER, HERE = "robustbench_rkhs/hello", "robustbench_rkhs/answer", "robustbench_rkhs/here"


def meeting() -> tuple[Store, int, int]:
    """The store of this start's processes alone, this process's rank, and how many they are."""
    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    return fresh(store, rank, world), rank, world


def fresh(store: Store, rank: int, world: int) -> Store:
    """A part of the store that no earlier start has written to, the same for all ranks of this start.

    After the loss of a process torchrun starts all again on the same store, where the addresses of the dead still stand: a
    process that reads one before its new owner has written calls a closed port, or waits for a call that never comes. Its
    count of restarts is no name for a start: on several machines only the one that lost a process counts.

    So rank 0 draws a name, and gives it to each other rank as the answer to a word drawn by that rank; what an earlier start
    left is then never taken for an answer. Rank 0 answers until all have said under the new name that they are here.
    Raises TimeoutError (rank 0) or torch's DistStoreError when the others do not come in time.
    Cost: 3 messages a rank, and a look of rank 0 at the store every 20 ms.
    """
    word = f"{os.getpid()}-{uuid4().hex}"
    if rank:
        store.set(f"{HELLO}/{rank}", word)
        name = store.get(f"{ANSWER}/{word}").decode()
        store.set(f"{HERE}/{name}/{rank}", word)
        return PrefixStore(name, store)
    missing, end = set(range(1, world)), time.monotonic() + PATIENCE.total_seconds()
    answered: set[str] = set()
    while missing:
        for other in sorted(missing):
            said = store.get(f"{HELLO}/{other}").decode() if store.check([f"{HELLO}/{other}"]) else ""
            if said and said not in answered:
                store.set(f"{ANSWER}/{said}", word)
                answered.add(said)
            if store.check([f"{HERE}/{word}/{other}"]):
                missing.remove(other)
        if missing and time.monotonic() > end:
            raise TimeoutError(f"processes {sorted(missing)} of {world} did not come to the training within {PATIENCE}")
        time.sleep(0.02 if missing else 0)
    return PrefixStore(word, store)
