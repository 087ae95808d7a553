"""An agent that balances a pole without seeing how fast it moves: reinforcement learning that needs a memory.

The cart-pole (Barto et al. 1983) with its two velocities hidden: from one look at it nobody can tell which way to push,
so the policy is recurrent. It is trained by PPO (Schulman et al. 2017): carts are driven side by side for a number of
steps, a rollout, in which episodes end and begin anew at any step; then the policy goes through the rollout several
times, from the states in which it began, and is improved. A new episode must not see the state of the one before it:

* libraries of today loop over the steps, in Python, and zero the state where an episode starts (:meth:`Policy.step`);
  that is all that torch.nn's layers can do;
* fastrnn's layers take the whole rollout in one call, with ``reset=`` telling where episodes start.

The gradients are the same, which is checked before anything is timed. An update is one pass through a rollout; that
before which carts are driven takes longer, one in :data:`PASSES`. ``--gymnasium`` drives gymnasium's CartPole-v1
instead of the carts here (``pip install gymnasium``).
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.distributions import Categorical

import fastrnn
from bench.results import BASELINE, Case, Row
from bench.style import COLOURS, FAINT, INK, STYLE, plain
from bench.workloads.layers import LAYERS
from bench.workloads.workload import DataError, Evaluation, Workload
from fastrnn._arguments import positive_int

SEEN = torch.tensor([1 / 2.4, 0, 1 / 0.21, 0]).double()  # of position, velocity, angle, angular velocity, and scaled
PASSES = 4  # through each rollout
DISCOUNT, TRACE = 0.98, 0.95  # γ and λ of generalised advantage estimation (Schulman et al. 2016)
RATIO = 0.2  # by which probabilities may change before PPO ignores more
VALUE, ENTROPY = 0.5, 0.01  # weights in the loss
HELD_OUT, LIMIT = 64, 300  # episodes that are judged, and steps after which they end
State = Tensor | tuple[Tensor, Tensor]


class Carts(Protocol):
    """Environments side by side, N of them, which begin anew by themselves."""

    state: Tensor  # (N, 4), float64

    def step(self, right: Tensor, drawn: Tensor) -> Tensor:
        """Push right or left, ``(N,)``; which episodes have ended, bool ``(N,)``, and begun anew as was drawn."""


class CartPoles:
    """Poles on carts, as gymnasium's CartPole-v1 has them, computed side by side.

    Args:
        drawn: from 0 to 1, ``(N, 4)``: where they begin.
    """

    def __init__(self, drawn: Tensor) -> None:
        self.state = self._begin(drawn)

    def step(self, right: Tensor, drawn: Tensor) -> Tensor:
        """As :class:`Carts` has it."""
        _, v, angle, w = self.state.unbind(1)
        force = torch.where(right.bool(), 10.0, -10.0).double()
        sin, cos = angle.sin(), angle.cos()
        pushed = (force + 0.05 * w**2 * sin) / 1.1  # a pole of 0.1 kg and half a length of 0.5 m, a cart of 1 kg
        turning = (9.8 * sin - cos * pushed) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        moving = pushed - 0.05 * turning * cos / 1.1
        self.state = self.state + 0.02 * torch.stack((v, moving, w, turning), dim=1)
        ended = (self.state[:, 0].abs() > 2.4) | (self.state[:, 2].abs() > math.radians(12))
        self.state = torch.where(ended.unsqueeze(1), self._begin(drawn), self.state)
        return ended

    @staticmethod
    def _begin(drawn: Tensor) -> Tensor:
        return 0.1 * drawn.double() - 0.05


class GymnasiumCarts:
    """gymnasium's own; what is drawn decides only about the first beginnings."""

    def __init__(self, drawn: Tensor) -> None:
        try:
            import gymnasium
            from gymnasium.vector import AutoresetMode
        except ImportError as error:
            raise DataError(f"--gymnasium needs gymnasium: pip install gymnasium ({error})") from error
        self._carts = gymnasium.make_vec(
            "CartPole-v1",
            num_envs=len(drawn),
            vectorization_mode="sync",  # the carts' own vectorization takes no vector_kwargs
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
            max_episode_steps=10**9,
        )
        seed = int(drawn[0, 0].double() * 2**31)
        self.state = torch.from_numpy(self._carts.reset(seed=seed)[0]).double()

    def step(self, right: Tensor, drawn: Tensor) -> Tensor:
        """As :class:`Carts` has it."""
        state, _, ended, _, _ = self._carts.step(right.long().numpy())
        self.state = torch.from_numpy(state).double()
        return torch.from_numpy(ended)


