"""A console script from a function: flags from its signature, one line and exit code 2 for bad input."""

import functools
import inspect
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

import robustbench_rkhs
from robustbench_rkhs.cli.endings import INTERRUPTED
from robustbench_rkhs.cli.failures import Call, left, terminated_as_interrupted
from robustbench_rkhs.cli.flags import given, readable, recipe_parameters, spelt
from robustbench_rkhs.cli.loading import LOADING
from robustbench_rkhs.cli.refusals import check_flags, checked, read_words
from robustbench_rkhs.cli.screen import emit, json_alone, printed
from robustbench_rkhs.evaluation.settings import EvalSettings
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.runtime.seals import SetAside
from robustbench_rkhs.runtime.sinks import for_line, for_terminal

_FORMAT = warnings.formatwarning
Names = tuple[str, ...]
"""A flag that takes several values."""
Weights = Annotated[str | None, tyro.conf.arg(aliases=["--checkpoint"])]
"""The flag for weights; --checkpoint is an older spelling."""
AllowCode = Annotated[Names, tyro.conf.arg(metavar="PREFIX ...")]
"""The flag for the code that a checkpoint folder may import."""
AsJson = Annotated[bool, tyro.conf.arg(name="json")]
"""The flag for one JSON object on stdout."""
PASSED = ("fields", "typed")
"""Parameters of commands that are not flags: fields of a recipe, as typed."""


@dataclass(frozen=True)
class Command:
    """A console script: flags from a function's signature, one line and exit code 2 for bad input.

    With --json, stdout always gets exactly one JSON object: the result, or {"error": ...}.
    """

    main: Callable[..., int | None]
    overrides: bool = False
    """Flags that are not in the signature are passed on as fields, by name."""
    recipe: Mapping[str, str | None] | None = None
    """Every field of EvalRecipe is a flag, and the typed ones are passed on. Maps a field to another default than the recipe's,
    or leaves it out (None)."""
    quick: Callable[[Mapping[str, Any]], bool] = lambda typed: False
    """Whether it never imports PyTorch where this was typed, and so says nothing about loading."""

    def read(self, words: Sequence[str]) -> Call:
        """Parses these words into a call. Raises UserError, or SystemExit after --help."""
        args = spelt(readable(words))
        if self.recipe is None:
            bound = _bound(self.main)
            check_flags(list(inspect.signature(bound).parameters.values()), args, self.overrides)
            if self.overrides:
                half, rest = read_words(bound, args, return_unknown_args=True)
                return self._begun(functools.partial(half, _pairs(rest)))
            plain: Call = read_words(bound, args)
            return self._begun(plain)
        bound = _bound(self.main, recipe_parameters(EvalSettings, self.recipe))
        check_flags(list(inspect.signature(bound).parameters.values()), args, open_ended=False)
        found: Any = read_words(bound, args)
        typed = {name: found.keywords.pop(name) for name in list(found.keywords) if name in EvalSettings.model_fields}
        fields = given(typed, EvalSettings)
        parse(EvalSettings, {"eps": "0", **fields}, Path(sys.argv[0]).name)  # before PyTorch is loaded
        return self._begun(functools.partial(found, fields))

    def _begun(self, call: Call) -> Call:
        """The call; first says on stderr what is loaded, as nothing else is heard for some seconds, unless --quiet was typed."""
        given: Mapping[str, Any] = getattr(call, "keywords", {})
        if not self.quick(given) and not given.get("quiet") and "torch" not in sys.modules:
            models = given.get("model") or "PyTorch"
            named = models if isinstance(models, str) else " ".join(map(str, models))
            name = Path(sys.argv[0]).name
            printed(f"{name}: loading {for_line(named)} ...", stderr=True)
            if not any(os.environ.get(rank, "0") != "0" for rank in ("RANK", "RKHS_RANK", "SLURM_PROCID")):
                LOADING.begin(name, _aside)
        return call

    def __call__(self) -> None:
        words = sys.argv[1:]
        if words == ["--version"]:
            printed(f"robustbench_rkhs {robustbench_rkhs.__version__}")
            raise SystemExit(0)
        as_json = "--json" in words and not {"-h", "--help"} & set(words)
        warnings.formatwarning = _in_a_line
        with json_alone() if as_json else nullcontext(), terminated_as_interrupted():
            code, error = left(lambda: self.read(words))
            LOADING.end()
            if as_json and error:
                emit({"error": error} | ({"complete": False, "incomplete_because": "interrupted"} if code == INTERRUPTED else {}))
        raise SystemExit(code)


def command(
    main: Callable[..., int | None],
    overrides: bool = False,
    recipe: Mapping[str, str | None] | None = None,
    quick: bool | Callable[[Mapping[str, Any]], bool] = False,
) -> Command:
    """The console script of a function."""
    return Command(main, overrides, recipe, quick if callable(quick) else lambda typed: quick)


def _bound(main: Callable[..., Any], more: Sequence[inspect.Parameter] = ()) -> Callable[..., Callable[..., Any]]:
    """`main`'s signature and more parameters, returning a call, so that tyro's own errors and ours stay apart."""

    parameters = {one.name: one for one in (*inspect.signature(main).parameters.values(), *more)}

    @functools.wraps(main)
    def bind(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        return functools.partial(main, *args, **checked(parameters, kwargs))

    del bind.__wrapped__  # tyro would read the annotations of what is wrapped
    signature = inspect.signature(main)
    kept = [one.replace(kind=one.KEYWORD_ONLY) if more else one for one in signature.parameters.values() if one.name not in PASSED]
    annotations = {key: value for key, value in main.__annotations__.items() if key not in ("return", *PASSED)}
    bind.__annotations__ = annotations | {one.name: one.annotation for one in more}
    bind.__signature__ = signature.replace(parameters=[*kept, *more], return_annotation=Callable)  # type: ignore[attr-defined]
    return bind


def _pairs(rest: list[str]) -> dict[str, str]:
    """`--attack.eps 1.0` and `--attack.eps=1.0` as a mapping."""
    fields, position = {}, 0
    while position < len(rest):
        flag, equals, value = rest[position].partition("=")
        if not flag.startswith("--"):
            flags = "flags such as --epochs 3 or --attack.eps 1.0, and a list as one value: '[16, 16]'"
            raise UserError(f"unexpected argument {rest[position]!r}; expected {flags}")
        if not equals:
            position += 1
            if position == len(rest):
                raise UserError(f"{flag} needs a value")
            value = rest[position]
        fields[flag[2:].replace("-", "_")] = value
        position += 1
    return fields


def _aside(line: str) -> None:
    """Prints a line on stderr that is not what a command is heard by."""
    print(for_terminal(line), file=sys.stderr, flush=True)


def usable_device(name: str) -> str:
    """The device of this name, `auto` resolved. Raises UserError where it cannot be used here."""
    from robustbench_rkhs.runtime.devices import usable

    return usable(name)


def _in_a_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """A warning as printed: UserWarnings of ours as a note, others as usual."""
    return f"note: {for_line(message)}\n" if issubclass(category, SetAside) else _FORMAT(message, category, *where, **more)


def failure(line: str) -> None:
    """Prints a failure after which the command goes on, on stderr."""
    printed(f"failed: {line}", stderr=True)


def note(line: str) -> None:
    """Prints a note on stderr."""
    printed(f"note: {line}", stderr=True)


def typed_command() -> str:
    """The command as typed, for the files that it writes."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
