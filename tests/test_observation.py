import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from fedleak.errors import AttackError, FedleakError, ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation, observe
from fedleak.scenario.schema import Model
from fedleak.scenario.tensors import header_of
from fedleak.threat import PRESETS, Knowledge

SPEC = InputSpec((3, 16, 16), 10, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
FULL: dict[str, Any] = {
    "local": LocalTraining(5, 2, 6, 2, 0.05, "eval"),
    "labels": (1, 1, 7),
    "received_buffers": {"mean": torch.ones(2), "count": torch.tensor(4)},
    "defenses": ({"name": "clipping", "max_norm": 1.0},),
}


def seen(**facts: Any) -> Observation:
    parameters = {"b": torch.arange(6.0).view(2, 3).t(), "a": torch.tensor(0.1)}
    update = {name: value * 2 for name, value in parameters.items()}
    return Observation("weights", parameters, update, SPEC, {"count": torch.tensor(3)}, round=4, client=12, **facts)


@pytest.mark.parametrize("facts", [{}, FULL, {"labels": ()}, {"received_buffers": {}}, {"defenses": ()}])
@pytest.mark.parametrize("read", [Observation.load, lambda path: Observation.from_bytes(path.read_bytes())])
def test_an_observation_survives_its_file(tmp_path: Path, facts: dict[str, Any], read: Callable[[Path], Observation]) -> None:
    before = seen(**facts)
    before.save(tmp_path / "o.safetensors")
    after = read(tmp_path / "o.safetensors")
    for name in ("kind", "input", "round", "client", "local", "labels", "defenses", "granted"):
        assert getattr(after, name) == getattr(before, name), name
    for name in ("parameters", "buffers", "update", "received_buffers"):
        mine, theirs = getattr(before, name), getattr(after, name)
        assert (mine is None) == (theirs is None)
        for key in mine or {}:
            assert torch.equal(mine[key], theirs[key])
            assert mine[key].dtype == theirs[key].dtype
        # An attack sums over the names in their order, so that another order gives other last bits.
        assert list(mine or {}) == list(theirs or {})


def test_public_images_are_not_saved(tmp_path: Path) -> None:
    before = seen(surrogate=torch.rand(4, 3, 16, 16))
    before.save(tmp_path / "o.safetensors")
    assert Knowledge.SURROGATE in before.granted
    assert Observation.load(tmp_path / "o.safetensors").surrogate is None


def test_another_file_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(FedleakError, match="not an observation"):
        Observation.load(tmp_path / "x.safetensors")
    with pytest.raises(FedleakError, match="r001-c000: not an observation"):
        Observation.from_bytes((tmp_path / "x.safetensors").read_bytes(), "r001-c000")


def test_weights_become_a_gradient_by_rate_and_steps() -> None:
    observation = seen(local=FULL["local"])
    for name, gradient in observation.gradient().items():
        torch.testing.assert_close(gradient, -observation.parameters[name] / (0.05 * 6))
    with pytest.raises(AttackError, match="learning rate"):
        seen().gradient()
    assert replace(observation, kind="gradient", local=None).gradient() is observation.update


def test_the_batch_size_is_one_where_it_is_not_granted() -> None:
    assert (seen().batch_size, seen(local=FULL["local"]).batch_size) == (1, 5)


def test_facts_are_known_by_being_there() -> None:
    assert seen().granted == frozenset()
    assert seen(**FULL).granted == {Knowledge.DEFENSE, *PRESETS["batchnorm-known"]}


def test_observe_is_one_step_of_fedsgd() -> None:
    model = build_model(Model(name="convnet", width=2, norm="batch"), SPEC, 1).eval()  # type: ignore[call-arg]
    images, labels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([5, 1, 5])
    grant = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})
    observation = observe(model, images, labels, input=SPEC, grant=grant)
    torch.nn.functional.cross_entropy(
        model((images - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)), labels
    ).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(observation.update[name], parameter.grad)
        assert torch.equal(observation.parameters[name], parameter)
    assert (observation.labels, observation.granted) == ((1, 5, 5), grant)
    assert observation.local == LocalTraining(3, 3, mode="eval")
    assert observe(model, images, labels).local is not None
    assert observe(model, images, labels, grant=frozenset()).granted == frozenset()


def test_normalising_is_undone() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(SPEC.denormalize(SPEC.normalize(images)), images)
    assert float(SPEC.normalize(torch.full((1, 3, 1, 1), 0.5))[0, 0, 0, 0]) == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_its_file_is_the_one_that_safetensors_writes_for_pytorch(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    values = {"w": torch.ones(2, 3).to(dtype), "scalar": torch.tensor(1).to(dtype), "empty": torch.empty(0, 3, dtype=dtype)}
    observation = Observation("weights", values, {name: value.clone() for name, value in values.items()}, InputSpec((1, 2, 2), 3))
    fast = observation.to_bytes()
    monkeypatch.setattr("fedleak.observation.save_arrays", lambda arrays, metadata: save(tensors_of(arrays), metadata))
    assert observation.to_bytes() == fast
    assert Observation.from_bytes(fast).update["w"].dtype == dtype


def tensors_of(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def damaged(content: bytes, **facts: Any) -> bytes:
    """Return a file's content with other facts in its header."""
    header, data = header_of(content)
    told = json.loads(header["__metadata__"]["fedleak"]) | facts
    header["__metadata__"]["fedleak"] = json.dumps({key: value for key, value in told.items() if value is not ...})
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "facts",
    [
        {"round": "1"},
        {"client": -1},
        {"clients": [0, None]},
        {"kind": "sum"},
        {"names": ["parameters/nothing"]},
        {"names": ["elsewhere/a"]},
        {"names": 3},
        {"input": {"shape": 3}},
        {"input": None},
        {"local": {"num_examples": "many", "batch_size": 1}},
        {"local": {"strange": 1}},
        {"labels": [10**30]},
        {"defenses": [3]},
    ],
)
def test_a_file_with_odd_facts_is_refused_in_one_line(tmp_path: Path, facts: dict[str, Any]) -> None:
    path = tmp_path / "o.safetensors"
    content = damaged(seen(**FULL).to_bytes(), **facts)
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match=r"o\.safetensors: not an observation written by fedleak, or damaged") as refused:
        Observation.load(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(ScenarioError):
        Observation.from_bytes(content)


def test_a_file_is_outlined_without_its_values(tmp_path: Path) -> None:
    path = tmp_path / "o.safetensors"
    seen(**FULL).save(path)
    told, shapes = Observation.outline(path)
    assert (told.round, told.client, told.local, told.parameters) == (4, 12, FULL["local"], {})
    assert shapes["parameters/b"] == (3, 2)
    assert set(shapes) == {*(f"{group}/{name}" for group in ("parameters", "update") for name in "ab"), "buffers/count"} | {
        f"received_buffers/{name}" for name in ("mean", "count")
    }
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ScenarioError, match="damaged"):
        Observation.outline(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ScenarioError, match="not an ordinary file"):
        Observation.outline(path)
