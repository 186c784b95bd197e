"""Curves of accuracy over eps are the counts of images at every eps; eps is printed as it was typed; colours differ."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from test_report import EPSILONS, synthetic

from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.radius_text import TypedRadius, radius_file_word, radius_text
from robustbench_rkhs.reports import draw_curve, report, write_tables
from robustbench_rkhs.reports.natural_order import natural
from robustbench_rkhs.verdicts import accuracy_steps, read, states, write
from robustbench_rkhs.verdicts.axes import CERTIFIED, EMPIRICAL, MARKERS, PALETTE
from robustbench_rkhs.verdicts.store import Evaluation


def counted(done, eps):
    """The shares certified and not broken at eps, from the states of the images."""
    state = states(done, eps)["state"]
    return (state == "certified").mean(), state.isin(["certified", "survived", "untested"]).mean()


def told(done, **fields):
    return Evaluation(done.table, done.about.but(**fields))


@pytest.mark.parametrize("minimal", [True, False])
def test_both_sides_are_the_counts_of_images_at_every_eps(minimal):
    done = told(synthetic("m", images=40, minimal=minimal), curve=True)
    steps, random = accuracy_steps(done), np.random.default_rng(0)
    radii = done.table["radius"][np.isfinite(done.table["radius"])].to_numpy()
    radii = radii[(radii > 0) & (radii <= 1)]
    for eps in [0.0, *EPSILONS, *random.uniform(0, 1, 20), *radii, *np.nextafter(radii, 0), *np.nextafter(radii, 1)]:
        certified, left = counted(done, float(eps))
        assert steps.certified.at([eps])[0] == pytest.approx(certified if eps else steps.points[0]["clean"])
        assert steps.empirical.at([eps])[0] == pytest.approx(left)
    assert [row["eps"] for row in steps.tested] == [0, *EPSILONS]
    assert all(steps.empirical.at([row["eps"]])[0] == pytest.approx(row["robust"]) for row in steps.tested)
    assert np.isnan(steps.empirical.at([1.01])[0])


def test_radii_that_stop_at_requested_eps_make_steps_there_alone():
    done = told(synthetic("m"), curve=False)
    steps = accuracy_steps(done)
    assert not steps.full and len(steps.certified.eps) == 1 + len(EPSILONS)
    for low, eps in zip([0.0, *EPSILONS], EPSILONS, strict=False):
        inside = np.linspace(low, eps, 9)[1:]
        assert steps.certified.at(inside) == pytest.approx([counted(done, eps)[0]] * 8)
        assert all(share <= counted(done, float(where))[0] for where, share in zip(inside, steps.certified.at(inside), strict=True))


def test_older_tables_are_read_by_what_their_certificates_were_told():
    done = synthetic("m")
    assert accuracy_steps(told(done, settings={"certificates": [{"name": "margin"}]})).full
    assert not accuracy_steps(told(done, settings={"certificates": [{"name": "margin", "search": False}]})).full
    unused = {"certificates": [{"name": "margin"}, {"name": "crown", "search": False}]}
    assert accuracy_steps(told(done, settings=unused)).full  # crown proved nothing


def test_certified_is_solid_and_empirical_dashed_in_the_models_colour(tmp_path, monkeypatch):
    seen, plain = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **options: (seen.append((a, options)), plain(self, *a, **options))[1])
    models = [told(synthetic(name, seed=seed, minimal=True), curve=True) for seed, name in enumerate(("a", "b"))]
    draw_curve(models, tmp_path / "x")
    for model, colour in zip(models, PALETTE, strict=False):
        own = {str(options["ls"]): a for a, options in seen if options.get("color") == colour and "ls" in options}
        steps = accuracy_steps(model)
        assert np.allclose(own[CERTIFIED], steps.certified.corners()) and np.allclose(
            own[str(EMPIRICAL)], steps.empirical.corners()
        )


def test_twelve_colours_differ_and_more_models_get_a_panel_each(tmp_path, monkeypatch):
    def lab(colour):
        linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)])
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
        f = np.cbrt(xyz / [0.9505, 1, 1.089])
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    assert len(set(PALETTE)) == len(set(MARKERS)) == 12
    assert min(np.linalg.norm(lab(a) - lab(b)) for a, b in combinations(PALETTE, 2)) > 25  # CIE76; 2.3 is just noticeable
    titles, plain = [], Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **o: (titles.append(text), plain(self, text, **o))[1])
    draw_curve([synthetic(f"w{k}", images=8, seed=k) for k in (10, 2, *range(11, 22), 1)], tmp_path / "x")
    assert titles == ["w1", "w2", *(f"w{k}" for k in range(10, 22))]
    assert sorted(["eps 0.5", "eps 8/255", "eps 36/255"], key=natural) == ["eps 8/255", "eps 36/255", "eps 0.5"]


def test_every_figure_carries_its_origin(tmp_path):
    done = synthetic("m", images=30)
    for path in report([done], tmp_path)["curves"]:
        if path.suffix == ".svg":
            assert 'id="small-print"' in path.read_text()
    from robustbench_rkhs.reports.figures import sources
    from robustbench_rkhs.verdicts import digest

    lines = " ".join(sources([done]))
    for word in ("rkhs-eval --model m | tee log", "2026-01-01", digest(done.table)[:12], "30 images", "attacks pgd"):
        assert word in lines
    shared = [told(synthetic(name), command="rkhs-eval --model a b") for name in "ab"]
    assert sources(shared)[0] == "rkhs-eval --model a b" and len(sources(shared)) == 2
    apart = [told(synthetic(name), command=f"rkhs-eval --model {name}") for name in "ab"]
    assert sources(apart)[0] == "rkhs-eval --model NAME"


def test_eps_is_printed_as_it_was_typed_also_from_the_file(tmp_path):
    from robustbench_rkhs.evaluation.recipe import EvalRecipe

    recipe = parse(EvalRecipe, {"eps": ("8/255", "0.50", 0.25)}, "test")
    assert [radius_text(eps) for eps in recipe.eps] == ["8/255", "0.50", "0.25"] and recipe.eps == (8 / 255, 0.5, 0.25)
    assert recipe.model_dump(mode="json")["eps"] == [8 / 255, 0.5, 0.25]
    assert [radius_text(eps) for eps in (36 / 255, 0.1, 1.0, 0.0, 0.2)] == ["36/255", "0.1", "1", "0", "0.2"]
    assert radius_text(TypedRadius(0.2, "51/255")) == "51/255" and radius_file_word("8/255") == "8of255"
    done = synthetic("m", minimal=True)
    typed = told(done, epsilons=(8 / 255, 0.2, 0.5), eps_text=("8/255", "51/255", "0.50"))
    typed = read(write(typed, tmp_path / "x.parquet"))
    csv, md, tex = write_tables([typed], tmp_path / "t")
    for text in ("8/255", "51/255", "0.50"):
        assert all(text in path.read_text() for path in (csv, md, tex))
    assert "0.03137" not in md.read_text()
    assert repr(typed).count("eps 8/255, 51/255, 0.50") == 1
    found = {path.stem for path in report([typed, told(typed, model="n")], tmp_path / "r")["tradeoff"]}
    assert found == {f"all-digits-l2-eps{word}" for word in ("8of255", "51of255", "0.50")}
