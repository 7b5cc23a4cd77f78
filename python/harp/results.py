"""What the calls of a session return."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Token:
    """A generated token and the step that chose it."""

    id: int
    #: what it adds to the text: the characters that it completes. A character that no token completes is in ``piece`` alone
    text: str
    piece: bytes  #: the token's own bytes
    position: int  #: in the sequence
    entropy: float  #: of the vanilla distribution, bits
    hesitated: bool  #: the gate was above the threshold


@dataclass
class Answer:
    """The answer to a prompt."""

    tokens: list[Token] = field(default_factory=list)
    #: the texts of the tokens together, up to the stop string if one ended the answer; empty while it grows and if it was closed early
    text: str = ""
    #: ``end_of_text``, ``stop_string``, ``length``, ``context_full``, or ``interrupted`` (closed early); None while it grows
    stop_reason: str | None = None
    steps: int = 0  #: sampled tokens, including an end token
    hesitations: int = 0  #: among these steps
    seconds: float = 0.0  #: its share of the engine's time, by rows of batches, including the prompt


class _WithArrays:
    """Results that are equal if their arrays are, item by item; a dataclass of its own would ask whether an array is true."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(np.array_equal(getattr(self, one.name), getattr(other, one.name)) for one in fields(self))


@dataclass(frozen=True, eq=False)
class Score(_WithArrays):
    """Log-likelihoods of a continuation, vanilla and with HARP for the same tokens. Natural logarithm, one item per token."""

    vanilla: npt.NDArray[np.float64]  #: float64 [n]
    harp: npt.NDArray[np.float64]  #: float64 [n]; equals ``vanilla`` where no second pass was mixed in
    entropies: npt.NDArray[np.float64]  #: float64 [n], of the vanilla distributions, bits
    hesitated: npt.NDArray[np.bool_]  #: bool [n]
    is_greedy: bool  #: each token is the most likely one of the final logits
    is_vanilla_greedy: bool  #: each token is the most likely one of the vanilla logits
    seconds: float  #: its share of the engine's time, by rows of batches

    @property
    def log_likelihood(self) -> float:
        """Sum of ``harp``; without HARP this is the sum of ``vanilla``."""
        return float(self.harp.sum())


@dataclass(frozen=True, eq=False)
class Forward(_WithArrays):
    """Logits of a forward pass and what happened at each row."""

    logits: npt.NDArray[np.float32]  #: float32 [rows, n_vocab], read-only
    entropies: npt.NDArray[np.float64]  #: float64 [rows], of the vanilla distributions, bits
    hesitated: npt.NDArray[np.bool_]  #: bool [rows]


@dataclass(frozen=True)
class Hypothesis:
    """One answer of a beam search."""

    tokens: list[Token]
    text: str
    score: float  #: log-probability, normalised by length
    log_probability: float
    is_finished: bool  #: ends with an end token
    seconds: float  #: time of the whole search
