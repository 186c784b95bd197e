"""The attacks of each effort with their settings, as text: the site is built without torch, in which attacks are written.

A test compares them with `attacks.efforts.protocol_of` and the parts of the ensemble.
"""

SUPERDEEPFOOL = "superdeepfool (steps 10, targets 3, hopeless 1.15, line 5)"
DDN = "ddn (steps 50, starts 5, hopeless 1.05, closer 8, step_size 1.0, gamma 0.05, loss margin)"
FMN = "fmn (steps 50, starts 5, hopeless 1.05, closer 8, step_size 1.0, gamma 0.05)"
BOUNDARY = "restarts 1, parallel 9, relook False, alpha_max 0.1, overshoot 1.05, beta 0.9, rescues 4"
FAB = f"fab (steps 100, targets 3, {BOUNDARY}, closer 0)"
APGD = "rescale True, targets 9, skipped 0, parallel 8, restarts 1, rho 0.75"
PARTS = (
    f"apgd (steps 100, loss cross_entropy, {APGD})",
    f"apgd (steps 100, loss targeted, {APGD})",
    f"fab (steps 100, targets 9, {BOUNDARY}, closer 8)",
    "square (queries 5000, share 0.8, restarts 1)",
)
"""Of the ensemble."""
OF_EFFORT = {
    (effort, norm): (SUPERDEEPFOOL, near, last)
    for norm, near in (("l2", DDN), ("linf", FMN))
    for effort, last in {
        "quick": FAB,
        "adaptive": f"ensemble (version standard, effort adaptive: {', '.join(PARTS)})",
        "standard": f"ensemble (version standard, effort full: {', '.join(PARTS)})",
    }.items()
}
"""By effort and norm."""
