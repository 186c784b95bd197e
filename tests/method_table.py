"""Every method that a training takes, with combinations of its fields: a new network, loss, penalty or data set adds a line."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from robustbench_rkhs.nodes.node import Node
from robustbench_rkhs.training.recipe import TrainRecipe

SHAPES = {"s": (1, 8, 8), "m": (1, 28, 28), "c": (3, 32, 32), "r": (3, 26, 26), "q": (20, 24)}
"""Images by a letter: small, MNIST's, CIFAR's, the smallest of a ResNet, a sequence."""
SMALL = {"name": "mlp", "hidden": [8]}
CONV = {"name": "convolutional", "channels": [2], "hidden": [4]}
BOUNDED = {"name": "lipschitz_bounded", "hidden": [6]}
SMOOTH = {"degrees": 5.0, "count": 4}
COLOUR = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
GREY = {"mean": [0.3], "std": [0.4]}
WAVE = {"data": {"name": "square_wave", "train": 8}, "loss": {"name": "squared_error"}}

METHODS = {
    "network": {
        "vgg": ["c", {"hidden": [8]}, {"hidden": []}, {"hidden": [4, 4], **COLOUR}],
        "resnet": ["r", {}, {**COLOUR}, {"depth": 34}],
        "mnist_stable": ["m", {"channels": [2, 2, 2, 2]}, {"channels": [2, 4, 2, 2]}, {"channels": [3, 2, 2, 2], **GREY}],
        "mlp": ["s", {}, {"hidden": []}, {"hidden": [4, 4], **GREY}],
        "convolutional": ["s", CONV, CONV | {"hidden": []}, CONV | {"channels": [2, 3]} | GREY],
        "lipschitz_bounded": [
            "s",
            BOUNDED | {"learnable": True},
            BOUNDED | {"family": "orthogonal", "activation": "maxmin", "head": "normalized"},
            BOUNDED | {"family": "aol", "learnable": True, "lipschitz": 2.0} | GREY,
        ],
        "kwl": ["s", {"learnable": True}, {"family": "aol", "padding": "zeros"}, {"family": "plain", "head": "normalized"}],
        "dnn": ["s", {"family": "aol"}, {"learnable": True, "family": "plain"}, {"family": "plain", "head": "bounded", **GREY}],
        "lipschitz_resnet": [
            "s",
            {"blocks": 1, "channels": 4, "dense_blocks": 1, "inner_features": 8},
            {"blocks": 2, "channels": 2, "dense_blocks": 0, "inner_channels": 2, "family": "cpl", "padding": "circular"},
            {"blocks": 1, "channels": 4, "dense_blocks": 2, "inner_features": 4, "head": "normalized", "lipschitz": 3.0},
        ],
        "liresnet": [
            "s",
            {"blocks": 1, "channels": 4, "features": 8},
            {"blocks": 2, "channels": 2, "features": 4},
            {"blocks": 1, "channels": 4, "features": 6} | GREY,
        ],
        "sequence_convolutional": [
            "q",
            {"channels": [4]},
            {"channels": [2, 3], "kernel": 3, "stride": 2},
            {"channels": [2], "pool": "average", "hidden": [4]},
        ],
        "function_norm_net": ["m", {}, {"dropout": True}, {"dropout": True, **GREY}],
        "lenet": ["m", {}, {"batch_norm": True}, {"batch_norm": True, **GREY}],
        "spectrally_normalised": [
            "s",
            {"network": SMALL},
            {"network": CONV, "iterations": 2},
            {"network": SMALL | {"hidden": [4, 4]} | GREY},
        ],
    },
    "loss": {
        "cross_entropy": ["s", {}, {"temperature": 0.5, "offset": 0.3}, {"schedule": {"offset": {"end": 0.5}}, "offset": 0.2}],
        "squared_error": ["w", {}, {"schedule": {}}],
        "hinge": ["s", {}, {"margin": 0.1}, {"schedule": {"margin": {"shape": "cosine"}}}],
        "multi_margin": ["s", {}, {"margin": 0.2, "power": 2}, {"schedule": {"margin": {}}}],
        "trades": ["s", {"steps": 1}, {"norm": "l2", "eps": 0.3, "steps": 2, "start": 0.1}, {"beta": 1, "steps": 1, "box": "none"}],
        "mma": ["s", {"steps": 1}, {"norm": "linf", "eps_max": 0.1, "steps": 2}, {"clean": 1.0, "bisections": 2, "steps": 1}],
        "ibp": ["s", {}, {"norm": "l2", "eps": 0.3, "kappa": 0.1}, {"schedule": {"eps": {"end": 0.5}}, "box": "none"}],
        "crown_ibp": ["s", {}, {"norm": "l2", "eps": 0.3, "beta": 0.5}, {"kappa": 0.0, "box": "none"}],
        "mtl_ibp": ["s", {"steps": 1}, {"norm": "l2", "alpha": 0.5, "steps": 2}, {"attack_eps": 0.2, "steps": 1, "box": "none"}],
        "cc_ibp": ["s", {"steps": 1}, {"norm": "l2", "alpha": 0.5, "steps": 2}, {"attack_eps": 0.2, "steps": 1, "box": "none"}],
        "sabr": ["s", {"steps": 1}, {"norm": "l2", "share": 0.5, "steps": 2}, {"share": 1.0, "steps": 1, "box": "none"}],
        "gloro": ["s", {}, {"eps": 0.2, "beta": 0.5}, {"iterations": 2, "schedule": {"eps": {}}}],
        "radius": ["s", {}, {"offset": 0.1, "temperature": 0.5}, {"iterations": 2, "schedule": {"offset": {}}}],
    },
    "penalties": {
        "gradient": ["s", {}, {"weight": 0.0}, {"schedule": {"weight": {"begin": 0.5}}}],
        "adversarial_perturbation": ["s", {"steps": 1}, {"direction": "both", "steps": 1}, {"box": "unit", "chunk": 3, "steps": 2}],
        "loss_gradient": ["s", {}, {"norm": "l1"}, {"weight": 2}],
        "spectral_norm": ["s", {}, {"method": "svd"}, {"operator": "operator", "iterations": 3}],
        "virtual_adversarial": ["s", {}, {"steps": 2, "eps": 0.5}, {"xi": 0.1, "seed": 4}],
        "jacobian": ["s", {}, {"projections": 2}, {"of": "probabilities", "seed": 3}],
        "consistency": ["s", {}, {"samples": 3, "sigma": 0.1}, {"entropy": 0.0, "seed": 4}],
        "curvature": ["s", {}, {"direction": "gradient", "h": 0.1}, {"direction": "random", "seed": 5}],
        "function_norm": [
            "s",
            {"sampler": {"name": "data"}},
            {"sampler": {"name": "uniform"}, "samples": 3, "statistics": "split"},
            {"sampler": {"name": "gaussian"}, "samples": 2, "statistics": "contaminated"},
        ],
        "deformation_stability": [
            "s",
            {"deformations": SMOOTH},
            {"deformations": SMOOTH, "images": 3},
            {"deformations": SMOOTH | {"amplitude": 0.5}, "seed": 2},
        ],
        "deformation_tangent": [
            "s",
            {"deformations": SMOOTH},
            {"deformations": SMOOTH, "images": 3},
            {"deformations": SMOOTH | {"translate": 0.25}, "seed": 2},
        ],
    },
    "sampler": {
        "vae": [
            "m",
            {"iterations": 2, "hidden": 4, "latent": 2},
            {"iterations": 2, "kind": "convolutional", "latent": 2},
            {"iterations": 2, "hidden": 4, "latent": 3, "spread": "prior", "batch_size": 4},
        ],
        "data": ["s", {}],
        "uniform": ["s", {}],
        "gaussian": ["s", {}],
    },
    "projections": {
        "spectral": ["s", {}, {"kappa": 2.0, "of_epochs": 9}, {"operator": "operator", "tau": 0.5}],
    },
    "adaptive": {
        "": [
            "s",
            {"target": 1.0},
            {"measure": "clean", "target": 0.9, "rate": 0.5},
            {"measure": "robust", "target": 0.5, "limit": 2},
        ],
    },
    "attack": {
        "pgd": ["s", {"eps": 0.1}, {"eps": 0.1, "norm": "linf", "start": "random"}, {"eps": 0.1, "loss": "dlr", "restarts": 2}],
    },
    "optimizer": {
        "sgd": ["s", {}, {"nesterov": True, "weight_decay": 0.01}, {"lr": 0.1, "momentum": 0}],
        "adam": ["s", {}, {"betas": [0.5, 0.9]}, {"lr": 0.01, "weight_decay": 0.1}],
    },
    "schedule": {
        "constant": ["s", {}],
        "step": ["s", {}, {"every": 1}, {"every": 2, "gamma": 0.1}],
        "cosine": ["s", {}, {"warmup": 0.5}, {"warmup": 0.1}],
        "one_cycle": ["s", {}, {"peak": 0.5}, {"peak": 0.1}],
        "triangular": ["s", {}],
    },
    "data": {
        "digits": ["s", {}, {"crop": 1, "crop_padding": "reflect"}, {"flip": True, "jitter": True, "seed": 3}],
        "cifar10": ["c", {}, {"crop": 4, "flip": True}, {"jitter": True}],
        "cifar100": ["c", {}, {"crop": 2}, {"flip": True}],
        "mnist": ["m", {}, {"crop": 2}, {"seed": 1}],
        "npz": ["s", {"path": "s.npz"}, {"path": "c.npz", "jitter": True}, {"path": "q.npz"}],
        "npy": ["s", *({"path": "arrays", **more} for more in ({}, {"crop": 1}, {"seed": 2}))],
        "folder": ["s", *({"path": "pictures", **more} for more in ({}, {"size": 6}, {"channels": 3, "jitter": True}))],
        "tiny_imagenet": ["c", *({"classes": 4, "per_class": [5, 2], **more} for more in ({}, {"flip": True}, {"crop": 1}))],
        "tiny_imagenet20": ["c", {}, {"flip": True}, {"crop": 1}],
        "square_wave": ["w", {}, {"seed": 1}, {"validation": 2}],
        "protein": ["q", {}, {"encoding": "one_hot"}, {"length": 9}],
    },
}
"""By the place in a recipe and the method's name: the images (a letter of SHAPES), and up to three combinations of fields."""


