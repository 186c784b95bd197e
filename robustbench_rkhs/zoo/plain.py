"""Plain export: any network, Lipschitz layers included, as a graph of torch functions alone, and as an ONNX file."""

import copy
import importlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.nodes.arguments import checked_arguments
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.relaxations.expansion import expanded
from robustbench_rkhs.relaxations.interval import forked
from robustbench_rkhs.runtime.extras import require
from robustbench_rkhs.runtime.files import write_whole
from robustbench_rkhs.zoo.models import as_module
from robustbench_rkhs.zoo.named import NamedModel
from robustbench_rkhs.zoo.programs import plain_program

NEAR = 1e-6
"""Largest difference of logits from the model's, relative to the largest (or to 1)."""
OPSET = 17
"""Set of ONNX operations, which verifiers know."""


@checked_arguments()
def plain_export(model: Any, shape: Sequence[int], onnx: str | Path | None = None) -> fx.GraphModule:
    """The model as a graph of torch functions and constants, without any code of this package; in eval mode, on the CPU.

    `shape`: of an image, (channel, height, width). Weights of Lipschitz layers are computed once. `onnx`: also written to this
    file, for any number of images. Both are compared with the model on random images: logits equal to 1e-6. Raises UserError.
    """
    module = as_module(model.model if isinstance(model, NamedModel) else model)
    x = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0))
    own = copy.deepcopy(module).to("cpu").eval().requires_grad_(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = own(x)
            batch = ({0: torch.export.Dim("batch")},)
            program = torch.export.export(
                freeze(_expanded(own, x[:2]).to(wanted.dtype)), (x[:2],), dynamic_shapes=batch, strict=False
            )
            plain = plain_program(program.module()).requires_grad_(False)
            _must_be_near(plain(x), wanted, "its plain graph")
            stored = None if onnx is None else _onnx(plain, x, wanted)
    except UserError:
        raise
    except Exception as error:  # the model's own code, or an operation that has no form in ONNX
        raise UserError(f"the model can't be exported: {cause(error)}") from None
    if onnx is not None and stored is not None:
        write_whole(Path(onnx), lambda path: path.write_bytes(stored))
    return plain


def _expanded(module: nn.Module, like: Tensor) -> nn.Module:
    """Layers in the frequency domain, and others without plain operations, as the chains that relaxations bound."""
    if type(module) is nn.Sequential:
        chain = nn.Sequential()
        for name, part in module._modules.items():
            if part is not None:
                chain._modules[name] = _expanded(part, like)
                like = part(like)
        return chain.eval()
    if forked(module):
        twin = copy.copy(module)
        twin._modules = {name: _expanded(part, like) for name, part in module._modules.items() if part is not None}
        return twin
    inner = expanded(module, like)
    return module if inner is module else _expanded(inner.eval().to(like.dtype), like)


def _must_be_near(found: Tensor, wanted: Tensor, what: str) -> None:
    gap = float((found - wanted).abs().max())
    if found.shape != wanted.shape or not gap <= NEAR * max(1.0, float(wanted.abs().max())):
        raise UserError(f"{what} differs from the model by {gap:.2g}, expected at most {NEAR:g}")


def _onnx(plain: nn.Module, x: Tensor, wanted: Tensor) -> bytes:
    """The file's content, checked by onnx's own evaluator."""
    require("onnx", "onnx", "the export to ONNX")
    held, names = io.BytesIO(), {"input_names": ["x"], "output_names": ["logits"]}
    axes = {name: {0: "batch"} for name in ("x", "logits")}
    torch.onnx.export(plain, (x[:1],), held, opset_version=OPSET, dynamo=False, dynamic_axes=axes, **names)  # type: ignore[arg-type]
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(
        importlib.import_module("onnx").load_from_string(held.getvalue())
    )
    _must_be_near(torch.from_numpy(evaluator.run(None, {"x": x.numpy()})[0]), wanted, "its ONNX file")
    return held.getvalue()
