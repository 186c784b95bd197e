"""What there is, read from the source files themselves: nothing is imported, so it is quick."""

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path

import yaml

from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.paths import BESIDE, checkpoints_folder, find_recipe, models_folder

PACKAGE = Path(__file__).parent
KINDS = {
    "attacks": "attacks",
    "certificates": "certificates",
    "penalties": "training/penalties",
    "samplers": "training/samplers",
    "projections": "training/projections.py",
    "networks": "networks",
    "losses": "training/losses",
    "data": "data",
}


@dataclass(frozen=True)
class Card:
    """A recipe node: its name, docstring and fields (name, type and default, meaning)."""

    name: str
    text: str
    fields: tuple[tuple[str, str, str], ...]

    @property
    def first_line(self) -> str:
        return self.text.splitlines()[0]

    def whole(self) -> str:
        lines = [self.name, "", self.text, "", "Fields:"]
        for field, form, meaning in self.fields:
            lines.append(f"  {field}: {form}")
            lines += [f"      {line}" for line in meaning.splitlines()]
        return "\n".join(lines)


def cards(kind: str) -> dict[str, Card]:
    """Every node of a kind by name."""
    source = PACKAGE / KINDS[kind]
    files = sorted(source.rglob("*.py")) if source.is_dir() else [source]
    classes = [node for file in files for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    by_class = {node.name: node for node in classes}
    found = {}
    for node in classes:
        name = _name(node)
        if name:
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            found[name] = Card(name, text, tuple(_fields(node, by_class).values()))
    return dict(sorted(found.items()))


def _name(node: ast.ClassDef) -> str | None:
    """The value of `name: Literal["..."]`."""
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.target.id == "name":
            return str(statement.value.value) if isinstance(statement.value, ast.Constant) else None
    return None


def _fields(node: ast.ClassDef, by_class: dict[str, ast.ClassDef]) -> dict[str, tuple[str, str, str]]:
    """Own and inherited fields: a string below an annotated name documents it."""
    fields: dict[str, tuple[str, str, str]] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in by_class:
            fields |= _fields(by_class[base.id], by_class)
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        field, form = statement.target.id, ast.unparse(statement.annotation)
        if field == "name" or field.startswith("_") or form.startswith("ClassVar"):
            continue
        default = _default(statement.value)
        meaning = fields.get(field, ("", "", ""))[2]
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            meaning = inspect.cleandoc(after.value.value)
        fields[field] = (field, form + default, meaning)
    return fields


def _default(value: ast.expr | None) -> str:
    if value is None:
        return " (required)"
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Field":
        return f" = {ast.unparse(value.args[0])}" if value.args else " (required)"
    return f" = {ast.unparse(value)}"


def models() -> dict[str, str]:
    """Every recipe of models/ and what it says of itself; a star where a checkpoint is at hand."""
    found = {}
    recipes = {path.stem: path for folder in (BESIDE / "models", models_folder()) for path in sorted(folder.glob("*.yaml"))}
    trained = {path.parent.name for at in (BESIDE / "checkpoints", checkpoints_folder()) for path in at.glob("*/model.safetensors")}
    for name, path in sorted(recipes.items()):
        stored = yaml.safe_load(path.read_text())
        about = stored.get("about", "") if isinstance(stored, dict) else ""
        found[name] = f"{'*' if name in trained else ' '} {about}"
    return found


def listing(kind: str, name: str | None = None) -> str:
    """The text rkhs-list prints. Raises UserError with a suggestion where the name is unknown."""
    if name is None:
        kinds = ["models", *KINDS] if kind == "all" else [kind]
        return "\n\n".join(_overview(one) for one in kinds) + "\n"
    if kind == "all":
        raise UserError("a name needs its kind before it, as in: rkhs-list attacks pgd")
    if kind == "models":
        return find_recipe(name).read_text()
    known = cards(kind)
    if name not in known:
        raise UserError(f"no {name!r} among the {kind}; {did_you_mean(name, known, listing=f'rkhs-list {kind}')}")
    return known[name].whole()


def _overview(kind: str) -> str:
    rows = models() if kind == "models" else {name: card.first_line for name, card in cards(kind).items()}
    width = max((len(name) for name in rows), default=0)
    head = "models (* trained, ready for rkhs-eval)" if kind == "models" else kind
    return "\n".join([head, *(f"  {name:{width}}  {text}" for name, text in rows.items())])
