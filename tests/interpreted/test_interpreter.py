"""The rig itself: numbers as torch has them, accesses checked, programs that run at the same time."""

import random

import pytest
import torch
import triton
import triton.language as tl
from rig.interpreter import Deadlock, OutOfBounds, schedule

SEEDS = range(20)
PROGRAMS = 4
STEPS = 5


@triton.jit
def grid_barrier(counter_ptr, target):
    tl.debug_barrier()
    tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")
    while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()


@triton.jit
def mix_kernel(x_ptr, counter_ptr, steps, PROGRAMS: tl.constexpr, BARRIER: tl.constexpr, EARLY: tl.constexpr = 0):
    """x[t + 1, p] = sum of (q + 1) x[t, q] over q, plus x[t, p]: a step needs all of the step before.

    EARLY is for how many programs the barrier fails to wait.
    """
    p = tl.program_id(0)
    q = tl.arange(0, PROGRAMS)
    for t in range(steps):
        row = tl.load(x_ptr + t * PROGRAMS + q, cache_modifier=".cg")
        own = tl.load(x_ptr + t * PROGRAMS + p)
        tl.store(x_ptr + (t + 1) * PROGRAMS + p, (tl.sum(row * (q + 1), 0) + own) % 1009)
        if BARRIER:
            grid_barrier(counter_ptr, (t + 1) * PROGRAMS - EARLY)


@triton.jit
def wait_kernel(flag_ptr, VOLATILE: tl.constexpr):
    while tl.load(flag_ptr, volatile=VOLATILE) < 1:
        pass


@triton.jit
def patient_kernel(flag_ptr, gave_up_ptr, LIMIT: tl.constexpr):
    polls = 0
    while (tl.load(flag_ptr, volatile=True) < 1) & (polls < LIMIT):
        polls += 1
    tl.store(gave_up_ptr, polls)


@triton.jit
def slow_kernel(x_ptr, flag_ptr, loads):
    """One program loads often before it opens the barrier that all others wait at."""
    if tl.program_id(0) == 0:
        total = 0
        for i in range(loads):
            total += tl.load(x_ptr + i % 4)
        tl.atomic_add(flag_ptr, total)
    while tl.load(flag_ptr, volatile=True) < 1:
        pass


@triton.jit
def ticket_kernel(turn_ptr, order_ptr):
    ticket = tl.atomic_add(turn_ptr, 1)
    tl.store(order_ptr + ticket, tl.program_id(0))


@triton.jit
def copy_kernel(x_ptr, y_ptr, size, offset, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK) + offset
    if MASKED:
        tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < size), mask=i < size)
    else:
        tl.store(y_ptr + i, tl.load(x_ptr + i))


@triton.jit
def sum_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr, tl.sum(tl.load(x_ptr + i, mask=i < size), 0))


@triton.jit
def poly(x, y):
    return x * y + x - y


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, out_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(out_ptr + i, x + y)
    tl.store(out_ptr + SIZE + i, x - y)
    tl.store(out_ptr + 2 * SIZE + i, x * y)
    tl.store(out_ptr + 3 * SIZE + i, poly(x, y))
    tl.store(out_ptr + 4 * SIZE + i, tl.where(x < y, x, -y))
    tl.store(out_ptr + 5 * SIZE + i, tl.abs(x))
    tl.store(out_ptr + 6 * SIZE + i, tl.maximum(x, y))
    tl.store(out_ptr + 7 * SIZE + i, x / y)
    tl.store(out_ptr + 8 * SIZE + i, x * 1.5 + tl.full((SIZE,), 0.1, tl.bfloat16))


