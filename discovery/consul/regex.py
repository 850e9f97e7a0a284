"""Regular expressions from clients, matched in time linear in the text.

Python's ``re`` backtracks: a short pattern in a filter could block the agent for hours. So Go's
regexp syntax, which Consul's filters use, is compiled to a Thompson NFA, simulated with all states
at once and cached transitions (RE2).
Source: K. Thompson, Regular Expression Search Algorithm, CACM 11(6), 1968; ``regex_parser`` for the
syntax.
"""

from __future__ import annotations

from dataclasses import dataclass

from discovery.consul.regex_parser import (
    MAX_LENGTH,
    Alternate,
    Anchor,
    BadRegex,
    CharClass,
    Concat,
    Node,
    RegexParser,
    Repeat,
)

_MAX_INSTRUCTIONS = 2000
_MAX_STEPS = 200_000
"""Parts that are compiled and states that are visited before expressions are given up; cached transitions
are free. They take some 0.2 s.
"""
_MAX_CACHED_STEPS = 5000


@dataclass(frozen=True, slots=True)
class _Split:
    """Continue at all of these instructions."""

    targets: tuple[int, ...]


_Instruction = CharClass | Anchor | _Split | None
"""None accepts."""


class Steps:
    """What the expressions of one request may take together."""

    def __init__(self) -> None:
        self._left = _MAX_STEPS

    def charge(self, steps: int) -> None:
        """Raise BadRegex if they have taken too many."""
        self._left -= steps
        if self._left < 0:
            raise BadRegex("the expression takes too long to match")


class Regex:
    """A compiled expression; ``steps`` are shared with other expressions. Raises BadRegex."""

    def __init__(self, text: str, steps: Steps | None = None) -> None:
        self._charge = (steps or Steps()).charge
        if len(text) > MAX_LENGTH:
            raise BadRegex(f"the expression is {len(text)} characters long, the limit is {MAX_LENGTH}")
        self._program: list[_Instruction] = []
        self._nodes_compiled = 0
        self._compile(RegexParser(text).read())
        self._program.append(None)
        self._transitions: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._ends: dict[tuple[frozenset[int], bool], bool] = {}
        self._start_states = self._epsilon_closure([0], begin=False, end=False)
        self._first_states = self._epsilon_closure([0], begin=True, end=False)

    def search(self, text: str) -> bool:
        """Whether the text contains a match. Raises BadRegex if matching takes too many steps."""
        last = len(self._program) - 1
        states = self._first_states
        for character in text:
            if last in states:
                return True
            states = self._step(states, character)
        return self._accepts_at_end(states, begin=not text)

    def _accepts_at_end(self, states: frozenset[int], *, begin: bool) -> bool:
        known = self._ends.get((states, begin))
        if known is None:
            if len(self._ends) >= _MAX_CACHED_STEPS:
                self._ends.clear()
            last = len(self._program) - 1
            known = self._ends[states, begin] = last in self._epsilon_closure(list(states), begin=begin, end=True)
        return known

    def _step(self, states: frozenset[int], character: str) -> frozenset[int]:
        known = self._transitions.get((states, character))
        if known is not None:
            return known
        after = []
        for place in states:
            instruction = self._program[place]
            if isinstance(instruction, CharClass) and instruction.has(character):
                after.append(place + 1)
        self._charge(len(states))
        if len(self._transitions) >= _MAX_CACHED_STEPS:
            self._transitions.clear()
        found = self._epsilon_closure(after, begin=False, end=False) | self._start_states
        self._transitions[states, character] = found
        return found

    def _epsilon_closure(self, targets: list[int], *, begin: bool, end: bool) -> frozenset[int]:
        """The instructions reachable without consuming a character."""
        found: set[int] = set()
        while targets:
            place = targets.pop()
            if place in found:
                continue
            found.add(place)
            instruction = self._program[place]
            if isinstance(instruction, _Split):
                targets += instruction.targets
            elif isinstance(instruction, Anchor) and (end if instruction.end else begin):
                targets.append(place + 1)
        self._charge(len(found))
        return frozenset(found)

    def _emit(self, instruction: _Instruction) -> int:
        if len(self._program) >= _MAX_INSTRUCTIONS:
            raise BadRegex("the expression is too large")
        self._program.append(instruction)
        return len(self._program) - 1

    def _compile(self, tree: Node) -> None:
        self._nodes_compiled += 1  # what repeats nothing emits nothing, and must end too
        self._charge(1)
        if self._nodes_compiled > 5 * _MAX_INSTRUCTIONS:
            raise BadRegex("the expression is too large")
        match tree:
            case Concat():
                for part in tree.parts:
                    self._compile(part)
            case Alternate():
                fork = self._emit(None)
                starts, ends = [], []
                for part in tree.parts:
                    starts.append(len(self._program))
                    self._compile(part)
                    ends.append(self._emit(None))
                self._program[fork] = _Split(tuple(starts))
                for place in ends:
                    self._program[place] = _Split((len(self._program),))
            case Repeat():
                self._compile_repeat(tree)
            case _:
                self._emit(tree)

    def _compile_repeat(self, tree: Repeat) -> None:
        for _ in range(tree.minimum):
            self._compile(tree.part)
        if tree.maximum is None:
            fork = self._emit(None)
            self._compile(tree.part)
            self._emit(_Split((fork,)))
            self._program[fork] = _Split((fork + 1, len(self._program)))
            return
        forks = []
        for _ in range(tree.maximum - tree.minimum):
            forks.append(self._emit(None))
            self._compile(tree.part)
        for fork in forks:
            self._program[fork] = _Split((fork + 1, len(self._program)))
