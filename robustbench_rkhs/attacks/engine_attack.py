"""What our own attacks are made from: the fields they share, and the call that gives their search an engine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float64, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.attacks.base import Attack, Attacked
from robustbench_rkhs.attacks.bpda import through
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.library_model import frozen
from robustbench_rkhs.nodes.node import UserError


class EngineAttack(Attack):
    """Common fields of the attacks that run in the engine: each says in `search(engine)` what it asks the model."""

    batch_size: int = Field(256, ge=1)
    """Images at once: bounds the memory, changes no draw."""
    expectation: int = Field(1, ge=1)
    """Passes that every answer and gradient is the mean of (expectation over transformations), for a model that draws: the cost is
    as many times as high."""
    confirm: int = Field(0, ge=0)
    """How often each fall is asked about again, in another batch: it counts only where the model errs every time, else the attack
    goes on. For a model that draws, or whose answers depend on the batch. Cost: so many forward passes a fall."""
    straight_through: tuple[str, ...] = ()
    """Names of submodules whose backward pass is replaced by the identity (BPDA), for layers without a useful gradient. They must
    keep the shape of what they are given."""

    def search(self, engine: Engine) -> None:
        """Ask the model; the engine keeps what fell."""
        raise TypeError(f"{type(self).__name__} is not an attack by itself")

    def again(self, number: int) -> "Attack":
        """With other draws, and each fall confirmed twice as often as this is the time: a false one closes no image."""
        return super().again(number).model_copy(update={"confirm": self.confirm + 2 * number})

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        eps: Float64[Tensor, " batch"] | None = None,
    ) -> Attacked:
        """`eps`: a budget for each image, in place of the field."""
        with self.engaged(model, x, y, keys, eps) as engine:
            self.search(engine)
            return engine.attacked()

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
