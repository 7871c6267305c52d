"""The terminal during a sweep."""

import io

from rich.console import Console

from fedleak.cli.sweep_live import LiveSweep, verdict_table
from fedleak.modalities.find import measure
from fedleak.sweeps.intervals import Interval
from fedleak.sweeps.verdicts import Attacked, Verdict


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def test_cells_are_told_as_they_finish_and_fail():
    out = console()
    with LiveSweep(out) as live:
        live.begin(5, 2, 2)
        live.at("[a]", "round 1 of 2, training")
        live.done("[a]", None, [{"attack": "dlg", "gain": 3.25, "client_errors": 1}, {"attack": None}])
        live.done("b", "out of [memory]", [])
    text = out.file.getvalue()
    assert "5 runs, 2 finished already; 2 at a time" in text
    assert "3/5  [a]  dlg 3.2 dB; 1 client reply(s) failed" in text
    assert "4/5  b  failed: out of [memory]" in text


def test_bars_show_what_runs_and_what_is_left():
    out = console(terminal=True)
    with LiveSweep(out) as live:
        live.begin(3, 0, 2)
        live.at("a", "round 1 of 2, [dlg], update 1 of 4")
        live._bars.refresh()
        live.at("b", "starting")
        live.done("b", None, [])
        live._bars.refresh()
    text = out.file.getvalue()
    assert "round 1 of 2, [dlg], update 1 of 4" in text
    assert "1 of 3 runs, about" in text


def test_quiet_shows_nothing():
    out = console(terminal=True)
    with LiveSweep(out, quiet=True) as live:
        live.begin(3, 0, 2)
        live.at("a", "x")
        live.done("a", "failed", [])
    assert out.file.getvalue() == ""


def test_the_verdicts_as_a_table():
    best = Attacked("cosine", False, Interval(5.0, 4.0, 6.5, 2, 8), 9.0, 2, 0.0, Interval(0.5, 0.3, 0.7, 2, 8), 0.2, measure())
    judged = [
        Verdict("", "none", "none", "", True, "leaks", "", best, best, 9.0, 0.5, None),
        Verdict("", "[x] p=1", "[x]", "p=1", False, "inconclusive", "", None, None, None, None, None),
    ]
    out = console()
    out.print(verdict_table(judged))
    text = out.file.getvalue()
    assert "no defense" in text
    assert "gain dB" in text
    assert "4.0 to 6.5" in text
    assert "[x] p=1" in text
    assert "setting" not in text
