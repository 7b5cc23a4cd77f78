"""How tokens are sampled."""

from __future__ import annotations

from dataclasses import dataclass

from . import _engine
from .arguments import FLOAT32_MAX, INT32_MAX, UINT32_MAX, number, utf8_text, whole


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled from the final (mixed) logits, by llama.cpp's samplers. The default is greedy.

    Args:
        temperature: >= 0; 0 is greedy.
        top_k: 0, and below it, is off.
        top_p: nucleus, 0..1; 1 is off.
        min_p: 0..1; 0 is off.
        repeat_penalty: > 0; 1 is off.
        seed: seed of the sampler, 0..4294967295.
        grammar: a GBNF grammar that the answer must follow; empty is off.

    Raises:
        TypeError: a value of another type; HarpError: ``invalid_option``, naming field, value and range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0
    grammar: str = ""

    def __post_init__(self):
        self._engine()  # refuses bad values here, not in the call that samples

    def _engine(self) -> _engine.Sampling:
        return _engine.Sampling(number("temperature", self.temperature, 0, FLOAT32_MAX),
                                whole("top_k", self.top_k, -INT32_MAX, INT32_MAX), number("top_p", self.top_p, 0, 1),
                                number("min_p", self.min_p, 0, 1),
                                number("repeat_penalty", self.repeat_penalty, 0, FLOAT32_MAX, above=True),
                                whole("seed", self.seed, 0, UINT32_MAX), utf8_text("grammar", self.grammar))