def store(folder: Path) -> None:
    """Into a data root, a few random images of every shape and a file of every data set."""
    draw = np.random.default_rng(0)
    sets = dict(SHAPES)
    sets |= {
        "cifar10": sets["c"],
        "cifar100": sets["c"],
        "mnist": sets["m"],
        "tiny_imagenet": sets["c"],
        "tiny_imagenet20": sets["c"],
    }
    for name, shape in sets.items():
        train_labels, test_labels = np.arange(20) % 4, np.arange(8) % 4
        arrays = {"x_train": draw.random((20, *shape), np.float32), "x_test": draw.random((8, *shape), np.float32)}
        np.savez(folder / f"{name}.npz", **arrays, y_train=train_labels, y_test=test_labels)
    (folder / "arrays").mkdir()
    for name, array in (arrays_of := np.load(folder / "s.npz")).items():
        np.save(folder / f"arrays/{name}.npy", array)
    for part in ("train", "test"):
        for number, (image, label) in enumerate(zip(arrays_of[f"x_{part}"], arrays_of[f"y_{part}"], strict=True)):
            (folder / f"pictures/{part}/{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray((image[0] * 255).astype(np.uint8)).save(folder / f"pictures/{part}/{label}/{number}.png")
    (folder / "protein").mkdir()
    for part, count in (("train", 24), ("test", 8)):
        letters = ["".join(draw.choice(list("ACDEFGHIKLMNPQRSTVWY"), 15)) for _ in range(count)]
        lines = [f">{number % 2}\n{word}" for number, word in enumerate(letters)]
        (folder / f"protein/1.1.{part}.fasta").write_text("\n".join(lines))


def recipe_of(place: str, name: str, number: int) -> TrainRecipe:
    """The recipe of a case: a small network, eight images, one step."""
    images, *lines = METHODS[place][name]
    fields = lines[number] | ({"name": name} if name else {})
    stored = {"data": {"name": "npz", "path": f"{images}.npz"}, "network": SMALL} if images != "w" else {"network": SMALL, **WAVE}
    if name == "sequence_convolutional":
        stored["data"] = {"name": "protein", "length": 24}
    if place == "sampler":
        stored["penalties"] = [{"name": "function_norm", "sampler": fields, "samples": 2}]
    elif place in ("penalties", "projections", "adaptive"):
        stored[place] = [fields]
    else:
        stored[place] = fields
    if place == "loss" and name in ("ibp", "crown_ibp", "mtl_ibp", "cc_ibp", "sabr", "gloro", "radius"):
        stored["network"] = CONV
    if place == "adaptive":
        stored |= {"penalties": [{"name": "gradient"}], "validate_with": {"name": "pgd", "eps": 0.1, "steps": 1}}
        stored["data"] |= {"validation": 4}
    if place == "attack":
        stored["attack"] |= {"steps": 1}
    stored["data"] = stored["data"] | {"train": 8}
    return TrainRecipe.parse(stored | {"epochs": 1, "batch_size": 8})


def rows(place: str) -> Iterator[tuple[str, Node]]:
    """The nodes of this place's lines, each with an id."""
    for name, (_, *lines) in METHODS[place].items():
        for number in range(len(lines)):
            recipe = recipe_of(place, name, number)
            if place == "sampler":
                node = recipe.penalties[0].sampler
            else:
                found = getattr(recipe, place)
                node = found[0] if isinstance(found, tuple) else found
            yield f"{name} {number}", node
