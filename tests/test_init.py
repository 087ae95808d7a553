"""Initialisation: what changes, by the definition of it, and that nothing else does."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import fastrnn
from fastrnn.init import forget_bias_, orthogonal_

LAYERS = [nn.RNN, nn.LSTM, nn.GRU, fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU]
CELLS = [nn.RNNCell, nn.LSTMCell, nn.GRUCell, fastrnn.RNNCell, fastrnn.LSTMCell, fastrnn.GRUCell]
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    others = dict(after.named_parameters())
    return {name for name, p in before.named_parameters() if not torch.equal(p, others[name])}


def is_orthonormal(block: Tensor, gain: float = 1.0) -> bool:
    block = block if block.shape[0] <= block.shape[1] else block.T
    return torch.allclose(block @ block.T, gain**2 * torch.eye(len(block)), atol=1e-5)


@pytest.mark.parametrize("cls", [*LAYERS, *CELLS])
def test_the_recurrent_weights_of_each_gate_become_orthogonal(cls: type) -> None:
    module = cls(3, 5, **({"num_layers": 2, "bidirectional": True} if cls in LAYERS else {}))
    before = copy.deepcopy(module)
    parameters = [id(p) for p in module.parameters()]
    assert orthogonal_(module) is module
    assert [id(p) for p in module.parameters()] == parameters
    assert all(p.requires_grad and p.grad_fn is None for p in module.parameters())
    names = {name for name, _ in module.named_parameters() if name.startswith("weight_hh")}
    assert changed(before, module) == names
    blocks = [b for name in names for b in getattr(module, name).chunk(GATES[cls.__name__.removesuffix("Cell")])]
    assert all(b.shape == (5, 5) and is_orthonormal(b) for b in blocks)
    assert len({float(b[0, 0].detach()) for b in blocks}) == len(blocks)  # each was drawn by itself


def test_input_weights_as_well_where_asked_for() -> None:
    module = orthogonal_(fastrnn.GRU(3, 5, num_layers=2), gain=0.5, inputs=True)
    for name, weight in module.named_parameters():
        if name.startswith("weight"):
            assert all(is_orthonormal(block, 0.5) for block in weight.chunk(3))


def test_projections_are_orthogonal_too() -> None:
    module = orthogonal_(nn.LSTM(3, 5, proj_size=2))
    assert all(is_orthonormal(block) and block.shape == (5, 2) for block in module.weight_hh_l0.chunk(4))
    assert is_orthonormal(module.weight_hr_l0)


def test_the_generator_decides() -> None:
    made = [orthogonal_(fastrnn.GRU(3, 5), generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    first, again, other = (module.weight_hh_l0 for module in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    module = orthogonal_(fastrnn.RNN(3, 5, dtype=dtype))
    assert module.weight_hh_l0.dtype == dtype
    w = module.weight_hh_l0.double()
    torch.testing.assert_close(w @ w.T, torch.eye(5, dtype=torch.float64), atol=4 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize("cls", [nn.LSTM, fastrnn.LSTM, nn.LSTMCell, fastrnn.LSTMCell])
def test_the_forget_gates_biases_add_up_to_the_value(cls: type) -> None:
    module = cls(3, 5, **({"num_layers": 2, "bidirectional": True} if issubclass(cls, nn.LSTM) else {}))
    before = copy.deepcopy(module)
    assert forget_bias_(module, 1.5) is module
    assert changed(before, module) == {name for name, _ in module.named_parameters() if name.startswith("bias")}
    for name in changed(before, module):
        i, f, g, o = getattr(module, name).chunk(4)
        assert torch.all(f == (1.5 if name.startswith("bias_ih") else 0))
        for part, old in zip((i, g, o), [getattr(before, name).chunk(4)[k] for k in (0, 2, 3)], strict=True):
            assert torch.equal(part, old)


def test_the_forget_gate_is_the_one_that_keeps_the_cell() -> None:
    """By what it does: with this bias very large, and no input, the cell stays as it is."""
    module = forget_bias_(fastrnn.LSTM(3, 4), 50.0)
    with torch.no_grad():
        module.weight_ih_l0.zero_()
        module.weight_hh_l0.zero_()
        module.bias_ih_l0[8:12] = module.bias_hh_l0[8:12] = 0  # g: nothing is added
    c0 = torch.randn(1, 2, 4)
    _, (_, c_n) = module(torch.randn(9, 2, 3), (torch.zeros(1, 2, 4), c0))
    torch.testing.assert_close(c_n, c0)


def test_whole_models() -> None:
    model = nn.ModuleDict({"e": nn.Embedding(5, 3), "l": nn.LSTM(3, 4), "g": fastrnn.GRU(4, 4), "o": nn.Linear(4, 2)})
    before = copy.deepcopy(model)
    orthogonal_(model)
    forget_bias_(model)
    assert changed(before, model) == {"l.weight_hh_l0", "l.bias_ih_l0", "l.bias_hh_l0", "g.weight_hh_l0"}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("function", [orthogonal_, forget_bias_])
def test_mistakes(function: object) -> None:
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got Tensor"):
        function(torch.zeros(3))
    with pytest.raises(ValueError, match="expected a module with a recurrent layer, got Linear without one"):
        function(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="compiled"):
        function(torch.jit.script(nn.LSTM(3, 4)))


def test_mistakes_of_biases() -> None:
    with pytest.raises(ValueError, match="expected a module with an LSTM, got GRU without one"):
        forget_bias_(fastrnn.GRU(3, 4))
    model = nn.Sequential(fastrnn.LSTM(3, 4), fastrnn.LSTM(4, 4, bias=False))
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="expected LSTMs with biases, got one with bias=False"):
        forget_bias_(model)
    assert not changed(before, model)


def test_weights_that_are_computed_are_refused() -> None:
    model = nn.Sequential(fastrnn.GRU(3, 4), weight_norm(fastrnn.GRU(4, 4), "weight_hh_l0"))
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="expected weight_hh_l0 to be a parameter"):
        orthogonal_(model)
    assert not changed(before, model)
