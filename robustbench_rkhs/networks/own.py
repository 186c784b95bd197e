"""The user's own network in a recipe: any class or function that returns an `nn.Module`, or a module itself."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from pydantic import ConfigDict, PrivateAttr, model_validator
from torch import nn

from robustbench_rkhs.networks.base import NetworkNode
from robustbench_rkhs.nodes.arguments import wrong_type
from robustbench_rkhs.nodes.code_names import cause, code_name
from robustbench_rkhs.nodes.node import UserError


class OwnNetwork(NetworkNode):
    """The user's own `nn.Module`: `network: {name: mynets:Small, width: 8}`, or an instance in Python.

    Fields other than `mean` and `std` are arguments of the class or function; one that takes `shape` or `classes` gets the
    images' shape and the number of classes. An instance is copied and trained from its current weights. It maps images in
    [0, 1] (after `mean` and `std`) to logits. Its own layers are certified where their bounds are registered
    (`robustbench_rkhs.lipschitz.rule`).
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    _source: Callable[..., Any] | nn.Module = PrivateAttr()
    _name: str = PrivateAttr(default="")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        return given  # the other keys are arguments of the user's code

    @property
    def code_name(self) -> str:
        """`package.module:Name` of the class, function or instance."""
        return self._name

    @property
    def label(self) -> str:
        return self._name

    def written(self) -> dict[str, Any]:
        """As written in a recipe."""
        return {"name": self._name} | self.model_dump(mode="json")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """The normalisation and the user's module, checked to output a logit per class. Raises UserError in one line."""
        module = self._made(shape, classes)
        if not isinstance(module, nn.Module):
            raise UserError(f"{self._name} returned {type(module).__name__}, expected an nn.Module")
        network = nn.Sequential(*self.first(shape), module)
        training, images = module.training, torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
        given = images.clone()
        try:
            with torch.no_grad():
                found = tuple(network.eval()(images).shape)
        except Exception as error:  # the user's code may raise anything
            raise UserError(f"{self._name} fails on images of shape {shape}: {cause(error)}") from None
        if found != (2, classes):
            raise UserError(f"{self._name} gives {found} for two images, expected logits of {classes} classes: (2, {classes})")
        if not torch.equal(images, given):
            raise UserError(f"{self._name} writes into its images, which a training uses again: let it start with x = x.clone()")
        return network.train(training)

    def _made(self, shape: tuple[int, ...], classes: int) -> Any:
        if isinstance(self._source, nn.Module):
            return copy.deepcopy(self._source)
        arguments = dict(self.model_extra or {})
        try:
            asked = inspect.signature(self._source).parameters
            known = {"shape": shape, "classes": classes}
            arguments |= {key: value for key, value in known.items() if key in asked and key not in arguments}
            if wrong := wrong_type(self._source, arguments):
                raise UserError(f"{self._name}: {wrong}")
            return self._source(**arguments)
        except UserError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise UserError(f"{self._name} cannot be made: {cause(error)}") from None


def own_network(found: Any, name: str, fields: dict[str, Any]) -> OwnNetwork | None:
    """A module, or a callable that makes one, as a network of a recipe; None for anything else."""
    if isinstance(found, nn.Module):
        extra = set(fields) - {"mean", "std"}
        if extra:
            raise UserError(f"{name} is a module already, and takes no {', '.join(sorted(extra))}")
        name = name or code_name(type(found))
    elif not (name and callable(found)):
        return None
    network = OwnNetwork(**fields)
    network._source, network._name = found, name
    return network
