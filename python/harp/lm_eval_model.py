"""`lm_eval --model harp`: lm-evaluation-harness with a forward pass that hesitates.

    lm_eval --model harp --model_args path=model.gguf,threshold=1.5 --tasks lambada_openai --batch_size 8

Scoring with HARP: if the step before a token hesitates, the token's log-probability is that of the mixed logits.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import secrets
import shlex
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from .arguments import INT32_MAX, UINT32_MAX, items, truth, utf8_text, whole
from .identity import llama_environment, named_files
from .model import Model
from .options import HarpOptions, read_preset
from .results import Score
from .sampling import Sampling
from .session import Session

log = logging.getLogger(__name__)
MAX_GEN_TOKS = 256  #: most tokens of an answer, if the task does not say; lm-eval's usual number
OPTION_NAMES = {option.name for option in fields(HarpOptions)}
#: names of sampling settings in lm-eval and transformers, and ours
SAMPLING_NAMES = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
                  "repetition_penalty": "repeat_penalty"}


@dataclass
class Cost:
    """The cost of answering one request."""

    n_tokens: int = 0  #: generated, or scored
    seconds: float = 0.0  #: its share of the engine's time
    steps: int = 0
    hesitations: int = 0
    entropies: np.ndarray = field(default_factory=lambda: np.zeros(0))  #: bits, one per token


class HarpLM(TemplateLM):
    """HARP as lm-eval's model.

    Args:
        path: the GGUF file; also as ``pretrained``.
        enabled: False is plain llama.cpp.
        batch_size: sequences decoded at once.
        max_length: tokens that are read. The last token of a continuation is not read, since nothing follows it. Contexts that are too long
            lose their beginning; a continuation that is too long is an error.
        max_gen_toks: most tokens of an answer, if the task does not say.
        seed_of_sampler: for requests that sample. Each draws from it, its context, and how many equal requests precede it (a task's ``repeats``).
        shared_masks: all contexts have the same masks, as with ``harp score``. Otherwise each context has its own, drawn from
            ``seed`` and the context's text, so that examples are independent.
        beams: above 1, generation is a beam search.
        pause: number of texts ``pause_text`` appended to each prompt (arXiv 2310.02226).
        n_threads: None leaves it to llama.cpp.
        kernels: as in Model; the default is the value of ``enabled``.
        llama_args: more flags of llama.cpp: a list, or a text as a shell would read it.
        add_bos_token: whether texts are read after a beginning-of-sequence token; None leaves it to the model. lm-eval's local-completions
            reads without it.
        prefix_token_id: stands for an empty context; by default the beginning-of-sequence token, or the end token if there is none.
        negative_prompt: text that the view ``guidance`` reads instead of each context; where contexts are formatted as chats, a user's
            message behind their system prompt.
        preset: file of options, perhaps with a negative prompt (harp.read_preset); ``options`` and ``negative_prompt`` override it.
        beside: more sets of options to score from the same readings; only on_response gets their scores (Session.score_each).
        think_end_token: text that ends a model's thoughts, such as ``</think>``; only what follows the last one is an answer. With it a task's
            ``until`` cuts answers instead of ending them.
        options: any of HarpOptions by name (threshold, beta, ...).
    """

    def __init__(self, path: str | None = None, *, pretrained: str | None = None, enabled: bool = True,
                 batch_size: int | str = 8, max_batch_size: int | None = None, device: str | None = None,
                 max_length: int = 2048, max_gen_toks: int = MAX_GEN_TOKS, seed_of_sampler: int = 0, shared_masks: bool = False,
                 beams: int = 1, pause: int = 0, pause_text: str = ".", n_threads: int | None = None,
                 kernels: bool | None = None, llama_args: str | Sequence[str] = "", add_bos_token: bool | None = None,
                 prefix_token_id: int | None = None, model: Model | None = None,
                 negative_prompt: str = "", preset: str | None = None, beside: Sequence[HarpOptions | None] = (),
                 think_end_token: str | None = None, **options):
        super().__init__()
        unknown = sorted(set(options) - OPTION_NAMES)
        if unknown:
            raise ValueError(f"unknown model_args: {', '.join(unknown)}; HARP's are {', '.join(sorted(OPTION_NAMES))}")
        enabled, shared_masks = truth("enabled", enabled), truth("shared_masks", shared_masks)
        kernels = None if kernels is None else truth("kernels", kernels)
        add_bos_token = None if add_bos_token is None else truth("add_bos_token", add_bos_token)
        beams, pause = whole("beams", beams, 1, INT32_MAX), whole("pause", pause, 0, INT32_MAX)
        max_gen_toks, seed_of_sampler = whole("max_gen_toks", max_gen_toks, 1, INT32_MAX), whole("seed_of_sampler", seed_of_sampler, 0, UINT32_MAX)
        without_effect = sorted(options) + ["preset"] * bool(preset) + ["negative_prompt"] * bool(negative_prompt)
        if without_effect and not enabled:
            raise ValueError(f"enabled=False, so {', '.join(without_effect)} would have no effect")
        if model is None:
            if not (path or pretrained):
                raise ValueError("model_args: path=model.gguf is missing")
            flags = shell_words("llama_args", llama_args) if isinstance(llama_args, str) else llama_args
            model = Model(path or pretrained, n_threads=n_threads, kernels=enabled if kernels is None else kernels,
                          llama_args=flags)
        elif llama_args:
            raise ValueError("llama_args: the model is loaded already; give them to Model")
        self.model = model
        max_length = whole("max_length", max_length, 2, INT32_MAX)
        if prefix_token_id is not None:
            prefix_token_id = whole("prefix_token_id", prefix_token_id, 0, model.n_vocab - 1)
        self.options = None
        if enabled:
            self.options, of_preset = read_preset(preset, **options) if preset else (HarpOptions(**options), "")
            negative_prompt = negative_prompt or of_preset
        self.negative_prompt = self.model.tokenize(negative_prompt) if negative_prompt else []  #: of contexts that are no chats
        self._negative_text = negative_prompt
        self._negative_system: list[dict[str, str]] | None = None  # system messages behind which it was last formatted
        self._negative_formatted: list[int] = []  # so
        self._negative_of: dict[str, list[int]] = {}  # by context; tasks that run together have other system messages
        self.beside = items("beside", beside, "a list of HarpOptions or None")
        n_sequences = beams if beams > 1 else _batch_size(batch_size)
        self.session = Session(model, self.options, n_ctx=max_length, n_sequences=n_sequences, unified=beams > 1)
        self.max_length = max_length
        self.max_gen_toks = max_gen_toks
        self._prefix_token_id = prefix_token_id
        self._add_bos_token = add_bos_token
        self._warned_of_length = False
        self.seed_of_sampler = seed_of_sampler
        self.shared_masks = shared_masks
        self.beams = beams
        self._think_end_token = None if think_end_token is None else utf8_text("think_end_token", think_end_token)
        self.pause_tokens = pause * model.tokenize(utf8_text("pause_text", pause_text), add_special=False)
        self._bos_text = model.detokenize([model.bos], special=True) if model.bos >= 0 else ""
        #: called when a request is answered: its index, the response, its cost, and 0; for the option sets of `beside` 1, 2, ...
        #: instead of 0
        self.on_response: Callable[[int, object, Cost, int], None] | None = None

    # What TemplateLM requires

    @property
    def eot_token_id(self) -> int:
        return self.model.eos

    @property
    def prefix_token_id(self) -> int:
        known = [self._prefix_token_id, self.model.bos, self.eot_token_id]
        token = next((token for token in known if token is not None and token >= 0), None)
        if token is None:
            raise ValueError("the model has neither a beginning-of-sequence nor an end token, and a context is empty: give "
                             "prefix_token_id")
        return token

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's request cache: differs for other models or flags."""
        name = self.model.info["fingerprint"]
        flags, environment = self.model.llama_args, llama_environment()
        if flags or environment:
            said = [name, flags, environment, named_files([*flags, *environment.values()])]
            name = hashlib.sha256(json.dumps(said).encode()).hexdigest()
        # contexts from the cache are not formatted again, so that nothing would tell how to format the negative prompt
        unique = f"-{secrets.token_hex(4)}" if self._negative_text else ""
        return f"harp-{name[:16]}{unique}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        if isinstance(chat_template, str):
            log.warning("the template %r is not chosen: a GGUF file has one", chat_template)
        return self.model.chat_template if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        system = list(itertools.takewhile(lambda message: message["role"] == "system", chat_history))
        if self._negative_text and system != self._negative_system:  # it is formatted as what it is read instead of
            self._negative_system = system
            negative = self.model.apply_chat_template([*system, {"role": "user", "content": self._negative_text}])
            self._negative_formatted = self.tok_encode(negative)
        if add_generation_prompt or chat_history[-1]["role"] != "assistant":
            context = self.model.apply_chat_template(chat_history)
        else:
            context = self.model.apply_chat_template(chat_history[:-1]) + chat_history[-1]["content"]
        if self._negative_text:
            self._negative_of[context] = self._negative_formatted
        return context

    def negative_prompt_of(self, context: str) -> list[int]:
        """Tokens of the negative prompt, formatted as the context was. A task may have put something behind what was formatted."""
        if context in self._negative_of:
            return self._negative_of[context]
        return next((negative for formatted, negative in self._negative_of.items() if context.startswith(formatted)), self.negative_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        if add_special_tokens is None:
            add_special_tokens = self._add_bos_token is not False and not (self._bos_text and string.startswith(self._bos_text))
        tokens = self.model.tokenize(string, add_special=add_special_tokens)
        if add_special_tokens and self._add_bos_token and not self.model.adds_bos:
            tokens.insert(0, self.prefix_token_id)
        return tokens

    # Scores

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        pairs, families = [], []
        groups: dict[tuple[int, ...], list[int]] = {}  # requests by their negative prompt
        for (strings, context, continuation) in requests:
            groups.setdefault(tuple(self.negative_prompt_of(strings[0] if strings else "")), []).append(len(pairs))
            pairs.append(self._fitted(strings, context, continuation))
            families.append(self._family(strings[0] if strings else str(context)))
        responses: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        progress = tqdm(total=len(pairs), desc="loglikelihood", disable=disable_tqdm)

        def on_scores(index: int, scores: list[Score]) -> None:
            responses[index] = scores[0].log_likelihood, scores[0].is_greedy
            progress.update()
            strings = requests[index][0]
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, responses[index])
            for which, score in enumerate(scores):
                cost = Cost(len(score.harp), score.seconds, len(score.harp), int(score.hesitated.sum()), score.entropies)
                self._report(index, (score.log_likelihood, score.is_greedy), cost, which)

        with progress:
            for negative, group in groups.items():
                self.session.score_each([pairs[i] for i in group], [self.options, *self.beside], negative_prompt=negative,
                                        mask_families=[families[i] for i in group],
                                        on_scores=lambda i, scores, group=group: on_scores(group[i], scores))
        return responses

    def _fitted(self, strings, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Context and continuation cut as in lm-eval's Hugging Face backend: max_length tokens, not counting the last one, which is not read."""
        if not 1 <= len(continuation) <= self.max_length:
            raise ValueError(f"the continuation{f' {_shortened(strings[1])}' if strings else ''} has {len(continuation)} tokens; "
                             f"allowed: 1..{self.max_length} (max_length)")
        context = context or [self.prefix_token_id]  # a context of only spaces, which lm-eval moves to the continuation
        most = self.max_length + 1 - len(continuation)
        if len(context) > most and not self._warned_of_length:
            self._warned_of_length = True
            log.warning("a context of %d tokens and its continuation of %d do not fit max_length=%d: this context, and others that are "
                        "too long, lose their beginning", len(context), len(continuation), self.max_length)
        return context[-most:], continuation

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        windows, owners = [], []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in utils.get_rolling_token_windows(token_list=tokens, prefix_token=self.prefix_token_id,
                                                          max_seq_len=self.max_length, context_len=1):
                context, continuation = utils.make_disjoint_window(window)
                windows.append((None, context, continuation))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # Generation

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        texts = [""] * len(requests)
        groups: dict[tuple, list[int]] = {}
        repetitions: Counter[tuple[str, str]] = Counter()  # a task's `repeats` are equal requests
        seeds = []
        for index, request in enumerate(requests):
            context, settings_text = request.args[0], repr(request.args[1])
            groups.setdefault((settings_text, tuple(self.negative_prompt_of(context))), []).append(index)
            seeds.append(self._seed(context, repetitions[context, settings_text]))
            repetitions[context, settings_text] += 1
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as progress:
            for (_, negative), indices in groups.items():
                settings = _Generation.read(requests[indices[0]].args[1], self)
                contexts = [requests[i].args[0] for i in indices]
                for position, text, cost in self._generate(contexts, [seeds[i] for i in indices], settings, list(negative)):
                    index = indices[position]
                    texts[index] = postprocess_generated_text(text, settings.until, self._think_end_token)
                    self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                    progress.update()
                    self._report(index, texts[index], cost)
        return texts

    def _generate(self, contexts: list[str], seeds: list[int], settings: _Generation, negative: list[int]):
        room = self.max_length - settings.max_tokens - len(self.pause_tokens)
        if room < 1:
            raise ValueError(f"max_gen_toks={settings.max_tokens} leaves no room for a prompt in max_length={self.max_length}")
        prompts = [self.tok_encode(context) or [self.prefix_token_id] for context in contexts]
        longest = max(map(len, prompts))
        if longest > room and not self._warned_of_length:
            self._warned_of_length = True
            log.warning("a context of %d tokens and an answer of up to %d do not fit max_length=%d: this context, and others that are too "
                        "long, lose their beginning", longest, settings.max_tokens, self.max_length)
        prompts = [prompt[-room:] + self.pause_tokens for prompt in prompts]
        families = [self._family(context) for context in contexts]
        if self.beams > 1:
            for index, prompt in enumerate(prompts):
                best = self.session.beam_search(prompt, beams=self.beams, max_tokens=settings.max_tokens, mask_family=families[index],
                                                negative_prompt=negative)[0]
                hesitations = sum(token.hesitated for token in best.tokens)
                yield index, best.text, self._cost(best.tokens, len(best.tokens), hesitations, best.seconds)
            return
        samplings = [replace(settings.sampling, seed=seed) for seed in seeds]
        stop = [] if self._think_end_token else settings.until  # thoughts may have the task's texts (blank lines); as lm-eval's vLLM backend
        answers = self.session.generate_many(prompts, max_tokens=settings.max_tokens, stop=stop,
                                             sampling=samplings, mask_families=families,
                                             negative_prompt=negative)
        for index, answer in answers:
            yield index, answer.text, self._cost(answer.tokens, answer.steps, answer.hesitations, answer.seconds)

    @staticmethod
    def _cost(tokens, steps: int, hesitations: int, seconds: float) -> Cost:
        return Cost(len(tokens), seconds, steps, hesitations, np.array([token.entropy for token in tokens]))

    def _family(self, context: str) -> int:
        return 0 if self.shared_masks else zlib.crc32(context.encode())

    def _seed(self, context: str, repetition: int) -> int:
        """Of the sampler. With one seed for all, all examples would draw the same numbers, and repetitions the same answers."""
        return zlib.crc32(f"{self.seed_of_sampler} {repetition} {context}".encode("utf-8", "surrogatepass"))

    def _report(self, index: int, response: object, cost: Cost, which: int = 0) -> None:
        if self.on_response:
            self.on_response(index, response, cost, which)


def shell_words(name: str, text: str) -> list[str]:
    """A text's words as a shell would read them. ValueError naming the argument."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{name}: {text!r}: {error}; allowed: flags as a shell would read them") from None


def _batch_size(text: int | str) -> int:
    """lm-eval's batch size: a number, or "auto", perhaps with a number that only its own backends use."""
    if str(text).partition(":")[0] == "auto":
        return 8
    return whole("batch_size", int(text) if isinstance(text, str) and text.isdecimal() else text, 1, INT32_MAX)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


@dataclass(frozen=True)
class _Generation:
    """lm-eval's gen_kwargs by our names."""

    until: list[str]
    max_tokens: int
    sampling: Sampling

    @classmethod
    def read(cls, gen_kwargs: dict, lm: HarpLM) -> _Generation:
        given = {name: value for name, value in gen_kwargs.items() if value is not None}  # "null" in a task's file
        if isinstance(given.get("until"), (tuple, set)):
            given["until"] = list(given["until"])
        kwargs = dict(normalize_gen_kwargs(given, lm.max_gen_toks))
        until = handle_stop_sequences(kwargs.pop("until", None), eos=None)
        max_tokens = kwargs.pop("max_gen_toks")
        if kwargs.pop("do_sample") and not kwargs.get("temperature"):  # lm-eval's Hugging Face backend refuses it too
            raise ValueError(f"gen_kwargs: do_sample=True with temperature {kwargs.get('temperature', 'not given')}; allowed: a temperature "
                             "above 0, or do_sample=False for greedy decoding")
        if (beams := kwargs.pop("num_beams", None)) not in (None, lm.beams):  # "num_beams: 1" is in many tasks
            raise ValueError(f"gen_kwargs: num_beams {beams}; allowed: {lm.beams}, as the model_args have (beams)")
        unknown = sorted(set(kwargs) - set(SAMPLING_NAMES))
        if unknown:
            raise ValueError(f"gen_kwargs that harp does not know: {', '.join(unknown)}; allowed: until, max_gen_toks, "
                             f"do_sample, num_beams, {', '.join(SAMPLING_NAMES)}")
        values = {SAMPLING_NAMES[name]: value for name, value in kwargs.items() if value is not None}
        sampling = Sampling(**values)
        if lm.beams > 1 and (sampling.temperature > 0 or sampling.repeat_penalty != 1):
            raise ValueError(f"gen_kwargs: temperature {sampling.temperature}, repetition_penalty {sampling.repeat_penalty}; allowed with "
                             f"beams={lm.beams}: 0 and 1, as a beam search neither samples nor penalises")
        return cls(until, max_tokens, sampling)
