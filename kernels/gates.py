"""The gate mathematics of every cell for Triton, forward and backward, once: all strategies call these functions.

Names and formulas are those of :mod:`fastrnn.reference`. Arithmetic is in the dtype of the arguments, float32 or
float64. A cell is known by its name, a constexpr, and all of them have one signature:

* :func:`forward` takes the pre-activations, biases included (one for an Elman cell; ``i, f, g, o``; ``r, z, n_x, n_h``
  with ``n_h = W_hn h + b_hn``), the state and the cell state. It returns what the tape keeps, ``h'`` and ``c'``.
* :func:`backward` takes what :func:`saved_count` says is read of a step (``h'``; ``i, f, g, o, c', c``;
  ``r, z, n, n_h, h``), the gradients of ``h'`` and ``c'``. It returns the gradients of the pre-activations, the part of
  the gradient of ``h`` that does not go through W_hh, and the gradient of ``c``.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """Off by at most 1.2e-7 with the GPU's ``ex2``; 0 and 1 at the infinities, for ``exp`` gives inf and 0 there."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Off by at most 3 ulp (float32, with the GPU's ``ex2``) or 4 ulp (float64) everywhere.

    Away from zero ``(1 - e) / (1 + e)`` with ``e = exp(-2|x|)``, which never overflows. Near zero that cancels: there a
    minimax polynomial of x² in float32, and in float64 the seventh convergent of Lambert's continued fraction.
    """
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    square = x * x
    if x.dtype == tl.float64:
        above = ((square + 378.0) * square + 17325.0) * square + 135135.0
        below = ((28.0 * square + 3150.0) * square + 62370.0) * square + 135135.0
        near = x * (above / below)
        is_near = tl.abs(x) < 0.5
    else:
        p = 0.0157396831 * square - 0.0523039624
        p = p * square + 0.1331529766
        p = p * square - 0.3333276808
        near = p * square * x + x
        is_near = tl.abs(x) < 0.6
    return tl.where(is_near, near, tl.where(x < 0, -far, far))


@triton.jit
def zeros_like(x):
    """As Triton's own, but in Gluon too, where that does not know the layout."""
    return tl.where(x == x, 0.0, 0.0).to(x.dtype)


@triton.jit
def forward(pre, h, c, CELL: tl.constexpr):
    if CELL == "lstm":
        i, f, g, o = sigmoid(pre[0]), sigmoid(pre[1]), tanh(pre[2]), sigmoid(pre[3])
        c = f * c + i * g
        h = o * tanh(c)
        kept = (i, f, g, o)
    elif CELL == "gru":
        r, z = sigmoid(pre[0]), sigmoid(pre[1])
        n = tanh(pre[2] + r * pre[3])
        h = n + z * (h - n)
        kept = (r, z, n, pre[3])
    elif CELL == "rnn_tanh":
        h = tanh(pre[0])
        kept = (h,)
    else:
        h = tl.where(pre[0] <= 0, 0.0, pre[0])  # NaN stays NaN
        kept = (h,)
    return kept, h, c


@triton.jit
def backward(saved, dh, dc, CELL: tl.constexpr):
    if CELL == "lstm":
        i, f, g, o, c, c_prev = saved[0], saved[1], saved[2], saved[3], saved[4], saved[5]
        tanh_c = tanh(c)
        dc = dc + dh * o * (1.0 - tanh_c * tanh_c)
        di = dc * g * i * (1.0 - i)
        df = dc * c_prev * f * (1.0 - f)
        dg = dc * i * (1.0 - g * g)
        do = dh * tanh_c * o * (1.0 - o)
        dpre = (di, df, dg, do)
        dh = zeros_like(dh)
        dc = dc * f
    elif CELL == "gru":
        r, z, n, n_h, h_prev = saved[0], saved[1], saved[2], saved[3], saved[4]
        dn = dh * (1.0 - z) * (1.0 - n * n)
        dz = dh * (h_prev - n) * z * (1.0 - z)
        dr = dn * n_h * r * (1.0 - r)
        dpre = (dr, dz, dn, dn * r)
        dh = dh * z
    elif CELL == "rnn_tanh":
        dpre = (dh * (1.0 - saved[0] * saved[0]),)
        dh = zeros_like(dh)
    else:
        dpre = (tl.where(saved[0] <= 0, 0.0, dh),)  # where h' is NaN, as torch has it
        dh = zeros_like(dh)
    return dpre, dh, dc
