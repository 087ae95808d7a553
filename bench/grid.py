"""What is measured: cells and shapes."""

from dataclasses import dataclass

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@dataclass(frozen=True)
class Shape:
    """The sizes of a stack: B sequences of T steps, I features in, H hidden units, L layers, D directions."""

    batch: int
    steps: int
    input: int
    hidden: int
    layers: int = 1
    directions: int = 1

    def __str__(self) -> str:
        sizes = f"B{self.batch} T{self.steps} I{self.input} H{self.hidden}"
        more = "".join(f" {k}{n}" for k, n in (("L", self.layers), ("D", self.directions)) if n > 1)
        return sizes + more


CORE = (
    Shape(1, 1, 128, 128),
    Shape(1, 100, 64, 64),
    Shape(1, 100, 256, 256),
    Shape(1, 100, 512, 512),
    Shape(4, 100, 128, 128),
    Shape(16, 100, 128, 128),
    Shape(32, 100, 256, 256),
    Shape(64, 50, 512, 512),
    Shape(64, 50, 1024, 1024),
    Shape(256, 20, 128, 128),
    Shape(8, 1000, 40, 50),
    Shape(32, 100, 128, 128, layers=2, directions=2),
)
STEPS = {1: 200, 8: 100, 64: 50, 256: 20}  # by batch size, so that no case takes minutes
MORE = (
    *(Shape(batch, steps, hidden, hidden) for hidden in (64, 128, 256, 512, 1024) for batch, steps in STEPS.items()),
    Shape(1, 10, 256, 256),
    Shape(8, 10, 128, 128),
    Shape(8, 1000, 128, 128),
    Shape(64, 200, 128, 128),
    Shape(1, 1000, 64, 64),
    # inputs much narrower or wider than the state: spectra, embeddings, sensors
    Shape(16, 200, 40, 256),
    Shape(32, 50, 512, 128),
    Shape(64, 100, 4, 32),
    Shape(8, 100, 128, 128, layers=2),
    Shape(64, 50, 512, 512, layers=2),
    Shape(1, 100, 256, 256, directions=2),
    Shape(32, 100, 256, 256, directions=2),
    Shape(16, 50, 300, 512, directions=2),
    Shape(1, 100, 256, 256, layers=2, directions=2),
    Shape(16, 200, 80, 256, layers=2, directions=2),
)
GRIDS = {"quick": (CORE[0], CORE[4], CORE[6]), "core": CORE, "full": tuple(dict.fromkeys(CORE + MORE))}
