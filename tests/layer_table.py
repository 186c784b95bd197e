"""Every layer with a proven bound: how to build it, and the shape it takes. A new layer adds a line here."""

import pytest
from torch import nn

from robustbench_rkhs.layers import (
    AOL,
    BRO,
    CPL,
    SLL,
    SOC,
    AOLConv,
    BROConv,
    CayleyOrthogonal,
    Concatenate,
    CPLConv,
    FirstFeatures,
    GroupSort,
    LearnableScale,
    LinearNormalized,
    LinearResidual,
    LinearResidualConv,
    MaxMin,
    Normalize,
    Orthogonal,
    OrthogonalConv,
    PadChannels,
    Residual,
    Sandwich,
    SandwichConv,
    SandwichConvLinear,
    SandwichHead,
    SandwichLinear,
    Scale,
    ScaledAveragePool,
    SLLConv,
    SOCConv,
    SpaceToDepth,
)

CONVOLUTIONS = {  # channels in and out, kernel, stride: the shape it takes
    (2, 3, 3, 1): (2, 5, 4),
    (3, 2, 3, 2): (3, 5, 4),
    (1, 4, 2, 1): (1, 4, 3),
    (2, 4, 5, 2): (2, 4, 4),
    (1, 1, 5, 1): (1, 3, 3),
}


def size(sizes):
    return {"kernel_size": sizes[2], "stride": sizes[3]}


LAYERS = {  # a new layer adds a line here: how to build it, and the shape it takes
    "normalize": (lambda: Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.5)), (3, 3, 5)),
    "maxmin": (MaxMin, (6,)),
    "maxmin image": (MaxMin, (4, 3, 3)),
    "scale": (lambda: Scale(-3.5), (4,)),
    "learnable scale": (lambda: LearnableScale(1.5), (4,)),
    "Orthogonal maxmin": (lambda: Orthogonal(5, 4, "maxmin"), (5,)),
    "BRO alone": (lambda: BRO(5, 4, 2, "none"), (5,)),
    **{
        f"{kind.__name__} {sizes} {padding}": (lambda kind=kind, s=sizes, p=padding: kind(*s[:2], **size(s), padding_mode=p), shape)
        for kind in (OrthogonalConv, SandwichConv, SandwichConvLinear, BROConv, SOCConv)
        for sizes, shape in CONVOLUTIONS.items()
        for padding in ("circular", "zeros")
    },
    **{
        f"{kind.__name__} {inputs}-{outputs}": (lambda kind=kind, a=inputs, b=outputs: kind(a, b), (inputs,))
        for kind in (Sandwich, SandwichHead, SandwichLinear, Orthogonal, BRO, SOC)
        for inputs, outputs in ((1, 1), (1, 5), (5, 1), (4, 9), (9, 4), (7, 7))
    },
    "aol": (lambda: AOL(5, 4), (5,)),
    "aol wide": (lambda: AOL(3, 6, "maxmin"), (3,)),
    "aol affine": (lambda: AOL(4, 4, "none"), (4,)),
    "aol conv": (lambda: AOLConv(2, 4, 3, 1, "circular", "maxmin"), (2, 5, 4)),
    "aol conv strided": (lambda: AOLConv(2, 9, 3, 2, "circular"), (2, 5, 4)),
    "aol conv zeros": (lambda: AOLConv(2, 3, 3, 2, "zeros"), (2, 5, 4)),
    "aol conv even": (lambda: AOLConv(1, 3, 4, 3, "zeros", "none"), (1, 7, 5)),
    "aol conv 1x1": (lambda: AOLConv(2, 3, 1, 2, "circular"), (2, 3, 3)),
    "sll": (lambda: SLL(4, 4), (4,)),
    "sll wide": (lambda: SLL(3, 7), (3,)),
    "sll narrow": (lambda: SLL(5, 2), (5,)),
    "sll conv": (lambda: SLLConv(2, 3, 3, "circular"), (2, 4, 5)),
    "sll conv zeros": (lambda: SLLConv(2, 3, 3, "zeros"), (2, 3, 4)),
    "sll conv even": (lambda: SLLConv(2, 2, 2, "circular"), (2, 3, 4)),
    "sll conv even zeros": (lambda: SLLConv(2, 2, 4, "zeros"), (2, 3, 2)),
    "cpl": (lambda: CPL(4, 4), (4,)),
    "cpl wide": (lambda: CPL(3, 7), (3,)),
    "cpl narrow": (lambda: CPL(5, 2), (5,)),
    "cpl conv": (lambda: CPLConv(2, 3, 3, "circular"), (2, 4, 5)),
    "cpl conv zeros": (lambda: CPLConv(2, 3, 3, "zeros"), (2, 3, 4)),
    "cpl conv even": (lambda: CPLConv(2, 2, 2, "zeros"), (2, 3, 4)),
    "cpl conv 1x1": (lambda: CPLConv(2, 2, 1, "circular"), (2, 3, 2)),
    "linear residual": (lambda: LinearResidual(4), (4,)),
    "linear residual conv": (lambda: LinearResidualConv(2, 3, "zeros"), (2, 4, 3)),
    "linear residual conv circular": (lambda: LinearResidualConv(2, 2, "circular", scale=0.5), (2, 4, 3)),
    "linear normalised": (lambda: LinearNormalized(3, 5), (3,)),
    "space to depth": (lambda: SpaceToDepth(2), (2, 3, 5)),
    "pad channels": (lambda: PadChannels(4), (2, 3, 2)),
    "pad features": (lambda: PadChannels(4), (2,)),
    "first features": (lambda: FirstFeatures(2), (4,)),
    "first channels": (lambda: FirstFeatures(1), (3, 2, 2)),
    "average pool": (lambda: ScaledAveragePool(2), (2, 4, 5)),
    "group sort": (lambda: GroupSort(3), (6,)),
    "group sort image": (lambda: GroupSort(2), (4, 2, 2)),
}
APART = {  # bounded by their parts: tests/test_residual_networks.py, tests/test_graphs.py; a parametrization of other layers
    "residual": lambda: Residual(nn.Linear(3, 3), nn.Identity()),
    "concatenate": lambda: Concatenate([nn.Linear(3, 2), nn.Linear(3, 4)]),
    "cayley": CayleyOrthogonal,
}
table = pytest.mark.parametrize("build, shape", LAYERS.values(), ids=LAYERS.keys())
