"""An echo state network that learns a chaotic series without backpropagation, and then goes on by itself.

The recurrent layer is random and stays as it is; what it makes of the series, its echo, is so rich that the next value
can be read from it by a linear map, found by ridge regression (Jaeger 2001; Jaeger & Haas 2004). How long the echo
lasts is decided by the spectral radius of the recurrent weights, the largest of their eigenvalues' sizes: near 1 it
lasts longest; above, states may no longer forget where they began (``--spectral-radius``; the picture goes through
several). Fitted, the network is fed its own forecasts, a step a call.

The series are those of Mackey & Glass (1977), x' = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x, integrated here from
random beginnings, some held out. An update is a fit to one series. ``--data`` takes a text file with a series of your
own, a number a line, whose last fifth is held out.
"""

import argparse
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from bench.results import BASELINE, Case, Row
from bench.style import COLOURS, FAINT, INK, STYLE, plain
from bench.workloads.workload import DataError, Evaluation, Workload
from fastrnn._arguments import positive_float, positive_int

HELD_OUT = 8  # series
FITTED = 16  # series to fit, one after the other
AHEAD = 84  # steps after which forecasts are judged, as Jaeger & Haas have it
SHOWN = 300  # steps of the picture
RADII = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.1, 1.2, 1.35, 1.5)


def mackey_glass(series: int, length: int, seed: int) -> np.ndarray:
    """Series ``(series, length)``, a value for each unit of time, squashed: tanh(x - 1).

    Integrated by Heun's method in tenths of the unit, after 200 units in which the beginning is forgotten.
    """
    tenths, delay = 10, 170
    history = list(np.random.default_rng(seed).uniform(0.5, 1.5, (delay + 1, series)))

    def slope(x: np.ndarray, delayed: np.ndarray) -> np.ndarray:
        return 0.2 * delayed / (1 + delayed**10) - 0.1 * x

    for _ in range((200 + length) * tenths - 1):
        x = history[-1]
        before = slope(x, history[-1 - delay])
        after = slope(x + before / tenths, history[-delay])
        history.append(x + (before + after) / 2 / tenths)
    return np.tanh(np.stack(history[-length * tenths :: tenths], axis=1) - 1)


def read(path: Path) -> np.ndarray:
    """The numbers of a file, one a line, less their mean and over three standard deviations."""
    try:
        values = np.array([float(line) for line in path.read_text(encoding="utf-8").split()])
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a text file with a number on each line: {error}") from error
    if not np.isfinite(values).all() or len(values) < 2 or values.std() == 0:
        raise DataError(
            f"{path} is no series: it has {len(values)} numbers, all finite and not all the same are needed"
        )
    return (values - values.mean()) / (3 * values.std())


