"""A loaded model: vocabulary and chat template. A Session decodes with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import _engine
from .arguments import INT32_MAX, items, texts, token_ids, truth, utf8_text, whole
from .errors import HarpError

#: flags that name the model, which is named by its path here
NAMES_OF_MODELS = {"-m", "--model", "-mu", "--model-url", "-dr", "--docker-repo", "-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"}


class Model:
    """A GGUF model, loaded once; many sessions can use it.

    Args:
        path: the GGUF file (the first part, if it is split).
        n_threads: threads for decoding; None leaves it to llama.cpp.
        n_gpu_layers: layers in the GPU's memory, if the build has a GPU back end.
        kernels: quantised models use our kernels if the CPU has AVX2. They are faster than llama.cpp's
            and equal to them up to the order of float additions. False uses llama.cpp's. Or a value of ``--harp-kernels``: ``"avx2"``, ...
        llama_args: llama.cpp's flags for models, samplers and drafts (others are refused), for example ``["-ctk", "f32", "--rpc", "host:50052"]``.

    Raises:
        HarpError: ``invalid_input`` (no such file, not GGUF, truncated), ``invalid_option`` (a flag).
    """

    def __init__(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, n_threads: int | None = None, n_gpu_layers: int | None = None,
                 kernels: bool | str = True, llama_args: Sequence[str] = ()):
        flags = [] if n_threads is None else ["-t", str(whole("n_threads", n_threads, -1, 512))]
        if n_gpu_layers is not None:  # "all" and "auto" are llama.cpp's words
            is_word = isinstance(n_gpu_layers, str)
            flags += ["-ngl", n_gpu_layers if is_word else str(whole("n_gpu_layers", n_gpu_layers, -1, INT32_MAX))]
        flags += ["--harp-kernels", kernels if isinstance(kernels, str) else "on" if truth("kernels", kernels) else "off"]
        self.llama_args = texts("llama_args", llama_args, 'a list of flags and values, ["-ngl", "99"]')
        for index, flag in enumerate(self.llama_args):  # they would have no effect, or load another model than `path`
            name = flag.partition("=")[0]
            if name.startswith("--harp-") or name in NAMES_OF_MODELS:
                given = "as path" if name in NAMES_OF_MODELS else "as kernels" if name == "--harp-kernels" else "to Session, in HarpOptions"
                raise HarpError(f"llama_args[{index}]: {name} is given {given}; allowed: flags of llama.cpp", "invalid_option")
        self._engine = _engine.Model(utf8_text("path", os.fsdecode(path)), [*flags, *self.llama_args])

    @property
    def path(self) -> str:
        return self._engine.path

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return self._engine.n_vocab

    @property
    def n_ctx_train(self) -> int:
        """Context size in tokens that the model was trained with."""
        return self._engine.n_ctx_train

    @property
    def bos(self) -> int:
        """The beginning-of-sequence token; -1 if there is none."""
        return self._engine.bos

    @property
    def eos(self) -> int:
        """The end-of-sequence token; -1 if there is none."""
        return self._engine.eos

    @property
    def adds_bos(self) -> bool:
        """Whether tokenize() puts the beginning-of-sequence token before a text."""
        return self._engine.adds_bos

    @property
    def has_chat_template(self) -> bool:
        return self._engine.has_chat_template

    @property
    def chat_template(self) -> str:
        """The chat template in the file, as Jinja text; empty if there is none."""
        return self._engine.chat_template

    @property
    def info(self) -> dict[str, Any]:
        """``file``, ``description``, ``parameters``, ``bytes`` and ``fingerprint``: the SHA-256 of the file's content (of all
        parts' hashes, if the model is split). A large file is read for it only once as long as it does not change."""
        return json.loads(self._engine.info())

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            add_special: put the beginning-of-sequence token before it, if the model uses one.
            parse_special: read ``<|im_start|>`` and the like in the text as control tokens.

        Raises:
            HarpError: ``invalid_input`` if the text has half of a surrogate pair, which UTF-8 cannot encode.
        """
        return self._engine.tokenize(utf8_text("text", text), truth("add_special", add_special), truth("parse_special", parse_special))

    def detokenize(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD.

        SentencePiece's vocabularies put a space before each text. It is left out behind control tokens such as the one at the beginning,
        so that ``detokenize(tokenize(text))`` is ``text``. Tokens that do not begin with one may continue a text, and keep theirs.

        Args:
            special: show control tokens by name; otherwise they are left out.
        """
        ids = token_ids("tokens", tokens, self.n_vocab)
        return self._engine.detokenize(ids, truth("special", special)).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return self._engine.is_end(whole("token", token, -1, self.n_vocab - 1, "invalid_input"))

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation, ``[{"role": ..., "content": ...}, ...]``, in the model's chat template, up to where the answer begins.

        Raises:
            HarpError: ``unsupported_call`` if the model has no chat template.
        """
        allowed = 'messages, [{"role": "user", "content": "..."}]'
        pairs = []
        for index, message in enumerate(items("messages", messages, allowed)):
            if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
                raise TypeError(f"messages[{index}]: {message!r}; allowed: {allowed}")
            pairs.append(tuple(utf8_text(f"messages[{index}][{key!r}]", message[key]) for key in ("role", "content")))
        return self._engine.apply_chat_template(pairs)

    def __repr__(self) -> str:
        return f"Model({self.path!r})"
