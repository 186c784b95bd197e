"""The evaluation recipe of typed flags: names of methods, numbers, times."""

from typing import Any

from robustbench_rkhs.evaluation.recipe import EvalRecipe, attack_from, certificate_from
from robustbench_rkhs.nodes.code_names import CLOSED, Code
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse


def eval_recipe(typed: dict[str, Any], command: str, code: Code = CLOSED, **defaults: Any) -> EvalRecipe:
    """The recipe of the typed fields, and of `defaults` where a field was not typed. Raises UserError in one line.

    `code`: the code that the methods may name.
    """
    settings = defaults | typed
    if "attacks" in settings:
        settings["attacks"] = [attack_from(one) if isinstance(one, str) else one for one in settings["attacks"]]
    if "certificates" in typed:
        named = typed["certificates"]
        if "none" in named and len(named) > 1:
            raise UserError(f"--certificates {' '.join(named)}: expected certificates, or only none")
        settings["certificates"] = [certificate_from(text) for text in named if text != "none"]
    return parse(EvalRecipe, settings, command, code)
