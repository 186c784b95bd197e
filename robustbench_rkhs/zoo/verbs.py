"""The public verbs, called by users and by the command line."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.attacks import Attack
from robustbench_rkhs.attacks.counted import answered, count
from robustbench_rkhs.attacks.efforts import protocol_of
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.attacks.targeted import attack_towards
from robustbench_rkhs.certificates import Certificate
from robustbench_rkhs.certificates.refusals import refusals
from robustbench_rkhs.data import Split
from robustbench_rkhs.data.given import given_tensor
from robustbench_rkhs.evaluation import run
from robustbench_rkhs.evaluation.engine_choice import AnyEngine, engine_from
from robustbench_rkhs.evaluation.independence import independence
from robustbench_rkhs.evaluation.loaders import Loader
from robustbench_rkhs.evaluation.own_method import checked_attacked, checked_certified, fenced
from robustbench_rkhs.evaluation.predictions import ask
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.layers.frozen import on_copies
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.nodes.arguments import checked_arguments
from robustbench_rkhs.nodes.names import plain_name
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.runtime.caller_context import own_context
from robustbench_rkhs.runtime.clock import Clock, OutOfTime, limited
from robustbench_rkhs.runtime.events import Message, OnEvent, emit
from robustbench_rkhs.runtime.lines import followed
from robustbench_rkhs.runtime.modes import evaluating
from robustbench_rkhs.runtime.precision import full_precision
from robustbench_rkhs.runtime.steps import stepped
from robustbench_rkhs.verdicts import Evaluation, doubts
from robustbench_rkhs.verdicts.data_names import data_name
from robustbench_rkhs.zoo.data_names import SETS
from robustbench_rkhs.zoo.loaders import Typed
from robustbench_rkhs.zoo.models import as_module, say_hidden_gradients
from robustbench_rkhs.zoo.named import load_model
from robustbench_rkhs.zoo.opened import Eps, bounds_of, enter, recipe_given, recipe_of, several

RADII: tuple[Any, ...] = ("margin", "liplt", "eclipse", {"name": "crown"})
"""Default certificates of `certify`: those that search for the largest radius."""


@checked_arguments(x="data", images="data", net="model")
@own_context()
def evaluate(
    model: Any,
    data: Any = None,
    recipe: Any = None,
    *,
    eps: Eps = (),
    name: str | None = None,
    device: str | torch.device | None = None,
    preprocessing: Any = None,
    bounds: Any = (0.0, 1.0),
    folder: str | Path | None = None,
    adversarials: str | Path | bool | None = None,
    bits: Any = None,
    twin: Any = None,
    command: str = "",
    loader: Loader | None = None,
    engine: AnyEngine | str = "here",
    parts: str | None = None,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> Evaluation:
    """Certify and attack a model: the table of verdicts per image.

    `model`: an `nn.Module`, any function of images that returns logits (or an output with `.logits`), or a name as after
    --model. It runs in eval mode and is restored afterwards; half precision runs in its own type, with float32 images.
    `data`: (images, labels) as tensors or arrays, a Dataset, a DataLoader, the name of a data set ("mnist", "mine.npz", a folder of
    pictures), or nothing if the named model has its own data. Labels are integer class ids. Images are floats within `bounds`, or
    uint8 from 0 to 255; channels first or last. Memory maps and large data sets are read block by block.
    `eps`: a number, text ("8/255"), or several. **Always in units of pixels in [0, 1]**, also where `bounds` are (0, 255).
    `bounds`: the smallest and the largest pixel value of model and images. `preprocessing`: (mean, std), in the units of
    `bounds`, by which images are normalised for the model. `device`: default: the device of the model; "auto": a GPU, if any.
    `recipe`, or its fields by name (`norm`, `attacks`, `effort`, `budget`, `certificates`, `samples`, `seed`, `block`, `workers`
    ...); attacks and certificates by name too. With a `folder`, finished parts are cached under folder/name/parts and never
    computed again, and the table is written to folder/name/. `adversarials`: True to keep the nearest adversarial image of each
    image, or a .npz file for them; by default they are kept if they are few and there is no folder. `bits`: 8 rounds them to pixels
    k/255 where they stay adversarial within their eps, so that a picture file holds them; their column `bits` says which. `twin`:
    a network of the same data (or its name), trained without defence, whose adversarial images are tried too. `loader`: how
    processes on other devices load the same model and images; by default these are sent to them. `engine`: what computes, as after
    --engine (`"ray:gpus=1"`); the table is the same with any. `parts`: URL of an object store below which machines that share no
    folder exchange finished parts, beside a folder of their own.
    `on_event` is called with every event (`runtime/events.py`): phases, progress, bounds so far. Without it, work that takes longer
    than two seconds writes a line to stderr every few seconds.
    If interrupted by the keyboard, or after `budget` seconds, it returns a partial table.
    Raises UserError, in one line, for invalid arguments.
    """
    with followed(on_event):
        queried = recipe_given(recipe, eps, settings)
        if not isinstance(adversarials, bool | None) and Path(adversarials).suffix != ".npz":
            raise UserError(f"adversarials: expected True, or a file that ends in .npz, found {str(adversarials)!r}")
        if twin is not None:
            twin = as_module(load_model(twin).model if isinstance(twin, str | Path) else getattr(twin, "model", twin))
        opened = enter(model, data, name=name, device=device, preprocessing=preprocessing, bounds=bounds)
        say_hidden_gradients(opened.model, tuple(opened.split.shape))
        if opened.given is not None:
            far = float(opened.rounding(queried.norm).amax())
            kind = str(opened.split.x.dtype).removeprefix("torch.")
            line = f"images of float64 are rounded to {kind}, the model's type: verdicts are of those"
            emit(Message(text=f"{line}, up to {far:.2g} away ({queried.norm})"))
        split, loader = _under_known_name(opened.split, opened.name, folder, loader)
        given: dict[str, Any] = {
            "folder": folder,
            "adversarials": adversarials,
            "bits": bits,
            "twin": twin,
            "command": command,
            "loader": loader,
            "engine": engine_from(engine) if isinstance(engine, str) else engine,
            "parts": parts,
        }
        return run.evaluate(opened.model, split, queried, name=opened.name, device=opened.device, **given)


def _under_known_name(split: Split, model: str, folder: str | Path | None, loader: Loader | None) -> tuple[Split, Loader | None]:
    """Images of a file, or from memory, that were evaluated before keep their name, as one data set has one name in a table."""
    if not folder or split.data in SETS:
        return split, loader
    known = data_name(Path(folder) / plain_name(model), split.digest, split.data)
    if known == split.data:
        return split, loader
    emit(Message(text=f"{split.data} holds the images of {known}, under which name they were evaluated before: it stays"))
    return replace(split, data=known), replace(loader, data_name=known) if isinstance(loader, Typed) else loader


@checked_arguments()
def robust_accuracy(model: Any, x: Any, y: Any, *, eps: Eps, norm: Any = "l2", **settings: Any) -> float:
    """The share of images that are classified correctly and not broken within `eps`: certified, or survived the whole protocol.

    Also takes the arguments of `evaluate`. Raises UserError where an image is left untested (a `budget` ran out): the share is then
    not known. Warns where attacks failed or a diagnostic tripped: the share may then be too high.
    """
    if len(several(eps)) != 1:
        raise UserError(f"robust_accuracy is at one eps, found {len(several(eps))}: evaluate(...).robust_accuracy(eps) takes each")
    done = evaluate(model, (x, y), eps=eps, norm=norm, **settings)
    share = done.robust_accuracy(done.about.epsilons[0])
    lines = [*done.about.failed, *(doubts(done) if settings.get("diagnostics", True) else ())]
    if lines and share > done.certified_accuracy(done.about.epsilons[0]):
        warnings.warn(f"robust accuracy {share:.4g} may be too high: {'; '.join(lines)}", stacklevel=3)
    return share


@checked_arguments(method="attacks", methods="attacks", epsilon="eps", labels="y", images="x", targets="target")
@own_context()
def attack(
    model: Any,
    x: Any,
    y: Any,
    *,
    eps: Eps = None,
    norm: Any = "l2",
    target: Any = None,
    attacks: Any = (),
    effort: Any = "quick",
    seed: Any = 0,
    block: Any = 100,
    device: str | torch.device | None = None,
    preprocessing: Any = None,
    bounds: Any = (0.0, 1.0),
    on_event: OnEvent | None = None,
) -> Tensor:
    """Adversarial images: the nearest that were found, within `eps` if given; the image itself where none was found.

    `target`: the class that the model should predict, one for all or one per image; default: any wrong class. `attacks`: by name or
    as instances; default: those of `effort`. `eps` is in units of pixels in [0, 1]; images are returned within `bounds`, as floats
    in the model's layout, on the model's device. An image that is misclassified already (or classified as its target) is returned
    unchanged. Raises UserError, also if an attack fails, or none found
    anything and no gradient passes through the model.
    """
    if eps is not None and len(several(eps)) != 1:
        raise UserError(f"attack is within one eps, found {len(several(eps))}")
    effort_of = {} if attacks else {"effort": effort}
    recipe = recipe_of(1.0 if eps is None else eps, "attack", norm=norm, attacks=attacks, seed=seed, block=block, **effort_of)
    opened = enter(model, (x, y), device=device, preprocessing=preprocessing, bounds=bounds)
    aims = None if target is None else _targets(target, opened.split)
    budget = None if eps is None else max(recipe.eps)
    protocol = recipe.attacks or protocol_of(recipe.effort, recipe.norm)
    if len({one.box for one in protocol} - {"unit"}):
        raise UserError("attack keeps images within bounds, found an attack with box 'none'")
    with followed(on_event), evaluating(opened.model, opened.device), full_precision():
        split = opened.split.to(opened.device)
        positions, queried = torch.arange(len(split), device=split.y.device), on_copies(opened.model)
        aims = None if aims is None else aims.to(split.y.device)
        logits = ask(opened.model, split.x, split.classes)
        _warn_of_no_function(queried, split, logits, recipe)
        found = []
        with stepped("attacks", "", len(split)) as step:
            for some in positions.split(recipe.block):
                aimed = None if aims is None else aims[some]
                found.append(_attacked(queried, split.take(some), protocol, budget, recipe, aimed))
                step.add(len(some))
                step.tell()
        if all(torch.equal(some, split.x[at]) for some, at in zip(found, positions.split(recipe.block), strict=True)):
            _refuse_without_gradient(queried, split.x[:1])
    low, high = bounds_of(bounds)
    return torch.cat(found) * (high - low) + low


@checked_arguments(method="certificates", methods="certificates", labels="y", images="x")
@own_context()
def certify(
    model: Any,
    x: Any,
    y: Any,
    *,
    norm: Any = "l2",
    certificates: Any = RADII,
    budget: Any = None,
    block: Any = 100,
    device: str | torch.device | None = None,
    preprocessing: Any = None,
    bounds: Any = (0.0, 1.0),
    on_event: OnEvent | None = None,
) -> Tensor:
    """The certified radius of each image, with pixels in [0, 1], within which the label is the prediction; float64, on the CPU.

    The largest that any of the `certificates` proves; 0 where an image is misclassified or nothing is proved; less the distance by
    which the model's type rounds the image, where it does. `budget`: seconds (or
    "5min") after which the radii proved so far are returned; without it, a deep network (a ResNet-18) can take many minutes.
    Raises UserError where none of them has a proof for this model, with the reason of each.
    """
    recipe = recipe_of(0.0, "certify", norm=norm, certificates=certificates, budget=budget, block=block)
    if not recipe.certificates:
        raise UserError("certify: expected at least one certificate, found none; all: rkhs-list certificates")
    opened = enter(model, (x, y), device=device, preprocessing=preprocessing, bounds=bounds)
    radius, refused = torch.zeros(len(opened.split), dtype=torch.float64), dict[str, list[str]]()
    clock = Clock(recipe.budget)
    with followed(on_event), evaluating(opened.model, opened.device), full_precision():
        split = opened.split.to(opened.device)
        ask(opened.model, split.x, split.classes)
        named = {str(number): one for number, one in enumerate(recipe.certificates)}
        early = refusals(named, opened.model, tuple(split.shape), recipe.norm)
        for number, one in named.items():
            method = one.model_copy(update={"norm": recipe.norm}) if "norm" in type(one).model_fields else one
            if number in early:
                refused.setdefault(early[number], []).append(one.label)
                continue
            parts = [split.take(some) for some in torch.arange(len(split), device=split.y.device).split(recipe.block)]
            try:
                with _failing(f"certificate {one.label!r}"), fenced(one, opened.model), limited(clock):
                    found = list(_certified(method, opened.model, parts))
                    proved = [checked_certified(one, len(part)).radius.cpu() for one, part in zip(found, parts, strict=True)]
            except Uncertifiable as refusal:
                refused.setdefault(str(refusal), []).append(one.label)
                continue
            except OutOfTime:
                break
            radius = torch.maximum(radius, torch.cat(proved))
    if sum(map(len, refused.values())) == len(recipe.certificates):
        reasons = "; ".join(f"{', '.join(dict.fromkeys(labels))}: {why}" for why, labels in refused.items())
        raise UserError(f"nothing can be proved of this model; {reasons}")
    return (radius - opened.rounding(recipe.norm) * (1 + 1e-12)).clamp_min(0)


def _certified(method: Certificate, model: nn.Module, parts: Sequence[Split]) -> Iterator[Any]:
    """What a certificate finds for each of these parts."""
    with stepped("certificates", method.label, sum(map(len, parts))) as step:
        for part in parts:
            yield method(model, part.x[:].clone(), part.y, part.index, ())
            step.add(len(part))
            step.tell()


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Any exception of a method becomes a UserError that names it; a refusal (Uncertifiable) passes through."""
    try:
        yield
    except (UserError, Uncertifiable):
        raise
    except Exception as error:  # a model's or a method's own code raises whatever it likes
        raise UserError(f"{what} failed: {cause(error)}") from error