@triton.jit
def cast_kernel(x_ptr, y_ptr, SIZE: tl.constexpr, ROUNDING: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(y_ptr + i, tl.load(x_ptr + i).to(y_ptr.dtype.element_ty, fp_downcast_rounding=ROUNDING))


@triton.jit
def reduce_kernel(x_ptr, y_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    x = tl.load(x_ptr + r[:, None] * COLUMNS + c[None, :])
    tl.store(y_ptr + r, tl.sum(x, 1))
    tl.store(y_ptr + ROWS + r, tl.max(x, 1))


@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr, steps, M: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    m, k = tl.arange(0, M), tl.arange(0, K)
    total = tl.zeros((M, M), tl.float32)
    for _ in range(steps):
        a = tl.load(a_ptr + m[:, None] * K + k[None, :])
        total = tl.dot(a, tl.load(b_ptr + k[:, None] * M + m[None, :]), total, input_precision=PRECISION)
    tl.store(c_ptr + m[:, None] * M + m[None, :], total)


@triton.jit
def descriptor_kernel(x_ptr, y_ptr, rows, columns, BLOCK: tl.constexpr):
    source = tl.make_tensor_descriptor(x_ptr, shape=[rows, columns], strides=[columns, 1], block_shape=[BLOCK, BLOCK])
    target = tl.make_tensor_descriptor(y_ptr, shape=[rows, columns], strides=[columns, 1], block_shape=[BLOCK, BLOCK])
    target.store([0, BLOCK], source.load([0, BLOCK]))


def mixed(steps: int) -> list[list[int]]:
    rows = [list(range(1, PROGRAMS + 1))]
    for _ in range(steps):
        total = sum((q + 1) * value for q, value in enumerate(rows[-1]))
        rows.append([(total + value) % 1009 for value in rows[-1]])
    return rows


def mix(barrier: bool, seed: int, everywhere: bool = False, early: int = 0) -> tuple[bool, int]:
    """Whether the kernel computed what it should, and how often the baton was handed on."""
    x = torch.full((STEPS + 1, PROGRAMS), 10_000, dtype=torch.int32)
    x[0] = torch.arange(1, PROGRAMS + 1)
    with schedule(seed, everywhere=everywhere) as order:
        mix_kernel[(PROGRAMS,)](x, torch.zeros(1, dtype=torch.int32), STEPS, PROGRAMS, barrier, early)
    return x.tolist() == mixed(STEPS), order.switches


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_barrier_holds_in_every_order(everywhere: bool) -> None:
    assert all(mix(True, seed, everywhere)[0] for seed in SEEDS)


def test_a_missing_barrier_shows() -> None:
    assert sum(mix(False, seed)[0] for seed in SEEDS) == 0
    assert sum(mix(False, seed, everywhere=True)[0] for seed in SEEDS) < 5


def test_a_barrier_that_opens_early_shows_although_some_orders_get_by() -> None:
    right = sum(mix(True, seed, early=1)[0] for seed in SEEDS)
    assert right <= len(SEEDS) // 2


def test_a_seed_is_an_order() -> None:
    def order(seed: int) -> list[int]:
        tickets = torch.empty(8, dtype=torch.int32)
        with schedule(seed):
            ticket_kernel[(2, 4)](torch.zeros(1, dtype=torch.int32), tickets)
        return tickets.tolist()

    assert order(3) == order(3)
    assert len({tuple(order(seed)) for seed in SEEDS}) > 1
    assert mix(True, 5) == mix(True, 5)
    assert len({mix(True, seed)[1] for seed in SEEDS}) > 1


@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize("volatile", [True, False])
def test_a_barrier_that_never_opens_is_a_deadlock(volatile: bool, programs: int) -> None:
    flag = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(Deadlock):
        wait_kernel[(programs,)](flag, volatile)
    flag.fill_(1)
    wait_kernel[(programs,)](flag, volatile)


def test_a_barrier_with_a_program_too_few_is_a_deadlock() -> None:
    x = torch.zeros(STEPS + 1, PROGRAMS, dtype=torch.int32)
    with pytest.raises(Deadlock):
        mix_kernel[(PROGRAMS - 1,)](x, torch.zeros(1, dtype=torch.int32), STEPS, PROGRAMS, True)


def test_whoever_is_busy_is_waited_for() -> None:
    for seed in range(5):
        with schedule(seed, everywhere=True):
            slow_kernel[(4,)](torch.ones(4, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), 150)


def test_a_kernel_may_give_up_by_itself() -> None:
    gave_up = torch.zeros(1, dtype=torch.int32)
    patient_kernel[(1,)](torch.zeros(1, dtype=torch.int32), gave_up, 200)
    assert gave_up.item() == 200
    with pytest.raises(Deadlock):
        patient_kernel[(1,)](torch.zeros(1, dtype=torch.int32), gave_up, 2000)
    with schedule(0, patience=5000):
        patient_kernel[(1,)](torch.zeros(1, dtype=torch.int32), gave_up, 2000)
    assert gave_up.item() == 2000


def test_what_is_masked_out_is_not_accessed() -> None:
    x, y = torch.randn(10), torch.zeros(10)
    copy_kernel[(2,)](x, y, 10, 0, BLOCK=8, MASKED=True)
    assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize(
    ("sizes", "offset", "message"),
    [
        ((12, 16), 0, r"program \(1, 0, 0\): load of . bytes at byte \d+ of 'x_ptr', whose storage has \d+"),
        ((16, 12), 0, r"program \(1, 0, 0\): store of . bytes at byte \d+ of 'y_ptr', whose storage has \d+"),
        ((16, 16), -1, r"program \(0, 0, 0\): load of . bytes at byte -\d of 'x_ptr'"),
        ((16, 16), 1 << 20, r"load of . bytes at byte \d+ of 'x_ptr'"),
        ((0, 16), 0, r"load of . bytes at byte \d+ of 'x_ptr', whose storage has 0"),
    ],
)
def test_an_access_outside_of_its_tensor_is_caught(
    dtype: torch.dtype, sizes: tuple[int, int], offset: int, message: str
) -> None:
    x, y = (torch.zeros(size, dtype=dtype) for size in sizes)
    with pytest.raises(OutOfBounds, match=message):
        copy_kernel[(2,)](x, y, 16, offset, BLOCK=8, MASKED=False)


def test_a_mask_that_lets_too_much_through_is_caught() -> None:
    with pytest.raises(OutOfBounds, match="'x_ptr'"):
        copy_kernel[(2,)](torch.zeros(10), torch.zeros(16), 11, 0, BLOCK=8, MASKED=True)


@triton.jit
def scalar_mask_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=(i >= 0) & (size > 2)), mask=(i < 0) | (size > 2))
    tl.store(y_ptr - 1 - i, 1.0, mask=(i < 0) | (~(size > 2)))


