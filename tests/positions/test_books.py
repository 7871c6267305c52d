import json

from fedleak.positions.books import Books
from fedleak.runs.folder import RunFolder

HUNG = {"round": 1, "client": None, "attack": "dlg", "error": "hung"}


def lines(folder: RunFolder, name: str) -> list[object]:
    return [json.loads(line) for line in (folder.path / name).read_text().splitlines()]


def test_rows_and_problems_lie_apart(folder: RunFolder) -> None:
    books = Books(folder)
    books.keep([{"image": 0}, {"image": 1}])
    books.keep_problem(HUNG)
    assert lines(folder, "reconstructions.jsonl") == [{"image": 0}, {"image": 1}]
    assert folder.rows("problems.jsonl") == [HUNG]
    assert books.holds_problem(HUNG)
    assert not books.holds_problem(HUNG | {"round": 2})


def test_they_may_be_kept_under_other_names(folder: RunFolder) -> None:
    books = Books(folder, rows="again.jsonl", problems="again-problems.jsonl")
    books.keep([{"image": 0}])
    books.keep_problem({"round": 1})
    assert (lines(folder, "again.jsonl"), lines(folder, "again-problems.jsonl")) == ([{"image": 0}], [{"round": 1}])
    assert folder.rows("reconstructions.jsonl") == folder.rows("problems.jsonl") == []
