from fedleak.evaluation.labels import summarise


def test_labels_of_all_updates_are_counted_and_failures_named() -> None:
    rows = [
        {"labels": {"rule": "consistent", "labels": [0, 0, 2], "right": 1.0, "error": None}},
        {"labels": {"rule": "llg", "labels": [2], "right": None, "error": None}},
        {"labels": {"error": "no classifier"}},
        {"distance": None},
    ]
    assert summarise(rows) == {
        "updates": 2,
        "failures": 1,
        "failure": "no classifier",
        "rules": {"consistent": 1, "llg": 1},
        "right": 1.0,
        "counts": {"0": 2, "2": 2},
    }
    assert summarise(rows[3:]) is None
