"""A model and its images after all checks, and the recipe of what a user passes beside them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.data import DataSet, Split, Stream
from robustbench_rkhs.data.given import Bounds, given_split
from robustbench_rkhs.evaluation.predictions import classes_of
from robustbench_rkhs.evaluation.recipe import EvalRecipe, attack_from, certificate_from
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.code_names import TYPED
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.runtime.devices import usable
from robustbench_rkhs.zoo.data_names import named_data
from robustbench_rkhs.zoo.images import as_split, layouts
from robustbench_rkhs.zoo.models import adapted, as_module, dtype_of, home_of
from robustbench_rkhs.zoo.named import NamedModel, load_model

Eps = Any
"""One radius or several: numbers, or text such as `8/255`. (Other values are accepted or refused with one clear line.)"""


class Opened(NamedTuple):
    """A model and its images, after all checks."""

    model: nn.Module
    split: Split
    name: str
    device: str
    given: Tensor | None = None
    """The images as they were given, where the model's type rounds them."""

    def rounding(self, norm: Norm) -> Tensor:
        """How far each image lies from the one that was given, in float64 on the CPU."""
        x = self.split.x
        if self.given is None:
            return torch.zeros(len(x), dtype=torch.float64)
        return distances(self.given.reshape(x.shape).cpu(), x.cpu(), norm)


def enter(
    model: Any,
    data: Any,
    *,
    name: str | None = None,
    device: str | torch.device | None = None,
    preprocessing: Any = None,
    bounds: Any = (0.0, 1.0),
) -> Opened:
    """Any model and any data, checked. Raises UserError."""
    bounds = bounds_of(bounds)
    if isinstance(model, str | Path):
        model = load_model(model)
    named = model if isinstance(model, NamedModel) else None
    module = as_module(model.model if isinstance(model, NamedModel) else model)
    if isinstance(data, (str, Path)):
        data = named_data(str(data), TYPED)
    if isinstance(data, DataSet):
        data = replace(named or NamedModel("model", module, None), data=data).test
    elif data is None and named is not None:
        data = named.test
    home: Any = home_of(module) or getattr(_first(data), "device", "cpu")
    where = str(home) if device is None else usable(device)
    images = as_split(data, bounds)
    split, module = _joined(module, images, preprocessing, bounds, where)
    given = images.x if isinstance(images, Split) else _laid_out(images[0], split.x)
    rounded = not isinstance(given, Stream) and given.dtype == torch.float64 != split.x.dtype
    exact = not rounded or torch.equal(given, split.x.to(given))
    return Opened(module, split, name or (named.name if named else "model"), where, None if exact else given)


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """The images in the layout that the model takes."""
    return next(layout for layout in layouts(x) if layout.shape == like.shape)


def recipe_given(recipe: Any, eps: Eps, settings: dict[str, Any]) -> EvalRecipe:
    """The recipe that was passed, or the one of these settings. Raises UserError where both say something, or it is none."""
    given = [*(["eps"] if len(several(eps)) else []), *settings]
    if recipe is None:
        return recipe_of(eps, **settings)
    if not isinstance(recipe, EvalRecipe | Mapping):
        labels = isinstance(recipe, (Tensor, np.ndarray, list))
        hint = "; images and labels go together: evaluate(model, (images, labels), eps=...)" if labels else ""
        what = f"found {type(recipe).__name__}{hint}"
        raise UserError(f"evaluate: expected recipe as an EvalRecipe or a mapping of its fields, {what}")
    if given:
        raise UserError(f"evaluate: a recipe and {', '.join(given)} beside it: expected the recipe alone, or its fields alone")
    fields = {} if isinstance(recipe, EvalRecipe) else {str(key): value for key, value in recipe.items()}
    return recipe if isinstance(recipe, EvalRecipe) else recipe_of(fields.pop("eps", ()), **fields)


def recipe_of(eps: Eps, verb: str = "evaluate", /, **settings: Any) -> EvalRecipe:
    """The recipe of these settings: one eps or several, attacks and certificates by name or as instances. Raises UserError."""
    for key, read in (("attacks", attack_from), ("certificates", certificate_from)):
        if key in settings:
            named = settings[key] if isinstance(settings[key], (list, tuple)) else (settings[key],)
            settings[key] = [read(one) if isinstance(one, str) and one != "portfolio" else one for one in named]
            settings[key] = [one for one in settings[key] if one not in (None, "none")]
    found: EvalRecipe = parse(EvalRecipe, {**settings, "eps": several(eps)}, verb, TYPED)
    return found


def several(eps: Any) -> tuple[Any, ...]:
    """The radii, however many were given."""
    if isinstance(eps, (Tensor, np.ndarray)):
        eps = eps.tolist()
    several = eps if isinstance(eps, (list, tuple, set, range)) else (eps,)
    return tuple(one.item() if isinstance(one, (Tensor, np.generic)) and np.ndim(one) == 0 else one for one in several)


def bounds_of(bounds: Any) -> Bounds:
    """The least and the largest pixel. Raises UserError."""
    try:
        low, high = (float(end) for end in bounds)
    except (TypeError, ValueError):
        raise UserError(f"bounds: expected the least and the largest pixel, such as (0, 255), found {bounds!r}") from None
    if not (np.isfinite([low, high]).all() and low < high):
        raise UserError(f"bounds: expected the least and the largest pixel, such as (0, 255), found {bounds!r}")
    return low, high


def _first(data: Any) -> Any:
    return data[0] if isinstance(data, (tuple, list)) and len(data) else data


def _joined(module: nn.Module, images: Any, preprocessing: Any, bounds: Bounds, device: str) -> tuple[Split, nn.Module]:
    """The split in the type and layout of the model, and the model for images in [0, 1]."""
    dtype = dtype_of(module)
    if isinstance(images, Split):
        plain = preprocessing is None and bounds == (0.0, 1.0)
        ready = module if isinstance(module, Smoothed) else adapted(module, images.x[:1], preprocessing, bounds)
        if not plain and images.box != "unit":
            raise UserError(f"data set {images.data!r} does not lie in [0, 1]: leave out bounds and preprocessing")
        return (images if images.x.dtype == dtype else replace(images, x=images.x.to(dtype))), ready
    x, y = images
    refused: UserError | None = None
    for layout in layouts(x):
        layout = layout.to(dtype)
        try:
            ready = module if isinstance(module, Smoothed) else adapted(module, layout[:1], preprocessing, bounds)
            return given_split(layout, y, classes_of(ready, layout[:1])), ready
        except UserError as error:
            refused = refused or error
    assert refused is not None
    raise refused
