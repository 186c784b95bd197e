"""The runs of one attack: by budget, the radius that it found on each image."""

import numpy as np
from jaxtyping import Bool, Float, Int

Places = Int[np.ndarray, " some"]
Radii = Float[np.ndarray, " some"]


class Runs:
    """One array of radii for each budget (inf without one); NaN where the attack did not run."""

    def __init__(self, images: int) -> None:
        self.images = images
        self._radius: dict[float, Float[np.ndarray, " images"]] = {}

    def done(self, place: int | np.integer, budget: float) -> bool:
        """Whether it ran on this image within this budget."""
        return budget in self._radius and not np.isnan(self._radius[budget][place])

    def note(self, places: Places, budgets: Radii, radii: Radii) -> None:
        """Runs on these images, each within its own budget; a later run replaces an earlier one."""
        for budget in np.unique(budgets).tolist():
            if budget not in self._radius:
                self._radius[budget] = np.full(self.images, np.nan)
            here = budgets == budget
            self._radius[budget][places[here]] = radii[here]

    def survived(self, places: Places) -> Radii:
        """The largest budget that each image survived, -inf if none.

        An adversarial image revokes survival at a larger budget; without a budget, the attack decides every eps.
        """
        nearest, largest = np.full(len(places), np.inf), np.full(len(places), -np.inf)
        for radius in self._radius.values():
            nearest = np.fmin(nearest, radius[places])
        for budget, radius in self._radius.items():
            held: Bool[np.ndarray, " some"] = ~np.isnan(radius[places])
            if np.isfinite(budget):
                held &= np.isinf(radius[places]) & (budget < nearest)
            largest[held] = np.maximum(largest[held], budget)
        return largest
