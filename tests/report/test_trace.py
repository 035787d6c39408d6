"""The charts of NormSim_2-D's steps."""

import pytest

from clipdata_jax.report import trace


def steps(count):
    return [
        trace.TraceStep(i, 1000 - i, None if i == 0 else 0.1 + i / 1000, (0.2 + i / 1000, 0.1)) for i in range(count)
    ]


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (2, 2), (10, 9), (501, 9)])
def test_charts_show_first_and_last_step_and_some_between(count, shown):
    for title, drawing in trace.charts(steps(count)):
        labels = [label for _, label, _ in drawing.x_ticks]
        assert (len(labels), labels[0], labels[-1]) == (shown, "0", str(count - 1)), title


def test_values_are_where_they_belong():
    (_, rows), (_, threshold), (_, eigenvalues) = trace.charts(steps(3))
    assert [line.kind for line in eigenvalues.lines] == ["main", "other"]
    assert [shown for _, _, shown in threshold.lines[0].dots] == ["0.1010", "0.1020"]  # none at the start
    heights = [y for _, y, _ in rows.lines[0].dots]
    assert heights == sorted(heights)
    assert len(set(heights)) > 1
