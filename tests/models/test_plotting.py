import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from models.plotting import Axis, Bars, Line, Ranges, draw_chart

SVG = "{http://www.w3.org/2000/svg}"
X = Axis("share", 0, 1)


def texts(svg: str) -> set[str]:
    return {"".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter(f"{SVG}text")}


def places(svg: str, colour: str) -> list[tuple[float, float]]:
    """Return the markers of a colour: their positions in the document."""
    used = ElementTree.fromstring(svg).iter(f"{SVG}use")
    return [(float(each.attrib["x"]), float(each.attrib["y"])) for each in used if colour in each.get("style", "")]


def test_line_places_its_points_in_proportion() -> None:
    line = Line("one", [(0, 0), (0.5, 1), (1, 2)], "a note", [(0, 0.5), (1, 1.5), (1, 2)])
    svg = draw_chart("A & B", X, Axis("time", 0, 2), [line], diagonal=True)
    (left, low), (middle, centre), (right, high), *_ = places(svg, "#2563eb")
    assert left < middle < right and low > centre > high
    assert middle - left == pytest.approx(right - middle) and low - centre == pytest.approx(centre - high)
    assert {"A & B", "one (a note)", "share", "time"} <= texts(svg)


def test_bars_of_a_group_share_a_colour() -> None:
    svg = draw_chart("T", Axis("block", names=["a", "", "c"]), Axis("rate"), [Bars("", [1, -1, 0.5], groups=[0, 0, 1])])
    assert svg.count("fill: #2563eb") == 2 and svg.count("fill: #d97706") == 1
    assert {"a", "c"} <= texts(svg)


def test_each_range_has_a_row() -> None:
    rows = [(0, 0.25, 0.5, 0.75, 1), (0.2, 0.2, 0.2, 0.2, 0.2), (0, 0, 0, 0, 1)]
    svg = draw_chart("T", X, Axis("", names=["a", "b", "c"]), [Ranges("all", rows)])
    (first, bottom), (second, middle), (third, top), *_ = places(svg, "#2563eb")
    assert first > second > third and bottom > middle > top


def test_percent_and_a_right_axis() -> None:
    lines = [Line("left", [(0, 0.5)]), Line("right", [(0, 1)], right=True)]
    svg = draw_chart("T", X, Axis("share", 0, 1, percent=True), lines, right=Axis("accuracy", 0, 4))
    assert {"100%", "4.0", "accuracy"} <= texts(svg)


@pytest.mark.parametrize("title", ["<script>", 'a "quoted" & b', "costs $1 and $2"])
def test_text_is_not_markup(title: str) -> None:
    svg = draw_chart(title, X, X, [Line(title, [(0, 0)], title)])
    assert title in texts(svg) and "<script>" not in svg


def test_chart_is_small_and_has_no_external_links() -> None:
    svg = draw_chart("T", X, X, [Line("a", [(i / 100, i / 100) for i in range(100)])])
    assert len(svg) < 30_000
    assert not re.findall(r'(?:href|src)="(?!#)', svg)


def test_same_data_give_the_same_bytes_in_another_process() -> None:
    code = (
        "from models.plotting import *; import sys;"
        "sys.stdout.write(draw_chart('T', Axis('x'), Axis('y'), [Line('a', [(0, 1), (1, 2)])]))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0].decode() == draw_chart("T", Axis("x"), Axis("y"), [Line("a", [(0, 1), (1, 2)])])
