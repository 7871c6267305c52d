from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fedleak.engines import superlink
from fedleak.engines.superlink import Control
from fedleak.errors import FedleakError
from fedleak.scenario.schema import SuperLink


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Control:
    monkeypatch.setattr(superlink, "_PAUSE", 0.0)
    return Control(SuperLink(address="lab:8000", insecure=True))


class Streams:
    """Answers each call for the log with the next of its streams."""

    def __init__(self, *streams: list[Any]) -> None:
        self.streams, self.asked = list(streams), list[float]()

    def StreamLogs(self, request: Any) -> Iterator[Any]:  # noqa: N802 (Flower's name)
        self.asked.append(request.after_timestamp)
        for number, piece in enumerate(self.streams.pop(0)):
            if isinstance(piece, Exception):
                raise piece
            yield SimpleNamespace(log_output=piece, latest_timestamp=request.after_timestamp + number + 1)


def test_lines_are_whole_however_they_are_cut(control: Control) -> None:
    control._client = Streams(["a\nb", "", "c\n", "\nd"])  # type: ignore[assignment]
    assert list(control.logs(1)) == ["a", "bc", "", "d"]


def test_a_broken_connection_is_taken_up_where_it_broke(control: Control) -> None:
    streams = Streams(["a\nb", "c", httpx.ReadError("reset")], [httpx.ConnectError("down")], ["d\n"])
    control._client = streams  # type: ignore[assignment]
    assert list(control.logs(1)) == ["a", "bcd"]
    assert streams.asked == [0.0, 2.0, 2.0]


def test_a_connection_that_stays_broken_and_a_refusal_end_it(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    response = httpx.Response(404, request=httpx.Request("POST", "http://lab:8000"), text="?")
    control._client = Streams([httpx.HTTPStatusError("no", request=response.request, response=response)])  # type: ignore[assignment]
    with pytest.raises(FedleakError, match="cannot read the log at the SuperLink lab:8000: HTTP status 404"):
        list(control.logs(1))
    monkeypatch.setattr(superlink, "_PATIENCE", -1.0)
    control._client = Streams([httpx.ConnectError("down")])  # type: ignore[assignment]
    with pytest.raises(FedleakError, match="down; is it running"):
        list(control.logs(1))
