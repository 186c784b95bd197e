"""Search for slopes, multipliers and quadratic terms that bound rows best, by gradient steps."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from robustbench_rkhs.relaxations.ascent import LOOK, Adam, Search
from robustbench_rkhs.relaxations.couplings import WAYS, Chain, Coupling, Couplings, Curved, bends, furthest, sides
from robustbench_rkhs.relaxations.lagrangian import Tilt
from robustbench_rkhs.relaxations.linear_bounds import chain_back
from robustbench_rkhs.relaxations.rows import Rows, Tilts, bending
from robustbench_rkhs.runtime.allowance import Steps
from robustbench_rkhs.runtime.clock import OutOfTime, ask

ROUNDS, THOROUGH = 2, 20
"""Steps of the adversary between two gradient steps, and where values are compared."""
BEGIN = 0.5
"""Share of each ball's multiplier that a search begins with as curvature."""


class Choice(NamedTuple):
    """What a bound is free to choose."""

    tilts: Tilts
    couplings: Couplings

    def of(self, which: Int[Tensor, " some"]) -> "Choice":
        tilts = {path: Tilt(one.slope[which], one.multiplier[which]) for path, one in self.tilts.items()}
        return Choice(tilts, {path: Coupling(one.push[which], one.scale[which]) for path, one in self.couplings.items()})

    def double(self) -> "Choice":
        tilts = {path: Tilt(one.slope.double(), one.multiplier.double()) for path, one in self.tilts.items()}
        return Choice(tilts, {path: Coupling(one.push.double(), one.scale.double()) for path, one in self.couplings.items()})

    def replaced(self, which: Int[Tensor, " some"], by: "Choice") -> "Choice":
        """A copy with other rows in these places."""
        every = torch.arange(len(next(iter(self.tilts.values())).multiplier))
        found = self.of(every)
        _copy(found, by, which, torch.arange(len(which)))
        return found


def begun(tilts: Tilts, chain: Chain) -> Choice:
    """From slopes and multipliers without quadratic terms: half of each multiplier becomes curvature."""
    halved, couplings = {}, {}
    for link in chain.links:
        tilt = tilts[link.path]
        size = tilt.multiplier.float()
        push = (BEGIN * size).clamp_min(1e-12).expand(-1, len(link.matrix)).clone()
        halved[link.path] = Tilt(tilt.slope.float(), (1 - BEGIN) * size)
        couplings[link.path] = Coupling(push, torch.ones_like(push))
    return Choice(halved, couplings)


class _Work(NamedTuple):
    """What the search keeps besides its leaves: rows of float32, and the adversary's points."""

    rows: Rows
    matrices: list[Tensor]
    ways: list[Tensor]
    """For each link: vectors (batch, inputs, WAYS) near the largest eigenvectors."""
    point: Tensor
    """In the ball, near the worst."""
    fixed: Curved | None
    """Curvatures that are not searched for."""

    def of(self, which: Tensor) -> "_Work":
        fixed = None if self.fixed is None else self.fixed.of(which)
        return _Work(self.rows.of(which), self.matrices, [one[which] for one in self.ways], self.point[which], fixed)


def coupled(
    rows: Rows, choice: Choice, target: Float64[Tensor, " batch"], search: Search, chain: Chain, fixed: Curved | None = None
) -> Choice:
    """The best choice found for each row, in float32; rows above `target` are left alone. Stops early when the time runs out.

    `fixed`: with these curvatures, which saves the norms."""
    return searched(rows, choice, target, search, chain, fixed)[0]


def searched(
    rows: Rows, choice: Choice, target: Float64[Tensor, " batch"], search: Search, chain: Chain, fixed: Curved | None = None
) -> tuple[Choice, Tensor]:
    """The best choice, and about what it is worth.

    Norms and the worst point are only approached (power steps from those of the step before), so values here are too high by
    a little; the proof computes them anew.
    """
    paths = [link.path for link in chain.links]
    generator = torch.Generator().manual_seed(0)
    matrices = [link.matrix.float() for link in chain.links]
    ways = [torch.randn(len(target), one.shape[1], WAYS, generator=generator).to(one) for one in matrices] if fixed is None else []
    point = matrices[0].new_zeros(len(target), matrices[0].shape[1])
    work = _Work(rows.to(torch.float32), matrices, ways, point, None if fixed is None else fixed.single())
    tilts, couplings = choice
    active = torch.arange(len(target), device=target.device)
    best = choice.of(active)
    logs = [tilts[path].multiplier for path in paths]
    if fixed is None:
        logs += [couplings[path].push for path in paths] + [couplings[path].scale for path in paths[:-1]]
    state = Adam([tilts[path].slope for path in paths], logs)
    goal = target.float()
    found = torch.full_like(goal, -math.inf)
    looks, between = Steps(), Steps()  # a look takes ten times as many rounds
    try:
        for count in range(search.steps + 1):
            ask()
            leaves, look = state.leaves(), count % LOOK == 0 or count == search.steps
            with (looks if look else between).step(len(active)), torch.enable_grad():
                now = _choice(leaves, paths)
                value, work = _value(work, now, chain, THOROUGH if look else ROUNDS)
                total = value.sum()
            if look:
                better = (value.detach() > found[active]).nonzero().flatten()
                found[active[better]] = value.detach()[better]
                _copy(best, now, active[better], better)
                going = (found[active] <= goal[active]).nonzero().flatten()
                if count == search.steps or not len(going):
                    break
            gradients = torch.autograd.grad(total, leaves, allow_unused=True)
            state.move(gradients, search.rate * 0.02 ** (count / search.steps), count + 1)
            if look and len(going) < len(active):
                active, work = active[going], work.of(going)
                state.keep(going)
    except OutOfTime:
        pass
    return best, found


