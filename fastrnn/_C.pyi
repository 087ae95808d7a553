def cpu_isa() -> str: ...
def cpu_isas() -> list[str]: ...
def cpu_plan(
    cell: str, steps: int, batch: int, inputs: int, hidden: int, directions: int, dtype: str, threads: int
) -> str: ...
def step(
    cell: str,
    is_double: bool,
    B: int,
    I: int,
    H: int,
    x: int,
    h0: int,
    c0: int,
    w_ih: int,
    w_hh: int,
    b_ih: int,
    b_hh: int,
    y: int,
    h_n: int,
    c_n: int,
    /,
) -> None: ...