def _warn_of_no_function(model: nn.Module, split: Split, logits: Tensor, recipe: EvalRecipe) -> None:
    found = independence(model, split.x, logits, split.index.tolist(), recipe.seed, recipe.block)
    if found.tripped:
        warnings.warn(f"what is adversarial here need not be so elsewhere: {found.name}: {found.words}", stacklevel=5)


def _refuse_without_gradient(model: nn.Module, image: Tensor) -> None:
    """Raises UserError if the logits have no gradient with respect to the images: gradient attacks then try nothing."""
    images = image.clone().requires_grad_()
    answered = model(images)
    slope = torch.autograd.grad(answered.sum(), images, allow_unused=True)[0] if answered.requires_grad else None
    if slope is None:
        raise UserError(
            "nothing was found, and no gradient passes from the model's logits to its images (torch.no_grad, detach or numpy in "
            "it?): leave that out, or name attacks that need none, attacks=['square']"
        )


def _targets(target: Any, split: Split) -> Tensor:
    """The target of each image. Raises UserError where it is not a class, or is the image's label."""
    aims = given_tensor(target, "target")
    if aims.is_floating_point() or aims.dtype == torch.bool or aims.dim() > 1 or (aims.dim() == 1 and len(aims) != len(split)):
        raise UserError(f"target: expected a class id, or one per image, found {aims.dtype} of shape {tuple(aims.shape)}")
    aims = aims.long().expand(len(split))
    if aims.min() < 0 or aims.max() >= split.classes:
        raise UserError(f"target: expected classes 0 to {split.classes - 1}, found {int(aims.min())} to {int(aims.max())}")
    if own := int((aims == split.y.cpu()).sum()):
        raise UserError(f"target: expected another class than the label, found the label itself for {own} of {len(split)} images")
    return aims