class EchoStateNetwork(nn.Module):
    """A recurrent layer that nobody trains, and a linear map from its states to the next value.

    Args:
        hidden: units H of the layer.
        radius: the spectral radius of its recurrent weights.
        scale: its input weights and biases are drawn from -scale to scale.

    Attributes:
        readout: of the states and a constant, ``(H + 1,)``.
    """

    readout: Tensor

    def __init__(self, hidden: int, radius: float, scale: float) -> None:
        super().__init__()
        self.recurrent = nn.RNN(1, hidden).requires_grad_(False)
        nn.init.uniform_(self.recurrent.weight_ih_l0, -scale, scale)
        nn.init.uniform_(self.recurrent.bias_ih_l0, -scale, scale)
        nn.init.zeros_(self.recurrent.bias_hh_l0)
        self.register_buffer("readout", torch.zeros(hidden + 1))
        self.set_radius(radius)

    @torch.no_grad()
    def set_radius(self, radius: float) -> None:
        """Scale the recurrent weights."""
        weight = self.recurrent.weight_hh_l0
        weight *= radius / torch.linalg.eigvals(weight.double()).abs().max()

    @torch.no_grad()
    def fit(self, series: Tensor, washout: int, ridge: float) -> Tensor:
        """Find the readout for a series ``(T,)`` by ridge regression; its errors ``(T - 1 - washout,)``.

        The first steps, in which the state forgets that it began at zero, do not count.
        """
        states, _ = self.recurrent(series[:-1, None, None])
        # in float64, since the states have much in common: their products are nearly singular
        echo = nn.functional.pad(states[washout:, 0].double(), (0, 1), value=1.0)
        target = series[1 + washout :].double()
        products = echo.t() @ echo + ridge * len(echo) * torch.eye(echo.shape[1], dtype=echo.dtype, device=echo.device)
        found = torch.linalg.solve(products, echo.t() @ target)
        self.readout.copy_(found)
        return target - echo @ found

    def forward(self, series: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Series ``(T, B)`` to forecasts of the value after each step ``(T, B)``, and the state after the last."""
        states, state = self.recurrent(series.unsqueeze(-1), state)
        return states @ self.readout[:-1] + self.readout[-1], state

    @torch.no_grad()
    def go_on(self, series: Tensor, steps: int) -> Tensor:
        """Go on after series ``(T, B)`` by itself: ``(steps, B)``, each value forecast from those before."""
        forecasts, state = self(series)
        value, found = forecasts[-1:], []
        for _ in range(steps):
            found.append(value)
            value, state = self(value, state)
        return torch.cat(found)


class EchoState(Workload):
    """A chaotic series, read from the echo that it leaves in a random network."""

    name = "echo_state"
    summary = "Fit an echo state network to a chaotic series, which it then goes on with by itself."
    data = "a text file with a number on each line, a series; else Mackey and Glass's, which is chaotic"
    items = "steps"
    seconds = 10.0
    panels = 2

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        if options.length <= options.washout + 10:
            raise DataError(
                f"--length {options.length} has to be more than --washout {options.washout}, by 10 at least"
            )
        lead = options.washout + SHOWN  # steps before a forecast, and those that are forecast
        if options.data is None:
            made = torch.from_numpy(mackey_glass(FITTED + HELD_OUT, max(options.length, lead), options.seed))
            self.fitted, self.heldout = made[:FITTED, : options.length], made[FITTED:, :lead]
        else:
            values = torch.from_numpy(read(options.data))
            cut = len(values) - max(lead, len(values) // 5)
            if cut <= options.washout + 10:
                raise DataError(f"{options.data} is too short: {len(values)} numbers, and {lead} are held out")
            self.fitted, self.heldout = values[None, :cut], values[None, cut : cut + lead]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--spectral-radius", type=positive_float, default=0.9, help="of the recurrent weights")
        parser.add_argument("--hidden", type=positive_int, default=400, help="units of the layer")
        parser.add_argument("--scale", type=positive_float, default=0.5, help="of input weights and biases")
        parser.add_argument("--ridge", type=positive_float, default=1e-10, help="penalty of the readout's squares")
        parser.add_argument("--length", type=positive_int, default=2000, help="steps of a series that is fitted")
        parser.add_argument("--washout", type=positive_int, default=200, help="steps that do not count")

    @property
    def case(self) -> Case:
        o = self.options
        return Case("rnn_tanh", 1, self.fitted.shape[1] - 1, 1, o.hidden, 1, 1, "float32", "inference")

    def describe(self) -> dict[str, Any]:
        o = self.options
        return {
            "series": "Mackey and Glass's series" if o.data is None else str(o.data),
            "steps": self.fitted.shape[1],
            "series to fit": len(self.fitted),
            "held-out series": len(self.heldout),
            "radius": f"spectral radius {o.spectral_radius:g}",
        }

    def model(self) -> EchoStateNetwork:
        return EchoStateNetwork(self.options.hidden, self.options.spectral_radius, self.options.scale)

    def learn(self, model: nn.Module) -> Iterator[Tensor]:
        while True:
            for series in self.fitted:
                yield self._fit(model, series).square()

    def evaluate(self, model: nn.Module) -> Evaluation:
        truth = self.heldout.t().to(model.readout.dtype)
        washout = self.options.washout
        forecasts, _ = model(truth[:-1])
        errors = (forecasts - truth[1:])[washout:]
        ahead = model.go_on(truth[:washout], AHEAD) - truth[washout : washout + AHEAD]
        spread = float(truth.std())
        qualities = {
            f"NRMSE {AHEAD} steps ahead": float(ahead[-1].square().mean().sqrt()) / spread,
            "NRMSE a step ahead": float(errors.square().mean().sqrt()) / spread,
        }
        return Evaluation(errors.square().flatten(), qualities)

    def findings(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        washout = self.options.washout
        truth = self.heldout.t().float()
        gone_on = {name: model.go_on(truth[:washout, :1], SHOWN)[:, 0].tolist() for name, model in models.items()}
        radii = []
        for radius in RADII:
            model = copy.deepcopy(models["fastrnn"])
            model.set_radius(radius)
            self._fit(model, self.fitted[0])
            radii.append([radius, *self.evaluate(model).qualities.values()])
        return {"truth": truth[washout:, 0].tolist(), "gone on": gone_on, "radii": radii}

    def _fit(self, model: nn.Module, series: Tensor) -> Tensor:
        return model.fit(series.to(model.readout.dtype), self.options.washout, self.options.ridge)

    @staticmethod
    def draw(course: Axes, radii: Axes, row: Row) -> None:
        """How the network goes on by itself, and how well for each spectral radius."""
        findings = row.detail["findings"]
        course.plot(findings["truth"], color=INK, linewidth=2.4, alpha=0.35, label="the series")
        for name, values in findings["gone on"].items():
            line = "-" if name == BASELINE else "--"
            course.plot(values, line, color=COLOURS[name], linewidth=1.2, label=f"{name}, by itself")
        course.set_xlabel("steps after the last value that was given", **STYLE)
        low, high = min(findings["truth"]), max(findings["truth"])
        course.set_ylim(low - 0.2 * (high - low), high + 0.4 * (high - low))
        course.legend(frameon=False, fontsize=9, ncols=3, loc="upper right")
        plain(course, grid="y")
        sizes, ahead, next_step = zip(*findings["radii"], strict=True)
        radii.plot(sizes, ahead, color=COLOURS["fastrnn"], marker="o", markersize=4, label=f"{AHEAD} steps ahead")
        radii.plot(sizes, next_step, color=FAINT, marker="o", markersize=4, label="a step ahead")
        radii.set_yscale("log")
        radii.set_xlabel("spectral radius", **STYLE)
        radii.set_ylabel("root mean square error, in standard deviations", **STYLE)
        radii.legend(frameon=False, fontsize=9)
        plain(radii, grid="both")
