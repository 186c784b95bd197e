"""A training step of fixed shape without waits for the host: optionally compiled, replayed as a CUDA graph on CUDA."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.attacks.unrolled import unrolled
from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.runtime.counter_rng import mix

if TYPE_CHECKING:
    from robustbench_rkhs.training.run import Run

WARM = 3
"""Warm-up steps before a capture, whose changes are undone: libraries choose their kernels in them."""


class DeviceStep:
    """The step of a `Run`: gather, augment, attack, loss and penalties, gradients, update, running mean.

    Everything that changes between steps (images, learning rate, shares and ramps) lies in tensors that are filled before
    each step, so that the recorded kernels can be replayed. `how` tells whether compilation and capture succeeded.
    """

    def __init__(self, run: "Run", split: Split) -> None:
        recipe, device = run.recipe, run.device
        self.run, self.split = run, split
        self.batch = min(recipe.batch_size, len(split))
        self.steps = max(1, len(split) // recipe.batch_size)
        self.images = split.x
        if recipe.channels_last and split.x.dim() == 4:
            self.images = split.x.contiguous(memory_format=torch.channels_last)
        self.chosen = torch.zeros(self.batch, dtype=torch.int64, device=device)
        self.keys = torch.zeros(self.batch, dtype=torch.int64, device=device)
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.numbers: dict[str, Tensor] = {}
        """Scalars of the step, by name."""
        self.lr = torch.tensor(recipe.optimizer.lr, device=device)
        for group in run.optimizer.param_groups:
            group["lr"] = self.lr
            if "capturable" in group and torch.device(device).type == "cuda":
                group["capturable"] = True
        self.trained = _sharing(run.model, frozen=False)
        self.attacked = _sharing(run.model, frozen=True)
        self.how: dict[str, Any] = {"compiled": False, "captured": False}
        self.replay: Callable[[], None] | None = None
        self.order = torch.zeros(0, dtype=torch.int64)
        self._fill(0.0, 0)
        self._prepare()

    def begin(self) -> None:
        """The order of the epoch, moved to the device at once."""
        run = self.run
        generator = torch.Generator().manual_seed(mix(run.recipe.seed, run.epoch, 1))
        self.order = torch.randperm(len(self.split), generator=generator)[: self.steps * self.batch].to(run.device)

    def __call__(self, step: int) -> None:
        """Run one step of the epoch."""
        run = self.run
        self._fill(run.progress(step), step)
        self.chosen.copy_(self.order[step * self.batch : (step + 1) * self.batch])
        torch.add(self.chosen, run.epoch << 32, out=self.keys)
        self.number.fill_(step)
        self._work()
        for projection in run.projections:
            projection(run.model, run.progress(step) * run.recipe.epochs)

    def _work(self) -> None:
        """Replay the captured step, or run it if nothing was captured."""
        if self.replay is None:
            self._tuned()
        else:
            self.replay()

    def _tuned(self) -> None:
        """The step with benchmarked convolution kernels: its shapes never change, so the search pays off."""
        kept, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            self._body()
        finally:
            torch.backends.cudnn.benchmark = kept

    def _fill(self, progress: float, step: int) -> None:
        """The scalars of this step."""
        run, recipe = self.run, self.run.recipe
        self.lr.fill_(recipe.optimizer.lr * recipe.schedule(progress, run.epoch))
        share = 1.0 if progress >= recipe.attack_warmup else progress / recipe.attack_warmup
        self._number("attack", share)
        self._number("mean", 1 - run.decay(step) if recipe.ema else 0.0)
        for place, part in enumerate((recipe.loss, *run.penalties)):
            for name in part.schedule:
                self._number(f"{place}.{name}", getattr(part.at(progress), name))
        for place, factor in enumerate(run.factors):
            self._number(f"factor.{place}", factor)

    def _number(self, name: str, value: float) -> None:
        if name in self.numbers:
            self.numbers[name].fill_(value)
        else:
            self.numbers[name] = torch.tensor(value, device=self.run.device)

    def _now(self, place: int, part: Any) -> Any:
        """A loss or penalty whose scheduled numbers are read from the device."""
        return part.model_copy(update={name: self.numbers[f"{place}.{name}"] for name in part.schedule}) if part.schedule else part

    def _body(self) -> None:
        """The step itself, on the images at `chosen`."""
        run, recipe = self.run, self.run.recipe
        x, y = self.images[self.chosen], self.split.y[self.chosen]
        if recipe.data.augments:
            x = recipe.data.augmented_on_device(x, self.keys, mix(recipe.seed, 2))
        if recipe.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(torch.device(run.device).type, torch.bfloat16, recipe.precision == "bfloat16", cache_enabled=False):
            x_train = x
            if recipe.attack is not None:
                x_train = unrolled(recipe.attack, self.attacked, x, y, self.keys, self.numbers["attack"])
            loss = self._now(0, recipe.loss)(self.trained, x_train, y, self.keys)
            for place, penalty in enumerate(run.penalties):
                value = self._now(place + 1, penalty)(self.trained, x, y, self.keys)
                loss = loss + self.numbers[f"factor.{place}"] * value
        parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        length = run.watch.look(self.number, list(gradients), loss)
        if recipe.clip is not None:
            torch._foreach_mul_([g for g in gradients if g is not None], (recipe.clip / (length + 1e-12)).clamp_max(1))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else _laid_out_as(parameter, gradient)
        run.optimizer.step()
        if run.average is not None:
            with torch.no_grad():
                means: list[Tensor] = list(run.average.parameters())
                values: list[Tensor] = list(run.model.parameters())
                moved = list(torch._foreach_sub(values, means))
                torch._foreach_mul_(moved, self.numbers["mean"])
                torch._foreach_add_(means, moved)
                for kept, buffer in zip(run.average.buffers(), run.model.buffers(), strict=True):
                    kept.copy_(buffer)
        run.losses += loss.detach()

    def _prepare(self) -> None:
        """Compile and capture, each with a fallback; the state of the run is restored."""
        run = self.run
        self.trained.train()
        self.attacked.train()
        if not (run.recipe.compile or torch.device(run.device).type == "cuda"):
            return
        kept = self._state()
        values = {key: tensor.clone() for key, tensor in kept.items()}
        if run.recipe.compile:
            self._attempt("compiled", self._compile)
        if torch.device(run.device).type == "cuda":
            self._attempt("captured", self._capture)
        with torch.no_grad():
            for key, tensor in self._state().items():
                tensor.copy_(values[key]) if key in values else tensor.zero_()

    def _attempt(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
            self.how[name] = True
        except Exception as error:  # compilers and captures raise many kinds of errors; the step runs without them
            self.how[f"not_{name}"] = cause(error)
            if torch.device(self.run.device).type == "cuda":  # a failed capture leaves its stream current
                torch.cuda.set_stream(torch.cuda.default_stream())
            if name == "compiled":
                self.trained, self.attacked = _sharing(self.run.model, frozen=False), _sharing(self.run.model, frozen=True)
                self.trained.train()
                self.attacked.train()

    def _compile(self) -> None:
        self.trained.compile(dynamic=False)
        self.attacked.compile(dynamic=False)
        self._tuned()

    def _capture(self) -> None:
        """Record the step's kernels on a separate stream."""
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                self._tuned()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._tuned()
        torch.cuda.synchronize()
        self.replay = graph.replay

    def _state(self) -> dict[str, Tensor]:
        """Everything that a step changes."""
        run = self.run
        found = {f"model {name}": tensor for name, tensor in run.model.state_dict(keep_vars=False).items()}
        if run.average is not None:
            found |= {f"average {name}": tensor for name, tensor in run.average.state_dict().items()}
        parameters = {id(parameter): str(place) for place, parameter in enumerate(run.model.parameters())}
        for parameter, state in run.optimizer.state.items():
            found |= {f"{parameters[id(parameter)]} {k}": v for k, v in state.items() if isinstance(v, Tensor)}
        return found | {"losses": run.losses, "first": run.watch.first, "norms": run.watch.norms}


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with the strides of its parameter, which fused optimisers on CUDA demand."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _sharing(model: nn.Module, frozen: bool) -> nn.Module:
    """A copy of the model that shares its parameters and buffers; `frozen`: without weight gradients."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False) if frozen else parameter
    return copy.deepcopy(model, memo)