def _choice(leaves: list[Tensor], paths: list[str]) -> Choice:
    count = len(paths)
    slopes, multipliers, pushes, scales = (leaves[k * count : (k + 1) * count] for k in range(4))
    tilts = {path: Tilt(slopes[k], multipliers[k].exp()) for k, path in enumerate(paths)}
    couplings: Couplings = {}
    if not pushes:
        return Choice(tilts, couplings)
    for k, path in enumerate(paths):
        push = pushes[k].exp()
        couplings[path] = Coupling(push, scales[k].exp() if k < count - 1 else torch.ones_like(push))
    return Choice(tilts, couplings)


def _copy(best: Choice, now: Choice, to: Tensor, which: Tensor) -> None:
    for path, tilt in now.tilts.items():
        best.tilts[path].slope[to] = tilt.slope.detach()[which]
        best.tilts[path].multiplier[to] = tilt.multiplier.detach()[which]
    for path, coupling in now.couplings.items():
        best.couplings[path].push[to] = coupling.push.detach()[which]
        best.couplings[path].scale[to] = coupling.scale.detach()[which]


def _value(work: _Work, now: Choice, chain: Chain, rounds: int) -> tuple[Tensor, _Work]:
    """Values of the rows, differentiable, with the adversary's points held fixed after `rounds` steps."""
    if work.fixed is None:
        bowls, ways, square = _curved(work, now.couplings, chain, rounds)
    else:
        bowls, ways, square = work.fixed.bowls, [], work.fixed.least
    lines = work.rows.lines._replace(errors=None)
    moved = chain_back(bending(work.rows.steps, bends(work.rows, now.tilts, bowls, False)), lines)
    region, matrix = work.rows.steps[0].before, work.matrices[0]
    slopes, curvature, center = moved.slopes.flatten(2)[:, 0], bowls[chain.links[0].path][1], region.center.flatten(1)
    low, high = sides(region)
    eps = region.radius.flatten(1)[:, 0]
    d, mu = furthest(slopes, matrix, curvature, low, high, eps, square.detach(), work.point, rounds)
    spare = torch.where(mu > square, mu, square) / 2 * (eps.square() - d.square().sum(1)).clamp_min(0)
    value = (slopes * (center + d)).sum(1) + moved.offsets[:, 0] - (curvature * (d @ matrix.T).square()).sum(1) / 2 - spare
    return value, work._replace(ways=ways, point=d)


def _curved(
    work: _Work, couplings: Couplings, chain: Chain, rounds: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Tensor], Tensor]:
    """As `curvatures`, with norms that are approached from below, and better vectors for them."""
    bowls, ways = {}, list(work.ways)
    after = torch.zeros_like(couplings[chain.links[-1].path].push)
    square = after[:, 0]
    for number in range(len(chain.links) - 1, -1, -1):
        path, matrix = chain.links[number].path, work.matrices[number]
        before = after + couplings[path].push
        bowls[path] = after, before
        scale = couplings[chain.links[number - 1].path].scale if number else torch.ones_like(ways[0][:, :, 0])
        ways[number] = _powers(matrix, before, scale, ways[number], rounds)
        square = (before * ((ways[number][:, :, -1] / scale) @ matrix.T).square()).sum(1)
        after = square[:, None] * scale.square()
    return bowls, ways, square


def _powers(matrix: Tensor, before: Tensor, scale: Tensor, ways: Tensor, rounds: int) -> Tensor:
    """Orthonormal vectors nearer to the largest eigenvectors of P^-1 W' L W P^-1, the largest last.

    Where float32 overflows, they are of no use, and nor is the row's value: LAPACK refuses such numbers, so they are zeros here.
    """
    with torch.no_grad():
        scaled, weights = 1 / scale[:, :, None], before[:, :, None]
        for _ in range(rounds):
            ask()
            moved = scaled * (matrix.T @ (weights * (matrix @ (scaled * ways))))
            ways = torch.linalg.qr(moved.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))[0]
        image = weights.sqrt() * (matrix @ (scaled * ways))
        turned = torch.linalg.eigh((image.mT @ image).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))[1]
        found: Tensor = ways @ turned
    return found
