"""Launches that repeat are recorded, and a replay computes with what lies there now."""

import pytest
import recorder
import torch
from recorder import Graph
from torch import Tensor

from fastrnn.kernels import graphs
from fastrnn.kernels.graphs import Recordings

X, Y = torch.zeros(3), torch.zeros(3)


@pytest.fixture(autouse=True)
def stream(monkeypatch: pytest.MonkeyPatch) -> recorder.Stream:
    return recorder.install(monkeypatch)


class Doubling:
    """Launches that double numbers, and how often they were asked for."""

    def __init__(self, recordings: Recordings) -> None:
        self.recordings = recordings
        self.calls = 0

    def __call__(self, x: Tensor, y: Tensor, *options: object) -> Tensor:
        def launches() -> None:
            self.calls += 1
            torch.mul(x, 2, out=y)

        self.recordings.run(launches, (x, None, y), options)
        return y


def test_the_second_time_is_recorded_and_replayed_from_then_on() -> None:
    double = Doubling(Recordings())
    for k in range(5):
        assert double(X.fill_(k), Y).tolist() == [2 * k] * 3
    assert (double.calls, Graph.replays) == (2, 4)


@pytest.mark.parametrize(
    "other",
    [(X.clone(), Y), (X, Y.clone()), (X[:2], Y[:2]), (X.view(torch.int32), Y.view(torch.int32)), (X, Y, "option")],
    ids=["x moved", "y moved", "shape", "dtype", "options"],
)
def test_a_recording_depends_on_everything(other: tuple) -> None:
    double = Doubling(Recordings())
    double(X, Y)
    double(X, Y)
    double(other[0].fill_(3), *other[1:])
    assert other[1][:2].tolist() == [6, 6]
    assert (double.calls, Graph.replays) == (3, 1)


def test_streams_have_recordings_of_their_own(stream: recorder.Stream) -> None:
    double = Doubling(Recordings())
    for stream.cuda_stream in (1, 1, 2, 1, 2):
        double(X, Y)
    assert (double.calls, Graph.replays) == (4, 3)


def test_strides_are_told_apart() -> None:
    square, double = torch.arange(4.0).reshape(2, 2), Doubling(Recordings())
    out = torch.empty(2, 2)
    for x in (square, square, square.t()):
        assert torch.equal(double(x, out), 2 * x)
    assert Graph.replays == 1


def test_nothing_is_recorded_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "capturing", lambda device: True)
    double = Doubling(Recordings())
    for _ in range(3):
        double(X, Y)
    assert (double.calls, Graph.replays) == (3, 0)


def test_those_that_came_last_are_kept(stream: recorder.Stream) -> None:
    """A graph that is dropped may still be running: its stream is waited for."""
    double = Doubling(Recordings(most=2))
    for option in (1, 1, 2, 1):
        double(X, Y, option)
    assert (double.calls, stream.waits) == (3, 0)
    for option in (3, 4):  # drops 2, which was not recorded, and 1
        double(X, Y, option)
    assert stream.waits == 1
    double(X, Y, 1)
    assert double.calls == 6


def test_launches_that_fail_while_recorded_can_come_again() -> None:
    recordings = Recordings()
    recordings.run(lambda: None, (X,), ())
    with pytest.raises(ZeroDivisionError):
        recordings.run(lambda: 1 // 0, (X,), ())
    assert Graph.captures is None
    recordings.run(lambda: None, (X,), ())
    assert Graph.replays == 1
