"""What writes texts: alphabets, teacher forcing, beam search."""

import itertools

import torch
from torch import nn

from bench.workloads import writing


def test_an_alphabet_numbers_the_characters_of_training() -> None:
    alphabet = writing.Alphabet(["ab", "bc"])
    assert len(alphabet) == 4
    numbers = alphabet.encode("cabx")
    assert numbers.tolist() == [3, 1, 2, 0]
    assert alphabet.decode(torch.tensor([3, 1, writing.END, 2])) == "ca"


def test_teacher_forcing_gives_each_character_before_the_one_to_write() -> None:
    before, after = writing.teacher_forcing([torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert before.t().tolist() == [[0, 5, 6, 7], [0, 8, 0, 0]]
    assert after.t().tolist() == [[5, 6, 7, 0], [8, 0, writing.IGNORED, writing.IGNORED]]


def test_padding_has_no_loss() -> None:
    _, after = writing.teacher_forcing([torch.tensor([1, 2, 1]), torch.tensor([2])])
    logits = torch.randn(4, 2, 3)
    found = writing.losses(logits, after)
    assert found.shape == (2,)
    torch.testing.assert_close(found[1], -logits[[0, 1], 1].log_softmax(-1)[[0, 1], [2, 0]].sum())
    changed = logits.clone()
    changed[2:, 1] = 1e3
    assert torch.equal(writing.losses(changed, after), found)


def test_a_beam_that_keeps_everything_finds_the_likeliest_text_of_all() -> None:
    symbols, longest = 4, 4
    decoder = writing.Decoder("lstm", symbols, 3, 5)
    for weight in decoder.parameters():
        nn.init.normal_(weight, std=1)
    state = (torch.randn(1, 4, 5), torch.randn(1, 4, 5))
    written, scores = writing.beam_search(decoder, state, symbols**longest, longest)
    greedy, greedy_scores = writing.beam_search(decoder, state, 1, longest)
    _, narrow_scores = writing.beam_search(decoder, state, 2, longest)
    texts = [list(text) for text in itertools.product(range(symbols), repeat=longest)]
    texts = [text for text in texts if 0 not in text or not any(text[text.index(0) :])]  # after an end, ends alone
    for row in range(4):
        own = tuple(part[:, row : row + 1] for part in state)
        found = {}
        for text in texts:
            before = torch.tensor([[0], *([symbol] for symbol in text[:-1])])
            logits, _ = decoder(before, own)
            steps = logits[:, 0].log_softmax(-1)[torch.arange(longest), torch.tensor(text)]
            end = text.index(0) + 1 if 0 in text else longest
            found[tuple(text)] = float(steps[:end].sum().detach())
        best = max(found, key=found.__getitem__)
        padded = (*written[row].tolist(), *[0] * longest)[:longest]
        assert padded == best
        torch.testing.assert_close(float(scores[row]), found[best])
        taken = (*greedy[row].tolist(), *[0] * longest)[:longest]
        torch.testing.assert_close(float(greedy_scores[row]), found[taken])
    assert torch.all(scores >= narrow_scores - 1e-6)
    assert torch.all(scores >= greedy_scores - 1e-6)


def test_a_beam_finds_what_the_greedy_way_misses() -> None:
    after = torch.tensor([[0.0, 0.6, 0.4], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05]])  # each row: what follows a symbol

    def write(before: torch.Tensor, state: writing.State) -> tuple[torch.Tensor, writing.State]:
        return after[before].log(), state

    state = torch.zeros(1, 2, 1)
    greedy, greedy_scores = writing.beam_search(write, state, 1, 5)
    best, scores = writing.beam_search(write, state, 2, 5)
    assert (greedy.tolist(), best.tolist()) == ([[1, 0]] * 2, [[2, 0]] * 2)
    torch.testing.assert_close(greedy_scores.exp(), torch.tensor([0.24, 0.24]))
    torch.testing.assert_close(scores.exp(), torch.tensor([0.36, 0.36]))


def test_a_beam_takes_along_the_states_of_what_it_keeps() -> None:
    """The state is how many 1s were written; the beginning that is second at first leads after two steps."""
    after = torch.tensor([[0.0, 0.45, 0.55], [0.0, 0.9, 0.1], [0.98, 0.01, 0.01]])  # each row: what follows so many 1s

    def write(before: torch.Tensor, state: writing.State) -> tuple[torch.Tensor, writing.State]:
        assert isinstance(state, torch.Tensor)
        ones = state + (before == 1).unsqueeze(-1)
        return after[ones.long().squeeze(-1)].log(), ones

    state = torch.tensor([0.0, 1.0]).view(1, 2, 1)  # the second row has written a 1 before
    written, scores = writing.beam_search(write, state, 2, 3)
    assert written.tolist() == [[1, 1, 0], [1, 0, 0]]
    torch.testing.assert_close(scores.exp(), torch.tensor([0.45 * 0.9 * 0.98, 0.9 * 0.98]))
