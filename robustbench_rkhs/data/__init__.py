"""Data: a split is tensors, with its task and box; crop, flip and jitter are functions of a batch; digests are checked."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.data.augmentation import augment
from robustbench_rkhs.data.deformations import Deformations
from robustbench_rkhs.data.protein import Protein
from robustbench_rkhs.data.sets import CIFAR10, CIFAR100, MNIST, NPZ, DataSet, Digits, data_root
from robustbench_rkhs.data.splits import Split, Splits, Task, arrays_digest, order_by_class
from robustbench_rkhs.data.square_wave import SquareWave
from robustbench_rkhs.data.tiny_imagenet import TinyImageNet, TinyImageNet20

Data = Annotated[
    Digits | CIFAR10 | CIFAR100 | MNIST | NPZ | TinyImageNet | TinyImageNet20 | SquareWave | Protein, Field(discriminator="name")
]
"""Any data set, chosen by `name`."""

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "NPZ",
    "Data",
    "DataSet",
    "Deformations",
    "Digits",
    "Protein",
    "Split",
    "Splits",
    "SquareWave",
    "Task",
    "TinyImageNet",
    "TinyImageNet20",
    "arrays_digest",
    "augment",
    "data_root",
    "order_by_class",
]