class Policy(nn.Module):
    """What to do and what to expect, from what is seen and remembered.

    Args:
        cell: a key of :data:`~bench.workloads.layers.LAYERS`.
        hidden: units H of the recurrent layer.
    """

    def __init__(self, cell: str, hidden: int) -> None:
        super().__init__()
        self.recurrent = LAYERS[cell](2, hidden)
        self.actor = nn.Linear(hidden, 2)
        self.critic = nn.Linear(hidden, 1)

    def forward(self, seen: Tensor, state: State, starts: Tensor) -> tuple[Tensor, Tensor]:
        """A rollout: what is seen ``(T, N, 2)``, the state before it, and whether episodes start at a step ``(T, N)``.

        Returns:
            Logits of left and right ``(T, N, 2)``, and the sums of discounted rewards that are expected ``(T, N)``.
        """
        if isinstance(self.recurrent, fastrnn.nn.Layers):
            remembered, _ = self.recurrent(seen, state, reset=starts)
        else:
            steps = []
            for now, start in zip(seen, starts, strict=True):
                y, state = self.step(now, state, start)
                steps.append(y)
            remembered = torch.stack(steps)
        return self.actor(remembered), self.critic(remembered).squeeze(-1)

    def step(self, seen: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """One step, ``(N, 2)`` and ``(N,)``, to what is remembered ``(N, H)`` and the state."""
        keep = (~start).unsqueeze(-1)
        state = (state[0] * keep, state[1] * keep) if isinstance(state, tuple) else state * keep
        y, state = self.recurrent(seen.unsqueeze(0), state)
        return y[0], state

    def beginning(self, carts: int) -> State:
        """The state before anything is seen."""
        zeros = self.actor.weight.new_zeros(1, carts, self.recurrent.hidden_size)
        return (zeros, zeros) if isinstance(self.recurrent, nn.LSTM) else zeros


class Driver:
    """Carts that are driven by a policy, and go on from rollout to rollout."""

    def __init__(self, policy: Policy, carts: Carts) -> None:
        self.policy = policy
        self.carts = carts
        self.state = policy.beginning(len(carts.state))
        self.start = torch.ones(len(carts.state), dtype=torch.bool)

    def seen(self) -> Tensor:
        """Position and angle of each cart, ``(N, 2)``, without their velocities."""
        return (self.carts.state * SEEN)[:, ::2].to(self.policy.actor.weight.dtype)

    @torch.no_grad()
    def rollout(self, steps: int) -> tuple[State, Tensor, Tensor, Tensor, Tensor]:
        """Drive: the state before, what was seen ``(T + 1, N, 2)``, where episodes started, what was done, ends.

        The last of ``T + 1`` steps is seen, and nothing is done any more.
        """
        before = self.state
        drawn = torch.rand(steps, len(self.start), 5)
        seen, starts, done, ended = [], [], [], []
        for k in range(steps):
            seen.append(self.seen())
            starts.append(self.start)
            y, self.state = self.policy.step(seen[-1], self.state, self.start)
            right = drawn[k, :, 0] < self.policy.actor(y).softmax(-1)[:, 1]
            self.start = self.carts.step(right, drawn[k, :, 1:])
            done.append(right)
            ended.append(self.start)
        seen.append(self.seen())
        starts.append(self.start)
        return before, torch.stack(seen), torch.stack(starts), torch.stack(done).long(), torch.stack(ended)


class PartiallyObservedControl(Workload):
    """A cart-pole whose velocities are hidden."""

    name = "partially_observed_control"
    summary = "Train an agent to balance a pole without seeing how fast it moves."
    data = "there is none of that kind: carts are simulated"
    items = "steps"
    learning_rate = 1e-2
    clip = 0.5

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        if options.data is not None:
            raise DataError("partially_observed_control takes no --data: its carts are simulated")
        self.carts: type[CartPoles] | type[GymnasiumCarts] = GymnasiumCarts if options.gymnasium else CartPoles
        self.carts(torch.rand(1, 4))  # now, if gymnasium is not there
        self.watched = watched(LIMIT)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--gymnasium", action="store_true", help="drive gymnasium's carts")
        parser.add_argument("--cell", choices=list(LAYERS), default="gru", help="recurrent layer")
        parser.add_argument("--hidden", type=positive_int, default=64, help="units of the layer")
        parser.add_argument("--carts", type=positive_int, default=16, help="that are driven side by side")
        parser.add_argument("--steps", type=positive_int, default=128, help="of a rollout")

    @property
    def case(self) -> Case:
        o = self.options
        return Case(o.cell, o.carts, o.steps + 1, 2, o.hidden, 1, 1, "float32", "training")

    def describe(self) -> dict[str, Any]:
        o = self.options
        simulated = "gymnasium's cart-pole" if o.gymnasium else "the cart-pole"
        return {"task": f"{simulated}, velocities hidden", "carts": o.carts, "steps of a rollout": o.steps}

    def model(self) -> Policy:
        return Policy(self.options.cell, self.options.hidden)

    def learn(self, model: nn.Module) -> Iterator[Tensor]:
        driver = Driver(model, self.carts(torch.rand(self.options.carts, 4)))
        while True:
            before, seen, starts, done, ended = driver.rollout(self.options.steps)
            chances, advantages, returns = None, None, None
            for _ in range(PASSES):
                logits, values = model(seen, before, starts)
                policy = Categorical(logits=logits[:-1])
                taken = policy.log_prob(done)
                if chances is None:
                    chances, advantages = taken.detach(), advantage(values.detach(), ended)
                    returns = advantages + values[:-1].detach()
                    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-6)
                ratio = (taken - chances).exp()
                gain = torch.minimum(ratio * advantages, ratio.clamp(1 - RATIO, 1 + RATIO) * advantages)
                missed = (values[:-1] - returns).square()
                yield (VALUE * missed - gain - ENTROPY * policy.entropy()).flatten()

    def evaluate(self, model: nn.Module) -> Evaluation:
        seen, starts, right = self.watched
        logits, _ = model(seen.to(model.actor.weight.dtype), model.beginning(HELD_OUT), starts)
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), right.flatten(), reduction="none")
        kept, _ = self.balance(model, forget=False)
        forgotten, _ = self.balance(model, forget=True)
        return Evaluation(losses, {"steps balanced": kept, "steps balanced, forgetting each": forgotten})

    def balance(self, model: nn.Module, forget: bool) -> tuple[float, list[float]]:
        """The mean length of held-out episodes, :data:`LIMIT` at most, and the angles of the first in degrees."""
        generator = torch.Generator().manual_seed(self.options.seed)
        driver = Driver(model, CartPoles(torch.rand(HELD_OUT, 4, generator=generator)))
        alive = torch.ones(HELD_OUT, dtype=torch.bool)
        total, angles = 0, []
        for _ in range(LIMIT):
            if alive[0]:
                angles.append(math.degrees(float(driver.carts.state[0, 2])))
            y, driver.state = model.step(driver.seen(), driver.state, driver.start | forget)
            driver.start = driver.carts.step(model.actor(y).argmax(-1), torch.zeros(HELD_OUT, 4))
            alive &= ~driver.start
            total += int(alive.sum())
        return total / HELD_OUT, angles

    def findings(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        return {
            "angles": {name: self.balance(model, forget=False)[1] for name, model in models.items()},
            "angles, forgetting": self.balance(models["fastrnn"], forget=True)[1],
        }

    @staticmethod
    def draw(axes: Axes, row: Row) -> None:
        """The pole's angle in a held-out episode, as far as it got."""
        findings = row.detail["findings"]
        for name, angles in findings["angles"].items():
            line = "-" if name == BASELINE else "--"
            axes.plot(angles, line, color=COLOURS[name], linewidth=1.2, label=f"{name}: {len(angles)} steps")
        forgotten = findings["angles, forgetting"]
        axes.plot(forgotten, color=INK, linewidth=1.2, label=f"fastrnn, its state forgotten: {len(forgotten)} steps")
        for limit in (-12, 12):
            axes.axhline(limit, color=FAINT, linewidth=0.8)
        axes.set_xlabel(f"steps of a held-out episode, of {LIMIT}", **STYLE)
        axes.set_ylabel("angle of the pole, in degrees (beyond the lines it has fallen)", **STYLE)
        axes.set_ylim(-14, 20)
        axes.legend(frameon=False, fontsize=9, loc="upper right")
        plain(axes, grid="y")


def advantage(values: Tensor, ended: Tensor) -> Tensor:
    """How much better each step went than was expected, ``(T, N)``.

    A step that is survived has a reward of 1 - γ, so that no more than 1 can be expected.

    Args:
        values: that were expected, ``(T + 1, N)``.
        ended: episodes that the step has ended, ``(T, N)``: nothing is to be expected after it.
    """
    goes_on = (~ended).to(values.dtype)
    surprise = goes_on * (1 - DISCOUNT + DISCOUNT * values[1:]) - values[:-1]
    found = torch.zeros_like(surprise)
    later = torch.zeros_like(surprise[0])
    for k in reversed(range(len(surprise))):
        later = surprise[k] + DISCOUNT * TRACE * goes_on[k] * later
        found[k] = later
    return found


def watched(steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out rollouts of a driver who sees the velocities, and often errs: by these, policies are compared.

    Returns:
        What can be seen ``(T, N, 2)``, where episodes start ``(T, N)``, and whether the push was right ``(T, N)``.
    """
    generator = torch.Generator().manual_seed(0)
    carts = CartPoles(torch.rand(HELD_OUT, 4, generator=generator))
    start = torch.ones(HELD_OUT, dtype=torch.bool)
    seen, starts, pushes = [], [], []
    for _ in range(steps):
        drawn = torch.rand(HELD_OUT, 5, generator=generator)
        right = (carts.state @ torch.tensor([0.1, 0.3, 3.0, 1.0]).double() > 0) ^ (drawn[:, 0] < 0.2)
        seen.append((carts.state * SEEN)[:, ::2])
        starts.append(start)
        pushes.append(right.long())
        start = carts.step(right, drawn[:, 1:])
    return torch.stack(seen), torch.stack(starts), torch.stack(pushes)