def test_a_condition_on_a_scalar_masks_all_lanes() -> None:
    x, y = torch.arange(8.0), torch.zeros(8)
    scalar_mask_kernel[(1,)](x, y, 3, BLOCK=8)
    assert torch.equal(y, x)


def test_an_access_between_elements_is_caught() -> None:
    x = torch.zeros(9, dtype=torch.int8)[1:].view(torch.int8)
    copy_kernel[(1,)](x, torch.zeros(8, dtype=torch.int8), 8, 0, BLOCK=8, MASKED=False)
    with pytest.raises(OutOfBounds):
        copy_kernel[(1,)](x, torch.zeros(8, dtype=torch.int8), 8, 1, BLOCK=8, MASKED=False)


def test_views_of_one_storage_are_one_memory() -> None:
    memory = torch.arange(32.0)
    copy_kernel[(1,)](memory[8:16], memory[20:28], 8, 0, BLOCK=8, MASKED=False)
    assert memory[20:28].tolist() == list(range(8, 16))


def test_descriptors_keep_within_their_shape() -> None:
    x, y = torch.randn(5, 12), torch.zeros(5, 12)
    descriptor_kernel[(1,)](x, y, 5, 12, BLOCK=8)
    assert torch.equal(y[:, 8:], x[:, 8:])
    assert not y[:, :8].any()
    with pytest.raises(OutOfBounds):
        descriptor_kernel[(1,)](x, y, 6, 12, BLOCK=8)