def _attacked(
    model: nn.Module, split: Split, protocol: Sequence[Attack], eps: float | None, recipe: EvalRecipe, target: Tensor | None
) -> Tensor:
    """The nearest adversarial images of one block."""
    x, y, keys = split.x[:], split.y, split.index
    images, distance = x.clone(), torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    said = answered(model, x)
    distance[(said != y) if target is None else (said == target)] = 0.0
    for one in protocol:
        aimed = one.aimed(norm=recipe.norm, eps=eps, seed=recipe.seed)
        if eps is None and not one.minimal_norm:
            raise UserError(f"attack {one.label!r} needs an eps, found none")
        rows = (distance == torch.inf).nonzero().flatten() if eps is not None else (distance > 0).nonzero().flatten()
        if not len(rows):
            break
        budgets = torch.full((len(rows),), torch.inf if eps is None else eps, dtype=torch.float64, device=x.device)
        part = (x[rows], y[rows], keys[rows])
        with _failing(f"attack {one.label!r}"), fenced(one, model):
            if target is not None:
                found = attack_towards(aimed, model, part[0], target[rows], part[2], budgets)
            else:
                found = aimed(model, *part, budgets) if isinstance(aimed, EngineAttack) else aimed(model, *part)
            found = checked_attacked(found, part[0])
        inside, said, away = count(model, part[0], found.images, norm=recipe.norm, box="unit", eps=eps)
        better = ((said != part[1]) if target is None else (said == target[rows])) & (away < distance[rows])
        images[rows[better]], distance[rows[better]] = inside[better], away[better]
    return images
