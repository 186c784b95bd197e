"""Adaptive effort: run the ensemble on a pilot subset, extend only the attacks that break something.

Where gradients look masked, every attack runs on every open image.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from robustbench_rkhs.attacks.ball import per_image, unit
from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.attacks.work_ahead import WorkAhead
from robustbench_rkhs.runtime.counter_rng import mix
from robustbench_rkhs.runtime.heartbeat import portion

NEAR, DRAWN, LEAST = 0.08, 0.08, 10
"""The pilot: the share of open images with the smallest margins, the share drawn from the rest, and the least number of each."""
AGREE = 4.0
"""Gradients count as useful where a small step along one lowers the margin by what it predicts, up to this factor."""
DOUBTFUL = 0.1
"""Share of the open images whose gradients may be useless; above it, no image is skipped any more."""
DEEPER = 0.01
"""Queries count as better than gradients where they leave a share of the clean margin that is smaller by this much."""

TARGETS = 4
"""Targets of a targeted gradient attack that every image gets; the others are for the pilot."""

Asks = Literal["gradients", "further", "boundary", "queries"]
"""What an attack uses: gradients inside the ball, the same towards further classes, points at the decision boundary wherever it
is, or outputs alone."""


class Part(NamedTuple):
    """How many images one attack of the ensemble was run on."""

    label: str
    tried: int
    """Images that it was run on."""
    broke: int
    left_out: int
    """Open images that it was not run on."""
    bound: float
    """At 95 % confidence, it would have broken at most this share of the skipped images: the Clopper-Pearson bound, given that it
    broke none of the drawn ones. 0 where none was skipped."""


class Spending(NamedTuple):
    """How the attacks were spent, and why."""

    parts: tuple[Part, ...] = ()
    signs: tuple[str, ...] = ()
    """Why the whole ensemble ran on every open image; empty where some were skipped."""


@contextmanager
def only(engine: Engine, chosen: Int[Tensor, " some"]) -> Iterator[None]:
    """Inside this context, no other image is open."""
    before = engine.right
    among = torch.zeros_like(before)
    among[chosen] = True
    engine.right = before & among
    try:
        yield
    finally:
        engine.right = before


@contextmanager
def lowest(engine: Engine, kept: Float64[Tensor, " batch"] | None) -> Iterator[None]:
    """Inside this context, `kept` (if given) tracks the lowest share of its clean margin that each image reached in any query."""
    clean = margin(engine.clean, engine.y).double().clamp_min(1e-300)

    def watch(at: Tensor, logits: Tensor) -> None:
        assert kept is not None
        left = (margin(logits, engine.y[at]).double() / clean[at]).nan_to_num(nan=0.0)
        kept.scatter_reduce_(0, at, left, "amin")

    engine.watch = watch if kept is not None else None
    try:
        yield
    finally:
        engine.watch = None


def run(engine: Engine, part: EngineAttack, chosen: Int[Tensor, " some"]) -> Bool[Tensor, " batch"]:
    """Run one attack on these images alone; returns which ones it broke."""
    before = engine.broken
    with only(engine, chosen):
        if len(engine.open()):
            part.search(engine)
    return engine.broken & ~before


@torch.no_grad()
def doubts(engine: Engine, at: Int[Tensor, " some"]) -> tuple[Bool[Tensor, " batch"], list[str]]:
    """Images whose gradient does not predict their margin, and reasons to trust no gradient of this model.

    Takes the margin's gradient at the image, then a step of an eighth of eps along it: the margin must fall by what the gradient
    predicts, up to a factor. Cost: 3 forward passes and a backward pass per image.
    """
    y, x = engine.y, engine.x[at]
    found = engine.slope(at, x, lambda logits, rows: margin(logits, y[at][rows]))
    signs = []
    size = engine.clean[at].amax(1) - engine.clean[at].amin(1) + 1e-30
    slack = 1e-3 * size if engine.near is None else 1e-3 * size + 2 * engine.near.error
    if ((found.logits - engine.clean[at]).abs().amax(1) > slack).double().mean() > 0.01:
        signs.append("outputs differ from one query to the next")
    way = unit(found.gradient) if engine.norm == "l2" else found.gradient.sign()
    step = engine.eps[at].clamp_max(1.0) / 8
    moved = engine.project(at, x - per_image(step.to(x.dtype), x) * way)
    predicted = ((x - moved) * found.gradient).flatten(1).double().sum(1)
    actual = found.value.double() - margin(engine.logits(at, moved), y[at]).double()
    agreement = actual / predicted.clamp_min(1e-300)
    bad = ~((agreement > 1 / AGREE) & (agreement < AGREE))
    for name, those in (("gradients are zero", predicted <= 0), ("the margin does not fall as its gradient predicts", bad)):
        if those.double().mean() > DOUBTFUL:
            signs.append(f"{name} on {int(those.sum())} of {len(at)} images")
    doubtful = torch.zeros_like(engine.right)
    doubtful[at[bad]] = True
    return doubtful, signs


def pilot(
    engine: Engine, at: Int[Tensor, " some"], nearness: Float64[Tensor, " batch"], doubtful: Bool[Tensor, " batch"]
) -> tuple[Int[Tensor, " near"], Int[Tensor, " drawn"], Int[Tensor, " rest"]]:
    """Open images in three groups: the closest to being broken (with the doubtful ones), a random draw of the others, the rest."""
    order = at[(nearness[at] - 1e9 * doubtful[at]).argsort(stable=True)]
    near = max(LEAST, round(NEAR * len(order)), int(doubtful[at].sum()))
    others = order[near:]
    tickets = [mix(engine.seed, int(key), 0x9107) for key in engine.keys[others].tolist()]
    drawn = torch.zeros(len(others), dtype=torch.bool, device=at.device)
    drawn[sorted(range(len(others)), key=tickets.__getitem__)[: max(LEAST, round(DRAWN * len(order)))]] = True
    return order[:near], others[drawn], others[~drawn]


def _halves(
    engine: Engine, near: Int[Tensor, " near"], drawn: Int[Tensor, " drawn"], doubtful: int
) -> tuple[Int[Tensor, " half"], Int[Tensor, " lot"]]:
    """The pilot of queries, the dearest attack: the closest half of the near ones, all the `doubtful` ones, which come first, and a
    random half of the drawn ones."""
    tickets = [mix(engine.seed, int(key), 0x9108) for key in engine.keys[drawn].tolist()]
    lot = sorted(range(len(drawn)), key=tickets.__getitem__)[: max(LEAST, len(drawn) // 2)]
    return near[: max(LEAST, len(near) // 2, doubtful)], drawn[sorted(lot)]


def _expected(ask: Asks, images: int) -> int:
    """On how many of these images an attack is run at least, about."""
    pilot = min(images, max(round((NEAR + DRAWN) * images), 2 * LEAST))
    return {"gradients": images, "queries": min(images, max(pilot // 2, 2 * LEAST))}.get(ask, pilot)


def frugal(engine: Engine, battery: Sequence[EngineAttack], asks: Sequence[Asks], works: Sequence[float] = ()) -> Spending:
    """Gradient attacks towards the first classes run on every image; the others on a pilot, and on the rest where it may pay.

    Where queries reach lower margins than gradients did, anything breaks a drawn image, or there are `doubts`, every attack runs on
    every image. An attack that broke only the closest images goes on, closest first, until it breaks none of the next batch.
    `works`: passes of one image by each attack, for the progress that is told; equal by default.
    """
    at = engine.open()
    if not len(at):
        return Spending()
    ahead = WorkAhead(works or [1.0] * len(battery), [_expected(ask, len(at)) for ask in asks])
    doubtful, signs = doubts(engine, at)
    left, blind = torch.full_like(engine.distance, torch.inf), torch.full_like(engine.distance, torch.inf)
    tried, broke = [0] * len(battery), [0] * len(battery)

    def go(place: int, chosen: Tensor, kept: Tensor | None = None, later: int = 0) -> Tensor:
        standing = chosen[engine.standing(chosen)]
        with lowest(engine, kept), portion(ahead.share(place, len(standing), later), battery[place].label):
            fell = run(engine, battery[place], standing)
        tried[place], broke[place] = tried[place] + len(standing), broke[place] + int(fell.sum())
        return fell

    late = [place for place, ask in enumerate(asks) if ask != "gradients"]
    for place in (place for place in range(len(battery)) if place not in late):
        go(place, engine.open(), left)
    near, drawn, rest = pilot(engine, engine.open(), left, doubtful)
    if signs:
        near, drawn, rest = torch.cat([near, drawn, rest]), rest[:0], rest[:0]
    half = (near, drawn) if signs else _halves(engine, near, drawn, int(doubtful[near].sum()))
    lots = {place: half if asks[place] == "queries" else (near, drawn) for place in late}
    for place in late:
        ahead.set(place, len(near) + len(drawn) if signs else sum(map(len, lots[place])))
    going = set()
    for place in late:
        fell = go(place, torch.cat(lots[place]), {"queries": blind, "further": left}.get(asks[place]))
        if fell[near].any():
            going.add(place)
        if fell[drawn].any() and len(rest):
            signs.append(f"{battery[place].label} broke {int(fell[drawn].sum())} of {len(lots[place][1])} drawn images")
    seen = torch.cat([near, drawn])
    deeper = int((blind[seen] < left[seen] - DEEPER).sum())
    if deeper and len(rest):
        signs.append(f"queries reach lower margins than gradients on {deeper} of {int(blind[seen].isfinite().sum())} images")
    spared, everyone = [rest[:0]] * len(battery), torch.cat([near, drawn, rest])
    beyond = {place: everyone[~torch.isin(everyone, torch.cat(lots[place]))] for place in late}
    for place in late:
        ahead.set(place, len(beyond[place]) if signs or place in going else 0)
    for place in late:
        others = beyond[place]
        group, further = (others, others[:0]) if signs else others.tensor_split([max(LEAST, len(near) // 2)])
        while len(group) and (signs or place in going):
            if not go(place, group, later=len(further)).any():
                going.discard(place)
            group, further = further.tensor_split([len(group)])
        spared[place] = torch.cat([group, further])
    counts = [int(engine.standing(those).sum()) for those in spared]
    bounds = [1 - 0.05 ** (1 / max(len(lots[place][1]), 1)) if place in lots else 0.0 for place in range(len(battery))]
    rows = zip(battery, tried, broke, counts, bounds, strict=True)
    return Spending(
        tuple(Part(part.label, a, b, left_out, bound if left_out else 0.0) for part, a, b, left_out, bound in rows), tuple(signs)
    )
