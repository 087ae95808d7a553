"""convert, revert and patch: which layers change, and that nothing else does."""

import copy
import pickle
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import orthogonal, weight_norm

import fastrnn

STOCK = [nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell]
FAST = [getattr(fastrnn, cls.__name__) for cls in STOCK]


class Tagger(nn.Module):
    """A model with layers in every usual place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.encoder = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
        self.stages = nn.ModuleList([nn.GRU(12, 12, batch_first=True), nn.RNN(12, 12, nonlinearity="relu")])
        self.named = nn.ModuleDict({"cell": nn.GRUCell(12, 5)})
        self.again = self.stages[0]
        self.head = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.encoder(self.embed(tokens))[0]
        x = self.again(self.stages[0](x)[0])[0]
        x = self.stages[1](x.transpose(0, 1))[0]
        return self.head(self.named["cell"](x[-1]))


def tokens() -> Tensor:
    return torch.randint(0, 20, (4, 7))


class Own(nn.LSTM):
    """A user's layer."""


def layer_classes(model: nn.Module) -> dict[str, type]:
    return {
        name: type(module) for name, module in model.named_modules() if isinstance(module, nn.RNNBase | nn.RNNCellBase)
    }


@pytest.mark.parametrize(("stock", "fast"), list(zip(STOCK, FAST, strict=True)))
def test_a_layer_itself(stock: type, fast: type) -> None:
    layer = stock(3, 4)
    assert fastrnn.convert(layer) is layer
    assert type(layer) is fast
    assert fastrnn.revert(layer) is layer
    assert type(layer) is stock


def test_a_model_and_back() -> None:
    model = Tagger()
    before = layer_classes(model)
    assert fastrnn.convert(model) is model
    assert layer_classes(model) == {name: getattr(fastrnn, cls.__name__) for name, cls in before.items()}
    fastrnn.revert(model)
    assert layer_classes(model) == before


def test_everything_but_the_class_stays() -> None:
    model = Tagger().double().eval()
    model.encoder.requires_grad_(False)
    model.train(False).encoder.train()
    calls: list[str] = []
    model.encoder.register_forward_hook(lambda *_: calls.append("after"))
    model.encoder.register_forward_pre_hook(lambda *_: calls.append("before"))
    parameters = dict(model.named_parameters())
    insides = {name: dict(vars(module)) for name, module in model.named_modules()}
    fastrnn.convert(model)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    for name, module in model.named_modules():
        assert vars(module).keys() == insides[name].keys()
        assert all(vars(module)[key] is value for key, value in insides[name].items())
    model(tokens())
    assert calls == ["before", "after"]
    fastrnn.revert(model)
    for name, module in model.named_modules():
        assert vars(module).keys() == insides[name].keys()


def test_the_results_stay() -> None:
    model, given = Tagger(), tokens()
    torch.manual_seed(1)
    expected = model(given)
    expected.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    fastrnn.convert(model)
    torch.manual_seed(1)
    found = model(given)
    found.sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close({name: p.grad for name, p in model.named_parameters()}, gradients)


