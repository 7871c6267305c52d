"""A scenario into a fixed folder: what an earlier process left is finished, never done twice."""

import json
import shutil

import pytest

from fedleak.errors import ScenarioError
from fedleak.events import Event
from fedleak.experiment import resumable
from fedleak.experiment import run as api
from fedleak.experiment.resumable import finished, run_into
from fedleak.scenario.schema import parse_scenario


@pytest.fixture
def scenario():
    return parse_scenario(
        {
            "name": "x",
            "data": {"source": "samples", "image_size": 16},
            "model": {"name": "mlp", "hidden": [8]},
            "federation": {"clients": 2, "rounds": 2},
            "attacks": [{"name": "closed-form"}],
        }
    )


def lines(place):
    return (place / "reconstructions.jsonl").read_text().splitlines()


def never(*_, **__):
    pytest.fail("a finished run was run again")


def test_a_finished_run_is_read_and_not_repeated(scenario, tmp_path, monkeypatch):
    first = run_into(scenario, tmp_path / "r", device="cpu")
    assert finished(scenario, tmp_path / "r") == first.summary
    monkeypatch.setattr(resumable, "run", never)
    monkeypatch.setattr(resumable, "write_summary", never)
    assert run_into(scenario, tmp_path / "r", device="cpu") == first


def test_a_run_broken_off_goes_on_after_its_last_whole_round(scenario, tmp_path):
    def stop(event: Event) -> None:
        if event.kind == "round" and event.facts["round"] == 2:
            raise KeyboardInterrupt

    place = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt):
        run_into(scenario, place, device="cpu", listener=stop)
    assert finished(scenario, place) is None
    assert len(lines(place)) == 2
    rounds = []

    def listen(event: Event) -> None:
        if event.kind == "round":
            rounds.append(event.facts["round"])

    run_into(scenario, place, device="cpu", listener=listen)
    assert rounds == [2]
    assert len(lines(place)) == 4
    assert finished(scenario, place)["rounds"] == 2


@pytest.mark.parametrize("left", ["nothing", "folders", "half a manifest", "manifest", "no report", "stale summary"])
def test_whatever_a_kill_left_is_finished(scenario, tmp_path, left, monkeypatch):
    place = tmp_path / "r"
    whole = run_into(scenario, tmp_path / "whole", device="cpu")
    if left in ("no report", "stale summary"):
        shutil.copytree(tmp_path / "whole", place)
        (place / "report.html").unlink()
        (place / "summary.json").unlink()
        if left == "stale summary":
            (place / "summary.json").write_text(json.dumps(whole.summary | {"rounds": 1}))
        monkeypatch.setattr(resumable, "run", never)
    elif left != "nothing":
        (place / "captures").mkdir(parents=True)
        if left == "half a manifest":
            (place / "manifest.json.0123456789abcdef.tmp").write_text("{")
        if left == "manifest":
            shutil.copy(tmp_path / "whole" / "manifest.json", place)
            (place / "rounds.jsonl").write_text('{"round": 0')
    result = run_into(scenario, place, device="cpu")
    assert result.summary["leakage"][0]["metrics"]["psnr"] == whole.summary["leakage"][0]["metrics"]["psnr"]
    assert len(lines(place)) == 4
    assert (place / "report.html").exists()
    assert finished(scenario, place) is not None


def test_what_is_no_run_of_this_scenario_is_left_alone(scenario, tmp_path):
    place = tmp_path / "r"
    place.mkdir()
    (place / "thesis.tex").write_text("years of work")
    with pytest.raises(ScenarioError, match="in the way and no run folder"):
        run_into(scenario, place)
    assert (place / "thesis.tex").exists()
    other = scenario.model_copy(update={"seed": 9})
    api.run(other, out=tmp_path / "other", device="cpu")
    with pytest.raises(ScenarioError, match="holds another experiment"):
        run_into(scenario, tmp_path / "other")
