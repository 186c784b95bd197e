"""Builders: functions of the user's own package or .py file that return a model.

Importing them runs code, so they are only ever taken from what a user typed.
"""

import ast
from pathlib import Path
from typing import Any

from torch import nn

from robustbench_rkhs.nodes.arguments import wrong_arguments, wrong_type
from robustbench_rkhs.nodes.code_names import TYPED, cause, load, split
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import with_fields
from robustbench_rkhs.runtime.digests import check_state
from robustbench_rkhs.zoo.containers import unwrapped


def is_builder(name: str) -> bool:
    """Whether a name refers to code: `nets.py:build`, `package.module:build`."""
    return ":" in name or name.endswith(".py")


def _such_as(file: str) -> str:
    """The functions and classes that a file defines, as examples; it is read, not run."""
    try:
        body = ast.parse(Path(file).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return ""
    names = [one.name for one in body if isinstance(one, ast.FunctionDef | ast.ClassDef) and not one.name.startswith("_")]
    return f"; it defines {', '.join(names)}"[:200] if names else ""


def load_builder(name: str) -> tuple[nn.Module, str]:
    """The model that `FILE.py:build`, `package.module:build` or either with `:field=value,...` returns, and the builder's name.

    Raises UserError in one line, also where the code raises.
    """
    if name.endswith(".py"):
        raise UserError(f"model {name!r}: expected {name}:BUILDER, a function that returns the model{_such_as(name)}")
    _, path, arguments = split(name)
    keywords: dict[str, Any] = with_fields({}, arguments, f"model {name!r}")
    builder = load(name, TYPED)
    if isinstance(builder, nn.Module) and not keywords:
        return builder, path
    if not callable(builder):
        raise UserError(f"{name} is {type(builder).__name__}, expected a function that returns the model")
    if wrong := wrong_arguments(builder, keywords) or wrong_type(builder, keywords):
        raise UserError(f"{name}: {path}: {wrong}")
    try:
        model = builder(**keywords)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's code may raise anything, also SystemExit
        raise UserError(f"{name} failed: {cause(error)}") from None
    model = model if isinstance(model, nn.Module) else unwrapped(model)[0]  # a torch.export program, say
    if not isinstance(model, nn.Module):
        raise UserError(f"{name} returned {type(model).__name__}, expected an nn.Module")
    check_state(model.state_dict())
    return model, path
