from pathlib import Path

import pytest

from fedleak.data.folder import required_folder
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data


def test_a_folder_is_returned_and_the_home_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    assert required_folder(Data(path=tmp_path), "x") == tmp_path
    assert required_folder(Data(path=Path("~/images")), "x") == tmp_path / "images"


def test_messages_say_what_the_folder_should_hold(tmp_path):
    (tmp_path / "file").touch()
    for path, came in ((None, "needs it"), (tmp_path / "no", "no such folder"), (tmp_path / "file", "is a file")):
        with pytest.raises(ScenarioError, match=f"{came}.* a folder with class folders"):
            required_folder(Data(path=path), "class folders")
