"""Our own AutoAttack: an ensemble in one engine, each attack on the images that the earlier ones did not break."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from jaxtyping import Float, Float64, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from robustbench_rkhs.attacks.adaptive_budget import TARGETS, Asks, Spending, frugal
from robustbench_rkhs.attacks.apgd import APGD
from robustbench_rkhs.attacks.base import Attacked
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.fab import FAB
from robustbench_rkhs.attacks.square.attack import Square
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.heartbeat import portion, staged

AnyPart = Annotated[APGD | FAB | Square, Field(discriminator="name")]
"""The attacks that an ensemble may contain."""
BATTERIES: dict[str, tuple[AnyPart, ...]] = {
    "standard": (APGD(loss="cross_entropy"), APGD(loss="targeted"), FAB(targets=9, parallel=9), Square()),
    "plus": (
        APGD(loss="cross_entropy", restarts=5),
        APGD(loss="dlr", restarts=5),
        FAB(targets=0, restarts=5),
        Square(),
        APGD(loss="targeted"),
        FAB(targets=9, parallel=9),
    ),
    "rand": (APGD(loss="cross_entropy"), APGD(loss="dlr")),
}
"""The parts of each version, in order. Targets run side by side where few images are left: fewer and larger batches."""
ASKS: dict[str, Asks] = {"apgd": "gradients", "fab": "boundary", "square": "queries"}
PASSES_OF_RAND = 20


class Ensemble(EngineAttack):
    r"""An ensemble at one budget per image: APGD on cross-entropy, targeted APGD, targeted FAB and Square, in one engine.

    .. math:: \exists x' \in B_\varepsilon(x) \cap [0,1]^d : \arg\max_k f_k(x') \ne y \; ?

    standard: as above, 9 targets (or all there are), 5000 queries. plus: also untargeted APGD on DLR and untargeted FAB, 5 restarts
    of the untargeted ones. rand: APGD on both losses, every output the mean of 20 passes, for randomized models. custom:
    `attacks`. An image leaves as soon as any iterate of any part breaks it; the logits of the clean images are computed
    once; no weight gradients; works from two classes and for inputs of any rank. Random numbers are seeded by (seed, key), so with
    `effort: full` the verdict on an image does not depend on the other images.

    effort adaptive: on every image APGD, if targeted towards the four nearest classes by linearised distance. The other targets
    and parts, nine tenths of the cost, run only on a pilot: the 8 % of the open images (at least 10) with the lowest margins so
    far, and 8 % (at least 10) drawn at random; Square on half of these (at least 10 of each). A part that breaks only the closest
    images goes on, closest first, until it breaks none; a part that breaks no pilot image skips the rest: with n drawn images, it
    would have broken at most a share 1 - 0.05^(1/n) of these, at 95 % confidence. Every image gets the whole ensemble where a
    part broke a drawn image, Square reached a lower margin than the gradients on any pilot image, more than a tenth of the
    gradients are zero or do not predict the margin, or outputs differ from one query to the next.
    So a verdict depends on the images of a block, and can only err towards calling an image robust.
    Cost per robust image: about 7,000 forward and 1,910 backward passes at ten classes (standard), a quarter of it (adaptive).
    Raises UserError for a missing or negative eps, and in box `unit` for images outside [0, 1].
    Source: Croce & Hein, ICML 2020 (the battery); Clopper & Pearson, Biometrika 1934 (the bound).
    """

    name: Literal["ensemble"] = "ensemble"
    version: Literal["standard", "plus", "rand", "custom"] = "standard"
    """Which ensemble."""
    attacks: tuple[AnyPart, ...] = ()
    """The attacks of `custom`. Norm, box, seed, batch_size, expectation and straight_through come from the ensemble."""
    effort: Literal["full", "adaptive"] = "full"
    """`full`: every attack on every open image. `adaptive`: the whole ensemble only where a pilot suggests that it pays off."""

    @model_validator(mode="after")
    def _battery(self) -> "Ensemble":
        if (self.version == "custom") != bool(self.attacks):
            found = [part.name for part in self.attacks]
            raise ValueError(f"attacks go with version custom, found version {self.version!r} and attacks {found}")
        return self

    @property
    def parts(self) -> tuple[AnyPart, ...]:
        """The attacks that run, in order."""
        return BATTERIES.get(self.version, self.attacks)

    @property
    def scale_invariant(self) -> bool:
        return all(part.scale_invariant for part in self.parts)

    @property
    def label(self) -> str:
        version = "+".join(part.label for part in self.attacks) if self.version == "custom" else self.version
        tail = [part for part in (version, self.effort) if part not in ("standard", "full")]
        return ":".join([self.name, *tail])

    @contextmanager
    def engaged(
        self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, eps: Float64[Tensor, " batch"] | None = None
    ) -> Iterator[Engine]:
        passes = PASSES_OF_RAND if self.version == "rand" and self.expectation == 1 else self.expectation
        with EngineAttack.engaged(self.model_copy(update={"expectation": passes}), model, x, y, keys, eps) as engine:
            yield engine

    def search(self, engine: Engine) -> None:
        self._search(engine)

    def _search(self, engine: Engine) -> Spending:
        shared = {"norm": self.norm, "box": self.box, "seed": self.seed, "batch_size": self.batch_size}
        parts, classes = [part.model_copy(update=shared) for part in self.parts], engine.clean.shape[1]
        if self.effort == "adaptive":
            stages = [stage for part in parts for stage in _stages(part)]
            works = [_work(part, classes) for part, _ in stages]
            return frugal(engine, [part for part, _ in stages], [asks for _, asks in stages], works)
        for part in staged(parts, weights=[_work(part, classes) for part in parts], detail=lambda part: part.label):
            if len(engine.open()):
                part.search(engine)
        return Spending()

    def explained(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        eps: Float64[Tensor, " batch"] | None = None,
    ) -> tuple[Attacked, Spending]:
        """Like a call, and also returns what `effort: adaptive` spent and why (nothing for full effort).

        Raises OutOfTime if the clock runs out before the clean images were classified.
        """
        with self.engaged(model, x, y, keys, eps) as engine:
            spending = Spending()
            try:
                with portion(0.75 if engine.near else 1.0):  # of a search by a copy, some images are searched again
                    spending = self._search(engine)
                if engine.searches_again():
                    self._search(engine)
            except OutOfTime:
                engine.finished = False
            return engine.attacked(), spending


def _work(part: AnyPart, classes: int) -> float:
    """Passes of one image that stays open, about: a backward pass counts as two."""
    if isinstance(part, Square):
        return float(part.restarts * part.queries)
    towards = part.targets if isinstance(part, FAB) or part.loss == "targeted" else 1
    skipped = part.skipped if isinstance(part, APGD) else 0
    return 3.0 * part.restarts * part.steps * max(min(towards, classes - 1) - skipped, 1)


def _stages(part: AnyPart) -> list[tuple[AnyPart, Asks]]:
    """A part and what it uses; a targeted APGD in two: towards the nearest classes, and towards the others."""
    if isinstance(part, APGD) and part.loss == "targeted" and part.targets > TARGETS and not part.skipped:
        few, others = part.model_copy(update={"targets": TARGETS}), part.model_copy(update={"skipped": TARGETS})
        return [(few, "gradients"), (others, "further")]
    return [(part, ASKS[part.name])]