def test_what_a_masked_load_leaves_out_is_not_zero() -> None:
    y = torch.zeros(1)
    sum_kernel[(1,)](torch.ones(5), y, 5, BLOCK=8)
    assert y.isnan().all()


def test_an_exception_in_a_kernel_ends_the_launch_and_the_next_one_works() -> None:
    for seed in range(5):
        with pytest.raises(OutOfBounds), schedule(seed, everywhere=True):
            mix_kernel[(PROGRAMS,)](
                torch.zeros(2, PROGRAMS, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), STEPS, PROGRAMS, True
            )
    assert mix(True, 0)[0]


def bfloat16(size: int) -> torch.Tensor:
    """Numbers of every magnitude."""
    return (torch.randn(size) * torch.exp2(torch.randint(-20, 20, (size,)).float())).bfloat16()


def test_bfloat16_is_computed_with_as_torch_does() -> None:
    size = 1024
    x, y = bfloat16(size), bfloat16(size)
    out = torch.empty(9, size, dtype=torch.bfloat16)
    arithmetic_kernel[(1,)](x, y, out, size)
    tenth = torch.tensor(0.1, dtype=torch.bfloat16)
    simple = [x + y, x - y, x * y, x * y + x - y, torch.where(x < y, x, -y), x.abs(), x.maximum(y), x / y]
    for ours, torchs in zip(out, [*simple, x * 1.5 + tenth], strict=True):
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize("source", [torch.float32, torch.float64, torch.float16, torch.int32])
def test_conversions_to_bfloat16_are_torchs(source: torch.dtype) -> None:
    bits = torch.tensor([random.Random(0).getrandbits(32) for _ in range(4096)], dtype=torch.int64).int()
    ties = torch.arange(1, 4096, dtype=torch.int32) << 15  # half way between two bfloat16s
    x = bits if source == torch.int32 else torch.cat([bits, ties, ties[:1]]).view(torch.float32).to(source)
    y = torch.empty(len(x), dtype=torch.bfloat16)
    cast_kernel[(1,)](x, y, len(x), None)
    torch.testing.assert_close(y, x.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)
    back = torch.empty(len(x), dtype=torch.float32)
    cast_kernel[(1,)](y, back, len(x), None)
    torch.testing.assert_close(back, y.float(), rtol=0, atol=0, equal_nan=True)


def test_conversions_toward_zero_are() -> None:
    x = torch.randn(4096)
    y = torch.empty(4096, dtype=torch.bfloat16)
    cast_kernel[(1,)](x, y, 4096, "rtz")
    assert torch.equal(y, (x.view(torch.int32) >> 16 << 16).view(torch.float32).bfloat16())


def test_bfloat16_is_summed_up() -> None:
    x = torch.randint(-8, 9, (8, 16)).bfloat16()
    y = torch.empty(2, 8, dtype=torch.bfloat16)
    reduce_kernel[(1,)](x, y, 8, 16)
    assert torch.equal(y[0], x.sum(1))
    assert torch.equal(y[1], x.amax(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_of_matrices_are_torchs(dtype: torch.dtype) -> None:
    # whole numbers: sums are exact in whatever order, so that no bit may differ
    a, b = torch.randint(-64, 65, (16, 32)).to(dtype), torch.randint(-64, 65, (32, 16)).to(dtype)
    c = torch.empty(16, 16)
    dot_kernel[(1,)](a, b, c, 3, 16, 32, "ieee")
    assert torch.equal(c, 3 * (a.float() @ b.float()))


def test_products_in_tf32_are_as_rough_as_tensor_cores() -> None:
    a, b = torch.randn(16, 32), torch.randn(32, 16)
    exact, rough = torch.empty(16, 16), torch.empty(16, 16)
    dot_kernel[(1,)](a, b, exact, 1, 16, 32, "ieee")
    dot_kernel[(1,)](a, b, rough, 1, 16, 32, "tf32")
    expected = a.double() @ b.double()
    assert (exact - expected).abs().max() < 1e-5
    assert 1e-4 < (rough - expected).abs().max() < 2e-2
