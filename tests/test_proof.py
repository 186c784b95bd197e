"""Certificate files: what is exported is accepted, own bounds cover dense Jacobians, and whatever is changed is rejected."""

import ast
import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import robustbench_rkhs
from robustbench_rkhs import bounds, layers, lipschitz
from robustbench_rkhs.certificates import EclipseCertificate, LipLTCertificate, MarginCertificate
from robustbench_rkhs.cli.evaluate import main as evaluate_main
from robustbench_rkhs.cli.verify import main as verify_main
from robustbench_rkhs.data import Split
from robustbench_rkhs.identity import identity_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import find_checkpoint
from robustbench_rkhs.proofs import export, write_proof
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.verdicts import About, Evaluation
from robustbench_rkhs.verifier import activations, build, eclipse, kernels, liplt, norms
from robustbench_rkhs.verifier import chain as chains
from robustbench_rkhs.verifier.affine import Diagonal, Fit, Linear, Unshuffle
from robustbench_rkhs.verifier.chain import Branches, forward, pairs, product
from robustbench_rkhs.verifier.chain import dense as matrix_of
from robustbench_rkhs.verifier.check import verify
from robustbench_rkhs.verifier.command import main
from robustbench_rkhs.verifier.convolution import Average, Convolution
from robustbench_rkhs.verifier.curved import Maximum
from robustbench_rkhs.verifier.operations import Malformed
from robustbench_rkhs.verifier.proof import Rejected, digest_of, read
from robustbench_rkhs.zoo import load_model

ABOUT = About(model="mine", weights="", data="mine", norm="l2", box="unit", epsilons=(0.1,), protocol=(), date="2026-01-01")
CHECKED = (MarginCertificate, LipLTCertificate, EclipseCertificate)
VERIFIER = Path(robustbench_rkhs.__file__).parent / "verifier"
LAYERS = {
    "identity": (lambda: nn.Identity(), (3,)),
    "dropout": (lambda: nn.Dropout(), (3,)),
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear without bias": (lambda: nn.Linear(3, 6, bias=False), (3,)),
    "conv": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 5, 4)),
    "conv stride": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 6, 5)),
    "conv stride 3": (lambda: nn.Conv2d(2, 2, (2, 5), stride=(3, 2), padding=(0, 2)), (2, 7, 6)),
    "conv groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4, 4)),
    "conv dilation": (lambda: nn.Conv2d(2, 3, 3, padding=2, dilation=2), (2, 5, 5)),
    "conv same": (lambda: nn.Conv2d(2, 2, (2, 4), padding="same"), (2, 4, 5)),
    "conv valid": (lambda: nn.Conv2d(2, 2, 3, padding="valid"), (2, 4, 5)),
    "conv circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 5)),
    "conv circular stride": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="circular"), (2, 4, 6)),
    "conv circular odd": (lambda: nn.Conv2d(2, 2, 3, stride=2, padding=2, padding_mode="circular"), (2, 5, 3)),
    "conv 1x1 of one pixel": (lambda: nn.Conv2d(3, 2, 3, padding=1), (3, 1, 1)),
    "conv 1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)),
    "conv 1d circular": (lambda: nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular", groups=2), (2, 6)),
    "conv 1d same": (lambda: nn.Conv1d(2, 2, 4, padding="same", dilation=2), (2, 7)),
    "batchnorm": (lambda: nn.BatchNorm2d(3), (3, 2, 2)),
    "batchnorm 1d": (lambda: nn.BatchNorm1d(4, affine=False), (4,)),
    "normalize": (lambda: layers.Normalize((0.3, 0.5), (0.2, 0.7)), (2, 3, 3)),
    "scale": (lambda: layers.Scale(-1.5), (2, 3)),
    "learnable scale": (lambda: layers.LearnableScale(2.0), (4,)),
    "average pool": (lambda: nn.AvgPool2d(3, 2, 1), (2, 5, 6)),
    "average pool divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), (2, 4, 5)),
    "average pool 1d": (lambda: nn.AvgPool1d(3, 2, 1), (2, 6)),
    "adaptive average": (lambda: nn.AdaptiveAvgPool2d(1), (2, 3, 4)),
    "adaptive average 1d": (lambda: nn.AdaptiveAvgPool1d(1), (2, 5)),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), (2, 6, 5)),
    "max pool ceil": (lambda: nn.MaxPool2d(2, 2, ceil_mode=True), (2, 5, 3)),
    "max pool dilation": (lambda: nn.MaxPool2d(2, 1, dilation=2), (2, 5, 5)),
    "max pool 1d": (lambda: nn.MaxPool1d(3, 2, 1), (2, 6)),
    "adaptive max 1d": (lambda: nn.AdaptiveMaxPool1d(1), (3, 4)),
    "relu": (lambda: nn.ReLU(), (4,)),
    "leaky": (lambda: nn.LeakyReLU(-1.5), (4,)),
    "tanh": (lambda: nn.Tanh(), (4,)),
    "sigmoid": (lambda: nn.Sigmoid(), (4,)),
    "elu": (lambda: nn.ELU(1.5), (4,)),
    "maxmin": (lambda: layers.MaxMin(), (4, 2, 2)),
    "group sort": (lambda: layers.GroupSort(3), (6, 2)),
    "space to depth": (lambda: layers.SpaceToDepth(2), (2, 3, 5)),
    "pad channels": (lambda: layers.PadChannels(4), (2, 3, 2)),
    "first features": (lambda: layers.FirstFeatures(2), (4,)),
    "scaled average": (lambda: layers.ScaledAveragePool(2), (2, 4, 5)),
    "residual": (lambda: layers.Residual(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), nn.Sequential()), (4,)),
    "sandwich": (lambda: layers.Sandwich(5, 4), (5,)),
    "sandwich linear": (lambda: layers.SandwichLinear(4, 5), (4,)),
    "sandwich conv": (lambda: layers.SandwichConv(2, 4, 3, 1, "zeros"), (2, 4, 3)),
    "sandwich conv stride": (lambda: layers.SandwichConv(2, 3, 4, 2), (2, 5, 4)),
    "sandwich conv linear": (lambda: layers.SandwichConvLinear(2, 3), (2, 4, 4)),
    "sll": (lambda: layers.SLL(4, 6), (4,)),
    "sll conv": (lambda: layers.SLLConv(2, 3, 3, "circular"), (2, 4, 5)),
    "sll conv zeros": (lambda: layers.SLLConv(2, 2, 4, "zeros"), (2, 3, 3)),
    "cpl": (lambda: layers.CPL(3, 7), (3,)),
    "cpl conv": (lambda: layers.CPLConv(2, 3, 2, "circular"), (2, 4, 3)),
    "aol": (lambda: layers.AOL(5, 4, "maxmin"), (5,)),
    "aol conv": (lambda: layers.AOLConv(2, 4, 3, 2, "circular", "maxmin"), (2, 5, 4)),
    "aol conv zeros": (lambda: layers.AOLConv(1, 3, 4, 3, "zeros", "none"), (1, 7, 5)),
    "orthogonal": (lambda: layers.Orthogonal(5, 4), (5,)),
    "orthogonal conv": (lambda: layers.OrthogonalConv(2, 4, 3, 1, "zeros", "none"), (2, 4, 5)),
    "orthogonal conv stride": (lambda: layers.OrthogonalConv(2, 4, 3, 2, "circular", "maxmin"), (2, 5, 4)),
    "bro": (lambda: layers.BRO(4, 6, activation="maxmin"), (4,)),
    "soc": (lambda: layers.SOC(4, 6, activation="maxmin"), (4,)),
    "soc conv": (lambda: layers.SOCConv(2, 4), (2, 4, 4)),
    "bro conv": (lambda: layers.BROConv(2, 4), (2, 4, 4)),
    "linear residual": (lambda: layers.LinearResidual(4), (4,)),
    "linear residual conv": (lambda: layers.LinearResidualConv(2, 2, "circular"), (2, 4, 3)),
    "normalised": (lambda: layers.LinearNormalized(3, 5), (3,)),
    "relu6": (lambda: nn.ReLU6(), (4,)),
    "hardtanh": (lambda: nn.Hardtanh(-0.5, 0.25), (4,)),
    "softplus": (lambda: nn.Softplus(2.0), (4,)),
    "softsign": (lambda: nn.Softsign(), (4,)),
    "silu": (lambda: nn.SiLU(), (4,)),
    "gelu": (lambda: nn.GELU(), (4,)),
    "celu": (lambda: nn.CELU(0.5), (4,)),
    "selu": (lambda: nn.SELU(), (4,)),
    "hardswish": (lambda: nn.Hardswish(), (4,)),
    "prelu": (lambda: nn.PReLU(3), (3, 2, 2)),
    "prelu of one": (lambda: nn.PReLU(), (4,)),
    "padding": (lambda: nn.ZeroPad2d((1, 0, 2, 1)), (2, 3, 4)),
    "padding that cuts": (lambda: nn.ConstantPad2d((-1, 2, 1, -2), 0.5), (2, 4, 3)),
    "pixel unshuffle": (lambda: nn.PixelUnshuffle(2), (2, 4, 6)),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), (8, 2, 3)),
    "adaptive max": (lambda: nn.AdaptiveMaxPool2d(1), (3, 4, 2)),
    "concatenation": (lambda: layers.Concatenate([nn.Identity(), nn.Conv2d(2, 3, 3, padding=1)]), (2, 4, 3)),
    "concatenation with a bend": (lambda: layers.Concatenate([nn.Sequential(nn.Linear(4, 3), nn.ReLU()), nn.Identity()]), (4,)),
    "affine residual": (lambda: layers.Residual(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)), (2, 4, 3)),
    "residual that is centred": (lambda: _block(nn.ReLU()), (2, 4, 3)),
    "residual that is centred otherwise": (lambda: _block(nn.SiLU()), (2, 3, 3)),
    "conv of many channels": (lambda: nn.Conv2d(24, 8, 3, padding=1), (24, 7, 7)),
}


