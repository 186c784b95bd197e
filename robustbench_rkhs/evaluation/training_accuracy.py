"""Test accuracy against training accuracy: a model that is better on the test images than on its own was trained on them."""

import math

import torch
from torch import Tensor, nn

from robustbench_rkhs.data import DataSet, Split
from robustbench_rkhs.evaluation.predictions import answer, checked_logits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.verdicts import TEST_ABOVE_TRAINING, Diagnosis

IMAGES = 2000
"""Training images that are asked."""
BLOCK = 100
LIMIT = 3.0
"""Standard errors of the difference from which it is marked."""


def training_images(data: DataSet) -> Split | None:
    """A seeded sample of the training images, as they are before augmentation; None where there are none or no classes."""
    if data.task != "classification":
        return None
    few = data.model_copy(update={"train": min(IMAGES, data.train or IMAGES)})  # of many images, only these become tensors
    for one in (few, data):
        try:
            train = one.load().train
        except UserError:  # fewer images, or a file of test images alone
            continue
        return train.sample(min(IMAGES, len(train)), seed=0)
    return None


@torch.no_grad()
def above_training(model: nn.Module, training: Split, right: int, images: int, device: str) -> Diagnosis:
    """Whether `right` of `images` test images is more than LIMIT standard errors above the accuracy on the training images.

    With p and q the two accuracies on n and m images, the standard error of p - q is sqrt(p(1-p)/n + q(1-q)/m), of Laplace's
    estimates (k + 1) / (n + 2), which are never 0 or 1. Training on both is not seen by this. Cost: one forward pass of each
    training image.
    """
    own = int(sum(_right(model, training, begin, device) for begin in range(0, len(training), BLOCK)))
    test, train = (right + 1) / (images + 2), (own + 1) / (len(training) + 2)
    error = math.sqrt(test * (1 - test) / (images + 2) + train * (1 - train) / (len(training) + 2))
    found = (test - train) / error
    said = f"test accuracy {right / max(images, 1):.1%} ({images:,} images), training accuracy {own / max(len(training), 1):.1%}"
    words = f"{said} ({len(training):,} images): a difference of {found:+.1f} standard errors"
    if found > LIMIT:
        words += ", as after training on test images"
    return Diagnosis(TEST_ABOVE_TRAINING, found > LIMIT, found, LIMIT, words, len(training) / max(images, 1))


def _right(model: nn.Module, split: Split, begin: int, device: str) -> int:
    x: Tensor = split.x[begin : begin + BLOCK]
    y = split.y[begin : begin + BLOCK]
    logits = checked_logits(answer(model, x.to(device)), len(x), None)
    return int((logits.argmax(1).cpu() == y.cpu()).sum())
