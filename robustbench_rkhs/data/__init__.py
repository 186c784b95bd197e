"""Data sets: splits of tensors with task, box and digest; crop, flip and jitter as functions of a batch."""

from typing import Annotated

from robustbench_rkhs.data.augmentation import augment
from robustbench_rkhs.data.deformations import Deformations
from robustbench_rkhs.data.image_folder import ImageFolder
from robustbench_rkhs.data.memory_map import NPY
from robustbench_rkhs.data.protein import Protein
from robustbench_rkhs.data.sets import CIFAR10, CIFAR100, MNIST, NPZ, DataSet, Digits
from robustbench_rkhs.data.splits import Split, Splits, arrays_digest, order_by_class
from robustbench_rkhs.data.square_wave import SquareWave
from robustbench_rkhs.data.stream import Stream
from robustbench_rkhs.data.task import Task
from robustbench_rkhs.data.tiny_imagenet import TinyImageNet, TinyImageNet20
from robustbench_rkhs.nodes.one_of import OneOf
from robustbench_rkhs.nodes.paths import data_root

Data = Annotated[
    Digits | CIFAR10 | CIFAR100 | MNIST | NPZ | NPY | ImageFolder | TinyImageNet | TinyImageNet20 | SquareWave | Protein | DataSet,
    OneOf(DataSet, "data"),
]
"""Any data set: ours by `name`, an instance of DataSet, or your own as package.module:Name."""

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "NPY",
    "NPZ",
    "Data",
    "DataSet",
    "Deformations",
    "Digits",
    "ImageFolder",
    "Protein",
    "Split",
    "Splits",
    "SquareWave",
    "Stream",
    "Task",
    "TinyImageNet",
    "TinyImageNet20",
    "arrays_digest",
    "augment",
    "data_root",
    "order_by_class",
]
