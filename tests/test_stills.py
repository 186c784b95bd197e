"""Still pictures of charts: the same ones from a process beside the build, and where that process is lost."""

import io

import pytest
from PIL import Image

from robustbench_rkhs.site import stills
from robustbench_rkhs.site.charts import curve_chart
from robustbench_rkhs.site.stills import drawn_beside

SPEC = curve_chart("l2") | {"width": 300, "datasets": {"steps": [{"eps": 0.5, "certified": 0.2, "broken": 0.4}], "points": []}}


@pytest.fixture(scope="module")
def alone():
    return stills.begin_stills(SPEC)()


def test_a_picture_is_an_svg_and_a_png_of_twice_its_size(alone):
    svg, png = alone
    size = Image.open(io.BytesIO(png)).size
    assert svg.startswith(b"<svg") and size[0] > 600


def test_a_process_beside_draws_the_same(alone, monkeypatch):
    with drawn_beside() as begin:
        begin()
        begin()  # the second time nothing
        with monkeypatch.context() as patch:
            patch.setattr(stills, "vl_convert", None)  # this process draws nothing
            assert [stills.begin_stills(SPEC)() for _ in range(2)] == [alone] * 2
        child = stills._beside.get().process
    assert child.returncode == 0 and stills._beside.get() is None


def test_none_is_started_where_nobody_asks():
    with drawn_beside():
        assert stills._beside.get().process is None


@pytest.mark.parametrize("late", [False, True])
def test_where_the_process_is_lost_this_one_draws(alone, late):
    with drawn_beside() as begin:
        begin()
        if late:
            stills.begin_stills(SPEC)()
        stills._beside.get().process.kill()
        assert stills.begin_stills(SPEC)() == alone


def test_a_chart_that_cannot_be_drawn_is_refused_as_ever():
    with drawn_beside() as begin, pytest.raises(ValueError, match=r"^Vega-Lite to SVG conversion failed"):
        begin()
        stills.begin_stills({"mark": "no such mark"})()
