"""Every fault is one line: when, who, what happened, and what the run did about it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedleak.cli.tables import faults_table
from fedleak.report.faults import faults, spans
from fedleak.runs.records import read_records


def done(number, failures=(), clients=(0, 1, 2), by_client=None):
    failures = [{"client": client, "reason": reason} for client, reason in failures]
    measured = {"accuracy": None, "loss": None}
    return {"round": number, **measured, "clients": list(clients), "failures": failures, "by_client": by_client or {}}


@pytest.fixture
def found(make_run):
    """Return the faults of rounds, rows and a manifest, as tuples."""

    def read(rounds=(), rows=(), interruptions=(), timeout=20):
        federation = {"rounds": 9, "clients": 3, "timeout": timeout}
        folder = make_run(
            lambda folder: list(rows), rounds=list(rounds), manifest={"interruptions": list(interruptions)}, federation=federation
        )
        return [(fault.when, fault.who, fault.what, fault.did) for fault in faults(read_records(folder))]

    return read


def test_numbers_are_said_as_ranges():
    assert [spans(numbers) for numbers in ([], [3], [2, 1, 3, 3], [0, 2, 3, 9])] == ["", "3", "1–3", "0, 2–3, 9"]


def test_a_client_that_was_away_and_came_back(found):
    rounds = [
        done(1),
        done(2, [(1, "no reply")]),
        done(3, [(1, "no reply: Node Unavailable")]),
        done(4, clients=(0, 2)),
        done(5),
        done(6, [(1, "no reply: Node Unavailable")]),
    ]
    assert found(rounds) == [
        (
            "2–3",
            "1",
            "Sent no reply (Node Unavailable)",
            "The round went on without it after federation.timeout, 20.0 s; it took part again in round 5.",
        ),
        ("6", "1", "Sent no reply (Node Unavailable)", "The round went on without it."),
    ]


def test_a_client_that_raised_or_sent_nonsense(found):
    rounds = [done(1, [(0, "the client raised: OSError: no disk"), (2, "'w' holds NaN or infinity")]), done(2)]
    assert found(rounds) == [
        ("1", "0", "Raised an error: OSError: no disk", "The round went on without it; it took part again in round 2."),
        (
            "1",
            "2",
            "Sent what cannot be used: 'w' holds NaN or infinity",
            "Its reply was left out; it took part again in round 2.",
        ),
    ]


def test_all_clients_at_once_are_one_line_and_the_model_stayed(found):
    rounds = [done(1, [(client, "'w' holds NaN or infinity") for client in range(3)])]
    [(when, who, _, did)] = found(rounds)
    assert (when, who, did) == ("1", "0–2", "No reply could be used, so the model stayed as it was.")


def test_another_way_to_fail_in_the_next_round_is_another_line(found):
    rounds = [done(1, [(0, "no reply")]), done(2, [(0, "the client raised: x")]), done(3)]
    assert [(when, did.partition(";")[2]) for when, _, _, did in found(rounds)] == [
        ("1", ""),
        ("2", " it took part again in round 3."),
    ]


def test_interruptions_and_what_became_of_them(found):
    stops = [
        {"why": "interrupted", "after": 1, "resumed": "2025-03-04T05:06:07+00:00"},
        {"why": None, "after": 3, "resumed": "2025-03-05T05:06:07+00:00"},
        {"why": "disk full"},
    ]
    assert found([done(number) for number in range(1, 5)], interruptions=stops) == [
        (
            "2",
            "server",
            "The run broke off: interrupted.",
            "Resumed after round 1, on 4 March 2025, 05:06 UTC: round 2 was done again from its start.",
        ),
        (
            "4",
            "server",
            "The run broke off: its process ended without a word; it was killed, or could not write.",
            "Resumed after round 3, on 5 March 2025, 05:06 UTC: round 4 was done again from its start.",
        ),
        ("5", "server", "The run broke off: disk full.", "What was done until then is kept."),
    ]


@pytest.mark.parametrize(("seconds", "told"), [(5.0, True), (2.0, False)])
def test_a_client_that_is_much_slower_than_the_others_is_named(found, seconds, told):
    costs = {"0": {"seconds": 0.5}, "1": {"seconds": seconds}, "2": {"seconds": 0.7}}
    lines = found([done(number, by_client=costs) for number in (1, 2)])
    expected = ("1–2", "1", "Was slow: 5.0 s a round, where the others took 0.60 s", "The round waited for it.")
    assert lines == ([expected] if told else [])


def test_an_attack_is_told_of_once_and_a_client_not_twice(found, lines):
    hang = "AttackError: the attack hangs"
    rows = [lines.failed(number, client, "dlg", hang) for number in (1, 2) for client in (0, 1)]
    rows.append(lines.failed(2, 2, "dlg", "invalid reply: no reply") | {"flags": ["invalid-reply"]})
    [line] = found([done(1), done(2)], rows)
    assert line == ("1–2", "0–1", f"Attack dlg failed on 4 updates: {hang}", "Recorded as its result; training took no notice.")


def test_a_thousand_clients_are_quickly_read(found):
    rounds = [done(number, [(c, f"reason {c % 7}") for c in range(1000)], range(1000)) for number in range(1, 9)]
    assert len(found(rounds)) == 7


def test_the_terminal_shows_them_at_80_columns_and_stops_in_time(make_run, lines):
    folder = make_run(lambda folder: [lines.failed(1, client, "exact", f"[b]reason {client}") for client in range(20)])
    text = io.StringIO()
    Console(file=text, width=80, color_system=None).print(faults_table(faults(read_records(folder)), most=5))
    assert "[b]reason" in text.getvalue()
    assert "\n1       5 " not in text.getvalue()
    assert "and 16 more, in the report" in text.getvalue()
    assert max(map(len, text.getvalue().splitlines())) <= 80