def test_an_optimizer_goes_on() -> None:
    """Momentum and all: half of the training converted is the same training."""

    def train(converted: bool) -> list[float]:
        torch.manual_seed(2)
        model, given = Tagger().eval(), tokens()
        optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
        for step in range(8):
            if converted and step == 4:
                fastrnn.convert(model)
            loss = nn.functional.cross_entropy(model(given), torch.tensor([0, 1, 2, 0]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    losses = train(converted=True)
    assert losses == pytest.approx(train(converted=False), rel=1e-4)
    assert losses[-1] < losses[0]


def test_converting_twice_changes_nothing() -> None:
    model = fastrnn.convert(Tagger())
    classes, insides = layer_classes(model), {name: dict(vars(m)) for name, m in model.named_modules()}
    fastrnn.convert(model)
    assert layer_classes(model) == classes
    for name, module in model.named_modules():
        assert all(vars(module)[key] is value for key, value in insides[name].items())


def test_shared_modules_stay_shared() -> None:
    model = fastrnn.convert(Tagger())
    assert model.again is model.stages[0]
    tied = nn.Sequential(nn.GRU(3, 3), nn.GRU(3, 3))
    tied[1].weight_hh_l0 = tied[0].weight_hh_l0
    fastrnn.convert(tied)
    assert tied[1].weight_hh_l0 is tied[0].weight_hh_l0


def test_wrappers_are_looked_into() -> None:
    model = nn.DataParallel(nn.Sequential(nn.LSTM(3, 4)))
    fastrnn.convert(model)
    assert type(model.module[0]) is fastrnn.LSTM


def test_tape() -> None:
    model = nn.ModuleList([nn.LSTM(3, 4), fastrnn.GRU(3, 4), nn.GRUCell(3, 4)])
    fastrnn.convert(model, tape="lean")
    assert (model[0].tape, model[1].tape) == ("lean", "lean")
    fastrnn.convert(model)
    assert model[0].tape == "lean", "converting again keeps it"
    assert "tape" not in vars(fastrnn.revert(model)[0])
    with pytest.raises(ValueError, match="tape: expected one of 'full', 'lean', got 'fat'"):
        fastrnn.convert(model, tape="fat")
    assert type(model[0]) is nn.LSTM


@pytest.mark.parametrize("function", [fastrnn.convert, fastrnn.revert])
def test_only_modules_can_be_converted(function: object) -> None:
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got list"):
        function([nn.LSTM(3, 4)])


def test_user_subclasses_are_left_alone_and_named() -> None:
    class Residual(nn.GRU):
        def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            y, h_n = super().forward(x, hx)
            return x + y, h_n

    model = nn.ModuleDict({"own": Own(3, 4), "deep": nn.Sequential(Residual(3, 3)), "plain": nn.GRU(3, 3)})
    with pytest.warns(UserWarning, match="left alone") as caught:
        fastrnn.convert(model)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    assert message.startswith("fastrnn.convert left alone: ")
    assert f"own ({__name__}.Own, a subclass of torch.nn.LSTM)" in message
    assert "deep.0 (" in message
    assert "Residual, a subclass of torch.nn.GRU)" in message
    assert "plain" not in message
    assert [type(model["own"]), type(model["deep"][0]), type(model["plain"])] == [Own, Residual, fastrnn.GRU]
    with pytest.warns(UserWarning, match="left alone: the model"):
        fastrnn.convert(Own(3, 4))


def test_subclasses_of_ours_need_no_conversion_and_cannot_be_reverted() -> None:
    class Mine(fastrnn.GRU):
        pass

    model = nn.Sequential(Mine(3, 3), nn.GRU(3, 3))
    fastrnn.convert(model)
    with pytest.warns(UserWarning, match=r"fastrnn.revert left alone: 0 \(.*Mine, a subclass of fastrnn.GRU\)"):
        fastrnn.revert(model)
    assert [type(layer) for layer in model] == [Mine, nn.GRU]


def test_a_replaced_forward_is_left_alone() -> None:
    """As libraries that offload or time layers do it."""
    layer = nn.GRU(3, 4)
    original = layer.forward
    layer.forward = lambda *args: original(*args)
    with pytest.warns(UserWarning, match="its forward was replaced"):
        fastrnn.convert(layer)
    assert type(layer) is nn.GRU


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_layers_are_left_alone_and_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.Sequential(nn.GRUCell(3, 4))))
    with pytest.warns(UserWarning, match=r"left alone: 1\.0 .*compiled by torch\.jit"):
        fastrnn.convert(model)
    assert isinstance(dict(model.named_modules())["1.0"], torch.jit.ScriptModule)


@pytest.mark.parametrize("function", [weight_norm, orthogonal])
def test_parametrized_layers(function: object) -> None:
    model = nn.Sequential(function(nn.GRU(3, 4), "weight_hh_l0"))
    twin, x = copy.deepcopy(model), torch.randn(5, 2, 3)
    assert type(twin[0]) is type(model[0]), "copies share their class: converting one must not convert the other"
    fastrnn.convert(model)
    assert isinstance(model[0], fastrnn.GRU)
    assert not isinstance(twin[0], fastrnn.GRU)
    assert parametrize.is_parametrized(model[0], "weight_hh_l0")
    assert parametrize.type_before_parametrizations(model[0]) is fastrnn.GRU
    assert fastrnn.explain(model, x).layers[0].engine == "cpu"
    torch.testing.assert_close(model(x)[0], twin(x)[0])
    fastrnn.revert(model)
    assert parametrize.type_before_parametrizations(model[0]) is nn.GRU
    fastrnn.convert(model)
    parametrize.remove_parametrizations(model[0], "weight_hh_l0")
    assert type(model[0]) is fastrnn.GRU
    torch.testing.assert_close(model(x)[0], twin(x)[0])


def test_parametrized_user_subclasses_are_left_alone() -> None:
    model = weight_norm(Own(3, 4), "weight_hh_l0")
    with pytest.warns(UserWarning, match="a subclass of torch.nn.LSTM"):
        fastrnn.convert(model)
    assert not isinstance(model, fastrnn.LSTM)


