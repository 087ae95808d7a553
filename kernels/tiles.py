"""Arithmetic of tiles, for the host."""


def cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def padded(n: int) -> int:
    """The power of two, 16 or more, that ``n`` fits in: the least that the GPU's matrix units take."""
    return max(16, 1 << (n - 1).bit_length())
