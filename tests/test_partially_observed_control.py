"""The agent that does not see velocities: its carts, its advantages, rollouts against loops, a short training."""

import math
from pathlib import Path

import pytest
import torch
from workload import made, threads, trained

import fastrnn
from bench.workloads import partially_observed_control as control
from bench.workloads.partially_observed_control import DISCOUNT, TRACE, CartPoles, Driver, Policy, advantage
from bench.workloads.workload import DataError

__all__ = ["threads"]


def test_carts_obey_the_equations_of_a_pole_on_a_cart() -> None:
    """Lagrange's two equations hold for the accelerations, as differences of velocities have them."""
    carts = CartPoles(torch.rand(50, 4))
    carts.state = carts.state * torch.tensor([20.0, 20.0, 3.0, 20.0])
    before = carts.state
    right = torch.arange(50) % 2 == 0
    ended = carts.step(right, torch.rand(50, 4))
    moving, turning = ((carts.state - before)[:, [1, 3]] / 0.02)[~ended].unbind(1)
    force = torch.where(right, 10.0, -10.0)[~ended]
    _, _, angle, w = before[~ended].unbind(1)
    assert len(angle) > 20
    along = 1.1 * moving + 0.05 * turning * angle.cos() - 0.05 * w**2 * angle.sin()
    torch.testing.assert_close(along, force.double())
    around = 4 / 3 * 0.5 * turning + moving * angle.cos()
    torch.testing.assert_close(around, 9.8 * angle.sin())


def test_a_cart_begins_anew_where_its_pole_has_fallen() -> None:
    carts = CartPoles(torch.rand(3, 4))
    carts.state[1, 2] = math.radians(11.9)
    carts.state[1, 3] = 3.0
    carts.state[2, 0] = -2.5
    drawn = torch.rand(3, 4)
    assert carts.step(torch.ones(3), drawn).tolist() == [False, True, True]
    torch.testing.assert_close(carts.state[1:], 0.1 * drawn[1:].double() - 0.05)


def test_advantages_are_sums_of_what_surprised() -> None:
    values, ended = torch.rand(6, 2), torch.zeros(5, 2, dtype=torch.bool)
    ended[2, 1] = True
    found = advantage(values, ended)
    for row in range(2):
        for k in range(5):
            expected, weight = 0.0, 1.0
            for later in range(k, 5):
                over = bool(ended[later, row])
                reward = 0.0 if over else 1 - DISCOUNT
                expected += weight * (
                    reward + (0 if over else DISCOUNT * float(values[later + 1, row])) - float(values[later, row])
                )
                weight *= DISCOUNT * TRACE
                if over:
                    break
            assert float(found[k, row]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_rollout_in_one_call_is_a_loop_over_its_steps(cell: str) -> None:
    """Outputs and gradients; fails where a state crosses the start of an episode, or is lost within one."""
    policy = Policy(cell, 16).double()
    fast = fastrnn.convert(Policy(cell, 16).double())
    fast.load_state_dict(policy.state_dict())
    seen = torch.randn(20, 4, 2, dtype=torch.float64)
    starts = torch.rand(20, 4) < 0.2
    state = policy.beginning(4)
    state = tuple(map(torch.randn_like, state)) if isinstance(state, tuple) else torch.randn_like(state)
    found = []
    for model in (policy, fast):
        logits, values = model(seen, state, starts)
        (logits.sin().sum() + values.square().sum()).backward()
        found.append([logits, values, *(weight.grad for weight in model.parameters())])
    for theirs, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)
    never, _ = fast(seen, state, torch.zeros_like(starts))
    assert not torch.allclose(never, found[1][0])


def test_a_driver_remembers_what_the_policy_would() -> None:
    """What was done is what a pass through the rollout makes likely: the same states, resets and observations."""
    policy = fastrnn.convert(Policy("gru", 16))
    driver = Driver(policy, CartPoles(torch.rand(8, 4)))
    driver.rollout(30)
    torch.manual_seed(1)
    before, seen, starts, done, ended = driver.rollout(40)
    assert ended.any()
    assert torch.equal(starts[1:], ended)
    torch.manual_seed(1)
    drawn = torch.rand(40, 8, 5)[..., 0]
    logits, _ = policy(seen, before, starts)
    chances = logits.softmax(-1)[:-1, :, 1]
    clear = (drawn - chances).abs() > 1e-5
    assert torch.equal((drawn < chances)[clear], done.bool()[clear])


def test_it_learns_to_balance_and_needs_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LIMIT", 150)
    row = trained(
        "partially_observed_control", tmp_path, "--updates=100", "--hidden=32", "--steps=64", "--learning-rate=0.02"
    )
    for quality in row.detail["quality"].values():
        assert quality["steps balanced"] > 60  # pushing at random, 20
        assert quality["steps balanced"] > 1.3 * quality["steps balanced, forgetting each"]


def test_gymnasiums_carts_move_as_these_do(tmp_path: Path) -> None:
    try:
        import gymnasium  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match="pip install gymnasium"):
            made("partially_observed_control", "--gymnasium")
        return
    theirs = control.GymnasiumCarts(torch.rand(5, 4))
    mine = CartPoles(torch.rand(5, 4))
    mine.state = theirs.state.clone()
    for _ in range(8):
        right = torch.rand(5) < 0.5
        assert torch.equal(theirs.step(right, torch.rand(5, 4)), mine.step(right, torch.rand(5, 4)))
        torch.testing.assert_close(theirs.state, mine.state, rtol=1e-4, atol=1e-5)


def test_there_is_no_data_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no --data"):
        made("partially_observed_control", f"--data={tmp_path}")


def test_gymnasiums_carts_begin_anew_where_they_fall() -> None:
    pytest.importorskip("gymnasium")
    carts = control.GymnasiumCarts(torch.rand(3, 4))
    fallen = 0
    for _ in range(60):
        ended = carts.step(torch.ones(3, dtype=torch.bool), torch.rand(3, 4))
        assert (carts.state[ended].abs() <= 0.05).all()
        fallen += int(ended.sum())
    assert fallen >= 6
