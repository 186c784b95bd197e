"""Models of the library timm, with their normalisation in front."""

import difflib
import importlib
from typing import Any, NamedTuple

import torch
from torch import nn

from robustbench_rkhs.layers.normalize import Normalize
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause, reason


class TimmModel(NamedTuple):
    """A model of timm for images in [0, 1]."""

    name: str
    model: nn.Module
    """The normalisation and the network."""
    net: nn.Module
    """The network without normalisation."""
    shape: tuple[int, ...]
    classes: int
    notes: tuple[str, ...]


def load_timm(name: str, pretrained: bool = True) -> TimmModel:
    """`resnet18.a1_in1k`: its network, pixels normalised as its `pretrained_cfg` says.

    If its weights cannot be downloaded, they are random, and `notes` say so. Raises UserError where timm is not installed or has
    no such model.
    """
    timm = _library()
    notes: tuple[str, ...] = ()
    try:
        net = timm.create_model(name, pretrained=pretrained)
    except Exception as first:  # no network, or no such model
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                net = timm.create_model(name, pretrained=False)
        except Exception as error:
            close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
            meant = " or ".join(map(repr, close)) or "one of timm.list_models()"
            raise UserError(f"timm has no model {name!r}: {cause(error)}; did you mean {meant}?") from None
        notes = (f"WARNING: the weights of timm:{name} are RANDOM, they could not be downloaded: {reason(first)}",)
    about: dict[str, Any] = getattr(net, "pretrained_cfg", {}) or {}
    shape = tuple(int(side) for side in about.get("input_size") or (3, 224, 224))
    mean, std = about.get("mean") or (0.0,) * shape[0], about.get("std") or (1.0,) * shape[0]
    return TimmModel(name, nn.Sequential(Normalize(mean, std), net), net, shape, int(net.num_classes), notes)


def _library() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError(f"models of timm need it: pip install timm ({reason(error)})") from None
