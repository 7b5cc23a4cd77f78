"""The methods that an evaluation compares: how the forward pass runs and how tokens are chosen from it.

A method is written NAME or NAME:KEY=VALUE,...: a preset and changes to it. Keys are HARP's options (threshold, beta,
strength, ...), negative_prompt (of the view guidance), temperature, top_p, top_k, min_p, beams, pause; preset=FILE names a file written by
harp calibrate. A text with commas can only stand in a preset.
"""

from dataclasses import dataclass, field, fields

from harp import HarpError, HarpOptions, Sampling, read_preset

OPTION_TYPES = {option.name: type(option.default) for option in fields(HarpOptions)}
LEAST = {"beams": 1, "pause": 0}
SAMPLING_TYPES = {"temperature": float, "top_p": float, "top_k": int, "min_p": float}
OTHER_TYPES = {"beams": int, "pause": int}
TEXT_TYPES = {"preset": str, "negative_prompt": str}

NUCLEUS = {"temperature": 1.0, "top_p": 0.9}
PRESETS = {
    "vanilla": (False, {}, "greedy, plain llama.cpp"),
    "harp": (True, {}, "greedy, with HARP"),
    "nucleus": (False, NUCLEUS, "nucleus sampling, p = 0.9, temperature 1"),
    "harp-nucleus": (True, NUCLEUS, "the same with HARP"),
    "beam": (False, {"beams": 3}, "beam search, 3 beams"),
    "harp-beam": (True, {"beams": 3}, "the same with HARP"),
    "pause": (False, {"pause": 10}, "greedy behind 10 pause texts (arXiv 2310.02226, without its training)"),
}


@dataclass(frozen=True)
class Method:
    name: str  # as the user wrote it
    options: HarpOptions | None  # None: HARP off
    sampling: dict = field(default_factory=dict)  # empty: greedy
    beams: int = 1
    pause: int = 0
    negative_prompt: str = ""

    @property
    def is_random(self) -> bool:
        """Whether results depend on a seed."""
        return bool(self.sampling) or (self.options is not None and self.options.has_masks)

    @property
    def only_generates(self) -> bool:
        """Whether it makes no sense for a task that scores given texts."""
        return bool(self.sampling) or self.beams > 1 or self.pause > 0

    @property
    def decoding(self) -> str:
        """How tokens are chosen, for people."""
        parts = [f"beam {self.beams}" if self.beams > 1 else "nucleus" if "top_p" in self.sampling else
                 "sampling" if self.sampling else "greedy"]
        parts += [f"{key} {value:g}" for key, value in self.sampling.items()]
        parts += [f"{self.pause} pauses"] if self.pause else []
        return ", ".join(parts)


def read_method(text: str) -> Method:
    """Parses a method. ValueError naming the fault and what is allowed."""
    preset, _, changes = text.partition(":")
    if preset not in PRESETS:
        raise ValueError(f"method {text!r}: no preset {preset!r}; there are {', '.join(PRESETS)}")
    has_harp, values, _ = PRESETS[preset]
    values = dict(values)
    allowed = {**({**OPTION_TYPES, **TEXT_TYPES} if has_harp else {}), **SAMPLING_TYPES, **OTHER_TYPES}
    given = set()
    for change in filter(None, changes.split(",")):
        key, equals, value = change.partition("=")
        if key in given:
            raise ValueError(f"method {text!r}: {key} is given twice")
        given.add(key)
        if key == "seed" and has_harp:
            raise ValueError(f"method {text!r}: seed: seeds are given by --seeds, for all methods")
        if key not in allowed or not equals:
            raise ValueError(f"method {text!r}: {change!r} is not KEY=VALUE with KEY of {', '.join(allowed)}")
        try:
            values[key] = allowed[key](value)
        except ValueError:
            raise ValueError(f"method {text!r}: {key}: {value!r} is not a {allowed[key].__name__}") from None
        if key in LEAST and values[key] < LEAST[key]:
            raise ValueError(f"method {text!r}: {key}: {value}; allowed: {LEAST[key]} and more")
    sampling = {key: values[key] for key in values if key in SAMPLING_TYPES}
    try:
        Sampling(**sampling)
        options, of_preset = None, ""
        if has_harp:
            changed = {key: values[key] for key in values if key in OPTION_TYPES}
            options, of_preset = read_preset(values["preset"], **changed) if "preset" in values else (HarpOptions(**changed), "")
    except HarpError as error:
        raise ValueError(f"method {text!r}: {error}") from None
    if sampling and not sampling.get("temperature"):
        raise ValueError(f"method {text!r}: {', '.join(sampling)}: sampling needs a temperature above 0 too; without sampling it is greedy")
    if options and options.seed:
        raise ValueError(f"method {text!r}: the preset has seed {options.seed}: seeds are given by --seeds, for all methods")
    if values.get("negative_prompt") and options.view != "guidance":
        raise ValueError(f"method {text!r}: negative_prompt: the view {options.view!r} does not read it; allowed with view=guidance")
    method = Method(text, options, sampling, values.get("beams", 1), values.get("pause", 0), values.get("negative_prompt", of_preset))
    if method.beams > 1 and sampling:
        raise ValueError(f"method {text!r}: a beam search does not sample; leave out {', '.join(sampling)}")
    return method