def _block(activation: nn.Module) -> nn.Module:
    """x + W_2 a(W_1 x), with W_2 W_1 far from zero."""
    body = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), activation, nn.Conv2d(3, 2, 3, padding=1))
    return layers.Residual(body, nn.Identity())


def far(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode, with every parameter and statistic far from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.running_mean.normal_(generator=generator)
                part.running_var.uniform_(0.1, 2.0, generator=generator)
    return module.eval()


def classifier(layer: nn.Module, shape: tuple[int, ...], classes: int = 3) -> nn.Sequential:
    """The layer between what makes it a classifier."""
    torch.manual_seed(0)
    size = math.prod(bounds.upper(layer.eval(), shape).shape)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(size, classes)).eval()


def written(model: nn.Module, shape: tuple[int, ...], folder: Path, classes: int = 3, images: int = 6, norm: str = "l2") -> Path:
    """A certificate file of random images with the labels the network gives, the last one's wrong."""
    x = torch.rand(images, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[-1] = (y[-1] + 1) % classes
    split = Split("arrays", "test", x, y, torch.arange(images) + 10, classes, "0" * 64)
    radius = MarginCertificate(norm=norm).radii(model, x, y)
    return put(model, split, radius.numpy(), folder, norm)


def put(model: nn.Module, split: Split, radius: np.ndarray, folder: Path, norm: str = "l2", box: str = "unit", **others) -> Path:
    """The file of a split and given radii of margin (and of others by name), without an evaluation."""
    input_digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in split.x]
    rows = {"kind": "certificate", "index": split.index.numpy(), "input_sha256": input_digests, "arithmetic": "real"}
    found = {"prediction": radius, "margin": radius, **others}
    table = pd.concat([pd.DataFrame({**rows, "method": method, "radius": radii}) for method, radii in found.items()])
    weights = checkpoint.weights_digest(model.state_dict())
    about = ABOUT.but(weights=weights, norm=norm, box=box)
    write_proof(model, split, Evaluation(table, about), folder)
    return folder


