"""Wrong arguments of a public function, in one line instead of a TypeError."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from robustbench_rkhs.nodes.node import UserError, did_you_mean

Given = ParamSpec("Given")
Found = TypeVar("Found")


def checked_arguments(**meant: str) -> Callable[[Callable[Given, Found]], Callable[Given, Found]]:
    """Decorator: arguments that the function does not take, and missing ones, raise UserError with what was perhaps meant.

    `meant`: of names that are often typed and not taken, the argument they stand for.
    """

    def checked(function: Callable[Given, Found]) -> Callable[Given, Found]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Found:
            try:
                signature.bind(*args, **kwargs)
            except TypeError:
                raise UserError(f"{function.__name__}: {_wrong(signature, args, kwargs, meant)}") from None
            return function(*args, **kwargs)

        return call

    return checked


def wrong_arguments(function: Callable[..., object], keywords: dict[str, object]) -> str:
    """What is wrong with these arguments of a function; empty where they fit, or where it does not say what it takes."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a compiled function
        return ""
    try:
        signature.bind(**keywords)
    except TypeError:
        return _wrong(signature, (), keywords, {})
    return ""


def _wrong(signature: inspect.Signature, args: tuple[object, ...], kwargs: dict[str, object], meant: dict[str, str]) -> str:
    """What is wrong with arguments that do not fit the signature."""
    parameters = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    names = [one.name for one in parameters]
    placed = [one.name for one in parameters if one.kind is not one.KEYWORD_ONLY]
    if len(parameters) == len(signature.parameters):  # it takes no others
        for name in kwargs:
            if name not in names:
                hint = f"did you mean {meant[name]!r}? known: {', '.join(names)}" if name in meant else did_you_mean(name, names)
                return f"unknown argument {name!r}; {hint}"
    if len(args) > len(placed):
        return f"expected at most {len(placed)} arguments by position ({', '.join(placed)}), found {len(args)}: name the others"
    if twice := [name for name in placed[: len(args)] if name in kwargs]:
        return f"argument {twice[0]!r} is given twice, by position and by name"
    needed = [one.name for one in parameters if one.default is one.empty]
    missing = [name for name in needed if name not in placed[: len(args)] and name not in kwargs]
    for name in kwargs:  # where any name is taken, a misspelt one shows by what is missing
        if name in meant and meant[name] in missing:
            return f"expected {meant[name]!r}, found {name!r}"
    return f"expected {', '.join(missing)}, found none"
