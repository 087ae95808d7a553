"""A recurrent language model of characters: the network, its held-out losses, text sampled from it."""

import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.corpus import Corpus, Streams

State = Tensor | tuple[Tensor, ...]
LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class CharacterModel(nn.Module):
    """Embedding, recurrent stack, linear layer.

    Args:
        cell: a key of :data:`LAYERS`.
        symbols: how many there are, V.
        embedding: features of a symbol, the input I of the stack.
        hidden: hidden units H of each layer.
        layers: of the stack.
    """

    def __init__(self, cell: str, symbols: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedding)
        self.recurrent = LAYERS[cell](embedding, hidden, layers)
        self.output = nn.Linear(hidden, symbols)

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Symbol numbers ``(T, B)`` and a state to the next symbols' logits ``(T, B, V)`` and the state after them."""
        y, state = self.recurrent(self.embedding(inputs), state)
        return self.output(y), state


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each character in nats, ``(T*B,)``, from logits ``(T, B, V)`` and targets ``(T, B)``."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")


def detached(state: State) -> State:
    """The state without its history: gradients stop there."""
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def like(weight: Tensor, state: State | None) -> State | None:
    """The state in the dtype of a weight."""
    if state is None:
        return None
    return tuple(s.to(weight.dtype) for s in state) if isinstance(state, tuple) else state.to(weight.dtype)


@torch.no_grad()
def heldout_losses(model: CharacterModel, streams: Streams, windows: int) -> Tensor:
    """The loss of every character in the first windows of held-out streams, the state carried, in nats.

    Shape: ``(windows, T*B)``, a page for each window.
    """
    model.eval()
    state = None
    found = []
    for k in range(windows):
        inputs, targets = streams.window(k)
        logits, state = model(inputs, state)
        found.append(losses(logits, targets))
    return torch.stack(found)


def perplexity(heldout: Tensor) -> float:
    """Of losses in nats."""
    return float(heldout.double().mean().exp())


@torch.no_grad()
def sample(model: CharacterModel, corpus: Corpus, length: int, temperature: float, seed: int) -> tuple[str, float]:
    """Text drawn from the model a character at a time, the state carried, and the seconds that took."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    symbol = corpus.encode("\n").long()[None]  # (1, 1): a text begins after a line's end
    state = None
    drawn = []
    begin = time.perf_counter()
    for _ in range(length):
        logits, state = model(symbol, state)
        logits = logits.flatten() / temperature
        logits[0] = -torch.inf  # the unknown symbol cannot be written
        symbol = torch.multinomial(logits.softmax(0), 1, generator=generator)[None]
        drawn.append(symbol)
    seconds = time.perf_counter() - begin
    return corpus.decode(torch.cat(drawn).flatten()), seconds
