"""Decoding with a model: generation, scores, logits and beam search, with and without HARP."""

from __future__ import annotations

import codecs
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from . import _engine
from .arguments import FLOAT32_MAX, INT32_MAX, UINT32_MAX, items, number, strings, token_ids, truth, utf8_text, whole
from .errors import HarpError
from .model import Model
from .options import HarpOptions, texts
from .results import Answer, Forward, Hypothesis, Score, Token
from .sampling import Sampling


def most_sequences(options: HarpOptions | None) -> int:
    """The most ``n_sequences`` of a session with these options."""
    return _engine.max_sequences // _n_each(options)


def _n_each(options: HarpOptions | None) -> int:
    """A sequence and its twins."""
    return 1 + options.reframings if options else 1


class Session:
    """A forward pass that hesitates, with a KV cache for one or many sequences at once.

    Not for several threads at a time: a second thread gets a HarpError. The interpreter lock is released during decoding, so
    different sessions can run in parallel.

    Args:
        options: HARP's options; None is plain llama.cpp, without a second pass or memory for one.
        n_ctx: tokens of each sequence, prompt and answer together.
        n_sequences: how many sequences the batch calls decode at once; also the most beams of a search. At most 256, twins included.
        unified: all sequences share one pool of KV cells, and the beams of beam_search() share cells.
        n_ctx_twin: tokens that each second pass has room for; 0: ``n_ctx``. Saves memory with the views ``guidance`` and ``last`` and
            the scope ``generated``; other options are refused then. Several sequences have to be ``unified`` for it.

    Raises:
        HarpError: ``unsupported_model`` by name (encoder-decoder, embeddings only, ...), ``invalid_option``.
    """

    def __init__(self, model: Model, options: HarpOptions | None = HarpOptions(), *, n_ctx: int = 2048,
                 n_sequences: int = 1, unified: bool = False, n_ctx_twin: int = 0):
        if not isinstance(model, Model):
            raise TypeError(f"model: {model!r}; allowed: Model(...)")
        self.model = model
        self.options = options
        option_texts = texts(options)
        n_sequences = whole("n_sequences", n_sequences, 1, most_sequences(options))
        n_ctx = whole("n_ctx", n_ctx, 2, INT32_MAX // (n_sequences * _n_each(options)))  # positions and cells have 31 bits
        n_ctx_twin = whole("n_ctx_twin", n_ctx_twin, 0, INT32_MAX)
        self._pass = _engine.Pass(model._engine, option_texts, n_ctx, n_sequences, truth("unified", unified), n_ctx_twin)
        self._is_scoring = False
        self._streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()  # by request
        self._events: list[tuple] = []  # tokens and results of the latest batch that their streams do not have yet

    @property
    def n_ctx(self) -> int:
        """Number of tokens that a sequence has room for."""
        return self._pass.n_ctx

    @property
    def n_sequences(self) -> int:
        return self._pass.n_sequences

    @property
    def statistics(self) -> dict[str, float]:
        """Counters since creation: ``steps``, ``hesitations``, ``clean_rows``, ``second_pass_rows`` and seconds; with speculation also
        tokens ``drafted`` and ``accepted``."""
        return self._pass.statistics()

    def generate(self, prompt: str | Iterable[int], *, max_tokens: int = -1, stop: str | Iterable[str] = (),
                 sampling: Sampling = Sampling(), options: HarpOptions | None = None, mask_family: int = 0,
                 negative_prompt: str | Iterable[int] = ()) -> Stream:
        """Answers one prompt, token by token. Returns an iterator of Token; its ``answer`` is complete when it ends.

        If the prompt begins like the prompt and answer of an earlier call (a conversation), only the rest is decoded.

        Args:
            prompt: a text (tokenized with its special tokens), or token ids.
            max_tokens: -1: until the model ends or the context is full; 0: an empty answer.
            stop: one or several texts that end the answer; not part of ``answer.text``.
            options: override the session's options for this answer.
            mask_family: which of the seed's mask families to use; another number gives other masks.
            negative_prompt: what the view ``guidance`` reads instead of the prompt, given like ``prompt``; empty: the prompt's last token.

        Raises:
            HarpError: ``invalid_input`` (empty or too long), ``invalid_option``; later whatever decoding raises.
        """
        return self._submit("prompt", prompt, max_tokens, stop, sampling, options, mask_family, negative_prompt, reuses_prefix=True)

    def generate_many(self, prompts: Iterable[str | Iterable[int]], *, max_tokens: int = -1, stop: str | Iterable[str] = (),
                      sampling: Sampling | Iterable[Sampling] = Sampling(), options: HarpOptions | None = None,
                      mask_families: Iterable[int] | None = None,
                      negative_prompt: str | Iterable[int] = ()) -> Iterator[tuple[int, Answer]]:
        """Answers many prompts, ``n_sequences`` at a time in one batch. Yields (index of the prompt, Answer) as answers end.

        The arguments are those of generate(). Leaving the iterator early drops prompts that are not answered yet.

        Args:
            sampling: one for all, or one for each prompt. Equal prompts with one seed have equal answers.
        """
        prompts = items("prompts", prompts, "a list of prompts; for one prompt: [prompt], or generate()")
        families = _families(mask_families, len(prompts))
        samplings = _samplings(sampling, len(prompts))
        stop = strings("stop", stop)
        growing: dict[int, Stream] = {}
        try:
            for index, (prompt, own, family) in enumerate(zip(prompts, samplings, families, strict=True)):
                growing[index] = self._submit(f"prompts[{index}]", prompt, max_tokens, stop, own, options, family, negative_prompt,
                                              reuses_prefix=False)
            while growing:
                self._next_batch()
                for index in [index for index, stream in growing.items() if stream.answer.stop_reason is not None]:
                    yield index, growing.pop(index).answer
        finally:
            for stream in growing.values():
                stream.close()

    def score(self, requests: Iterable[tuple[str | Iterable[int], str | Iterable[int]]], *,
              options: HarpOptions | None = None, mask_families: Iterable[int] | None = None,
              negative_prompt: str | Iterable[int] = (), on_score: Callable[[int, Score], None] | None = None) -> list[Score]:
        """Log-likelihoods of continuations, many at once: a Score for each (context, continuation), in the same order.

        The texts are tokenized separately, the context with its special tokens, the continuation without the space that SentencePiece's
        vocabularies put before a text; give token ids if the border matters. The context is what the views call the prompt.

        Args:
            negative_prompt: as in generate(), for all requests.
            on_score: called with index and Score when each is ready.

        Raises:
            HarpError: ``invalid_input`` if a context or continuation has no tokens, or if they do not fit into the context.
        """
        scores = self.score_each(requests, [self.options if options is None else options], mask_families=mask_families,
                                 negative_prompt=negative_prompt,
                                 on_scores=on_score and (lambda index, scores: on_score(index, scores[0])))
        return [score for [score] in scores]

    def score_each(self, requests: Iterable[tuple[str | Iterable[int], str | Iterable[int]]],
                   options: Sequence[HarpOptions | None], *, mask_families: Iterable[int] | None = None,
                   negative_prompt: str | Iterable[int] = (),
                   on_scores: Callable[[int, list[Score]], None] | None = None) -> list[list[Score]]:
        """score() with several options at the cost of one: for each request a Score for each of ``options``.

        There is at least one. They may differ in ``beta``, ``plausibility`` and, with ``redraw`` 0 and no uniform noise, in ``gate`` and
        ``threshold``; None is vanilla. Up to rounding each score is what score() gives. ``seconds``: of the whole reading; of vanilla, without second passes.

        Raises:
            HarpError: as in score(); ``invalid_option`` if there are no options, or they cannot share a reading.
        """
        pairs = "a list of pairs (context, continuation)"
        requests = items("requests", requests, pairs)
        for index, request in enumerate(requests):
            if len(items(f"requests[{index}]", request, pairs[10:])) != 2:
                raise TypeError(f"requests[{index}]: {request!r}; allowed: a pair (context, continuation)")
        options = items("options", options, "a list of HarpOptions or None")
        option_texts = self._sets(options)
        families = _families(mask_families, len(requests))
        negative = self._negative(negative_prompt)
        scores: list[list[Score]] = [[] for _ in requests]
        index_of: dict[int, int] = {}
        if self._is_scoring:
            raise HarpError("this session is still scoring: on_scores cannot use it", "unsupported_call")
        self._is_scoring = True
        try:
            for index, ((context, continuation), family) in enumerate(zip(requests, families, strict=True)):
                context = self._tokens(f"requests[{index}][0]", context)
                continuation = self._tokens(f"requests[{index}][1]", continuation, behind=context)
                request = self._pass.submit_score([*context, *continuation], len(context), option_texts, family,
                                                   negative)
                index_of[request] = index
            while index_of:
                for request, results in self._pass.score_batch():
                    index = index_of.pop(request)
                    scores[index] = [self._score(*result) for result in results]
                    if on_scores:
                        on_scores(index, scores[index])
        finally:
            self._is_scoring = False
            if index_of:
                self._pass.abandon_scores()
        return scores

    def _sets(self, options: list[HarpOptions | None]) -> list[dict[str, str]]:
        """Sets of options as the engine reads them: none if the session is without HARP."""
        if not options:
            raise HarpError("options: none; allowed: at least one HarpOptions or None", "invalid_option")
        if self.options:
            return [texts(HarpOptions(threshold=float("inf")) if one is None else one) for one in options]
        if len(options) > 1:
            raise HarpError("options: several, and the session is without HARP", "invalid_option")
        return [texts(one) for one in options if one is not None]

    @staticmethod
    def _score(vanilla, harp, entropies, hesitated, is_greedy, is_vanilla_greedy, seconds) -> Score:
        return Score(np.array(vanilla), np.array(harp), np.array(entropies), np.array(hesitated), is_greedy,
                     is_vanilla_greedy, seconds)

    def forward(self, tokens: Iterable[int], *, all: bool = False) -> Forward:
        """Appends tokens to the session's sequence. Returns the logits after the last one, or after each.

        The session's own options hold. Every other call that decodes (generate, score, beam_search, ...) empties the sequence, so that
        the next forward() begins a new one: see n_past.

        Args:
            tokens: [n] ids; with ``all`` at most one batch of them.

        Raises:
            HarpError: ``context_full``, ``invalid_batch`` (a token): the sequence is as before, or empty if its memory cannot
                go back (recurrent models, a sliding window that has moved on); see n_past. ``unsupported_call`` while answers
                are in progress.
        """
        logits, entropies, hesitated = self._pass.forward(token_ids("tokens", tokens), truth("all", all))
        return Forward(logits, np.array(entropies), np.array(hesitated))

    @property
    def n_past(self) -> int:
        """Number of tokens that forward() has put into the sequence; 0 after another call that decodes, which empties it."""
        return self._pass.n_past

    def truncate(self, n: int) -> None:
        """Keeps only the first ``n`` tokens of forward()'s sequence, 0 to n_past.

        Raises:
            HarpError: ``invalid_input`` if ``n`` is out of range; ``unsupported_call`` if the memory cannot go back (recurrent models, a
                sliding window that has moved on); 0 is always possible.
        """
        self._pass.truncate(whole("n", n, 0, self.n_past, "invalid_input"))

    def beam_search(self, prompt: str | Iterable[int], *, beams: int = 3, max_tokens: int = 256, candidates: int = 5,
                    length_penalty: float = 1.2, options: HarpOptions | None = None, mask_family: int = 0,
                    negative_prompt: str | Iterable[int] = ()) -> list[Hypothesis]:
        """The best answers of a beam search over the final log-probabilities, best first.

        The session needs ``n_sequences >= beams`` and ``unified=True``. ``prompt``, ``max_tokens`` (0: one empty answer), ``options``,
        ``mask_family`` and ``negative_prompt`` are those of generate().
        """
        hypotheses = []
        max_tokens = whole("max_tokens", max_tokens, -1, INT32_MAX)
        sizes = whole("beams", beams, 1, UINT32_MAX), whole("candidates", candidates, 1, UINT32_MAX)
        length_penalty = number("length_penalty", length_penalty, 0, FLOAT32_MAX)
        of_harp = self._options(options), whole("mask_family", mask_family, 0, UINT32_MAX), self._negative(negative_prompt)
        prompt = self._tokens("prompt", prompt)
        if max_tokens == 0:
            return [Hypothesis([], "", 0.0, 0.0, False, 0.0)]
        for tokens, score, total, is_finished, seconds in self._pass.beam_search(prompt, max_tokens, *sizes, length_penalty, *of_harp):
            decoder = _Decoder()
            tokens = [decoder.token(token) for token in tokens]
            hypotheses.append(Hypothesis(tokens, "".join(token.text for token in tokens), score, total, is_finished, seconds))
        return hypotheses

    def _options(self, options: HarpOptions | None) -> dict[str, str] | None:
        """The options of one call as the engine reads them; None means the session's."""
        return texts(self.options if options is None else options)

    def _tokens(self, name: str, text: str | Iterable[int], *, behind: list[int] | None = None) -> list[int]:
        if not isinstance(text, str):
            return token_ids(name, text, self.model.n_vocab, "a text or token ids")
        text = utf8_text(name, text)
        if behind is not None:
            return self.model._engine.tokenize_behind(behind, text)
        tokens = self.model.tokenize(text)
        begins_twice = self.model.adds_bos and tokens[:2] == [self.model.bos] * 2  # the text begins with the token's name
        return tokens[1:] if begins_twice else tokens

    def _negative(self, prompt: str | Iterable[int]) -> list[int]:
        """Tokens of a negative prompt. An empty text is no negative prompt, rather than one of a beginning-of-sequence token."""
        if prompt is None or isinstance(prompt, str) and not prompt:
            return []
        return self._tokens("negative_prompt", prompt)

    def _submit(self, name, prompt, max_tokens, stop, sampling, options, mask_family, negative_prompt, *,
                reuses_prefix) -> Stream:
        if not isinstance(sampling, Sampling):
            raise TypeError(f"sampling: {sampling!r}; allowed: Sampling(...)")
        stop = strings("stop", stop)
        max_tokens = whole("max_tokens", max_tokens, -1, INT32_MAX)
        family = whole("mask_family", mask_family, 0, UINT32_MAX)
        self._deliver()  # numbers of requests can begin anew
        request = self._pass.submit(self._tokens(name, prompt), max_tokens, stop, sampling._engine(), self._options(options),
                                    family, self._negative(negative_prompt), reuses_prefix)
        self._streams[request] = stream = Stream(self, request, stop)
        return stream

    def _next_batch(self) -> None:
        """Runs one batch of the engine, and gives each stream its tokens.

        An exception of a signal's handler (Ctrl-C) can come between any two lines. So what the engine tells stays in the list until
        its stream has it, and a stream takes nothing twice.
        """
        if not self._events:
            self._pass.generate_batch(self._events)
        self._deliver()

    def _deliver(self) -> None:
        while self._events:
            request, token, *result = self._events[0]
            stream = self._streams.get(request)
            if stream and stream.answer.stop_reason is None:
                if token is not None:
                    stream._take(token)
                else:
                    stream._finish(*result)
            del self._events[0]


def _samplings(sampling: Sampling | Iterable[Sampling], n: int) -> list[Sampling]:
    """A sampling for each of `n` prompts."""
    if isinstance(sampling, Sampling):
        return [sampling] * n
    samplings = items("sampling", sampling, "Sampling(...), or a list of them, one for each prompt")
    if len(samplings) != n:
        raise HarpError(f"sampling: {len(samplings)} for {n} prompts; allowed: one, or one for each", "invalid_option")
    return samplings


def _families(mask_families: Iterable[int] | None, n: int) -> list[int]:
    """A mask family for each of `n` requests."""
    if mask_families is None:
        return [0] * n
    families = items("mask_families", mask_families, "a list of whole numbers, one for each request")
    if len(families) != n:
        raise HarpError(f"mask_families: {len(families)} for {n} requests; allowed: one for each", "invalid_option")
    return [whole(f"mask_families[{index}]", family, 0, UINT32_MAX) for index, family in enumerate(families)]


def _new_utf8() -> codecs.IncrementalDecoder:
    """Decodes bytes as they come, and keeps those of a character that is not complete."""
    return codecs.getincrementaldecoder("utf-8")("replace")


class _Decoder:
    """Decodes tokens to text; a token's bytes may end inside a UTF-8 character."""

    def __init__(self):
        self._utf8 = _new_utf8()

    def token(self, values: tuple) -> Token:
        id, piece, position, entropy, hesitated = values
        return Token(id, self._utf8.decode(piece), piece, position, entropy, hesitated)


class Stream:
    """Iterator over the tokens of one answer as they come."""

    def __init__(self, session: Session, request: int, stop: Sequence[str]):
        self.answer = Answer()
        self._session = session
        self._request = request
        self._stop = stop
        self._decoder = _Decoder()
        self._n_read = 0  # number of the answer's tokens already returned

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        while self._n_read == len(self.answer.tokens):
            if self.answer.stop_reason is not None:
                raise StopIteration
            self._session._next_batch()
        self._n_read += 1
        return self.answer.tokens[self._n_read - 1]

    def close(self) -> None:
        """Ends the answer now, or after the batch that another thread is decoding. Also called when the iterator is dropped."""
        if self.answer.stop_reason is None:
            self._session._pass.cancel(self._request)
            self.answer.stop_reason = "interrupted"

    def __del__(self):
        self.close()

    def _take(self, token: tuple) -> None:
        tokens = self.answer.tokens
        if not tokens or tokens[-1].position < token[2]:
            tokens.append(self._decoder.token(token))

    def _finish(self, result: tuple) -> None:
        reason, text, steps, hesitations, seconds = result
        text = _new_utf8().decode(text)  # as the tokens' texts: without a character that the answer ends in
        if reason == "stop_string":
            text = text[: min(text.find(stop) for stop in self._stop if stop and stop in text)]
        answer = self.answer
        answer.text, answer.stop_reason, answer.steps, answer.hesitations, answer.seconds = (
            text, reason, steps, hesitations, seconds)