def test_pruned_layers() -> None:
    layer = prune.l1_unstructured(nn.LSTM(3, 4), "weight_hh_l0", amount=0.5)
    x = torch.randn(5, 2, 3)
    expected = layer(x)[0]
    torch.testing.assert_close(fastrnn.convert(layer)(x)[0], expected)
    assert prune.is_pruned(layer)


def test_converted_models_pickle_and_copy() -> None:
    model, given = fastrnn.convert(Tagger()).eval(), tokens()
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert layer_classes(clone) == layer_classes(model)
        assert torch.equal(clone(given), model(given))
        fastrnn.revert(clone)
        torch.testing.assert_close(clone(given), model(given))


def names() -> list[type]:
    return [getattr(space, cls.__name__) for space in (nn, nn.modules) for cls in STOCK]


@pytest.fixture
def unpatched() -> object:
    yield
    fastrnn.unpatch()


def test_patch(unpatched: None) -> None:
    fastrnn.patch()
    fastrnn.patch()
    assert names() == FAST * 2
    model = Tagger()
    assert set(layer_classes(model).values()) == {fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN, fastrnn.GRUCell}
    assert isinstance(model.encoder, nn.LSTM)
    assert nn.modules.rnn.LSTM is STOCK[1]
    fastrnn.unpatch()
    assert names() == STOCK * 2
    assert isinstance(model.encoder, nn.LSTM)
    fastrnn.unpatch()
    assert names() == STOCK * 2


def test_patched_builds_the_same_model() -> None:
    torch.manual_seed(5)
    stock = Tagger()
    torch.manual_seed(5)
    with fastrnn.patched():
        fast = Tagger()
    assert fast.state_dict().keys() == stock.state_dict().keys()
    assert all(torch.equal(fast.state_dict()[k], v) for k, v in stock.state_dict().items())
    assert repr(fast) == repr(stock)


def test_patched_blocks_nest_and_end(unpatched: None) -> None:
    with fastrnn.patched():
        with fastrnn.patched():
            assert names() == FAST * 2
        assert names() == FAST * 2
    assert names() == STOCK * 2
    with pytest.raises(KeyError), fastrnn.patched():
        raise KeyError
    assert names() == STOCK * 2
    fastrnn.patch()
    with fastrnn.patched():
        pass
    assert names() == FAST * 2, "a block gives back what it found"
    with fastrnn.patched():
        fastrnn.unpatch()
        assert names() == STOCK * 2
    assert names() == FAST * 2


def test_patched_is_a_decorator() -> None:
    @fastrnn.patched()
    def build() -> nn.Module:
        return nn.LSTM(3, 4)

    assert type(build()) is type(build()) is fastrnn.LSTM
    assert type(nn.LSTM(3, 4)) is STOCK[1]


def test_patch_is_for_the_whole_process(unpatched: None) -> None:
    built: list[nn.Module] = []
    with fastrnn.patched():
        thread = threading.Thread(target=lambda: built.append(nn.GRU(3, 4)))
        thread.start()
        thread.join()
    assert type(built[0]) is fastrnn.GRU


def test_a_class_derived_while_patched_is_ours() -> None:
    with fastrnn.patched():

        class Derived(nn.LSTM):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x)[0]

    net, x = Derived(3, 4), torch.randn(5, 2, 3)
    assert issubclass(Derived, fastrnn.LSTM)
    stock = nn.LSTM(3, 4)
    stock.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(x), stock(x)[0])


def test_pickles_know_nothing_of_patches(unpatched: None) -> None:
    stock = nn.LSTM(3, 4)
    with fastrnn.patched():
        pickled_stock, pickled_fast = pickle.dumps(stock), pickle.dumps(nn.LSTM(3, 4))
    assert type(pickle.loads(pickled_stock)) is STOCK[1]
    assert type(pickle.loads(pickled_fast)) is fastrnn.LSTM
    with fastrnn.patched():
        assert type(pickle.loads(pickled_stock)) is STOCK[1]
        assert type(pickle.loads(pickled_fast)) is fastrnn.LSTM


def test_a_pickle_of_ours_loads_where_fastrnn_was_not_imported() -> None:
    code = "import pickle, sys; net = pickle.load(sys.stdin.buffer); print(type(net).__module__, net.tape)"
    net = fastrnn.LSTM(3, 4)
    net.tape = "lean"
    result = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(net), capture_output=True, check=True)
    assert result.stdout.split() == [b"fastrnn.nn", b"lean"]


def test_nothing_warns_where_everything_is_converted() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrnn.revert(fastrnn.convert(Tagger()))
