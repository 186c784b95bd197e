"""A data set of your own: `data: {name: "examples/own/own_data.py:Stripes"}` in a recipe of models/, or after `--data`."""

import numpy as np

from robustbench_rkhs.data import DataSet
from robustbench_rkhs.data.sets import Arrays


class Stripes(DataSet):
    """Noisy pictures of 8x8 with horizontal or vertical stripes: two classes, 200 + 100 images."""

    noise: float = 0.2
    """Standard deviation of the noise."""

    def arrays(self) -> Arrays:
        draw = np.random.default_rng(0)
        y = np.arange(300) % 2
        x = np.zeros((300, 1, 8, 8), dtype=np.float32)
        x[y == 0, :, ::2] = 1
        x[y == 1, :, :, ::2] = 1
        x = np.clip(0.25 + 0.5 * x + self.noise * draw.standard_normal(x.shape), 0, 1).astype(np.float32)
        return x[:200], y[:200], x[200:], y[200:]
