import re
import xml.etree.ElementTree as ElementTree

import pytest

from models.plotting import Axis, Columns, Line, Ranges, draw_chart

SVG = "{http://www.w3.org/2000/svg}"
X = Axis.of_numbers("share", 0, 1, 0.25)


def texts(picture: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in picture.iter(f"{SVG}text")]


def test_a_line_goes_through_its_points_and_up_the_page() -> None:
    line = Line("one", [(0, 0), (0.5, 1), (1, 2)], "a note", [(0, 0.5)] * 3)
    picture = ElementTree.fromstring(draw_chart("A & B", X, Axis.of_numbers("time", 0, 2, 1), [line], diagonal=True))
    [drawn] = picture.iter(f"{SVG}polyline")
    places = [tuple(map(float, pair.split(","))) for pair in drawn.attrib["points"].split()]
    assert places[0] == (64, 324) and places[2] == (464, 44) and places[1] == (264, 184)
    assert {"A & B", "one a note", "share", "time", "0.25", "2"} <= set(texts(picture))
    [guide] = [path.attrib["d"] for path in picture.iter(f"{SVG}path") if path.get("class") == "guide"]
    assert guide == "M64 324L464 184"


def test_columns_stand_on_zero_in_the_colours_of_their_groups() -> None:
    names = Axis.of_names("block", ["a", "", "c"])
    drawn = draw_chart("T", names, Axis.of_numbers("rate", -1, 1, 1), [Columns("", [1, -1, 0.5], groups=[0, 0, 1])])
    rows = [row.attrib for row in ElementTree.fromstring(drawn).iter(f"{SVG}rect") if "fill" in row.attrib]
    assert [(float(row["y"]), float(row["height"])) for row in rows] == [(44, 140), (184, 140), (114, 70)]
    assert rows[0]["fill"] == rows[1]["fill"] != rows[2]["fill"]
    assert texts(ElementTree.fromstring(drawn)).count("") == 0


def test_ranges_take_a_row_each() -> None:
    rows = [(0, 0.25, 0.5, 0.75, 1), (0.2, 0.2, 0.2, 0.2, 0.2), (0, 0, 0, 0, 1)]
    drawn = ElementTree.fromstring(draw_chart("T", X, Axis.of_names("", ["a", "b", "c"]), [Ranges("all", rows)]))
    dots = [dot.attrib for dot in drawn.iter(f"{SVG}circle") if dot.get("r") == "5"][:3]
    assert [float(dot["cx"]) for dot in dots] == [290, 185.6, 116]
    assert [float(dot["cy"]) for dot in dots] == [99, 77, 55]


@pytest.mark.parametrize("title", ["<script>", 'a "quoted" & b'])
def test_text_is_text(title: str) -> None:
    drawn = draw_chart(title, X, X, [Line(title, [(0, 0)], title)])
    assert ElementTree.fromstring(drawn).attrib["aria-label"] == title
    assert "<script>" not in drawn


def test_nothing_is_loaded_from_elsewhere() -> None:
    drawn = draw_chart("T", X, X, [Line("a", [(0, 0)])])
    assert re.findall(r"https?://[^\"]+", drawn) == ["http://www.w3.org/2000/svg"]


def test_ticks_are_the_multiples_between_the_ends() -> None:
    assert Axis.of_numbers("x", 0.3, 1.1, 0.25, ".2f").ticks == ((0.5, "0.50"), (0.75, "0.75"), (1.0, "1.00"))