def forged(folder: Path, to: Path, change) -> Path:
    """A copy with other contents and consistent digests: `change(proof, arrays)` edits both."""
    proof = read(folder)
    about, arrays = dict(proof.about), {name: array.copy() for name, array in proof.arrays.items()}
    about = json.loads(json.dumps({key: about[key] for key in about if key not in ("digest", "npz", "arrays")}))
    change(about, arrays)
    to.mkdir()
    export.write(about, arrays, {}, to)
    return to


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4), nn.ReLU(), nn.Linear(4, 3))
    return written(far(model), (1, 3, 3), tmp_path_factory.mktemp("proofs") / "small")


def jacobian(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The dense Jacobian (outputs, inputs) at one image."""
    return torch.autograd.functional.jacobian(layer, x).reshape(-1, x.numel())


def jacobian_norm(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """Largest singular value of dense Jacobians at random places."""
    places = torch.randn(5, 1, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return max(torch.linalg.matrix_norm(jacobian(layer, x), ord=2).item() for x in places)


@pytest.mark.parametrize("make, shape", LAYERS.values(), ids=LAYERS.keys())
def test_every_layer_goes_round(make, shape, tmp_path):
    model = classifier(far(make()), shape)
    folder = written(model, shape, tmp_path / "proof")
    verdict = verify(folder)
    proof = verdict.proof
    assert np.all(verdict.radius[:-1] > 0) and verdict.radius[-1] == 0
    claimed = proof.arrays["radii_0"].astype(float)
    assert np.all(verdict.radius <= claimed) and np.allclose(verdict.radius, claimed, rtol=1e-5)
    chain, double = build.chain(proof, proof.about["layers"], shape), model.double()
    x = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 3
    y, error = forward(chain, x.numpy())
    with torch.no_grad():
        truth = double(x)
    torch.testing.assert_close(torch.as_tensor(y), truth, rtol=1e-9, atol=1e-9)
    assert np.all(error < 1e-9 * (1 + np.abs(y).max()))
    head = chain[: next(i for i, row in enumerate(proof.about["layers"]) if row["layer"] == "1 Flatten")]
    truth_norm = jacobian_norm(double[0], shape)
    assert truth_norm <= product(head) * (1 + 1e-12)
    assert product(head) <= bounds.upper(double[0], shape).value * (1 + 1e-6)
    if all(operation.affine for operation in head):
        assert product(head) <= truth_norm * (1 + 1e-6)
        if head:
            matrix, rounding = matrix_of(head)
            torch.testing.assert_close(torch.as_tensor(matrix), jacobian(double[0], torch.zeros(1, *shape, dtype=torch.float64)))
            assert rounding < 1e-9 * (1 + truth_norm)


def _images(*body: nn.Module) -> nn.Sequential:
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))


DEEP = {
    "relu": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "slopes": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(0.2), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid())
        .append(nn.Linear(4, 4))
        .append(nn.ELU(0.5))
        .append(nn.Linear(4, 3)),
        (6,),
    ),
    "images": (lambda: _images(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)), (1, 4, 4)),
    "starting anew": (lambda: _images(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.MaxPool2d(2)), (1, 4, 4)),
    "starting anew twice": (lambda: _images(nn.ReLU(), layers.MaxMin(), nn.Conv2d(4, 4, 1), layers.MaxMin()), (4, 2, 2)),
    "starting anew at once": (lambda: _images(nn.Conv2d(4, 4, 1), nn.ReLU(), layers.MaxMin()), (4, 2, 2)),
    "activations within layers": (lambda: nn.Sequential(layers.AOL(6, 5, "relu"), nn.ReLU(), nn.Linear(5, 5), nn.GELU()).extend(
        [nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)]), (6,)),
    "sandwich": (lambda: nn.Sequential(layers.Sandwich(6, 5), nn.Linear(5, 5), nn.ReLU(), layers.SandwichLinear(5, 3)), (6,)),
    "residual": (lambda: _images(nn.Conv2d(1, 4, 2, 2), _deep_block(), nn.ReLU(), _deep_block()), (1, 4, 4)),
    "concatenation": (lambda: _images(nn.ReLU(), layers.Concatenate([nn.Conv2d(2, 2, 1), nn.ReLU()]), nn.ReLU()), (2, 2, 2)),
    "ending in an activation": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), nn.LeakyReLU(0.1)), (6,)),
    "nothing but zeros": (lambda: nn.Sequential(_zeros(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 3)), (6,)),
}  # fmt: skip


def _deep_block() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    return layers.Residual(body, nn.Conv2d(4, 4, 1))


def _zeros(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    return layer


def deep(make, shape: tuple[int, ...], folder: Path) -> Path:
    """A certificate file with the radii of all certificates that are re-checked."""
    torch.manual_seed(0)
    model = make().eval()
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    split = Split("arrays", "test", x, y, torch.arange(6) + 10, 3, "0" * 64)
    found = {kind.model_fields["name"].default: kind().radii(model, x, y).numpy() for kind in CHECKED}
    return put(model, split, found.pop("margin"), folder, **found)


def apart(model: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """The largest norms of differences of rows of Jacobians at random places."""
    places = torch.randn(20, 1, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = torch.stack([jacobian(model, x) for x in places])
    return (rows[:, :, None] - rows[:, None]).norm(dim=3).amax(0).numpy()


@pytest.mark.parametrize("make, shape", DEEP.values(), ids=DEEP.keys())
def test_every_certificate_of_layers_goes_round(make, shape, tmp_path):
    verdict = verify(deep(make, shape, tmp_path / "proof"))
    proof, arrays = verdict.proof, verdict.proof.arrays
    radii = np.stack([arrays[f"radii_{number}"].astype(float) for number in range(3)])
    assert np.allclose(verdict.radius, radii.max(0), rtol=1e-5) and np.all(verdict.radius <= radii.max(0))
    assert np.array_equal(arrays["best"], np.where(radii.max(0) > 0, radii.argmax(0), -1))
    torch.manual_seed(0)
    truth, chain = apart(make().eval().double(), shape), build.chain(proof, proof.about["layers"], shape)
    margin, *others = proof.about["certificates"]
    assert np.all(truth <= pairs(chain, 3) * (1 + 1e-12))
    for row, way in zip(others, (liplt.pairs, eclipse.pairs), strict=True):
        assert row["checkable"] and np.all(arrays[row["pairs"]] <= arrays[margin["pairs"]] * (1 + 1e-9))
        assert np.all(truth <= way(chain, row["witness"], 3) * (1 + 1e-12))


@pytest.fixture(scope="module")
def stepped(tmp_path_factory) -> Path:
    make, shape = DEEP["starting anew"]
    return deep(make, shape, tmp_path_factory.mktemp("proofs") / "stepped")


def _row(proof, method):
    return next(row for row in proof["certificates"] if row["method"] == method)


def _changed_witness(at, by, **changes):
    def change(proof, arrays):
        entry = _row(proof, "eclipse")["witness"][at]
        for key in changes:
            entry[key] = changes[key] if by is None else entry[key] * by

    return change


def _smaller_pairs(method, by=1e-5):
    def change(proof, arrays):
        arrays[_row(proof, method)["pairs"]][0, 2] *= 1 - by

    return change


def _larger_radii(method):
    def change(proof, arrays):
        arrays[_row(proof, method)["radii"]][:5] *= 1 + 1e-5

    return change


def _without_witness(proof, arrays):
    _row(proof, "eclipse")["witness"] = None


def _witness_at(at, place):
    def change(proof, arrays):
        _row(proof, "eclipse")["witness"][at]["at"] = place

    return change


def _another_best(proof, arrays):
    arrays["best"][:] = 0
    arrays["best"][0] = -1


def _strangest_places(proof, arrays):
    _row(proof, "liplt")["witness"] = ["all"]


STEPPED = {
    "a smaller scale": (_changed_witness(0, 0.5, scale=0), Rejected, "eclipse: no Cholesky factor proves the step over relu"),
    "a larger scale": (_changed_witness(0, 1.1, scale=0), Rejected, "eclipse, classes . and .: claimed bound .*, re-checked"),
    "a larger floor": (_changed_witness(-1, 2.5, floor=0), Rejected, "eclipse: no Cholesky factor proves the step over relu"),
    "no floor": (_changed_witness(0, None, floor=0.0), Rejected, "expected above 0"),
    "an infinite scale": (_changed_witness(0, None, scale="inf"), Malformed, "expected scale to be a finite number"),
    "nothing proved": (_changed_witness(-1, None, scale=None), Rejected, "eclipse, classes . and .: claimed bound"),
    "a smaller factor": (_changed_witness(1, 0.9, factor=0), Rejected, "eclipse: no Cholesky factor proves the factor"),
    "a negative factor": (_changed_witness(1, None, factor=-1.0), Rejected, "eclipse: no Cholesky factor proves the factor"),
    "an earlier end": (_changed_witness(1, None, end=3), Malformed, "a witness passes over a layer that is not affine"),
    "a later step": (_witness_at(0, 2), Malformed, "a witness passes over a layer that is not affine"),
    "an earlier step": (_witness_at(0, 0), Malformed, "not at an activation"),
    "behind the end": (_witness_at(-1, 99), Malformed, "after the last layer"),
    "no witness": (_without_witness, Malformed, "expected a list as witness"),
    "smaller pairs of eclipse": (_smaller_pairs("eclipse"), Rejected, "eclipse, classes 0 and 2: claimed bound"),
    "smaller pairs of liplt": (_smaller_pairs("liplt"), Rejected, "liplt, classes 0 and 2: claimed bound"),
    "larger radii of eclipse": (_larger_radii("eclipse"), Rejected, "image 10: eclipse claims radius"),
    "larger radii of liplt": (_larger_radii("liplt"), Rejected, "image 10: liplt claims radius"),
    "places that are none": (_strangest_places, Malformed, "expected a list of positions"),
    "another best": (_another_best, Rejected, "its largest radius is not by certificate -1"),
}


@pytest.mark.parametrize("change, kind, words", STEPPED.values(), ids=STEPPED.keys())
def test_forged_witnesses_are_rejected(change, kind, words, stepped, tmp_path):
    with pytest.raises(kind, match=words):
        verify(forged(stepped, tmp_path / "forged", change))


def test_any_place_to_start_anew_is_sound(stepped, tmp_path):
    """What LipLT's witness names changes how tight its bounds are: they are rejected as larger, or never exceed the claim."""

    def change(proof, arrays):
        _row(proof, "liplt")["witness"] = [[1], [6]]

    with pytest.raises(Rejected, match="liplt, classes"):
        verify(forged(stepped, tmp_path / "forged", change))


@pytest.mark.parametrize("name", ["digits_mlp", "digits_conv", "digits_sandwich"])
def test_shipped_models_go_round_and_belong_to_their_checkpoints(name, tmp_path, capsys):
    subject = load_model(name)
    split = subject.test.sample(20, 0)
    radius = MarginCertificate().radii(subject.model, split.x, split.y)
    folder = put(subject.model, split, radius.numpy(), tmp_path / name)
    weights = find_checkpoint(name) / "model.safetensors"
    assert main([str(folder), "--weights", str(weights), "--eps", "0.1", "1/4", "--radii"]) == 0
    said = capsys.readouterr().out
    share = float((radius >= 0.25).double().mean())
    assert said.endswith("verified\n") and f"{share:.2%} at eps 0.25" in said and "the checkpoint's digest" in said
    other = find_checkpoint("digits_conv" if name != "digits_conv" else "digits_mlp") / "model.safetensors"
    assert main([str(folder), "--weights", str(other)]) == 1 and "has digest" in capsys.readouterr().out


def test_the_same_tensors_in_another_network_are_not_what_was_proved(tmp_path, monkeypatch):
    recipe = TrainRecipe.read("digits_sandwich", {"network.hidden": "[4]"})
    test = recipe.data.test()
    model = checkpoint.build(recipe, test.shape, 10).eval()
    split = test.sample(5, 0)
    identity = identity_of(model, test.shape)
    monkeypatch.setitem(globals(), "ABOUT", ABOUT.but(**identity._asdict()))
    put(model, split, MarginCertificate().radii(model, split.x, split.y).numpy(), tmp_path / "p")
    places = {}
    for name, line in (("same", {}), ("other", {"network.lipschitz": "10.0"})):
        other = TrainRecipe.read("digits_sandwich", {"network.hidden": "[4]", **line})
        checkpoint.save(tmp_path / name, other, test, model.state_dict(), "# card\n")
        places[name] = tmp_path / name / "model.safetensors"
    assert "the network has the checkpoint's logits" in " ".join(verify(tmp_path / "p", checkpoint=places["same"]).notes)
    with pytest.raises(Rejected, match="the checkpoint has function"):
        verify(tmp_path / "p", checkpoint=places["other"])
    config = json.loads((tmp_path / "other/config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(config | {"key": identity.key}))
    with pytest.raises(Rejected, match="has other logits on the fixed images than the checkpoint"):
        verify(tmp_path / "p", checkpoint=places["other"])


def test_weights_digest_in_every_precision(tmp_path):
    model = far(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)))
    with torch.no_grad():
        model[1].weight.copy_(model[1].weight.half())
    folder = written(model, (1, 2, 2), tmp_path / "proof")
    state = model.state_dict()
    for stored in (state, state | {"1.weight": state["1.weight"].half()}):
        save_file(stored, tmp_path / "model.safetensors")
        assert "4 of 5 arrays" in " ".join(verify(folder, checkpoint=tmp_path / "model.safetensors").notes)
    save_file(state | {"1.weight": -state["1.weight"]}, tmp_path / "model.safetensors")
    with pytest.raises(Rejected, match="has digest"):
        verify(folder, checkpoint=tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(Malformed, match="not a safetensors file"):
        verify(folder, checkpoint=tmp_path / "model.safetensors")


@settings(max_examples=60)
@given(st.data())
def test_every_flipped_bit_is_rejected(small, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flipped") / "proof"
    shutil.copytree(small, folder)
    path = folder / data.draw(st.sampled_from(["proof.json", "proof.npz"]))
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    with pytest.raises((Rejected, Malformed)):
        verify(folder)
    assert main([str(folder)]) in (1, 2)


def _larger_radius(proof, arrays):
    arrays["radii_0"] = arrays["radii_0"] * (1 + 1e-5)


def _smaller_bound(proof, arrays):
    proof["layers"][0]["bound"] *= 1 - 1e-5


def _smaller_pair(proof, arrays):
    arrays["pairs_0"][1, 2] *= 1 - 1e-5


def _swapped_label(proof, arrays):
    arrays["label"][0] = (arrays["label"][0] + 1) % 3


def _changed_weight(proof, arrays):
    name = proof["layers"][-1]["arrays"]["weight"]
    arrays[name] = arrays[name].astype(float) * (1 + 1e-4)


def _changed_bias(proof, arrays):
    name = proof["layers"][-1]["arrays"]["bias"]
    arrays[name] = arrays[name].astype(float) + np.array([0, 1e-3, 0])


def _nan_logits(proof, arrays):
    arrays["logits"][0] = np.nan


def _infinite_radius(proof, arrays):
    arrays["radii_0"] = np.where(arrays["radii_0"] > 0, np.inf, 0)


def _nan_radius(proof, arrays):
    arrays["radii_0"] = np.full_like(arrays["radii_0"], np.nan)


def _other_image(proof, arrays):
    arrays["images"][0] += 0.01


def _nan_image(proof, arrays):
    arrays["images"][0, 0, 0, 0] = np.nan
    proof["images"][0] = hashlib.sha256(arrays["images"][0].tobytes()).hexdigest()


def _tied(proof, arrays):
    for key in ("weight", "bias"):
        arrays[proof["layers"][-1]["arrays"][key]] = np.zeros_like(arrays[proof["layers"][-1]["arrays"][key]])
    arrays["logits"][:], arrays["label"][:] = 0, 0


FORGERIES = {
    _larger_radius: "image 10: margin claims radius .*, re-checked",
    _smaller_bound: r"layer 0 Conv2d \(convolution\): claimed bound",
    _smaller_pair: "margin, classes 1 and 2: claimed bound",
    _swapped_label: "image 10: margin claims radius .* but the network predicts class",
    _changed_weight: "layer 5 Linear|classes|claimed logits are not the network's",
    _changed_bias: "image 10: its claimed logits are not the network's",
    _nan_logits: "image 10: its claimed logits are not the network's",
    _infinite_radius: "image 10: margin claims radius inf",
    _nan_radius: "image 10: expected a radius of at least 0, margin claims nan",
    _other_image: "image 10: its sha256 does not fit",
    _nan_image: "image 10: margin claims radius .* not finite",
    _tied: "image 10: margin claims radius .*, but it is tied",
}


@pytest.mark.parametrize("change", FORGERIES, ids=lambda change: change.__name__.strip("_"))
def test_consistent_forgeries_are_rejected(change, small, tmp_path, capsys):
    folder = forged(small, tmp_path / "forged", change)
    with pytest.raises(Rejected, match=FORGERIES[change]):
        verify(folder)
    assert main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("NOT verified") and said.count("\n") == 1


def test_an_unchanged_forgery_is_accepted(small, tmp_path):
    assert np.array_equal(verify(forged(small, tmp_path / "same", lambda proof, arrays: None)).radius, verify(small).radius)
    assert len(verify(small, samples=2).radius) == 2


MALFORMED = {
    "unknown operation": lambda proof, arrays: proof["layers"][1].update(operation="softmax"),
    "unexpected keys": lambda proof, arrays: proof["layers"][1].update(slope=0.1),
    "unexpected arrays": lambda proof, arrays: proof["layers"][1].update(arrays={"weight": "pairs_0"}),
    "lacks one of": lambda proof, arrays: proof["layers"][1].pop("bound"),
    "the one before outputs": lambda proof, arrays: proof["layers"].pop(0),
    "expected 3 logits": lambda proof, arrays: proof["layers"].pop(),
    "is empty or not finite": lambda proof, arrays: arrays[proof["layers"][0]["arrays"]["weight"]].__setitem__(0, np.inf),
    "no array": lambda proof, arrays: arrays.pop("logits"),
    "norm l2 or linf": lambda proof, arrays: proof.update(norm="l7"),
    "version": lambda proof, arrays: proof.update(version=3),
    "is not a 'robustbench": lambda proof, arrays: proof.update(format="pickle"),
    "expected the keys": lambda proof, arrays: proof.update(more=1),
    "labels do not fit": lambda proof, arrays: arrays["label"].__setitem__(0, 3),
    "no re-check": lambda proof, arrays: proof["certificates"][0].update(method="trust"),
    "has type": lambda proof, arrays: arrays.update(more=np.zeros(2, dtype=bool)),
    "whole number": lambda proof, arrays: proof["layers"][0].update(stride=[1.0, 1]),
}


@pytest.mark.parametrize("words", MALFORMED)
def test_what_is_no_proof_is_refused(words, small, tmp_path, capsys):
    folder = forged(small, tmp_path / "forged", MALFORMED[words])
    with pytest.raises(Malformed, match=words):
        verify(folder)
    assert main([str(folder)]) == 2 and capsys.readouterr().err.startswith("not a proof")


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(Malformed, match="cannot read"):
        verify(tmp_path)
    for text, words in (("[1]", "is not a"), ("{", "not JSON"), ("NaN", "not JSON"), ("[" * 100_000, "not JSON")):
        (tmp_path / "proof.json").write_text(text)
        (tmp_path / "proof.npz").write_bytes(b"")
        with pytest.raises(Malformed, match=words):
            verify(tmp_path)


def test_pickles_are_never_read(small, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "exploded").touch, ()

    arrays = {**read(small).arrays, "pairs_0": np.array([[Bomb()]], dtype=object)}
    folder = tmp_path / "pickled"
    folder.mkdir()
    np.savez(folder / "proof.npz", **arrays)
    stored = (folder / "proof.npz").read_bytes()
    about = json.loads((small / "proof.json").read_text())
    about |= {"digest": "0" * 64, "npz": {"bytes": len(stored), "sha256": hashlib.sha256(stored).hexdigest()}}
    text = json.dumps(about).encode()
    (folder / "proof.json").write_bytes(text.replace(b"0" * 64, digest_of(text, "0" * 64).encode(), 1))
    with pytest.raises(Malformed, match="allow_pickle"):
        verify(folder)
    assert not (tmp_path / "exploded").exists()


def test_other_norm_and_other_certificates(tmp_path):
    model = far(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    folder = written(model, (1, 2, 2), tmp_path / "linf", norm="linf")
    far_enough = verify(written(model, (1, 2, 2), tmp_path / "l2")).radius
    np.testing.assert_allclose(verify(folder).radius, far_enough / 2, rtol=1e-9)
    x, y = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    split = Split("arrays", "test", x, y, torch.arange(3), 3, "0" * 64)
    radius = MarginCertificate().radii(model, x, y).numpy()
    verdict = verify(put(model, split, radius, tmp_path / "two", smoothing=9.0))
    assert any("not re-checked: smoothing" in note for note in verdict.notes) and verdict.radius.max() < 9


class Net(nn.Module):
    """A small residual network with batch norm and a concatenation, written as a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.side, self.last = nn.Conv2d(4, 2, 1), nn.Linear(6, 3)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = (x + self.norms[1](self.two(self.norms[0](self.one(x)).relu()))).relu()
        x = torch.cat([x, self.side(x).relu()], dim=1)
        return self.last(x.mean((2, 3)))


def test_a_module_that_is_no_chain_goes_round(tmp_path):
    model = far(Net())
    x = torch.rand(5, 1, 8, 8)
    y = model(x).argmax(1)
    split = Split("arrays", "test", x, y, torch.arange(5), 3, "0" * 64)
    found = {kind.model_fields["name"].default: kind().radii(model, x, y).numpy() for kind in CHECKED}
    assert np.all(found["margin"] > 0)
    verdict = verify(put(model, split, found.pop("margin"), tmp_path / "net", **found))
    proof = verdict.proof
    logits = forward(build.chain(proof, proof.about["layers"], proof.shape), x.double().numpy())[0]
    torch.testing.assert_close(torch.as_tensor(logits), model.double()(x.double()), rtol=1e-9, atol=1e-9)
    names = [row["operation"] for row in proof.about["layers"]]
    assert "sum" in names and "concatenate" in names and "diagonal" not in names  # each batch norm is folded
    assert np.allclose(verdict.radius, np.max([proof.arrays[f"radii_{i}"].astype(float) for i in range(3)], axis=0), rtol=1e-5)


def test_claims_of_other_arithmetic_and_what_was_not_asked(tmp_path):
    """Images that a certificate was not asked have radius 0 of it; a float16 claim is listed with its reason."""
    model = far(nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    x = torch.rand(4, 1, 2, 2)
    y = model(x).argmax(1)
    split = Split("arrays", "test", x, y, torch.arange(4), 3, "0" * 64)
    radii = {"margin": MarginCertificate().radii(model, x, y).numpy(), "eclipse": EclipseCertificate().radii(model, x, y).numpy()}
    input_digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in x]
    rows = {"kind": "certificate", "index": split.index.numpy(), "input_sha256": input_digests}
    claims = (("margin", "margin#0", "real"), ("eclipse", "eclipse", "real"), ("margin", "margin#3", "float16 on CPU"))
    parts = [pd.DataFrame({**rows, "method": name, "radius": radii[of], "arithmetic": how}) for of, name, how in claims]
    parts[1] = parts[1].iloc[2:]
    about = ABOUT.but(weights="")
    verdict = write_proof(model, split, Evaluation(pd.concat(parts), about), tmp_path / "proof")
    assert np.array_equal(verdict.proof.arrays["best"], [0, 0, 2, 2]) and verdict.proof.arrays["radii_2"][0] == 0
    assert any("margin#3 (its claim is about the network as float16 on CPU computes it" in note for note in verdict.notes)
    with pytest.raises(UserError, match="on all images"):
        write_proof(model, split, Evaluation(pd.concat(parts[1:]), about), tmp_path / "other")


def test_the_evaluation_writes_a_certificate_file(tmp_path, monkeypatch, capsys):
    flags = [
        "--model",
        "digits_mlp",
        "--eps",
        "0.1",
        "--samples",
        "8",
        "--attack",
        "pgd:steps=1",
        "--out",
        str(tmp_path / "reports"),
    ]
    monkeypatch.setattr(sys, "argv", ["rkhs-eval", *flags, "--device", "cpu", "--certificate", str(tmp_path / "proofs")])
    with pytest.raises(SystemExit) as ended:
        evaluate_main()
    assert ended.value.code == 0 and "digits_mlp (verified: " in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "proofs").rglob("*")) == ["digits_mlp", "proof.json", "proof.npz"]
    monkeypatch.setattr(sys, "argv", ["rkhs-verify", str(tmp_path / "proofs" / "digits_mlp"), "--samples", "3"])
    with pytest.raises(SystemExit) as ended:
        verify_main()
    assert ended.value.code == 0 and "verified for the first 3 images" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["rkhs-eval", *flags, "--certify", "none", "--certificate", str(tmp_path / "no")])
    with pytest.raises(SystemExit) as ended:
        evaluate_main()
    assert ended.value.code == 2 and "need radii of --certify margin, liplt" in capsys.readouterr().err


def test_refusals_write_nothing(tmp_path):
    class Stranger(nn.Module):
        """A layer with a rule and without an export."""

        def forward(self, x):
            return x

    lipschitz.rule.register(Stranger, lambda module, shape: lipschitz.Bound(1.0, shape))
    x, y = torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UserError, match=r"no export rule for 1 \(Stranger\)"):
        written(nn.Sequential(nn.Flatten(), Stranger(), nn.Linear(4, 3)).eval(), (1, 2, 2), tmp_path / "stranger")
    with pytest.raises(UserError, match="no proven Lipschitz bound for 1"):
        model = nn.Sequential(nn.Flatten(), nn.Softmax(1), nn.Linear(4, 3)).eval()
        put(model, Split("arrays", "test", x, y, torch.arange(2), 3, ""), np.zeros(2), tmp_path / "softmax")
    with pytest.raises(UserError, match="the verifier says"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
        put(model, Split("arrays", "test", x, y, torch.arange(2), 3, ""), np.full(2, 99.0), tmp_path / "false")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@settings(max_examples=80)
@given(st.data())
def test_convolution_bounds_cover_the_dense_norm(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    circular = data.draw(st.booleans())
    height, width = draw(1, 6), draw(1, 6)
    kernel, stride, dilation = (draw(1, 4), draw(1, 4)), (draw(1, 3), draw(1, 3)), (draw(1, 2), draw(1, 2))
    padding = tuple((draw(0, min(3, side)), draw(0, min(3, side))) for side in (height, width))
    groups = draw(1, 2)
    weight = np.random.default_rng(draw(0, 10**6)).normal(size=(2 * groups, 2, *kernel))
    try:
        shape = (2 * groups, height, width)
        conv = Convolution(shape, weight, None, stride, padding, dilation, groups, circular)
    except Malformed:
        return
    matrix, _ = matrix_of([conv])
    truth = np.linalg.norm(matrix, 2)
    assert truth <= conv.bound * (1 + 1e-12)
    if circular and conv.outputs[1:] == (height, width):
        assert conv.bound <= truth * (1 + 1e-8)
    assert np.linalg.norm(np.abs(matrix), 2) <= conv.absolute * (1 + 1e-12)
    columns = conv.apply(np.eye(math.prod(shape)).reshape(-1, *shape)).reshape(math.prod(shape), -1).T
    np.testing.assert_allclose(matrix, columns, atol=1e-12)  # rows come from the adjoint, columns from the operation


@settings(max_examples=40)
@given(st.data())
def test_one_factor_of_the_gram_matrix_decides_a_claim(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    height, width, rows, columns = draw(1, 6), draw(1, 6), draw(1, 3), draw(1, 3)
    kernel, stride, dilation = (draw(1, 4), draw(1, 4)), (draw(1, 3), draw(1, 3)), (draw(1, 2), draw(1, 2))
    padding = ((draw(0, 3), draw(0, 3)), (draw(0, 3), draw(0, 3)))
    weight = np.random.default_rng(draw(0, 10**6)).normal(size=(rows, columns, *kernel)) * 10.0 ** draw(-3, 3)
    try:
        conv = Convolution((columns, height, width), weight, None, stride, padding, dilation)
    except Malformed:
        return
    matrix, _ = matrix_of([conv])
    truth = float(np.linalg.norm(matrix, 2))
    before = padding[0][0], padding[1][0]
    window = kernels.Window(conv.sizes, conv.places, stride, dilation, before, False)
    reads = window.reads(0, kernel[0]), window.reads(1, kernel[1])
    np.testing.assert_allclose(kernels._matrix(weight, reads), matrix, atol=1e-12 * np.abs(weight).max())
    for by_inputs in (True, False):
        assert truth == 0 or kernels._by_gram(weight, reads, by_inputs, truth * (1 + 1e-9))
        assert not kernels._by_gram(weight, reads, by_inputs, truth * (1 - 1e-7))
    truths = [kernels._of_sums(weight[None], reads), kernels._of_windows(weight[None], reads), conv.bound]
    assert all(truth <= value * (1 + 1e-12) for value in truths)


def test_a_convolution_of_many_channels_is_proved_by_its_gram_matrix(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(17, 18, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(18 * 64, 3)).eval()
    assert lipschitz.rule(model[0].double(), (17, 8, 8)).method == "gramian"
    written(model.float(), (17, 8, 8), tmp_path / "proof")


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(sorted(activations.FUNCTIONS)), st.floats(0.05, 3))
def test_slopes_of_activations_hold_every_difference_quotient(seed, kind, number):
    keys = {"hardtanh": (-number, number / 2), "leaky_relu": (number,), "elu": (number,), "celu": (number,), "softplus": (number,)}
    function = activations.Activation((2000,), kind, keys.get(kind, ()))
    x = np.sort(np.random.default_rng(seed).normal(size=(1, 2000)) * 4)
    x = x[:, np.concatenate([[True], np.diff(x[0]) > 1e-6])]
    quotients = np.diff(function(x)) / np.diff(x)
    low, high = function.slopes
    assert low - 1e-8 <= quotients.min() and quotients.max() <= high + 1e-8
    assert np.abs(function(np.zeros((1, 1)))).max() <= function._largest()


def test_a_torus_of_the_image_alone_would_be_too_small():
    """The published kernel: 1.802 on zeros, 1.732 around a circle of as many points."""
    conv = Convolution((1, 6), np.array([[[[-1.0, 0.0, 1.0]]]]), None, padding=((0, 0), (1, 1)))
    truth = np.linalg.norm(matrix_of([conv])[0], 2)
    assert 1.8 < truth <= conv.bound < 2.1


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.integers(-300, 300), st.booleans())
def test_norms_are_proved_and_tight(seed, rows, columns, power, complex_ones):
    random = np.random.default_rng(seed)
    matrices = random.normal(size=(3, rows, columns)) + (1j * random.normal(size=(3, rows, columns)) if complex_ones else 0)
    truth = np.linalg.norm(matrices, 2, axis=(1, 2)).max()
    found = norms.norm(matrices * 10.0**power)
    if 10.0**power * truth > 1e-280:
        assert 10.0**power * truth * (1 - 1e-12) <= found <= 10.0**power * truth * (1 + 1e-8)
    assert norms.norm(matrices * 0) == 0
    with pytest.raises(norms.Unproved):
        norms.norm(matrices * np.nan)


def test_operations_whose_adjoint_is_not_theirs_would_show():
    random = np.random.default_rng(0)
    for operation in (
        Linear((2, 3), random.normal(size=(4, 3)), None),
        Diagonal((3, 2), random.normal(size=3), random.normal(size=3), random.normal(size=3)),
        Average((2, 5, 4), (3, 2), (2, 1), ((1, 0), (0, 1)), 4),
        Fit((2, 3, 3), (3, 4, 2)),
        Unshuffle((2, 4, 6), 2),
    ):
        x, v = random.normal(size=(2, *operation.inputs)), random.normal(size=(2, *operation.outputs))
        assert np.isclose((operation.apply(x) * v).sum(), (x * operation.adjoint(v)).sum())


def test_overlapping_maximum_pool_attains_its_bound():
    pool = Maximum((1, 5, 5), (3, 3), (2, 2), (1, 1), (1, 1), (3, 3))
    spike = np.zeros((1, 1, 5, 5))
    spike[..., 1, 1] = 1
    assert np.isclose(np.linalg.norm(pool(spike)), pool.bound) and np.isclose(pool.bound, 2)


def test_branches_one_after_the_other():
    random = np.random.default_rng(0)
    parts = [Linear((3,), random.normal(size=(rows, 3)), random.normal(size=rows)) for rows in (2, 4)]
    both, added = Branches((3,), [[part] for part in parts], False), Branches((3,), [[parts[0]], [parts[0]]], True)
    x, stacked = random.normal(size=(5, 3)), np.vstack([part.weight for part in parts])
    np.testing.assert_allclose(both(x), np.concatenate([part(x) for part in parts], axis=1))
    np.testing.assert_allclose(added(x), 2 * parts[0](x))
    norm = [np.linalg.norm(part.weight, 2) for part in parts]
    assert np.linalg.norm(stacked, 2) <= both.bound and np.isclose(both.bound, math.hypot(*norm))
    assert np.isclose(added.bound, 2 * norm[0]) and np.all(both.error(x, np.ones(5)) >= both.bound * 0.999)
    with pytest.raises(Malformed, match="branches do not fit"):
        Branches((3,), [[part] for part in parts], True)


def test_pairs_of_equal_rows_part_nowhere():
    weight = np.array([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]])
    found = pairs([Linear((2,), weight, None)], 3)
    assert found[0, 1] == 0 and np.isclose(found[0, 2], math.sqrt(2)) and np.all(np.diag(found) == 0)


def test_the_verifier_imports_numpy_and_the_standard_library_alone():
    for path in VERIFIER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [] if node.level == 1 else [node.module or "."]
            for name in names:
                assert name == "numpy" or name.split(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"


WITHOUT = (
    "import sys\n"
    "class No:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] in {banned!r}: raise ImportError(name)\n"
    "sys.meta_path.insert(0, No())\n"
)


def test_liplt_of_wide_dense_layers_goes_round(tmp_path, monkeypatch):
    """Both sides multiply out routes of dense layers up to `WIDE_SIDE`, beyond `DENSE_SIDE`."""
    for file in (bounds.network, bounds.liplt, chains):
        monkeypatch.setattr(file, "DENSE_SIDE", 8)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), *(part for _ in range(3) for part in (nn.LazyLinear(16), nn.ReLU())), nn.LazyLinear(3)
    ).eval()
    x = torch.rand(6, 1, 4, 4)
    with torch.no_grad():
        y = model(x).argmax(1)
    split = Split("arrays", "test", x, y, torch.arange(6), 3, "0" * 64)
    radii = {name: kind().radii(model, x, y).numpy() for name, kind in (("margin", MarginCertificate), ("liplt", LipLTCertificate))}
    assert (radii["liplt"] > 1.1 * radii["margin"]).all()
    folder = put(model, split, radii["margin"], tmp_path / "proof", liplt=radii["liplt"])
    assert np.allclose(verify(folder).radius, radii["liplt"], rtol=1e-5)
    monkeypatch.setattr(chains, "WIDE_SIDE", 8)
    with pytest.raises(Rejected, match="liplt"):
        verify(folder)


def test_the_commands_run_where_torch_cannot_be_imported(small, tmp_path):
    root = str(VERIFIER.parents[1])
    runs = {
        "module": ("import runpy; runpy.run_module('robustbench_rkhs.verifier', run_name='__main__')", ["torch", "pandas"], root),
        "command": ("from robustbench_rkhs.cli.verify import main; main()", ["torch", "pandas"], root),
        "folder": ("import runpy; runpy.run_path('verifier', run_name='__main__')", ["torch", "robustbench_rkhs"], ""),
    }
    shutil.copytree(VERIFIER, tmp_path / "verifier", ignore=shutil.ignore_patterns("__pycache__"))
    for code, banned, path in runs.values():
        script = WITHOUT.format(banned=banned) + f"sys.path.insert(0, {path!r})\nsys.argv = ['verify', {str(small)!r}]\n" + code
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.endswith("verified\n"), done.stderr
    done = subprocess.run([sys.executable, "verifier", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "cannot read" in done.stderr
