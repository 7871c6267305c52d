"""Nothing in the package reads or writes pickles, in any of their disguises, nor runs text as code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fedleak

PACKAGE = Path(fedleak.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "joblib",
    "dbm",
    "pickletools",
    "jsonpickle",
}
HARMLESS = {"pickle.UnpicklingError"}  # an exception to catch
# Reads CIFAR's pickles, and makes nothing that they name: tests/data/test_inert.py holds it to that.
INERT = PACKAGE / "data" / "inert.py"
CALLS = {"eval", "exec", "compile", "__import__"}
# Calls that unpickle unless told otherwise, or pickle whatever they are told: which argument makes them safe.
GUARDED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
FORBIDDEN = {
    *("torch.save", "torch.jit.load", "torch.package", "np.save", "np.savez", "numpy.save", "numpy.savez", "pd.read_pickle"),
    *("yaml.load", "yaml.unsafe_load", "pandas.read_pickle", "torch.hub.load", "torch.utils.model_zoo.load_url"),
}


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` for such an expression, and an empty string for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def found(source: str) -> list[str]:
    """Return what of ``source`` reads or writes pickles, or runs text."""
    tree, problems = ast.parse(source), []
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            root = (node.module or "").partition(".")[0]
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            problems += sorted(names - HARMLESS) if root in MODULES else sorted(names & (FORBIDDEN | GUARDED.keys()))
        elif isinstance(node, ast.Import):
            problems += [a.name for a in node.names if a.name.partition(".")[0] in MODULES and (a.asname or a.name != "pickle")]
        elif isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner:
            name = dotted(node)
            if name in FORBIDDEN or (name.partition(".")[0] in MODULES and name not in HARMLESS):
                problems.append(name)
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in CALLS:
                problems.append(f"{name}()")
            key, safe = GUARDED.get(name, (None, None))
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            value = given.get(key)
            if key is not None and not (isinstance(value, ast.Constant) and value.value is safe):
                problems.append(f"{name} without {key}={safe}")
            if isinstance(given.get("allow_pickle"), ast.Constant) and given["allow_pickle"].value is True:
                problems.append(f"{name} with allow_pickle")
    return problems


def test_no_file_of_the_package_pickles() -> None:
    assert len(FILES) > 200
    problems = {path.relative_to(PACKAGE).as_posix(): found(path.read_text(encoding="utf-8")) for path in FILES}
    inert = problems.pop(INERT.relative_to(PACKAGE).as_posix())
    assert {name: problem for name, problem in problems.items() if problem} == {}
    assert inert == ["pickle.Unpickler"]


def test_the_one_reader_of_pickles_looks_every_name_up_in_its_own_table() -> None:
    [reader] = [
        node
        for node in ast.walk(ast.parse(INERT.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(dotted, node.bases)
    ]
    assert [node.name for node in reader.body if isinstance(node, ast.FunctionDef)] == ["find_class"]
    assert "super" not in ast.unparse(reader)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle as p",
        "import pickle\npickle.loads(b'')",
        "import pickle\nload = pickle.load",
        "from pickle import loads",
        "import cloudpickle",
        "from joblib import load",
        "import shelve",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "np.lib.format.read_array(file, allow_pickle=True)",
        "torch.save(x, path)",
        "save = torch.save",
        "eval(text)",
        "exec(compile(text, '', 'exec'))",
        "yaml.load(file)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert found(source)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\ntry:\n    x = torch.load(p, weights_only=True)\nexcept pickle.UnpicklingError:\n    pass",
        "np.load(path, allow_pickle=False)",
        "model.eval()",
        "re.compile(text)",
        "torch.compile(model)",
    ],
)
def test_and_nothing_else(source: str) -> None:
    assert found(source) == []


def test_no_file_of_a_run_is_a_pickle(tmp_path: Path) -> None:
    from fedleak.experiment import run as api
    from fedleak.scenario.schema import parse_scenario

    table = {"data": {"image_size": 8}, "model": {"name": "mlp", "hidden": [4]}, "federation": {"clients": 2, "rounds": 1}}
    scenario = parse_scenario({"name": "t", **table, "attacks": [{"name": "closed-form"}]})
    result = api.run(scenario, out=tmp_path / "run", device="cpu")
    kinds = {path.suffix for path in result.path.rglob("*") if path.is_file()}
    assert kinds == {".secret", ".json", ".jsonl", ".safetensors", ".png", ".html", ".lock"}
    tensors = list(result.path.rglob("*.safetensors"))
    assert tensors
    for path in tensors:
        size = int.from_bytes(path.read_bytes()[:8], "little")
        assert path.read_bytes()[8:9] == b"{"
        assert size < path.stat().st_size
