"""Listings of machine code and of PTX as graphs: which instructions there are, and which of them a loop repeats.

What a persistent kernel promises, such as weights that stay on chip, is a statement on its time loop, so that loops
have to be found in what the assembler made. They are the natural loops of the graph of branches: it does not matter
where in the listing a block was put.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Syntax:
    """How a listing is written.

    Attributes:
        label: a line that can be jumped to; its group is the name.
        instruction: a line with an instruction; its groups are the predicate, the opcode and the operands.
        branch: opcodes that jump to the label among their operands.
        always: a branch, its predicate and operands included, after which the next line is never reached.
        end: opcodes without a successor, if they have no predicate.
        reference: a label among operands.
    """

    label: re.Pattern[str]
    instruction: re.Pattern[str]
    branch: re.Pattern[str]
    always: re.Pattern[str]
    end: re.Pattern[str]
    reference: re.Pattern[str]


# BRA.DIV leaves for code that is run only where the threads of a warp have come apart: it counts as not taken.
SASS = Syntax(
    label=re.compile(r"\s*(\.L\w+):"),
    instruction=re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+\{?\s*(@!?U?P\w+)?\s*([A-Z][A-Za-z0-9_.]*)\s*([^;]*)"),
    branch=re.compile(r"(BRA(?!\.DIV)|JMP|BSSY)"),
    always=re.compile(r"(BRA|JMP)[.A-Z]* `\(\.L\w+\)$"),
    end=re.compile(r"(EXIT|RET|BRX|JMX|KILL)"),
    reference=re.compile(r"`\((\.L\w+)\)"),
)
AMDGCN = Syntax(
    label=re.compile(r"(\.?\w+):"),
    instruction=re.compile(r"\t()([a-z]\w+)\s*([^;]*)"),
    branch=re.compile(r"s_c?branch"),
    always=re.compile(r"s_branch"),
    end=re.compile(r"s_(endpgm|setpc|swappc)"),
    reference=re.compile(r"(\.LBB\w+)"),
)
PTX = Syntax(
    label=re.compile(r"\s*(\$\w+):"),
    instruction=re.compile(r"\s*(@!?%\w+)?\s*([a-z]\w+(?:[.:]\w+)*)\s*([^;]*);"),
    branch=re.compile(r"bra"),
    always=re.compile(r"bra"),
    end=re.compile(r"(ret|exit|trap)"),
    reference=re.compile(r"(\$L\w+)"),
)


@dataclass(frozen=True)
class Instruction:
    """An instruction, and the number of its line in the listing, from 1."""

    opcode: str
    operands: str
    predicate: str
    line: int

    def __str__(self) -> str:
        """As the listing has it, less addresses and comments."""
        return " ".join(part for part in (self.predicate, self.opcode, self.operands) if part)


class Listing:
    """Instructions in order, by index, and which may follow which."""

    def __init__(self, text: str, syntax: Syntax):
        labels: dict[str, int] = {}
        self.instructions: list[Instruction] = []
        for number, line in enumerate(text.splitlines(), 1):
            if match := syntax.label.match(line):
                labels[match[1]] = len(self.instructions)
            elif match := syntax.instruction.match(line):
                predicate, opcode, operands = match[1] or "", match[2], " ".join(match[3].split())
                self.instructions.append(Instruction(opcode, operands, predicate, number))
        self.successors = [
            [follower for follower in followers if follower < len(self.instructions)]
            for followers in self._followers(labels, syntax)
        ]

    def _followers(self, labels: dict[str, int], syntax: Syntax) -> Iterator[list[int]]:
        for index, instruction in enumerate(self.instructions):
            if syntax.branch.match(instruction.opcode):
                targets = [labels[name] for name in syntax.reference.findall(instruction.operands) if name in labels]
                yield targets if syntax.always.match(str(instruction)) else [index + 1, *targets]
            elif syntax.end.match(instruction.opcode) and not instruction.predicate:
                yield []
            else:
                yield [index + 1]

    @cached_property
    def predecessors(self) -> list[list[int]]:
        """Of each instruction, those it may follow."""
        found: list[list[int]] = [[] for _ in self.instructions]
        for index, followers in enumerate(self.successors):
            for follower in followers:
                found[follower].append(index)
        return found

    @cached_property
    def loops(self) -> list[frozenset[int]]:
        """The natural loops, the one with the most instructions first; loops that begin at one place are one."""
        order = _reverse_postorder(self.successors)
        dominators = _dominators(order, self.predecessors)
        bodies: dict[int, set[int]] = {}
        for index in order:
            for head in self.successors[index]:
                if _dominates(head, index, dominators):
                    body = bodies.setdefault(head, {head})
                    pending = [index]
                    while pending:
                        if (member := pending.pop()) not in body:
                            body.add(member)
                            pending += [before for before in self.predecessors[member] if before in dominators]
        return sorted((frozenset(body) for body in bodies.values()), key=len, reverse=True)


def _reverse_postorder(successors: Sequence[Sequence[int]]) -> list[int]:
    """What can be reached from the first instruction, each after whatever leads to it, but for loops."""
    if not successors:
        return []
    order: list[int] = []
    seen = {0}
    stack = [(0, iter(successors[0]))]
    while stack:
        index, followers = stack[-1]
        for follower in followers:
            if follower not in seen:
                seen.add(follower)
                stack.append((follower, iter(successors[follower])))
                break
        else:
            order.append(index)
            stack.pop()
    return order[::-1]


def _dominators(order: Sequence[int], predecessors: Sequence[Sequence[int]]) -> dict[int, int]:
    """The immediate dominator of each reachable instruction (Cooper, Harvey and Kennedy's iteration)."""
    position = {index: place for place, index in enumerate(order)}
    found = {order[0]: order[0]} if order else {}
    changed = True
    while changed:
        changed = False
        for index in order[1:]:
            known = [before for before in predecessors[index] if before in found]
            common = known[0]
            for other in known[1:]:
                while common != other:
                    if position[common] < position[other]:
                        common, other = other, common
                    common = found[common]
            if found.get(index) != common:
                found[index] = common
                changed = True
    return found


def _dominates(head: int, index: int, dominators: dict[int, int]) -> bool:
    while index != head and dominators[index] != index:
        index = dominators[index]
    return index == head
