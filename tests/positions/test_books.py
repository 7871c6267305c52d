from fedleak.positions.books import Books
from fedleak.runs.folder import RunFolder


def test_rows_and_problems_lie_apart(folder: RunFolder) -> None:
    books = Books(folder)
    books.keep([{"image": 0}, {"image": 1}])
    books.keep_problem({"round": 1, "error": "hung"})
    assert folder.rows("reconstructions.jsonl") == [{"image": 0}, {"image": 1}]
    assert folder.rows("problems.jsonl") == [{"round": 1, "error": "hung"}]
    assert books.holds_problem({"round": 1, "error": "hung"})
    assert not books.holds_problem({"round": 2, "error": "hung"})


def test_they_may_be_kept_under_other_names(folder: RunFolder) -> None:
    books = Books(folder, rows="again.jsonl", problems="again-problems.jsonl")
    books.keep([{"image": 0}])
    books.keep_problem({"round": 1})
    assert (folder.rows("again.jsonl"), folder.rows("again-problems.jsonl")) == ([{"image": 0}], [{"round": 1}])
    assert folder.rows("reconstructions.jsonl") == folder.rows("problems.jsonl") == []
