"""The state of a training: its step, its epoch's end, and what is saved."""

import copy
import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.attacks.pgd import PGD
from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.code_names import code_in
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import find_checkpoint
from robustbench_rkhs.runtime.counter_rng import mix, noisy
from robustbench_rkhs.runtime.distributed import average, rank, world
from robustbench_rkhs.runtime.events import PhaseStarted, TrainingStep, emit
from robustbench_rkhs.runtime.seals import write_archive
from robustbench_rkhs.runtime.threads import Threads
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.device_step import DeviceStep
from robustbench_rkhs.training.finite import FiniteWatch
from robustbench_rkhs.training.penalties.base import PenaltyNode
from robustbench_rkhs.training.progress import Pace
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.validation import score, validate

NOISE = 7
"""Counter that separates the training noise from the random numbers of attacks."""


class Run:
    """The state of a training: weights, optimiser, running mean, best epoch so far, position."""

    def __init__(self, recipe: TrainRecipe, test: Split, device: str) -> None:
        self.recipe, self.device, self._steps = recipe, device, 1
        self.started_from: dict[str, str] = {}
        self.model: nn.Module = checkpoint.build(recipe, test.shape, test.classes).to(device)
        if recipe.start_from:
            first = checkpoint.load(find_checkpoint(recipe.start_from), code_in(recipe.model_dump(mode="json")))
            checkpoint.fill(self.model, first.model.state_dict(), f"start_from {recipe.start_from!r}")
            self.started_from = {"checkpoint": recipe.start_from, "weights": first.weights}
        parts = world() * recipe.accumulate
        if parts > 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.model.modules()):
            line = "a network with BatchNorm trains in one process without accumulate: each part of the batch would be normalised"
            raise UserError(f"{line} by itself; GroupNorm has no such dependence")
        if parts > recipe.batch_size:
            line = f"expected a batch_size of at least the {parts} parts ({world()} processes, accumulate {recipe.accumulate})"
            raise UserError(f"{line}, found {recipe.batch_size}")
        if recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model) if recipe.ema else None
        if world() > 1 and (recipe.on_device or recipe.seconds):
            raise UserError("a training that is on_device or has a time limit runs in one process")
        asked = {"fused": True} if recipe.on_device else {}  # a user's optimiser need not take it
        self.optimizer = recipe.optimizer.build(self.model.parameters(), **asked)
        self.watch = FiniteWatch(self.model, device)
        self.penalties: list[PenaltyNode] = list(recipe.penalties)
        self.factors = [1.0] * len(recipe.penalties)
        self.projections = [projection.in_schedule(recipe.epochs) for projection in recipe.projections]
        self.epoch, self.position, self.seconds, self.taken = 0, 0, 0.0, 0
        self.pace, self.marked = Pace(), 0
        self.clock: tuple[float, float] | None = None
        """With a time limit: when the first step began, less the time of earlier calls; and when the training ends."""
        self.losses: Tensor = torch.zeros((), dtype=torch.float64, device=device)
        self.records: list[dict[str, Any]] = []
        self.threads: Threads | None = None
        """How many threads compute, once that is chosen."""
        self.best: dict[str, Tensor] = {}
        self.best_score, self.best_epoch = (-math.inf, -math.inf), -1

    def prepare(self, train_split: Split) -> None:
        """Prepare the penalties that need the training images."""
        seed = self.recipe.seed
        self.penalties = [penalty.prepare(self.model, train_split, seed) for penalty in self.recipe.penalties]

    def start_clock(self, entered: float) -> None:
        """The time limit counts from the call of the training, less the time used by earlier calls."""
        if self.recipe.seconds is not None:
            spent = sum(record["seconds"] for record in self.records) + self.seconds
            self.clock = time.monotonic() - spent, entered + self.recipe.seconds - spent

    def out_of_time(self) -> bool:
        return self.clock is not None and time.monotonic() >= self.clock[1]

    def steps(self, split: Split) -> int:
        """Steps per epoch; a last batch below half size is dropped, unless it is the only one (`on_device`: any smaller batch)."""
        count = len(split) / self.recipe.batch_size
        return max(1, int(count) if self.recipe.on_device else round(count))

    def stepped(self, split: Split, stepper: DeviceStep | None) -> Iterator[int]:
        """Run the epoch's steps from the current position on, yielding the number of each."""
        if stepper is None:
            for step, x, y, keys in self.batches(split):
                self.step(step, x, y, keys)
                yield step
            return
        self._steps = self.steps(split)
        stepper.begin()
        for step in range(self.position, self._steps):
            stepper(step)
            self.position, self.taken = step + 1, self.taken + 1
            yield step

    def batches(self, split: Split) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """The epoch's batches from the current position on: step, images, labels, keys of random numbers.

        Several processes take equal parts of each batch (a remainder of less than one image per process is dropped).
        """
        data, seed = self.recipe.data, self.recipe.seed
        self._steps = self.steps(split)
        order = torch.randperm(len(split), generator=_generator(seed, self.epoch, 1))
        for step in range(self.position, self.steps(split)):
            batch = order[step * self.recipe.batch_size : (step + 1) * self.recipe.batch_size]
            chosen = batch.to(self.device)
            x = split.x[chosen]
            if data.augments:
                x = data.augmented(x, _generator(seed, self.epoch, 2, step))
            if self.recipe.channels_last and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            mine = slice(rank() * (len(x) // world()), (rank() + 1) * (len(x) // world()))
            yield step, x[mine], split.y[chosen][mine], batch[mine] + (self.epoch << 32)

    def step(self, step: int, x: Tensor, y: Tensor, keys: Tensor) -> None:
        """The training step, whole."""
        recipe, model = self.recipe, self.model
        progress = self.progress(step)
        torch.manual_seed(mix(recipe.seed, self.epoch, step, *([rank()] if rank() else [])))  # dropout
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * recipe.schedule(progress, self.epoch)
        model.train()
        self.optimizer.zero_grad()
        loss = torch.zeros((), device=x.device)
        for part in range(recipe.accumulate):
            mine = slice(part * len(x) // recipe.accumulate, (part + 1) * len(x) // recipe.accumulate)
            share = self.loss(progress, x[mine], y[mine], keys[mine]) * (len(x[mine]) / len(x))
            share.backward()
            loss = loss + share.detach()
        average([loss, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
        self.within_reason(step, loss)
        self.optimizer.step()
        for projection in self.projections:
            projection(model, progress * recipe.epochs)
        if self.average is not None and recipe.ema is not None:
            update_average(self.average, model, self.decay(step))
        self.losses += loss
        self.position, self.taken = step + 1, self.taken + 1

    def loss(self, progress: float, x: Tensor, y: Tensor, keys: Tensor) -> Tensor:
        """The loss of some images, attacked, with the penalties."""
        recipe, model = self.recipe, self.model
        with self.arithmetic():
            attack = self.attack_at(progress)
            x_train = noisy(x, recipe.noise, keys, recipe.seed, NOISE)
            x_train = attack.perturbed(model, x_train, y, keys) if attack else x_train
            loss = recipe.loss.at(progress)(model, x_train, y, keys)
            for penalty, factor in zip(self.penalties, self.factors, strict=True):
                loss = loss + factor * penalty.at(progress)(model, x, y, keys)
        return loss

    def progress(self, step: int) -> float:
        """Share of the training that is done: of its epochs, or of its time if that is more."""
        share = (self.epoch + step / self._steps) / self.recipe.epochs
        if self.clock is None:
            return share
        first, end = self.clock
        return min(1.0, max(share, (time.monotonic() - first) / max(end - first, 1e-9)))

    def decay(self, step: int) -> float:
        """The decay of the running mean, smaller in the first steps."""
        assert self.recipe.ema is not None
        return min(self.recipe.ema, (1 + step) / (10 + step)) if self.epoch == 0 else self.recipe.ema

    def attack_at(self, progress: float) -> PGD | None:
        """The attack at the current eps."""
        attack, warmup = self.recipe.attack, self.recipe.attack_warmup
        if attack is None or progress >= warmup:
            return attack
        share = progress / warmup
        step_size = attack.step_size and attack.step_size * share
        return attack.model_copy(update={"eps": attack.budget() * share, "step_size": step_size}) if share else None

    @torch.no_grad()
    def within_reason(self, step: int, loss: Tensor) -> None:
        """Clip the gradients if the recipe says so, and check that they are finite: at once on a CPU, else from time to time."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.requires_grad]
        length = self.watch.look(step, gradients, loss)
        if self.watch.every == 1:
            self.watch.ask(self.epoch)
        if self.recipe.clip is not None:
            given = [gradient for gradient in gradients if gradient is not None]
            torch._foreach_mul_(given, (self.recipe.clip / (length + 1e-12)).clamp_max(1))

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Autocast to bfloat16 if the recipe says so."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    def told(self, step: int, steps: int) -> TrainingStep:
        """The event of this step, which ended now."""
        recipe = self.recipe
        self.pace.mark(self.taken - self.marked)
        self.marked = self.taken
        speed = self.pace.per_second()
        every = recipe.validate_every
        validations = recipe.epochs // every - self.epoch // every if recipe.data.validation else 0
        left = self.pace.left((recipe.epochs - self.epoch) * steps - step, validations)
        if left is not None and self.clock is not None:
            left = min(left, max(self.clock[1] - time.monotonic(), 0.0))
        return TrainingStep(
            epoch=self.epoch,
            epochs=recipe.epochs,
            step=step,
            steps=steps,
            loss=self.mean_loss(),
            images_per_second=None if speed is None else speed * recipe.batch_size,
            left=left,
        )

    def mean_loss(self) -> float:
        return self.losses.item() / max(self.position, 1)

    def evaluated(self) -> nn.Module:
        """The network that is validated and saved."""
        return self.average if self.average is not None else self.model

    def under_noise(self, validation: Split) -> Split:
        """The validation images under the training's noise, the same in every epoch."""
        x = noisy(validation.x, self.recipe.noise, validation.index, self.recipe.seed, NOISE, 1)
        return replace(validation, x=x) if self.recipe.noise else validation

    def finish_epoch(self, validation: Split) -> dict[str, Any]:
        """Validate if it is due, keep the best, and go to the next epoch. Returns the epoch's metrics."""
        last = self.epoch + 1 == self.recipe.epochs or self.out_of_time()
        due = len(validation) > 0 and (last or (self.epoch + 1) % self.recipe.validate_every == 0)
        record: dict[str, Any] = {
            "epoch": self.epoch,
            "loss": self.mean_loss(),
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            **{f"tau_{i}": p.tau_at(self.epoch + 1) for i, p in enumerate(self.projections)},
            **(self.validated(self.under_noise(validation)) if due else {}),
            "seconds": round(self.seconds, 3),
            **({"steps": self.taken} if self.clock is not None else {}),
        }
        record |= {f"weight_{one.penalty}": self.factors[one.penalty] for one in self.recipe.adaptive}
        for one in self.recipe.adaptive if due else ():
            self.factors[one.penalty] = one(self.factors[one.penalty], record)
        if not len(validation) or (due and score(record) >= self.best_score):
            self.best_score, self.best_epoch = score(record) if due else self.best_score, self.epoch
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.evaluated().state_dict().items()}
        self.records.append(record)
        self.epoch, self.position, self.seconds = self.epoch + 1, 0, 0.0
        self.losses.zero_()
        return record

    def validated(self, validation: Split) -> dict[str, float]:
        """The validation numbers of the current network."""
        recipe = self.recipe
        emit(PhaseStarted(phase=f"validating after epoch {self.epoch + 1} of {recipe.epochs}"))
        with self.pace.validation():
            return validate(self.evaluated(), validation, recipe.validate_with, certify_eps=recipe.certify_eps)

    def save(self, folder: Path) -> None:
        """Write resume.pt, sealed: only ours is read back, with weights_only."""
        state = {
            "recipe": self.recipe.yaml(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "losses": self.losses,
            "where": [self.epoch, self.position, self.seconds, self.best_epoch, *self.best_score],
            "taken": self.taken,
            "threads": self.threads.plain() if self.threads is not None else {},
            "factors": self.factors,
            "penalties": [penalty.state() for penalty in self.penalties],
            "records": json.dumps(self.records),
        }
        write_archive(folder / "resume.pt", lambda path: torch.save(state, path))

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `save` left off."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.losses = state["best"], state["losses"].to(self.device)
        self.factors = state["factors"]
        for penalty, carried in zip(self.penalties, state["penalties"], strict=True):
            penalty.restore(carried)
        self.threads = Threads(**state["threads"]) if state.get("threads") else None
        self.epoch, self.position, self.seconds, self.best_epoch, *best = state["where"]
        self.best_score, self.taken = (best[0], best[1]), state.get("taken", 0)
        self.marked = self.taken
        self.records = json.loads(state["records"])


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) model; buffers are copied."""
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for kept, buffer in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(buffer)


def _generator(*counters: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(*counters))
