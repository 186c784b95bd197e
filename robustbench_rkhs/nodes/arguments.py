"""Argument checks of public functions: a one-line UserError instead of a TypeError."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from robustbench_rkhs.nodes.node import UserError, did_you_mean

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
"""Python's types, and in plain words."""
Given = ParamSpec("Given")
Found = TypeVar("Found")


def checked_arguments(**meant: str) -> Callable[[Callable[Given, Found]], Callable[Given, Found]]:
    """Decorator: unknown and missing arguments raise UserError with a suggestion.

    `meant`: maps common wrong names to the argument they stand for.
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
    """What is wrong with these arguments of a function; empty if they fit, or if it has no readable signature."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a compiled function without a signature
        return ""
    try:
        signature.bind(**keywords)
    except TypeError:
        return _wrong(signature, (), keywords, {})
    return ""


def wrong_type(function: Callable[..., object], keywords: Mapping[str, object]) -> str:
    """The first argument, as typed in a command or recipe, that is not of its parameter's kind; empty if there is none.

    The kind is that of the annotation, or else of the default; only plain numbers and truth values are looked at.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a compiled function without a signature
        return ""
    for name, value in keywords.items():
        if name in parameters and isinstance(value, str) and (kind := _kind(parameters[name])):
            return f"{name}: expected {kind}, found {value!r}"
    return ""


def _kind(parameter: inspect.Parameter) -> str:
    """What a parameter takes, in words; empty if that is not a plain number or truth value."""
    if parameter.annotation is parameter.empty:
        return KINDS.get(type(parameter.default).__name__, "")
    return KINDS.get(getattr(parameter.annotation, "__name__", str(parameter.annotation)), "")


def _wrong(signature: inspect.Signature, args: tuple[object, ...], kwargs: dict[str, object], meant: dict[str, str]) -> str:
    """What is wrong with arguments that do not fit the signature."""
    parameters = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    names = [one.name for one in parameters]
    placed = [one.name for one in parameters if one.kind is not one.KEYWORD_ONLY]
    if len(parameters) == len(signature.parameters):  # no **kwargs
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
    for name in kwargs:  # with **kwargs, a misspelt name shows up as a missing one
        if name in meant and meant[name] in missing:
            return f"expected {meant[name]!r}, found {name!r}"
    return f"expected {', '.join(missing)}, found none"
