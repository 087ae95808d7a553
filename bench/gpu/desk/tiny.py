"""Tiny sizes for all that is measured on a GPU: where what matters is that it goes through, and not the times."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from bench.gpu import cases, cluster, command, constants, latency, measure, meeting, smoke
from bench.grid import Shape

SMALL = {"batch": 2, "steps": 3, "input": 4, "hidden": 5}
SIZES: tuple[tuple[Any, str, Any], ...] = (
    (measure, "PRODUCT", 8),
    (measure, "PRODUCT_SECONDS", 0.001),
    (measure, "LEAST_TURNS", 2),
    (latency, "STEPS", ((2, 4),)),
    (latency, "COPIED", 2**16),
    (latency, "CHAIN", 3),
    (command, "LATENCY_SECONDS", 0.001),
    (constants, "STEPS", 10),
    (constants, "SEQUENCE", 9),
    (meeting, "STEPS", 100),
    (meeting, "COPIED", 2**16),
    (meeting, "rows", partial(meeting.rows, steps=100, long=1000, polled=200)),
    (cluster, "rows", partial(cluster.rows, steps=10)),
    (smoke, "SHAPES", {"resident": Shape(2, 3, 4, 5)}),
    (smoke, "SHAPE", Shape(2, 3, 4, 32)),
    (cases, "STACKS", (Shape(2, 3, 4, 5, layers=2, directions=2),)),
    (cases, "RECORDED", (Shape(2, 3, 4, 5),)),
    (cases, "RESETS", (Shape(3, 6, 4, 5),)),
    (cases, "PACKED", (Shape(4, 6, 4, 5),)),
    (cases, "LEAN", (Shape(3, 6, 4, 5),)),
    (cases, "APPLICATIONS", tuple(replace(task, shape=replace(task.shape, **SMALL)) for task in cases.APPLICATIONS)),
    (cases, "PUBLISHED", Shape(2, 7, 4, 5)),
    (cases, "FIRST", (Shape(2, 7, 4, 5),)),
    (cases, "TARGET_HIDDEN", (5,)),
    (cases, "TARGET_SHAPES", ({"batch": 2, "steps": 8}, {"batch": 2, "steps": 8, "layers": 2})),
)


def install(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Put them in the place of the real ones.

    Args:
        put: sets an attribute, for good or for the length of a test.
    """
    for module, name, value in SIZES:
        put(module, name, value)
