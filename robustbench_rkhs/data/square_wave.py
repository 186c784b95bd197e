"""The square wave: a one-dimensional toy regression that makes a network's slope visible."""

from typing import ClassVar, Literal

import numpy as np

from robustbench_rkhs.data.sets import Arrays, DataSet
from robustbench_rkhs.data.task import Task
from robustbench_rkhs.nodes.threat_model import Box


class SquareWave(DataSet):
    r"""A function of one number with three jumps, which no Lipschitz network can follow.

    .. math:: y = 1 \text{ for } x \le -1 \text{ or } 0 < x \le 1, \qquad \text{else } 0

    300 training points drawn evenly from [-2, 2] (always the same ones), 200 test points on a grid of [-2, 2], both ends
    included. Inputs of shape (1,), labels float32 of shape (1,). With Lipschitz constant L the least possible mean squared
    error over [-2, 2] is 1 / (16 L) for L >= 1 (three ramps of slope L, each 1 / (12 L) on an interval of length 4).
    Source: Wang & Manchester, ICML 2023 (the toy example).
    """

    task: ClassVar[Task] = "regression"
    box: ClassVar[Box] = "none"

    name: Literal["square_wave"] = "square_wave"

    def arrays(self) -> Arrays:
        train = np.random.default_rng(0).uniform(-2, 2, (300, 1)).astype(np.float32)
        test = np.linspace(-2, 2, 200, dtype=np.float32)[:, None]
        return train, square_wave(train), test, square_wave(test)


def square_wave(x: np.ndarray) -> np.ndarray:
    """1 for x <= -1 or 0 < x <= 1, else 0, as float32."""
    return ((x <= -1) | ((x > 0) & (x <= 1))).astype(np.float32)
