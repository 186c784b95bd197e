"""Do deep stacks of 1-Lipschitz layers train? Digits, 24 layers and more, from the published start and from ours.

    python benchmarks/depth.py            # about 4 minutes
    python benchmarks/depth.py --quick    # 24 layers, a few steps

The published Sandwich start (Xavier-normal weights) loses the gradient with depth: each layer halves what the ReLU leaves. Ours
starts a square layer as the identity followed by ReLU: ReLU after ReLU changes nothing, so that depth costs no gradient. Printed
for each stack: the share of the gradient's length that reaches the input before training, and test accuracy after it. All stacks
are 1-Lipschitz throughout and end in an affine layer; cross-entropy on 16 times the logits.
"""

from typing import Any

import pandas as pd
import torch
from common import ROOT, arguments, finish
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.bounds import upper
from robustbench_rkhs.data import Digits, Split
from robustbench_rkhs.layers import MaxMin, Orthogonal, Sandwich, SandwichConv, SandwichLinear
from robustbench_rkhs.runtime.files import write_text

WIDTH, CHANNELS, TEMPERATURE = 64, 16, 16.0


def published(layer: nn.Module) -> nn.Module:
    """The layer with the published start: all weights Xavier-normal, alpha their length."""
    for part in layer.modules():
        if isinstance(part, Sandwich | SandwichConv):
            nn.init.xavier_normal_(part.weight)
            part.alpha.data.copy_(part.weight.norm())
    return layer


def dense(depth: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *(Sandwich(64, WIDTH) for _ in range(depth)), SandwichLinear(WIDTH, 10))


def convolutional(depth: int) -> nn.Module:
    layers = [
        SandwichConv(1, CHANNELS),
        *(SandwichConv(CHANNELS, CHANNELS) for _ in range(depth - 2)),
        SandwichConv(CHANNELS, 8, 3, 2),
    ]
    return nn.Sequential(*layers, nn.Flatten(), SandwichLinear(128, 10))


def orthogonal(depth: int) -> nn.Module:
    layers = [part for _ in range(depth) for part in (Orthogonal(64, WIDTH, "none"), MaxMin())]
    return nn.Sequential(nn.Flatten(), *layers, Orthogonal(WIDTH, 10, "none"))


STACKS = {
    "Sandwich, published start": lambda depth: published(dense(depth)),
    "Sandwich": dense,
    "Sandwich convolutions, published start": lambda depth: published(convolutional(depth)),
    "Sandwich convolutions": convolutional,
    "Orthogonal with MaxMin": orthogonal,
}


def gradient_share(model: nn.Module, x: Tensor) -> float:
    """Length of the gradient of a random direction of logits at the images, over the direction's own."""
    x = x.clone().requires_grad_()
    logits = model(x)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
    (slope,) = torch.autograd.grad((logits * direction).sum(), x)
    return (slope.norm() / direction.norm()).item()


def trained(model: nn.Module, train: Split, epochs: int) -> None:
    """Adam at 0.01, one cycle, batches of 64."""
    steps = epochs * (len(train.x) // 64)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.randperm(len(train.x), generator=generator).split(64)[: len(train.x) // 64]:
            loss = functional.cross_entropy(TEMPERATURE * model(train.x[chosen]), train.y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    given = arguments(__doc__)
    splits = Digits().load()
    train, test = splits.train.to(given.device), splits.test.to(given.device)
    rows: list[dict[str, Any]] = []
    for depth in (24,) if given.quick else (8, 24, 48):
        for name, build in STACKS.items():
            torch.manual_seed(0)
            model = build(depth).to(given.device)
            share = gradient_share(model, train.x[:256])
            trained(model, train, 1 if given.quick else 10 if "conv" in name else 30)
            with torch.no_grad():
                accuracy = (model.eval()(test.x).argmax(1) == test.y).float().mean().item()
            bound = upper(model, tuple(test.x.shape[1:])).value
            rows.append({"stack": name, "depth": depth, "gradient_share": share, "accuracy": accuracy, "lipschitz": bound})
            print(f"{name:40} {depth:3}  gradient {share:.1e}  accuracy {accuracy:.1%}  bound {bound:.6f}", flush=True)
    table = pd.DataFrame(rows)
    if not given.quick:
        write_text(ROOT / "reports" / "depth.csv", table.to_csv(index=False, float_format="%.4g"))
    figures = {f"{row['stack']}, {row['depth']}": round(row["accuracy"], 4) for row in rows}
    shares = {f"{row['stack']}, {row['depth']}": float(f"{row['gradient_share']:.3g}") for row in rows}
    sources = ["benchmarks/depth.py", *(f"robustbench_rkhs/layers/{f}.py" for f in ("sandwich", "sandwich_conv", "orthogonal"))]
    finish("depth", {"accuracy": figures, "gradient_share": shares, "data": test.digest}, given, sources)


if __name__ == "__main__":
    main()
