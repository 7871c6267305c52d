"""The shape of the house: no import goes in a circle, few modules are loose, and nothing is too long to be read at once."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedleak"
LOOSE = 10  # modules at the top of the package, at most
FILE, FUNCTION = 400, 60  # lines, at most; of a function without its docstring


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, or nothing."""
    try:
        list(TopologicalSorter(imports).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def long_functions(text: str, most: int = FUNCTION) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node, clean=False) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
            if lines > most:
                yield f"{node.name} ({lines} lines)"


def registrations(text: str) -> int:
    """Return how many attacks a module registers."""
    return sum(
        isinstance(node, ast.ClassDef) and any(ast.unparse(decorator) == "attacks.register" for decorator in node.decorator_list)
        for node in ast.walk(ast.parse(text))
    )


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Return what each module of the package imports of the package, inside functions too."""
    graph = grimp.build_graph("fedleak", cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def test_no_module_imports_itself_by_way_of_others(imports: dict[str, set[str]]) -> None:
    assert len(imports) > 200
    assert circle(imports) == []


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_few_modules_lie_loose_at_the_top() -> None:
    loose = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))
    assert "errors" in loose
    assert len(loose) <= LOOSE, loose


def test_loose_among_the_attacks_lie_the_base_and_one_file_an_attack() -> None:
    loose = {path.stem: registrations(path.read_text()) for path in (PACKAGE / "attacks").glob("*.py")}
    attacks = {name: count for name, count in loose.items() if name not in ("__init__", "base")}
    assert len(attacks) > 10
    assert set(attacks.values()) == {1}, {name: count for name, count in attacks.items() if count != 1}


@pytest.mark.parametrize("folder", ["fedleak", "tests"])
def test_no_file_is_longer_than_can_be_read_at_once(folder: str) -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert lengths
    assert not {path: length for path, length in lengths.items() if length > FILE}


def test_no_function_is_longer_than_a_page() -> None:
    files = {str(path.relative_to(ROOT)): list(long_functions(path.read_text())) for path in PACKAGE.rglob("*.py")}
    assert len(files) > 200
    assert not {path: found for path, found in files.items() if found}


def test_a_long_function_would_be_found_and_its_docstring_does_not_count() -> None:
    body = "\n".join(itertools.repeat("    x = 1", 5))
    assert list(long_functions(f"def f():\n{body}\n", most=6)) == []
    assert list(long_functions(f"def f():\n{body}\n", most=5)) == ["f (6 lines)"]
    assert list(long_functions(f'def f():\n    """Say.\n\n    More.\n    """\n{body}\n', most=6)) == []
