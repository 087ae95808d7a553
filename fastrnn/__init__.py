"""fastrnn: recurrent networks in PyTorch, fast, with nothing else changed.

Swap ``torch.nn.RNN``, ``LSTM``, ``GRU`` and their cells for the classes of the same names here, or call
:func:`convert` on a model that has them: same constructors, same state_dicts, same numbers.
"""

import torch as _torch  # noqa: F401  _C needs its libraries, which are loaded with it

__version__ = "0.1.0"

try:
    from fastrnn import _C as _C
    from fastrnn import kernels as kernels
except ImportError as error:
    raise ImportError(
        "fastrnn's C++ engine is not built for this Python: you may be in a source tree that is not installed. "
        "Run `pip install --no-build-isolation -e .` in it, or leave the folder."
    ) from error

from fastrnn import functional as functional
from fastrnn import init as init
from fastrnn import reference as reference
from fastrnn.autotune import autotune as autotune
from fastrnn.autotune import is_autotune_enabled as is_autotune_enabled
from fastrnn.convert import convert as convert
from fastrnn.convert import patch as patch
from fastrnn.convert import patched as patched
from fastrnn.convert import revert as revert
from fastrnn.convert import unpatch as unpatch
from fastrnn.explain import explain as explain
from fastrnn.nn import GRU as GRU
from fastrnn.nn import LSTM as LSTM
from fastrnn.nn import RNN as RNN
from fastrnn.nn import GRUCell as GRUCell
from fastrnn.nn import LSTMCell as LSTMCell
from fastrnn.nn import RNNCell as RNNCell
from fastrnn.own_numbers import is_own_numbers_enabled as is_own_numbers_enabled
from fastrnn.own_numbers import own_numbers as own_numbers
from fastrnn.stream import stream as stream
from fastrnn.tbptt import tbptt as tbptt
from fastrnn.tune import tune as tune
