"""The charts of a run's throughput."""

import pytest

from clipdata_jax.report import throughput
from clipdata_jax.runs.records import UnitTimes


def units(count):
    return [
        UnitTimes(
            time=1000 + 20.0 * i,
            rows=100,
            rows_per_second=50.0 if i % 2 else 10.0,
            seconds={"read": 2, "wait": 1, "compute": 3, "write": 0},
        )
        for i in range(count)
    ]


@pytest.mark.parametrize(("count", "shown", "last"), [(3, 3, "0:40"), (9, 9, "2:40"), (1000, 9, "5h33")])
def test_charts_show_the_whole_run_in_few_stretches(count, shown, last):
    run = throughput.draw("scores", units(count))
    for title, drawing in run.charts:
        labels = [label for _, label, _ in drawing.x_ticks]
        assert (len(labels), labels[-1]) == (shown, last), title
    assert (run.units, run.rows) == (count, 100 * count)
    assert run.seconds["compute"] == pytest.approx((3 * count, 30))


def test_a_mean_of_rates_counts_the_time_and_lines_stand_where_they_belong():
    run = throughput.draw("scores", units(3)[::-1])
    assert run.rows_per_second == pytest.approx(300 / 22)
    (_, speed), (_, spent) = run.charts
    assert [shown for _, _, shown in speed.lines[0].dots] == ["10", "50", "10"]
    work, waiting = ([y for _, y, _ in line.dots] for line in spent.lines)
    assert [line.kind for line in spent.lines] == ["main", "other"]
    assert max(work) < min(waiting)


def test_two_units_make_no_line():
    run = throughput.draw("scores", units(2))
    assert not run.charts
    assert run.seconds["read"] == pytest.approx((4, 20))
