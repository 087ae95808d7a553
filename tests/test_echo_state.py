"""The echo state network: its series, its fit, its own forecasts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from workload import made, threads, trained

import fastrnn
from bench.workloads.echo_state import EchoStateNetwork, mackey_glass
from bench.workloads.workload import DataError

__all__ = ["threads"]


def test_the_series_obeys_its_equation() -> None:
    """The slope of what was integrated, by differences, is the equation's; on a finer grid it would be all of it."""
    x = 1 + np.arctanh(mackey_glass(3, 400, seed=0))
    assert x.shape == (3, 400)
    assert np.ptp(x, axis=1).min() > 0.5  # it swings
    slope = (x[:, 2:] - x[:, :-2])[:, 17:] / 2
    delayed, now = x[:, 1:-18], x[:, 18:-1]
    expected = 0.2 * delayed / (1 + delayed**10) - 0.1 * now
    assert np.corrcoef(slope.ravel(), expected.ravel())[0, 1] > 0.99
    assert abs(slope - expected).mean() < 0.05 * abs(expected).mean() + 0.005


def test_the_spectral_radius_is_what_is_asked_for() -> None:
    model = EchoStateNetwork(30, 0.7, 0.5)
    eigenvalues = torch.linalg.eigvals(model.recurrent.weight_hh_l0.double())
    assert float(eigenvalues.abs().max()) == pytest.approx(0.7, rel=1e-5)
    assert not any(weight.requires_grad for weight in model.parameters())


def test_the_fit_is_ridge_regression() -> None:
    model = EchoStateNetwork(12, 0.9, 0.5).double()
    series = torch.rand(80, dtype=torch.float64)
    errors = model.fit(series, washout=10, ridge=1e-3)
    states = model.recurrent(series[:-1, None, None])[0][10:, 0]
    echo = torch.cat(
        (
            states,
            torch.ones(69, 1, dtype=torch.float64),
        ),
        1,
    )
    penalty = (1e-3 * 69) ** 0.5 * torch.eye(13, dtype=torch.float64)
    zeros = torch.zeros(13, dtype=torch.float64)
    best = torch.linalg.lstsq(torch.cat((echo, penalty)), torch.cat((series[11:], zeros))).solution
    torch.testing.assert_close(model.readout, best)
    torch.testing.assert_close(errors, series[11:] - echo @ best)
    forecasts, _ = model(series[:-1, None])
    torch.testing.assert_close(forecasts[10:, 0], series[11:] - errors)


def test_by_itself_it_reads_its_own_forecasts() -> None:
    """Fails where a state is not carried: compared with forecasting from the beginning each time."""
    model = fastrnn.convert(EchoStateNetwork(12, 0.9, 0.5))
    model.readout.normal_(std=0.2)
    series = torch.rand(20, 2)
    gone_on = model.go_on(series, 5)
    for k in range(5):
        forecasts, _ = model(torch.cat((series, gone_on[:k])))
        torch.testing.assert_close(gone_on[k], forecasts[-1])


def test_it_forecasts_chaos(tmp_path: Path) -> None:
    flags = ("--updates=2", "--hidden=150", "--length=1200", "--ridge=1e-9")
    row = trained("echo_state", tmp_path, *flags)
    for quality in row.detail["quality"].values():
        assert quality["NRMSE 84 steps ahead"] < 0.5  # the mean of the series has 1
        assert quality["NRMSE a step ahead"] < 0.01
    radii = {radius: ahead for radius, ahead, _ in row.detail["findings"]["radii"]}
    assert radii[0.9] < radii[0.1]  # what is hardly echoed cannot be read


def test_a_series_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "series.txt"
    path.write_text("\n".join(f"{3 + 2 * np.sin(0.3 * k):.6f}" for k in range(1500)), encoding="utf-8")
    row = trained("echo_state", tmp_path, f"--data={path}", "--updates=1", "--hidden=60", "--ridge=1e-6")
    assert row.detail["quality"]["fastrnn"]["NRMSE 84 steps ahead"] < 0.1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1\ntwo\n", "not a text file with a number"),
        ("1 1 1", "no series"),
        ("1 2 3", "too short"),
        ("1 inf", "no series"),
    ],
)
def test_series_that_cannot_be_used(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "series.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        made("echo_state", f"--data={path}")
    with pytest.raises(DataError, match="more than --washout"):
        made("echo_state", "--length=100")
