"""Names of code: what they stand for, whose are imported, and what is said where they are not."""

import sys
from typing import Annotated, Literal

import pytest

from robustbench_rkhs.nodes.code_names import CLOSED, TYPED, Code, allowed, announced, is_code_name
from robustbench_rkhs.nodes.node import Node, UserError
from robustbench_rkhs.nodes.one_of import OneOf, names_of
from robustbench_rkhs.nodes.parsing import parse


class Shape(Node):
    """What shapes are made from."""


class Square(Shape):
    name: Literal["square"] = "square"
    side: float = 1.0


class Disc(Shape):
    name: Literal["disc"] = "disc"
    radius: float = 1.0


AnyShape = Annotated[Square | Disc | Shape, OneOf(Shape, "shapes")]


class Scene(Node):
    shapes: tuple[AnyShape, ...] = ()


class Own(Shape):
    sides: int = 3


class Taken(Shape):
    name: Literal["square"] = "square"


def scene(*shapes, code=TYPED):
    return parse(Scene, {"shapes": shapes}, "here", code)


OWN = f"{__name__}:Own"
THE_SAME = [
    ({"name": "square", "side": 2}, Square(side=2)),
    ("square:side=2", Square(side=2)),
    ({"name": "disc"}, Disc()),
    (Own(sides=5), Own(sides=5)),
    ({"name": OWN, "sides": 5}, Own(sides=5)),
    (f"{OWN}:sides=5", Own(sides=5)),
    ({"name": f"{OWN}:sides=5"}, Own(sides=5)),
    (OWN, Own()),
]


@pytest.mark.parametrize("given, meant", THE_SAME)
def test_every_way_to_name_a_method_gives_that_method_and_what_is_written_is_read_again(given, meant):
    found = scene(given)
    assert found.shapes == (meant,) and type(found.shapes[0]) is type(meant)
    assert scene(*found.model_dump(mode="json")["shapes"]) == found
    assert names_of(AnyShape) == {"square": Square, "disc": Disc}


REFUSED = [
    ("sqare", "did you mean 'square'.*package.module:Name"),
    (Own, "expected an instance, found the class Own"),
    (Shape(), "Shape is what shapes are made from"),
    (Taken(), "calls itself 'square', which is one of ours"),
    (f"{__name__}:Shape", "expected one of the shapes"),
    (f"{OWN}:side=5", "unknown key 'side' of Own; did you mean 'sides'"),
    (f"{OWN}:sides=many", "sides: expected a whole number, found 'many'"),
    (f"{__name__}:Onw", "did you mean 'Own'"),
    (f"{__name__}:scene", "of type function, expected one of the shapes"),
    ("square:side", "expected field=value, found 'side'"),
    ("nowhere.at_all:Own", "cannot import 'nowhere.at_all': ModuleNotFoundError"),
    ("nowhere.py:Own", "no Python file 'nowhere.py'"),
    (7, "expected one of the shapes by name, or a subclass"),
    (object(), "found object"),
]


@pytest.mark.parametrize("given, said", REFUSED)
def test_what_is_no_method_is_refused_in_one_line(given, said):
    with pytest.raises(UserError, match=said) as refusal:
        scene(given)
    assert str(refusal.value).startswith("here: shapes.0") and "\n" not in str(refusal.value)


