"""Base class of our own attacks: their common fields, and the call that runs their search in the engine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float64, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.attacks.base import Attack, Attacked, unstarted
from robustbench_rkhs.attacks.bpda import through
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.library_model import frozen
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.clock import OutOfTime


class EngineAttack(Attack):
    """Common fields of the attacks that run in the engine: each says in `search(engine)` what it asks the model."""

    batch_size: int = Field(256, ge=1)
    """Images at once: bounds the memory, changes no draw."""
    expectation: int = Field(1, ge=1)
    """Forward passes that every output and gradient is averaged over (expectation over transformations), for a random model."""
    confirm: int = Field(0, ge=0)
    """How often each adversarial example is queried again, in another batch: it counts only where the model always errs, else the
    attack goes on. For a randomized model, or one whose outputs depend on the batch. Cost: as many forward passes per example."""
    straight_through: tuple[str, ...] = ()
    """Names of submodules whose backward pass is replaced by the identity (BPDA), for layers without a useful gradient. They must
    keep the shape of what they are given."""

    def search(self, engine: Engine) -> None:
        """Query the model; the engine keeps the adversarial examples."""
        raise TypeError(f"{type(self).__name__} is not an attack by itself")

    def again(self, number: int) -> "Attack":
        """With other random numbers and twice as many confirmations, so that a false example closes no image."""
        return super().again(number).model_copy(update={"confirm": self.confirm + 2 * number})

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        eps: Float64[Tensor, " batch"] | None = None,
    ) -> Attacked:
        """`eps`: a budget for each image, in place of the field. Out of time, it returns what it has (`finished` is False)."""
        try:
            with self.engaged(model, x, y, keys, eps) as engine:
                try:
                    self.search(engine)
                except OutOfTime:
                    engine.finished = False
                return engine.attacked()
        except OutOfTime:  # before the images themselves were all asked about
            return unstarted(x)

    @contextmanager
    def engaged(
        self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, eps: Float64[Tensor, " batch"] | None = None
    ) -> Iterator[Engine]:
        """The engine for these images; the model is given back as it was."""
        if self.box == "unit" and len(x) and (x.amin() < 0 or x.amax() > 1):
            raise UserError(f"box 'unit' expects images in [0, 1], found {x.amin():.4g} to {x.amax():.4g}")
        if eps is None:
            value = torch.inf if self.minimal_norm else self.budget()
            eps = torch.full((len(x),), value, dtype=torch.float64, device=x.device)
        with frozen(model), through(model, self.straight_through):
            yield Engine(
                model,
                x,
                y,
                keys,
                norm=self.norm,
                box=self.box,
                eps=eps,
                seed=self.seed,
                batch_size=self.batch_size,
                expectation=self.expectation,
                confirm=self.confirm,
            )
