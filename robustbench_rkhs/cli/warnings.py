"""The warnings beside an evaluation's tables: missing, doubtful or unsound results."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from robustbench_rkhs.nodes.radius_text import radius_text


def warnings_of(done: Any) -> list[str]:
    """One line each; with a line that begins with DOUBTFUL or UNSOUND, the tables must not be trusted."""
    from robustbench_rkhs import verdicts

    lines = []
    if not done.about.complete:
        lines.append("incomplete: robust accuracy is withheld where images are untested")
    if done.about.budget and not done.about.complete:
        counts = verdicts.summary(done)
        left = zip(counts["eps"], counts["count_untested"], strict=True)
        untested = ", ".join(f"{count} at {done.about.words(eps)}" for eps, count in left if count)
        lines.append(
            f"budget used up with images untested: {untested or 'none'}; the same command without --budget goes on from here"
        )
    if (sampled := done.about.rechecked).pairs:
        lines.append(f"inferred survivals attacked at their own eps: {sampled.pairs}, of which {sampled.fell} were broken")
    if twin := done.about.twin:
        own = done.table[done.table["method"] == "transfer"]
        fell = own.loc[own["radius"] < float("inf"), "index"].nunique()
        lines.append(f"transfer from the twin {twin[:12]}: tried on {own['index'].nunique()} survivors, {fell} of which broke")
    unconfirmed = done.table[done.table["state_reason"] == "unconfirmed"]
    if len(unconfirmed):
        images = set(unconfirmed["index"])
        states = (verdicts.states(done, eps)["state"] for eps in done.about.epsilons)
        stay = images & {index for state in states for index in state.index[state == "untested"]}
        rest = f"{len(stay)} of which stay untested" if stay else "all decided otherwise"
        lines.append(f"adversarial images not reproduced, even after more runs: for {len(images)} images, {rest}")
    claims = done.table[(done.table["kind"] == "certificate") & (done.table["radius"] > 0)]
    if chance := float(claims["failure_probability"].max() if len(claims) else 0):
        lines.append(f"certified by chance: each claim about an image is wrong with probability at most {chance:g}")
    lines += whole_boxes(done.about.epsilons, done.about.norm, done.about.box, done.about.pixels, done.about.words)
    lines += [f"DOUBTFUL {line}" for line in verdicts.doubts(done)]
    if done.about.breaches:
        lines.append(f"UNSOUND: {len(done.about.breaches)} certified images were broken; nothing of this may be published")
        lines += [str(breach) for breach in done.about.breaches[:5]]
    return lines


def whole_boxes(
    epsilons: Iterable[float], norm: str, box: str, pixels: int | None, words: Callable[[float], str] = radius_text
) -> list[str]:
    """A line for each eps whose ball around any image contains every image: l2 eps >= sqrt(pixels), linf eps >= 1."""
    if box != "unit" or not pixels:
        return []
    whole = 1.0 if norm == "linf" else math.sqrt(pixels)
    return [
        f"eps {words(eps)}: its ball contains every image, so only a constant answer is robust; {eps:g}/255 meant?"
        for eps in epsilons
        if eps >= whole
    ]
