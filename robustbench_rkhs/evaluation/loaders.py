"""Loaders: values that can be sent to a process, which then loads the model and the images of its jobs."""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.evaluation.diagnostics.transfer import Transfer
from robustbench_rkhs.evaluation.runner import Runner
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.identity import key_of
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.caller_context import own_context
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.runtime.precision import full_precision


class Loaded(NamedTuple):
    """A model and its images."""

    model: nn.Module
    split: Split


@runtime_checkable
class Loader(Protocol):
    """Loads a model and its images in any process."""

    def load(self) -> Loaded:
        """The model and all images of its split. Raises UserError."""

    def plain(self) -> dict[str, Any] | None:
        """As a JSON value; None if they exist only in memory."""


@dataclass(frozen=True, eq=False)
class Held:
    """A model and images in memory. Pickling includes their tensors, via the CPU."""

    model: nn.Module
    split: Split

    def load(self) -> Loaded:
        return Loaded(self.model, self.split)

    def plain(self) -> dict[str, Any] | None:
        return None

    def __reduce__(self) -> tuple[Callable[[bytes], "Held"], tuple[bytes]]:
        buffer = io.BytesIO()
        torch.save((copy.deepcopy(self.model).cpu(), self.split.to("cpu")), buffer)
        return _held, (buffer.getvalue(),)


def _held(stored: bytes) -> Held:
    return Held(*torch.load(io.BytesIO(stored), weights_only=False))  # from the process that started this one


@dataclass(frozen=True, eq=False)
class RunnerMaker:
    """Makes a runner in a separate process, on its own device."""

    loader: Loader
    index: tuple[int, ...]
    """The images, of those that the loader loads."""
    name: str
    weights: str
    """Digest of its weights."""
    device: str
    seed: int
    key: str
    """The key that its function must have."""
    images: bool
    transfer: Transfer | None = None
    twin: Held | None = None
    """The undefended network of `transfer`, if any."""

    @classmethod
    def of(cls, runner: Runner, loader: Loader | None, device: str) -> "RunnerMaker":
        """What makes such a runner elsewhere; its model and images go along where no `loader` says where they come from."""
        subject, transfer = runner.subject, runner.transfer
        held = loader or Held(subject.model, subject.split)
        twin = None if transfer is None else Held(transfer.twin, subject.split.take(torch.arange(0)))
        known = (subject.name, subject.weights, device, subject.seed, subject.key, subject.images)
        return cls(held, tuple(subject.split.index.tolist()), *known, transfer, twin)

    def __call__(self) -> Runner:
        """The runner. Raises UserError where the loader does not find the model or the images that are meant."""
        own_context(autocast=True).__enter__()  # for as long as this process lives: what it imports may switch anything
        model, split = self.loader.load()
        if weights_digest(model.state_dict()) != self.weights or (self.key and key_of(model) != self.key):
            raise UserError(f"model {self.name!r} is not the one that is evaluated: it changed meanwhile")
        place = {index: number for number, index in enumerate(split.index.tolist())}
        if missing := [index for index in self.index if index not in place]:
            raise UserError(f"data set {split.data!r} has no image {missing[0]}: it changed meanwhile")
        model = model.eval().to(self.device)
        some = split.take(torch.tensor([place[index] for index in self.index], dtype=torch.int64)).to(self.device)
        full_precision().__enter__()  # as long
        known = (self.name, self.weights, self.device, self.seed, self.key)
        subject = Subject(model, freeze(model), some, *known, images=self.images)
        if self.transfer is None or self.twin is None:
            return Runner(subject)
        return Runner(subject, self.transfer.on(freeze(self.twin.model.eval().to(self.device))))