BROKEN = {
    "raises": ("def f():\n    return 1 / 0\n\nf()", r"ZeroDivisionError: division by zero \(raises.py, line 2\)"),
    "syntax": ("x = = 1", r"SyntaxError: invalid syntax \(syntax.py, line 1\)"),
    "needs": ("import not_installed_at_all", r"No module named 'not_installed_at_all' \(needs.py, line 1\)"),
    "leaves": ("raise SystemExit(3)", "SystemExit: 3"),
    "lines": ("raise RuntimeError('\\n\\n  first words\\nsecond')", "RuntimeError: first words"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("form", ["{}", "{}.py"])
def test_an_import_that_fails_is_one_line_with_its_cause_and_place(name, form, tmp_path, monkeypatch):
    source, said = BROKEN[name]
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=said) as refusal:
        scene(f"{form.format(name)}:Own")
    assert "\n" not in str(refusal.value) and form.format(name) not in sys.modules


def test_a_file_is_code_too_and_is_written_under_its_path(tmp_path):
    file = tmp_path / "of_a_user.py"
    file.write_text(f"from {__name__} import Own\n\nclass Mine(Own):\n    colour: str = 'red'\n")
    found = scene(f"{file}:Mine:sides=4,colour=blue")
    assert found.model_dump(mode="json")["shapes"] == [{"name": f"{file}:Mine", "sides": 4, "colour": "blue"}]
    assert scene(*found.model_dump(mode="json")["shapes"]) == found


def test_nothing_is_imported_where_nobody_said_so(tmp_path, monkeypatch):
    (tmp_path / "canary_of_names.py").write_text("import pathlib\npathlib.Path('sung').write_text('')\nclass Boom: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("canary_of_names:Boom", f"{tmp_path}/canary_of_names.py:Boom"):
        for given in (name, {"name": name}, {"name": f"{name}:a=1"}):
            with pytest.raises(UserError, match="names code, which is only imported from"):
                scene(given, code=CLOSED)
            with pytest.raises(ValueError, match="names code, which is only imported from"):
                Scene.model_validate({"shapes": [given]})
    assert not (tmp_path / "sung").exists()
    with pytest.raises(UserError, match="expected one of the shapes"):
        scene("canary_of_names:Boom", code=allowed(["canary_of_names"]))
    assert (tmp_path / "sung").exists()  # the canary sings where it is let out: the assertion above can fail


def test_a_prefix_opens_what_lies_below_it_and_nothing_else(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    opened = allowed(["mine", "other.attacks", str(folder)])
    assert all(map(opened.allows, ["mine", "mine.a.b", "other.attacks", "other.attacks.x", f"{folder}/a.py", f"{folder}/b/c.py"]))
    shut = ["min", "miner", "other", "other.attack", "os", f"{tmp_path}/a.py", f"{folder}/../a.py", f"{folder}2/a.py", "mine.py"]
    assert not any(map(opened.allows, shut)) and not any(map(CLOSED.allows, shut)) and all(map(TYPED.allows, shut))
    for wrong in ("", ".", "..", "a b", "mine.", "nowhere/"):
        with pytest.raises(UserError, match="--allow-code"):
            allowed([wrong])


def test_a_name_of_code_is_told_from_fields():
    assert all(map(is_code_name, ["a.b:C", "a:b", "a.b:C:x=1", "a/b.py:C", "x.py:C:y=2", "a:B.C"]))
    assert not any(map(is_code_name, ["pgd", "pgd:steps=3", "pgd:", "a-b:C", "1a:B", ":C", "a:"]))


def package(folder, name, points):
    """An installed package of this name, which announces shapes."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[robustbench_rkhs.shapes]\n" + "".join(f"{key} = {value}\n" for key, value in points))


def test_an_installed_package_announces_its_own_by_entry_point(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package(tmp_path, "theirs", [("own", OWN), ("square", OWN), ("lost", "nowhere_at_all:Own")])
    assert announced("shapes") == {"own": OWN, "square": OWN, "lost": "nowhere_at_all:Own"}
    assert scene("own:sides=4", {"name": "own"}, "square").shapes == (Own(sides=4), Own(), Square())  # ours stay ours
    assert scene("own").model_dump(mode="json")["shapes"][0]["name"] == OWN  # written as what it is
    with pytest.raises(UserError, match="cannot import 'nowhere_at_all'"):
        scene("lost")
    with pytest.raises(UserError, match="names code"):
        scene("own", code=CLOSED)
    assert scene("own", code=Code((__name__,))).shapes == (Own(),)
    package(tmp_path, "others", [("own", "another:Own")])
    with pytest.raises(UserError, match="announced twice"):
        scene("own")
