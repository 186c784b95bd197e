"""Data: a split is tensors in [0, 1]; crop and flip are functions of a batch; digests are checked."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.data.augment import augment
from robustbench_rkhs.data.deformations import Deformations
from robustbench_rkhs.data.sets import CIFAR10, CIFAR100, MNIST, NPZ, DataSet, Digits, data_root
from robustbench_rkhs.data.splits import Split, Splits, arrays_digest, order_by_class

Data = Annotated[Digits | CIFAR10 | CIFAR100 | MNIST | NPZ, Field(discriminator="name")]
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
    "Split",
    "Splits",
    "arrays_digest",
    "augment",
    "data_root",
    "order_by_class",
]
