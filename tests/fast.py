"""What ``make test-fast`` runs after an edit: every part of the code in all its kinds, but not in all its sizes.

Whatever compiles, trains a model or goes through hundreds of sizes is left to ``make test``.
"""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ALL = ()
FAST: dict[str, tuple[str, ...]] = {
    "test_autograd.py": ("test_transforms", "test_higher_derivatives", "test_first_derivatives_numerically"),
    "test_convert.py": ALL,
    "test_cuda.py": ALL,
    "test_device.py": ALL,
    "test_docs.py": ALL,
    "test_engine.py": (
        "test_every_kind_of_layer",
        "test_absent_arguments",
        "test_cell_states_of_all_steps",
        "test_gradients_through_some_outputs",
        "test_saturated_gates",
        "test_short_factors_are_rounded",
    ),
    "test_errors.py": ALL,
    "test_explain.py": ALL,
    "test_func.py": ALL,
    "test_nn.py": ALL,
    "test_operators.py": ("test_without_data", "test_wrong_calls_of_backward", "test_arguments_stay_as_they_were"),
    "test_plan.py": ALL,
    "test_reference.py": ALL,
    "test_routes.py": ("test_rules_belong_to_the_operators",),
    "test_stream.py": ALL,
    "test_tables.py": ALL,
    "test_weight_gradients.py": ALL,
    "test_weights.py": ALL,
    "interpreted/test_gates.py": ALL,
    "interpreted/test_grid.py": ("test_sums_in_parts", "test_batch_tiles_that_end_early_and_begin_late"),
    "interpreted/test_layers.py": ("test_every_kind_of_layer",),
}


def has(path: Path, test: str = "") -> bool:
    """Whether a file has such tests, or a test is one."""
    name = path.relative_to(TESTS).as_posix() if path.is_relative_to(TESTS) else ""
    if path.name == "conftest.py":
        return True
    return name in FAST and (not test or not FAST[name] or test in FAST[name])
