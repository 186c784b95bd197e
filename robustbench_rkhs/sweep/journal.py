"""The file with the journal of trials, shared by all workers, and locks that a killed process releases."""

import fcntl
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from robustbench_rkhs.nodes.differences import changes
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime import seals
from robustbench_rkhs.runtime.counter_rng import mix
from robustbench_rkhs.runtime.seals import Damaged
from robustbench_rkhs.sweep.description import Range, Setting
from robustbench_rkhs.sweep.plan import Plan
from robustbench_rkhs.sweep.sealed_log import SealedLog

STUDY = "sweep"
PATIENCE = 60.0
"""Seconds to wait for a lock that is only held for moments."""


class FileLock:
    """An exclusive lock on a file. The kernel releases it when its process ends in any way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: int | None = None

    def take(self) -> bool:
        """Take the lock, or return at once whether another process has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        opened = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(opened)
            return False
        self._held = opened
        return True

    def acquire(self) -> bool:
        """Wait for the lock. Raises UserError after a minute."""
        until = time.monotonic() + PATIENCE
        while not self.take():
            if time.monotonic() > until:
                raise UserError(f"{self.path} has been locked by another process for {PATIENCE:.0f} s")
            time.sleep(0.01)
        return True

    def release(self) -> None:
        """Free it."""
        if self._held is not None:
            os.close(self._held)
            self._held = None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time is inside."""
    lock = FileLock(path)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Journal:
    """The trials of one sweep, in FOLDER/journal.log. Any number of processes may hold one at the same time."""

    def __init__(self, folder: Path, plan: Plan, about: dict[str, Any]) -> None:
        """Begin or continue the sweep. Raises UserError where the folder has another sweep, naming the change."""
        self.folder, self.plan = folder, plan
        optuna.logging.set_verbosity(logging.ERROR)
        with locked(folder / "lock"):
            path = folder / "journal.log"
            with locked(folder / "journal.lock"):
                _drop_torn_line(path)
            pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
            if prune := plan.sweep.prune:
                pruner = optuna.pruners.MedianPruner(n_startup_trials=prune.startup, n_warmup_steps=prune.warmup)
            try:
                self.study = self._open(path, pruner)
            except Damaged as damaged:
                seals.set_aside(path, damaged)  # the runs themselves are read again
                self.study = self._open(path, pruner)
            now = plan.record() | {key: about.pop(key) for key in ("data", "data_digest")}
            before = self.study.user_attrs.get("record")
            if before is None:
                self.study.set_user_attr("about", about)
                self.study.set_user_attr("record", now)
            elif found := changes(before, now):
                more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
                raise UserError(
                    f"{folder} holds another sweep, changed: {found[0]}{more}; choose another --name or remove the folder"
                )
            for point in range(len(self.trials()), plan.trials if plan.sweep.sampler == "grid" else 0):
                self.study.enqueue_trial({key: _text(value) for key, value in plan.grid[point].items()})

    def _open(self, path: Path, pruner: optuna.pruners.BasePruner) -> optuna.Study:
        """The study in a journal, or a new one. Raises Damaged where the journal was altered."""
        log = SealedLog(str(path), lock_obj=FileLock(self.folder / "journal.lock"))  # type: ignore[arg-type]
        named: dict[str, Any] = {"study_name": STUDY, "direction": "maximize", "pruner": pruner, "load_if_exists": True}
        return optuna.create_study(storage=JournalStorage(log), **named)

    def trials(self) -> list[FrozenTrial]:
        """All trials in the journal."""
        return self.study.get_trials(deepcopy=False)

    def claim(self) -> tuple[Trial, FileLock] | None:
        """A trial for this worker, with its lock: one left by a dead worker, else a new one."""
        with locked(self.folder / "lock"):
            for left in self.trials():
                lock = FileLock(self.folder / "claims" / f"{left.number:04d}")
                if left.state == TrialState.RUNNING and lock.take():
                    if self.trials()[left.number].state == TrialState.RUNNING:  # else it was finished a moment ago
                        return self._filled(Trial(self.study, left._trial_id)), lock
                    lock.release()
            if sum(trial.state != TrialState.WAITING for trial in self.trials()) >= self.plan.trials:
                return None
            self.study.sampler = self._sampler(len(self.trials()))
            trial = self._filled(self.study.ask())
            lock = FileLock(self.folder / "claims" / f"{trial.number:04d}")
            lock.acquire()
            return trial, lock

    def _filled(self, trial: Trial) -> Trial:
        """Draws a value for every field (listed values go by their text, as they may be mappings); completes a half-drawn trial."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            for name, one in self.plan.sweep.vary.items():  # fields with a value keep it
                if not isinstance(one, Range):
                    trial.suggest_categorical(name, [_text(value) for value in one])
                elif one.int:
                    trial.suggest_int(name, int(one.low), int(one.high), log=one.log)
                else:
                    trial.suggest_float(name, one.low, one.high, log=one.log)
        return trial

    def _sampler(self, trial: int) -> BaseSampler:
        """Random numbers seeded by the trial, independent of the worker."""
        sweep = self.plan.sweep
        seed = mix(sweep.seed, trial) % 2**32
        if sweep.sampler != "tpe":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(seed=seed, n_startup_trials=sweep.startup, constant_liar=True)


def setting_of(plan: Plan, params: dict[str, Any]) -> Setting:
    """The recipe fields of a trial, in the order of the file."""
    vary = plan.sweep.vary
    return {key: params[key] if isinstance(vary[key], Range) else json.loads(params[key]) for key in vary if key in params}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _drop_torn_line(path: Path) -> None:
    """A line that a killed machine left half-written was never acknowledged."""
    if path.is_file() and (stored := path.read_bytes()) and not stored.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(stored.rfind(b"\n") + 1)
