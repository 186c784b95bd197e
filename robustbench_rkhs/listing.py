"""What there is, ours and what installed packages announce, read from the source files: nothing is imported, so it is quick."""

import ast
import inspect
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from robustbench_rkhs.nodes.documents import read_text, yaml_of
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.paths import BESIDE, checkpoints_folder, find_recipe, models_folder

PACKAGE = Path(__file__).parent
GROUP = PACKAGE.name
"""Packages announce their methods by the entry points `robustbench_rkhs.KIND`."""
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
    origin: str = ""
    """The package that announces it, and the code it stands for; empty for one of ours."""

    @property
    def first_line(self) -> str:
        first = next(iter(self.text.splitlines()), "")
        return f"{first} [{self.origin}]".strip() if self.origin else first

    def whole(self) -> str:
        lines = [self.name, *([f"[{self.origin}]"] if self.origin else []), "", self.text, "", "Fields:"]
        for field, form, meaning in self.fields:
            lines.append(f"  {field}: {form}")
            lines += [f"      {line}" for line in meaning.splitlines()]
        return "\n".join(lines)


def cards(kind: str) -> dict[str, Card]:
    """Every node of ours of a kind by name."""
    by_class = _classes(kind)
    named = [(name, node) for node in by_class.values() if (name := _name(node))]
    return {name: _card(name, node, by_class) for name, node in sorted(named, key=lambda one: one[0])}


def announced_cards(kind: str) -> dict[str, Card]:
    """Every method of a kind that an installed package announces by entry point; no more than its origin without its source."""
    found = {}
    for point in sorted(entry_points(group=f"{GROUP}.{kind}"), key=lambda point: point.name):
        package = point.dist.name if point.dist else point.module.partition(".")[0]
        theirs = _in_file(_source(point))
        origin = f"from package {package}: {point.value}"
        node = theirs.get(point.attr)
        found[point.name] = _card(point.name, node, _classes(kind) | theirs, origin) if node else Card(point.name, "", (), origin)
    return found


def known_cards(kind: str) -> dict[str, Card]:
    """Ours, then what packages announce under another name: one of ours is never displaced."""
    ours = cards(kind)
    return ours | {name: card for name, card in announced_cards(kind).items() if name not in ours}


def _source(point: EntryPoint) -> Path | None:
    """The file of an announced method, where its package was installed as files."""
    if point.dist is None:
        return None
    module = Path(str(point.dist.locate_file(point.module.replace(".", "/"))))
    return next((path for path in (module.with_suffix(".py"), module / "__init__.py") if path.is_file()), None)


def _classes(kind: str) -> dict[str, ast.ClassDef]:
    """Classes of a kind's files, by name."""
    source = PACKAGE / KINDS[kind]
    files = sorted(source.rglob("*.py")) if source.is_dir() else [source]
    return {name: node for file in files for name, node in _in_file(file).items()}


def _in_file(path: Path | None) -> dict[str, ast.ClassDef]:
    try:
        tree = ast.parse(path.read_text()) if path else ast.Module([], [])
    except (OSError, SyntaxError, ValueError):  # a package of anybody's
        return {}
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _card(name: str, node: ast.ClassDef, by_class: dict[str, ast.ClassDef], origin: str = "") -> Card:
    return Card(name, inspect.cleandoc(ast.get_docstring(node) or ""), tuple(_fields(node, by_class).values()), origin)


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
            fields |= _fields(by_class[base.id], {name: one for name, one in by_class.items() if name != base.id})
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
        try:
            stored = yaml_of(read_text(path), str(path))
        except UserError as error:
            stored = {"about": f"cannot be read: {error}"}
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
    known = known_cards(kind)
    if name not in known:
        raise UserError(f"no {name!r} among the {kind}; {did_you_mean(name, known, listing=f'rkhs-list {kind}')}")
    return known[name].whole()


def _overview(kind: str) -> str:
    rows = models() if kind == "models" else {name: card.first_line for name, card in known_cards(kind).items()}
    width = max((len(name) for name in rows), default=0)
    head = "models (* trained, ready for rkhs-eval)" if kind == "models" else kind
    return "\n".join([head, *(f"  {name:{width}}  {text}" for name, text in rows.items())])
