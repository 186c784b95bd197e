"""Forward passes of the smoothing certificate: early stopping against all 100,000 draws, at the same certified curve.

A part of certificates.py. The shipped digits_smoothed at sigma 0.25, asked at eps 0.1, 0.25 and 0.5, alpha 0.001. The same draws
(counted by image and number) under each rule, so that decisions differ by the rule alone. A ratio of counted forward passes: no
clock is in it.
"""

from typing import Any

from common import ROOT

from robustbench_rkhs.certificates import SmoothingCertificate
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.training import checkpoint

EPSILONS = (0.1, 0.25, 0.5)


def measure(quick: bool, device: str) -> dict[str, Any]:
    """Each rule on 100 images at n = 100,000; quick: 20 images at 10,000."""
    images, n = (20, 10_000) if quick else (100, 100_000)
    loaded = checkpoint.load(ROOT / "checkpoints" / "digits_smoothed")
    test = loaded.recipe.data.test().sample(images, 0).to(device)
    model = Smoothed(loaded.model.to(device), 0.25).eval()
    found, rules = {}, {}
    for rule in ("fixed", "betting", "spending", "sequence"):
        certify = SmoothingCertificate(n=n, stopping=rule)
        found[rule] = certify(model, test.x, test.y, test.index, EPSILONS)
        decided = {eps: found[rule].radius >= eps for eps in EPSILONS}
        forwards = found[rule].forwards
        assert forwards is not None
        changed = {eps: (decided[eps] != (found["fixed"].radius >= eps)).sum().item() for eps in EPSILONS}
        figures: dict[str, Any] = {
            "forwards_an_image": forwards.double().mean().item(),
            "median_forwards": forwards.double().median().item(),
            "certified": {str(eps): decided[eps].double().mean().item() for eps in EPSILONS},
            "decisions_that_differ": {str(eps): count for eps, count in changed.items()},
            "abstained": found[rule].reason.count("unknown"),
        }
        rules[rule] = figures
    ratios = {rule: rules["fixed"]["forwards_an_image"] / rules[rule]["forwards_an_image"] for rule in rules}
    return {
        "smoothing_forward_ratio": round(ratios["betting"], 2),
        "spending_forward_ratio": round(ratios["spending"], 2),
        "sequence_forward_ratio": round(ratios["sequence"], 2),
        "smoothing_decisions": images * len(EPSILONS),
        "smoothing_decisions_that_differ": sum(rules["betting"]["decisions_that_differ"].values()),
        "smoothing_rules": rules,
        "smoothing_n": n,
        "smoothing_images": images,
        "smoothing_weights": loaded.weights,
        "smoothing_data": test.digest,
    }
