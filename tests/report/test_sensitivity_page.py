"""The page of `clipdata sensitivity` and its line charts: right places, nothing of a stranger's taken as HTML."""

from __future__ import annotations

import dataclasses
import math

from clipdata_jax.report import lines, sensitivity_page
from clipdata_jax.report.sensitivity_page import Axis, Page, Row


def test_lines_run_between_their_ticks_and_leave_out_what_is_not_there():
    drawing = lines.draw(
        ["1", "2", "4"],
        1,
        {"a": [0.0, 0.04, 0.02], "b": [math.nan, 0.01, 0.01]},
        show=str,
        from_zero=True,
        least_span=0.005,
    )
    a, b = drawing.lines
    xs, ys = zip(*((x, y) for x, y, _ in a.dots), strict=True)
    assert xs == tuple(sorted(xs)) and ys[1] < ys[2] < ys[0]  # upwards is less in SVG
    assert len(b.dots) == 2 and b.path.count("L") == 1 and "nan" not in b.path
    assert [label for _, label, _ in drawing.x_ticks] == ["1", "2", "4"]
    assert [is_base for _, _, is_base in drawing.x_ticks] == [False, True, False]
    assert all(0 < y < lines.HEIGHT for y, _ in drawing.y_ticks) and len(drawing.y_ticks) >= 3


def test_a_single_setting_and_small_differences_are_drawn_as_such():
    alone = lines.draw(["1"], 0, {"a": [0.5]}, show=str, from_zero=False, least_span=0.02)
    assert len(alone.lines[0].dots) == 1 and 0 < alone.lines[0].dots[0][0] < lines.WIDTH
    flat = lines.draw(["1", "2"], 0, {"a": [0.5, 0.5001]}, show=str, from_zero=False, least_span=0.02)
    (_, first, _), (_, second, _) = flat.lines[0].dots
    assert abs(first - second) < 2


def test_labels_of_an_axis_end_where_their_digits_do():
    drawn = lines.draw(["1", "2"], 0, {"a": [0, 0.21]}, show="{:.4f}".format, from_zero=True, least_span=0.1)
    assert [label for _, label in drawn.y_ticks] == ["0.0", "0.1", "0.2"]
    whole = lines.draw(["1", "2"], 0, {"a": [0, 30]}, show="{:.1f}".format, from_zero=True, least_span=1)
    assert [label for _, label in whole.y_ticks] == ["0", "10", "20", "30"]
    nothing = lines.draw(["1"], 0, {"a": [math.nan]}, show=str, from_zero=False, least_span=0.02)
    assert nothing.lines[0].path == ""


def test_the_page_shows_every_setting_and_escapes_names():
    rows = [Row("1", False, 0.9, 0.8, 0.03, 0.02), Row("4", True, math.nan, 0.81, 0.004, 0.004)]
    told = Page(
        pool="<script>alert(1)</script>\u202e",
        advice="m = 4 is enough here.",
        base="m = 4",
        finest="m = 8",
        fraction=0.3,
        sampled=100,
        pairs=12_000,
        axes=[Axis("m", "--group", "What it means & costs.", rows)],
        notes=["<b>note</b>"],
        facts=[("seed", "0")],
    )
    html = sensitivity_page.render(told)
    assert "<script" not in html and "<b>note" not in html and "\u202e" not in html
    assert "&lt;script&gt;" in html and "What it means &amp; costs." in html and "12,000" in html
    assert html.count('<tr><th scope="row">1</th>') == 1
    assert html.count('<tr class="base"><th scope="row">4</th>') == 1
    assert "0.4\u202f%" in html and ">nan<" not in html and "<td>–</td>" in html
    assert html == sensitivity_page.render(dataclasses.replace(told))
