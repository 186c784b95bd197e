"""The run-time type checker of the tests: an int is a float, as everywhere in Python.

jaxtyping's own wrapper checks the arguments of every call twice and costs more than most functions. This one checks them
once, and opens a scope for the letters of shapes only where a function states a shape.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
_jaxtyped = jaxtyping.jaxtyped


def install(package: str) -> None:
    """Check the types and shapes of every function of this package that is imported from now on."""
    jaxtyping.jaxtyped = jaxtyped  # the import hook writes this name before functions and classes
    jaxtyping.install_import_hook(package, "typechecker.check")


def jaxtyped(**settings: Any) -> Callable[[Any], Any]:
    """As `jaxtyping.jaxtyped` with a typechecker, but cheaper for plain functions."""

    def decorate(one: Any) -> Any:
        if not inspect.isfunction(one) or inspect.isgeneratorfunction(one):  # a generator's scope must not outlive the call
            return _jaxtyped(**settings)(one)
        if any(isinstance(stated, str) for stated in one.__annotations__.values()):  # jaxtyping knows names that are not yet there
            return _jaxtyped(**settings)(one)
        return _checked(one)

    return decorate


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    checked = check(function)
    if not any("jaxtyping" in repr(one) for one in function.__annotations__.values()):
        return checked

    @functools.wraps(function)
    def scoped(*args: Any, **kwargs: Any) -> Any:
        with _jaxtyped("context"):
            return checked(*args, **kwargs)

    return scoped
