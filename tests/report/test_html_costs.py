"""The page's tables of what went wrong, and of what clients pay."""

from __future__ import annotations

from fedleak.report.html import write_report


def test_faults_are_one_line_each_and_say_what_the_run_did(make_run, read):
    text = read(write_report(make_run())).text
    assert "Not all went well: 1 fault of clients or server." in text
    assert "2 1 Sent what cannot be used: ran out of memory Its reply was left out." in text
    assert "1–2 1 Attack analytic failed on 2 updates: no linear layer Recorded as its result; training took no notice." in text


def test_one_reason_for_many_clients_is_one_line(make_run, read, lines):
    def rows(folder):
        return [lines.failed(1, client, "exact", "same reason") for client in range(5)]

    assert "1 0–4 Attack exact failed on 5 updates: same reason" in read(write_report(make_run(rows))).text


def test_a_run_without_faults_says_so(make_run, read, lines):
    fine = [row | {"failures": []} for row in lines.rounds()[1:]]
    page = read(write_report(make_run(lambda folder: [lines.image(folder, 1, 0, "dlg", 41.0)], rounds=fine)))
    assert "No client and no attack failed, and nothing interrupted the run." in page.text
    assert "Not all went well" not in page.text


def test_a_long_list_of_faults_is_cut(make_run, read, lines):
    def rows(folder):
        return [lines.failed(1, client, "exact", f"reason {client}") for client in range(230)]

    text = read(write_report(make_run(rows))).text
    assert "And 31 more." in text


def test_what_a_client_pays_is_said_by_client(make_run, read, lines):
    paid = {"seconds": 0.5, "cpu_seconds": 0.25, "bytes": 78_000, "coded_bytes": 1_500}
    rounds = [row | {"by_client": {"0": paid, "1": paid | {"seconds": None}}} for row in lines.rounds() if row["round"]]
    page = read(write_report(make_run(rounds=rounds)))
    assert "0.50 s a round, 78.0 kB sent, of which a plain coding needs 1.5 kB." in page.text
    assert "Client Rounds Seconds CPU, s Sent Coded 0 2 0.50 0.25 78.0 kB 1.5 kB 1 2 – 0.25" in page.text
    assert "psilon" not in page.text


def test_epsilon_stands_beside_the_costs_where_it_was_promised(make_run, read, lines):
    paid = {"seconds": 0.5, "cpu_seconds": 0.25, "bytes": 10, "coded_bytes": 10}
    promised = {"delta": 1e-5, "privacy_unit": "client", "by_client": {"0": paid}}
    rounds = [row | promised | {"epsilon": {"0": 1.5 * row["round"]}} for row in lines.rounds() if row["round"]]
    page = read(write_report(make_run(rounds=rounds)))
    assert "Differential privacy of each client: epsilon 3.00 at most, at delta 1e-05." in page.text
    assert "10 B 10 B 3.00" in page.text


def test_a_mechanism_without_a_guarantee_says_why(make_run, read, lines):
    paid = {"seconds": 0.5, "cpu_seconds": 0.25, "bytes": 10, "coded_bytes": 10}
    facts = {"by_client": {"0": paid}, "epsilon": {"0": None}, "no_epsilon": "nothing is clipped", "delta": 1e-5}
    facts["privacy_unit"] = "record"
    page = read(write_report(make_run(rounds=[row | facts for row in lines.rounds() if row["round"]])))
    assert "no epsilon, because nothing is clipped." in page.text
    assert "Epsilon" not in page.text


def test_runs_that_did_not_measure_costs_say_nothing_of_them(make_run, read):
    assert "What it costs a client" not in read(write_report(make_run())).text


def test_settings_of_the_measurement_are_named_where_they_are_not_the_usual_ones(make_run, read):
    assert "test_images" not in read(write_report(make_run())).text.split("To run it again")[0]


def test_a_chosen_measurement_is_named(make_run, read):
    text = read(write_report(make_run(evaluation={"every": 5, "test_images": 100}))).text
    assert "Measured every = 5 test_images = 100" in text
