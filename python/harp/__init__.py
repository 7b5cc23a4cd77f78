"""HARP, the Hesitation-Aware Reframed Forward Pass (arXiv 2412.07282), on llama.cpp.

    import harp

    session = harp.Session(harp.Model("model.gguf"), harp.HarpOptions(threshold=1.5))
    for token in session.generate("Once upon a time", max_tokens=64):
        print(token.text, end="")
"""

import json as _json
from typing import Any as _Any

from . import _engine
from .errors import HarpError
from .model import Model
from .options import HarpOptions, read_preset
from .results import Answer, Forward, Hypothesis, Score, Token
from .sampling import Sampling
from .session import Session, Stream

__version__: str = _json.loads(_engine.build_info())["harp"]
__all__ = ["Answer", "Forward", "HarpError", "HarpOptions", "Hypothesis", "Model", "Sampling", "Score", "Session", "Stream",
           "Token", "build_info", "read_preset"]


def build_info() -> dict[str, _Any]:
    """Versions of harp and llama.cpp, the compiler, and the CPU's instruction sets."""
    return _json.loads(_engine.build_info())
