"""The options of HARP, the same as in C++, on the command line and in requests (docs/OPTIONS.md)."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _engine
from .arguments import utf8_text
from .errors import HarpError


@dataclass(frozen=True)
class HarpOptions:
    """When and how the model takes a second look. The defaults are the authors'.

    Args:
        gate: what is compared with the threshold: ``entropy`` of the next token in bits (the paper), or ``ratio`` of the second best
            probability to the best.
        threshold: θ, >= 0; a step hesitates where the gate is greater; ``math.inf``: never.
        beta: β, 0..8. Below 1 the share of the vanilla logits in the mix (the paper); 1 is vanilla; above 1 the second pass is
            subtracted (contrast).
        plausibility: α, 0..1: with beta above 1 only tokens at least this share as probable as the best one change; 0: all.
        view: what the second pass reads: ``perturbed`` embeddings (the paper), ``masked`` tokens, the answer without the
            prompt (``guidance``), or the ``last`` tokens.
        view_tokens: how many tokens ``last`` reads.
        perturbation: ``dropout`` (the paper), ``uniform`` or ``gaussian``.
        strength: dropout and masked 0..1 (δ); uniform α > 0; gaussian σ > 0, relative to a row's RMS.
        reframings: 1..8 perturbed passes, whose logits are averaged; 1 with ``guidance`` and ``last``.
        schedule: ``auto``, ``fused`` or ``lazy``: when the twin's rows are computed; the logits are the same.
        redraw: new masks at every Nth hesitation; 0 never, 1 at each one (exactly the paper).
        scope: ``all`` positions are perturbed (the paper), or only those ``generated``.
        seed: seed of the masks, independent of the sampler's seed.

    Raises:
        HarpError: ``invalid_option``, naming field, value and range.
    """

    gate: str = "entropy"
    threshold: float = 1.0
    beta: float = 0.5
    plausibility: float = 0.0
    view: str = "perturbed"
    view_tokens: int = 10
    perturbation: str = "dropout"
    strength: float = 0.2
    reframings: int = 1
    schedule: str = "auto"
    redraw: int = 0
    scope: str = "all"
    seed: int = 0

    def __post_init__(self):
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if isinstance(value, (np.generic, np.ndarray)) and value.shape == ():  # numpy's numbers would differ from equal ones, and not fit into JSON
                object.__setattr__(self, option.name, value.item())
        _engine.check_options(self._texts())
        for option in dataclasses.fields(self):  # texts and other numbers (Decimal) become plain ones, so that options are equal and fit into JSON
            value, kind = getattr(self, option.name), type(option.default)
            if type(value) not in (int, kind):
                object.__setattr__(self, option.name, kind(value))

    def _texts(self) -> dict[str, str]:
        return {name: utf8_text(f"option '{name}'", str(value)) for name, value in dataclasses.asdict(self).items()}

    @property
    def has_masks(self) -> bool:
        """Whether the second pass depends on random masks, and so on ``seed``."""
        return self.view in ("perturbed", "masked")

    @classmethod
    def from_preset(cls, path: str | os.PathLike[str], **changes: Any) -> HarpOptions:
        """Options from a file written by ``harp calibrate --write-preset``; ``changes`` override them.

        Raises:
            HarpError: as read_preset; also ``invalid_input`` if the file has a negative prompt, which options cannot hold.
        """
        options, negative_prompt = read_preset(path, **changes)
        if negative_prompt:
            raise HarpError(f"preset '{path}': it has a negative_prompt too; read both with harp.read_preset", "invalid_input")
        return options

    def replace(self, **changes: Any) -> HarpOptions:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)


def read_preset(path: str | os.PathLike[str], **changes: Any) -> tuple[HarpOptions, str]:
    """Options and negative prompt ("" if there is none) from a preset; ``changes`` override the options.

    Without the view ``guidance`` the negative prompt has no effect and is left out.

    Raises:
        HarpError: ``invalid_input``, naming the file and its fault; ``invalid_option``.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:  # without the mark that some editors write
            values = dict(json.load(file)["harp"].items())
    except OSError as error:
        raise HarpError(f"preset '{path}': {error.strerror}", "invalid_input") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise HarpError(f"preset '{path}': not JSON ({error})", "invalid_input") from None
    except (KeyError, TypeError, AttributeError):
        raise HarpError(f"preset '{path}': not a JSON object with an object \"harp\" of options", "invalid_input") from None
    enabled = values.pop("enabled", True)
    if not isinstance(enabled, bool):
        raise HarpError(f"preset '{path}': harp.enabled: {enabled!r}; allowed: true, false", "invalid_input")
    if not enabled:
        raise HarpError(f"preset '{path}': it switches HARP off; pass options=None instead", "invalid_input")
    negative_prompt = values.pop("negative_prompt", "")
    if not isinstance(negative_prompt, str):
        raise HarpError(f"preset '{path}': harp.negative_prompt: {negative_prompt!r} is not a string", "invalid_input")
    for name, value in values.items():
        if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
            values[name] = int(value)  # in JSON 7.0 is an integer too
    known = [field.name for field in dataclasses.fields(HarpOptions)]
    for name in values:
        if name not in known:
            raise HarpError(f"preset '{path}': unknown option {name!r}; known: enabled, negative_prompt, {', '.join(known)}", "invalid_option")
    try:
        options = HarpOptions(**{**values, **changes})
    except HarpError as error:
        if any(f"option '{name}'" in str(error) for name in changes):  # not the file's
            raise
        raise HarpError(f"preset '{path}': {error}", error.code) from None
    return options, negative_prompt if options.view == "guidance" else ""


def texts(options: HarpOptions | None) -> dict[str, str] | None:
    """The options as the engine reads them; None is HARP off.

    Raises:
        TypeError: if they are neither.
    """
    if options is not None and not isinstance(options, HarpOptions):
        raise TypeError(f"options: {options!r}; allowed: HarpOptions(...) or None")
    return None if options is None else options._texts()
