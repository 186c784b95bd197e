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
    recipe: EvalRecipe = parse(EvalRecipe, method_fields(defaults | typed), command, code)
    return recipe


def method_fields(typed: dict[str, Any]) -> dict[str, Any]:
    """The typed fields, each attack and certificate as a mapping of its fields. Raises UserError in one line."""
    settings = dict(typed)
    if "attacks" in settings:
        settings["attacks"] = [attack_from(one) if isinstance(one, str) else one for one in settings["attacks"]]
    if "certificates" in settings:
        named = settings["certificates"]
        if "none" in named and len(named) > 1:
            raise UserError(f"--certificates {' '.join(named)}: expected certificates, or only none")
        some = [one for one in named if one != "none"]
        settings["certificates"] = [certificate_from(one) if isinstance(one, str) else one for one in some]
    return settings
