"""Charts of a sweep: the Pareto front, and what is drawn where."""

import math

from fedleak.modalities.find import measure
from fedleak.sweeps.page.figures import Point, gain_chart, pareto_front, trade_chart


def point(accuracy, gain, label="x", low=None, high=None):
    return Point(label, 0, gain, gain - 1 if low is None else low, gain + 1 if high is None else high, accuracy)


def test_the_front_holds_what_no_other_beats():
    best, cheap, middle = point(0.9, 18.0), point(0.3, -1.0), point(0.6, 5.0)
    beaten = [point(0.5, 6.0), point(0.9, 19.0), point(0.3, 0.0), point(0.6, 5.0), point(None, -9.0)]
    assert pareto_front([*beaten, cheap, best, middle]) == [cheap, middle, best]
    assert pareto_front([]) == []


def test_no_accuracy_no_trade_chart():
    assert trade_chart([point(None, 3.0)], {}, measure(), "0") is None


def test_charts_carry_their_labels_their_theme_and_no_foreign_markup():
    hostile = "<script>$\\alpha$"
    trade = trade_chart([point(0.5, 3.0, hostile), point(0.6, 9.0)], {"mean_image": 0.0, "random": -4.0}, measure(), "0")
    endless = point(None, 1.0, low=-math.inf, high=math.inf)
    gains = gain_chart([(hostile, [point(None, 3.0), endless]), ("y" * 99, [])], {"random": -4.0}, measure(), "1")
    for chart in (trade, gains):
        assert "<script" not in chart
        assert "&lt;script&gt;$\\alpha$" in chart
        assert "var(--series-0)" in chart
        assert "#0000" not in chart
        assert "inf" not in chart.replace("info", "")
    assert "y" * 35 + "…" in gains
    assert "y" * 37 not in gains
