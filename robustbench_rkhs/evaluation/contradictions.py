"""Checks for settings of a method that contradict the evaluation, which would override them."""

from collections.abc import Sequence
from typing import Any


def refuse_contradiction(method: Any, norm: str, eps: Sequence[float], seed: int | None = None) -> None:
    """Raises ValueError, in one line, for fields of an attack or certificate that contradict those of the evaluation.

    `seed`: that of the evaluation, if it determines the method's random numbers.
    """
    given = getattr(method, "model_fields_set", ())
    name = getattr(method, "label", type(method).__name__)
    own = {field: getattr(method, field) for field in ("norm", "eps", "seed") if field in given}
    if own.get("norm", norm) != norm:
        raise ValueError(f"{name} is given norm {own['norm']}, the evaluation norm {norm}: name the norm once, for the evaluation")
    if own.get("eps") is not None and set(eps) != {own["eps"]}:
        asked = ", ".join(f"{one:g}" for one in eps)
        raise ValueError(f"{name} is given eps {own['eps']:g}, the evaluation eps {asked}: it attacks at those alone")
    if seed is not None and own.get("seed", seed) != seed:
        raise ValueError(f"{name} is given seed {own['seed']}, the evaluation seed {seed}: its draws follow the evaluation's seed")
