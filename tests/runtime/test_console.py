"""Progress bars in log files."""

from __future__ import annotations

from clipdata_jax.runtime import console


def test_a_bar_in_a_log_begins_with_what_was_done_and_shows_each_count_once(capsys):
    with console.bar(total=12, unit="tar", name="reshard", done=3) as bar:
        bar.mininterval = bar.miniters = 0
        bar.update(4)
        bar.update(5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("|")[0] for line in lines] == ["reshard:  25%", "reshard:  58%", "reshard: 100%"]
    assert "12.0/12.0" in lines[-1]


def test_a_bar_with_nothing_left_shows_nothing(capsys):
    console.bar(total=3, unit="tar", name="reshard", done=3).close()
    assert not capsys.readouterr().err
