"""What writes texts a character at a time: an alphabet, a decoder, teacher forcing, beam search."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from torch.nn.utils.rnn import pad_sequence

from bench.workloads.layers import LAYERS

END = 0  # ends a text, and stands before it; where texts are read, it is a character that training has not
IGNORED = -100  # pads what is to be written: such steps have no loss
State = Tensor | tuple[Tensor, Tensor]
# From the characters before (T, B), and the state before them, to the logits of the next (T, B, V) and the state then.
Writer = Callable[[Tensor, State], tuple[Tensor, State]]


class Alphabet:
    """Numbers of the characters that training has, from 1 on."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.characters = sorted(set().union(*texts))
        self._numbers = {character: k for k, character in enumerate(self.characters, 1)}

    def __len__(self) -> int:
        return len(self.characters) + 1

    def encode(self, text: str) -> Tensor:
        """Numbers of the characters, ``(len(text),)``; 0 for one that is not there."""
        return torch.tensor([self._numbers.get(character, 0) for character in text], dtype=torch.long)

    def decode(self, numbers: Tensor) -> str:
        """The text of numbers ``(T,)``, as far as the first :data:`END`."""
        text = "".join(self.characters[k - 1] if k else "\0" for k in numbers.tolist())
        return text.partition("\0")[0]


class Decoder(nn.Module):
    """What writes: each character's logits from those before it, and from the state in which it began.

    Args:
        cell: a key of :data:`~bench.workloads.layers.LAYERS`.
        symbols: how many characters there are, :data:`END` included, V.
        embedding: features of a character.
        hidden: units H of the recurrent layer.
    """

    def __init__(self, cell: str, symbols: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedding)
        self.recurrent = LAYERS[cell](embedding, hidden)
        self.output = nn.Linear(hidden, symbols)

    def forward(self, before: Tensor, state: State) -> tuple[Tensor, State]:
        """Each step's character before ``(T, B)`` to the logits of the next ``(T, B, V)``, and the state after them."""
        y, state = self.recurrent(self.embedding(before), state)
        return self.output(y), state


def teacher_forcing(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Texts as a writer's inputs, which begin with :data:`END`, and as what it is to write, which ends with it.

    Shape: ``(T, B)`` each, where T - 1 is the length of the longest text, of character numbers ``(T_b,)``.
    """
    end = texts[0].new_tensor([END])
    before = pad_sequence([torch.cat((end, text)) for text in texts], padding_value=END)
    return before, pad_sequence([torch.cat((text, end)) for text in texts], padding_value=IGNORED)


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each text in nats ``(B,)``, from logits ``(T, B, V)`` and targets ``(T, B)``; padding has none."""
    found = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return found.view_as(targets).sum(0)


@torch.no_grad()
def beam_search(write: Writer, state: State, width: int, longest: int) -> tuple[Tensor, Tensor]:
    """Write with the likeliest ``width`` beginnings of each text kept side by side; with one, it is greedy.

    Args:
        write: a step of the model, or several.
        state: where it begins, ``(layers, B, H)``, or a pair of them.
        width: of the beam.
        longest: at most so many characters, :data:`END` included.

    Returns:
        The likeliest text that was found for each row, as character numbers ``(B, T)``, and the logarithms of their
        probabilities ``(B,)``.
    """
    h = state[0] if isinstance(state, tuple) else state
    rows, device = h.shape[1], h.device
    state = _select(state, torch.arange(rows, device=device).repeat_interleave(width))
    written = torch.empty(rows, width, 0, dtype=torch.long, device=device)
    last = torch.full((rows, width), END, device=device)
    ended = torch.zeros(rows, width, dtype=torch.bool, device=device)
    scores = torch.full((rows, width), -torch.inf, device=device)
    scores[:, 0] = 0  # all beginnings are alike at first: one of them is enough
    for _ in range(longest):
        logits, state = write(last.view(1, -1), state)
        steps = log_softmax(logits, dim=-1).view(rows, width, -1)
        symbols = steps.shape[-1]
        only_end = torch.full((symbols,), -torch.inf, dtype=steps.dtype, device=device)
        only_end[END] = 0  # what has ended stays as it is, and as likely
        steps = torch.where(ended.unsqueeze(-1), only_end, steps)
        scores, chosen = (scores.unsqueeze(-1) + steps).flatten(1).topk(width)
        origin, last = chosen // symbols, chosen % symbols
        state = _select(state, (torch.arange(rows, device=device)[:, None] * width + origin).flatten())
        written = torch.cat((written.gather(1, origin.unsqueeze(-1).expand_as(written)), last.unsqueeze(-1)), dim=-1)
        ended = ended.gather(1, origin) | (last == END)
        if ended[:, 0].all():  # whatever goes on can only become less likely
            break
    return written[:, 0], scores[:, 0]


def exact_match(written: Sequence[str], texts: Sequence[str]) -> float:
    """The part of the texts that was written without a mistake."""
    return sum(w == t for w, t in zip(written, texts, strict=True)) / len(texts)


def _select(state: State, rows: Tensor) -> State:
    """The states of rows, in their order."""
    return (state[0][:, rows], state[1][:, rows]) if isinstance(state, tuple) else state[:, rows]
