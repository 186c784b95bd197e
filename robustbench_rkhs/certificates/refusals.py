"""Which certificates do not apply to a model, decided from its graph before anything is computed."""

from collections.abc import Mapping

from torch import nn

from robustbench_rkhs.bounds.sketch import sketch
from robustbench_rkhs.certificates.base import Certificate
from robustbench_rkhs.nodes.threat_model import Norm


def refusals(certificates: Mapping[str, Certificate], model: nn.Module, shape: tuple[int, ...], norm: Norm) -> dict[str, str]:
    """The reason, by label, of each certificate that refuses the model or the norm. Others may still refuse its numbers.

    `shape`: of an image, without the batch dimension. The model is traced once. Cost: less than a second at any size.
    """
    refused = {
        label: f"it certifies {' and '.join(sorted(one.norms))} only"
        for label, one in certificates.items()
        if norm not in one.norms
    }
    left = {label: one for label, one in certificates.items() if label not in refused}
    if any(type(one).refusal is not Certificate.refusal for one in left.values()):
        seen = sketch(model, shape)
        refused |= {label: why for label, one in left.items() if (why := one.refusal(seen))}
    return {label: refused[label] for label in certificates if label in refused}


def in_lines(refused: Mapping[str, str]) -> list[str]:
    """`label, label: why`, one line per reason."""
    labels: dict[str, list[str]] = {}
    for label, why in refused.items():
        labels.setdefault(why, []).append(label)
    return [f"{', '.join(named)}: {why}" for why, named in labels.items()]
