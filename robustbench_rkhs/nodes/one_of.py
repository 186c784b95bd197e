"""Union field of a recipe: a built-in method by `name`, an instance of the public base class, or a user's class by code name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args

from pydantic import Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from robustbench_rkhs.nodes.code_names import CLOSED, Code, announced, code_name, is_code_name, is_ours, load, split
from robustbench_rkhs.nodes.node import Node, UserError, did_you_mean
from robustbench_rkhs.nodes.parsing import explain, with_fields

LISTED = ("attacks", "certificates", "data", "losses", "networks", "penalties", "samplers")
"""Kinds that `rkhs-list KIND` lists."""
Adapt = Callable[[Any, str, dict[str, Any]], Node | None]
"""Wraps an object that is not a node (with its code name and fields, if given by name) in a node, or returns None."""


def nothing(found: Any, name: str, fields: dict[str, Any]) -> None:
    """The default adapter: accepts only nodes."""


@dataclass(frozen=True)
class OneOf:
    """Annotation of a union of nodes, `Annotated[Ours | Another | Base, OneOf(Base, "attacks")]`: built-in and user-defined.

    Accepts a mapping or the text `name:field=value,...` of a built-in method; an instance of the base class; and, if code may be
    imported, a mapping whose `name` is `package.module:Name` or `file.py:Name`, the same as text with `:field=value,...`, or a
    name that an installed package registers at the entry point `robustbench_rkhs.KIND`. A user-defined node is serialised under
    its code name. The validation context `{"code": Code}` says what may be imported; without it, nothing.
    """

    base: type[Node]
    """The public base class, a member of the union itself."""
    kind: str
    """Plural name of the kind: the last part of the entry point's group."""
    adapt: Adapt = nothing
    """Adapter for objects that are not of the base class: a function, another library's object."""

    @property
    def listing(self) -> str:
        """The command that lists all names of this kind; empty if there is none."""
        return f"rkhs-list {self.kind}" if self.kind in LISTED else ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        members = {_name(one): one for one in get_args(source) if one is not self.base}
        ours = handler.generate_schema(Annotated[Union[tuple(members.values())], Field(discriminator="name")])  # noqa: UP007

        def validate(value: Any, handler: Callable[[Any], Any], info: Any) -> Any:
            code = (info.context or {}).get("code", CLOSED)
            try:
                found = self._own(value, members, code)
            except UserError as error:
                raise ValueError(str(error)) from None
            return handler(_mapping(value, members)) if found is None else found

        def serialize(value: Any, handler: Callable[[Any], Any], info: Any) -> Any:
            return handler(value) if type(value) in members.values() else written(value, info)

        written_so = core_schema.wrap_serializer_function_ser_schema(serialize, info_arg=True, schema=ours)
        return core_schema.with_info_wrap_validator_function(validate, ours, serialization=written_so)

    def _own(self, value: Any, members: Mapping[str, type[Node]], code: Code) -> Node | None:
        """The node if it is user-defined or already an instance; None if it is a built-in given by name. Raises UserError."""
        if isinstance(value, type):
            raise UserError(f"expected an instance, found the class {value.__name__}: write {value.__name__}(...)")
        if isinstance(value, self.base):
            return self._fitting(value, members)
        stored = _mapping(value, members)
        if not isinstance(stored, dict):
            found = self.adapt(value, "", {})
            if found is None and not isinstance(value, Node):
                raise UserError(f"expected {self._expected()}, found {type(value).__name__}")
            return found
        name = stored.get("name")
        if not isinstance(name, str) or name in members:
            return None
        if not is_code_name(name):
            points = announced(self.kind)
            if name not in points:
                known = did_you_mean(name, [*members, *points], listing=self.listing)
                raise UserError(f"unknown name {name!r}; {known}; or your own as package.module:Name")
            name = points[name]
        return self._fitting(self._built(load(name, code), name, stored, code), members)

    def _built(self, found: Any, name: str, stored: dict[str, Any], code: Code) -> Node:
        """The node of a loaded class with these fields, or what `adapt` makes of anything else."""
        fields = {key: value for key, value in stored.items() if key != "name"}
        if isinstance(found, type) and issubclass(found, self.base) and found is not self.base:
            try:
                return found.model_validate(fields, context={"code": code})
            except ValidationError as error:
                raise UserError(f"{name}: {explain(error).removeprefix('recipe: ')}") from None
        if isinstance(found, self.base) and not fields:
            return found
        adapted = self.adapt(found, name, fields)
        if adapted is None:
            what = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
            raise UserError(f"{name} is {what}, expected {self._expected()}")
        return adapted

    def _fitting(self, node: Node, members: Mapping[str, type[Node]]) -> Node:
        if type(node) is self.base:
            raise UserError(f"{self.base.__name__} is what {self.kind} are made from, not one of them; make a subclass of it")
        name = getattr(node, "name", None)
        if not is_ours(type(node)) and name in members:
            raise UserError(f"{code_name(type(node))} calls itself {name!r}, which is one of ours: give it another name")
        return node

    def _expected(self) -> str:
        room = ".".join(self.base.__module__.split(".")[:-1])
        return f"one of the {self.kind} by name, or a subclass of {room}.{self.base.__name__}"


def _mapping(value: Any, members: Mapping[str, type[Node]]) -> Any:
    """A mapping of fields, from text or a mapping whose name carries fields; anything else unchanged."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
        return value
    if name.partition(":")[0] not in members and is_code_name(name):
        module, path, rest = split(name)
        name = f"{module}:{path}"
    else:
        name, _, rest = name.partition(":")
    return with_fields({**value, "name": name}, rest, name) if rest or name != value["name"] else value


def written(node: Any, info: Any) -> dict[str, Any]:
    """A user-defined node as a mapping under its code name; a node with a `written` method defines its own mapping."""
    if hasattr(node, "written"):
        return dict(node.written())
    left_out = {"exclude_unset": info.exclude_unset, "exclude_defaults": info.exclude_defaults, "exclude_none": info.exclude_none}
    stored: dict[str, Any] = node.model_dump(mode=info.mode, exclude={"name"}, **left_out)
    return {"name": code_name(type(node))} | stored


def names_of(union: Any) -> dict[str, type[Node]]:
    """The built-in members of an annotated union by name, in order."""
    return {_name(one): one for one in get_args(get_args(union)[0]) if "name" in one.model_fields}


def _name(member: Any) -> str:
    return str(member.model_fields["name"].default)
