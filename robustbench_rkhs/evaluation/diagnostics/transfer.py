"""Transfer attack: adversarial examples of an undefended twin, tried on the model."""

from typing import Any, Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import distances, per_image
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.library_model import frozen
from robustbench_rkhs.evaluation.diagnostics.walk import restarts

STEPS, TARGETS = 40, 3
"""Steps on the twin's margin, and number of its likeliest classes that are targeted afterwards."""


@torch.no_grad()
def transferred(engine: Engine, twin: nn.Module) -> None:
    """Queries the model with the twin's adversarial images for open images, unchanged and scaled to the full budget.

    An image that barely fools the twin need not fool the model. Cost: at most 325 passes of the twin and 4 of the model, all
    counted.
    """
    at = engine.open()
    if not len(at):
        return
    told = {"norm": engine.norm, "box": engine.box, "seed": engine.seed, "batch_size": engine.batch_size}
    other = Engine(twin, engine.x[at], engine.y[at], engine.keys[at], eps=engine.eps[at], **told)  # type: ignore[arg-type]
    restarts(other, steps=STEPS, count=1, targets=TARGETS)
    engine.forwards[at] += other.forwards
    engine.backwards[at] += other.backwards
    found: Tensor = other.images
    for share in (1.0, 0.999999):
        keep = engine.standing(at)
        at, found = at[keep], found[keep]
        if not len(at):
            return
        x = engine.x[at]
        away = distances(x, found, engine.norm).clamp_min(1e-30)
        stretched = x + (found - x) * per_image((share * engine.eps[at] / away).to(x.dtype), x)
        engine.logits(at, engine.project(at, stretched))
        engine.logits(at, engine.project(at, found))


class Transfer(EngineAttack):
    """Transfer attack: images made on an undefended twin, whose gradients no defence can mask, tried on the model.

    Cost: at most 325 forward and backward passes of the twin and 4 forward passes of the model per image and eps, all counted.
    Source: Athalye, Carlini & Wagner, ICML 2018 (transfer that beats white-box attacks is a sign of masked gradients).
    """

    name: Literal["transfer"] = "transfer"
    key: str
    """The key of the twin's function."""
    answers: str
    """sha256 of its clean logits."""
    _twin: nn.Module = PrivateAttr()

    @classmethod
    def by(cls, twin: nn.Module, key: str, answers: str) -> "Transfer":
        """The attack with this twin, identified by its digests."""
        return cls(key=key, answers=answers).on(twin)

    def on(self, twin: nn.Module) -> "Transfer":
        """The same attack, with the twin."""
        attack = self.model_copy()
        attack._twin = twin
        return attack

    def __getstate__(self) -> dict[Any, Any]:
        """Without the twin: each process has its own."""
        return {**super().__getstate__(), "__pydantic_private__": {}}

    @property
    def twin(self) -> nn.Module:
        """The twin itself."""
        return self._twin

    @property
    def scale_invariant(self) -> bool:
        return True

    def search(self, engine: Engine) -> None:
        with frozen(self._twin):
            transferred(engine, self._twin)
