"""Base class of our own attacks: their common fields, and the call that runs their search in the engine."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.attacks.base import Attack, Attacked, unstarted
from robustbench_rkhs.attacks.bpda import through
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.library_model import frozen
from robustbench_rkhs.attacks.packed_copy import HalfPrecision, search_copy
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.heartbeat import portion


class EngineAttack(Attack):
    """Common fields of the attacks that run in the engine; each implements its queries in `search(engine)`."""

    batch_size: int = Field(256, ge=1)
    """Images per batch: bounds the memory, does not change random numbers."""
    expectation: int = Field(1, ge=1)
    """Forward passes per output and gradient, which are averaged (expectation over transformations), for a randomized model."""
    confirm: int = Field(0, ge=0)
    """How often each adversarial example is queried again, in another batch: it counts only if the model errs every time, else the
    attack goes on. For a randomized model, or one whose outputs depend on the batch. Cost: as many forward passes per example."""
    straight_through: tuple[str, ...] = ()
    """Names of submodules whose backward pass is replaced by the identity (BPDA), for layers without a useful gradient. Their
    output must have the shape of their input."""

    precision: Literal["fastest", "float32"] = "fastest"
    """What the convolutions of a large network multiply in during a search: `fastest` is bfloat16 where the processor has it
    (Intel AMX, AVX-512 BF16) and logits and gradients agree on two images, else float32. What counts as misclassified is always the
    network's own answer; images whose margin falls near zero are searched again by the network itself, with the same steps."""

    def search(self, engine: Engine) -> None:
        """Query the model; the engine keeps the adversarial examples."""
        raise TypeError(f"{type(self).__name__} is not an attack by itself")

    def again(self, number: int) -> "Attack":
        """With other random numbers and twice as many confirmations, so that a false example ends the search on no image."""
        return super().again(number).model_copy(update={"confirm": self.confirm + 2 * number})

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        eps: Float64[Tensor, " batch"] | None = None,
    ) -> Attacked:
        """`eps`: a budget per image, instead of the field. If the time runs out, returns what it has (`finished` is False)."""
        try:
            with self.engaged(model, x, y, keys, eps) as engine:
                try:
                    with portion(0.75 if engine.near else 1.0):  # of a search by a copy, some images are searched again
                        self.search(engine)
                    if engine.searches_again():
                        self.search(engine)
                except OutOfTime:
                    engine.finished = False
                return engine.attacked()
        except OutOfTime:  # before all clean images were classified
            return unstarted(x)

    @contextmanager
    def engaged(
        self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, eps: Float64[Tensor, " batch"] | None = None
    ) -> Iterator[Engine]:
        """The engine for these images; the model is restored afterwards."""
        if self.box == "unit" and len(x) and (x.amin() < 0 or x.amax() > 1):
            raise UserError(f"box 'unit' expects images in [0, 1], found {x.amin():.4g} to {x.amax():.4g}")
        if eps is None:
            value = torch.inf if self.minimal_norm else self.budget()
            eps = torch.full((len(x),), value, dtype=torch.float64, device=x.device)
        plain = self.expectation == 1 and not self.straight_through
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
                packed=search_copy(model, x, self.precision == "fastest") if plain and bool(eps.isfinite().all()) else None,
                through=self.scale_invariant,  # an attack that depends on the scale of the logits gets them as they are
            )


def searched_in(protocol: Iterable[Attack], model: nn.Module, x: Float[Tensor, "batch *image"]) -> str:
    """What these attacks search this model in, in words; empty where that is float32 alone. Cost: two passes of two images."""
    asked = any(isinstance(one, EngineAttack) and one.precision == "fastest" and not one.minimal_norm for one in protocol)
    half = asked and isinstance(search_copy(model, x[:2]), HalfPrecision)
    return ", attacks search in bfloat16" if half else ""
