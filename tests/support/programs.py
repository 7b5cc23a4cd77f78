"""Our programs and the models for their tests, found through the environment that ./test and ctest set."""

import os
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HARP = os.environ.get("HARP_BINARY", str(ROOT / "build/release/bin/harp"))
SERVER = os.environ.get("HARP_SERVER_BINARY", str(ROOT / "build/release/bin/harp-server"))
SHARED = Path(os.environ.get("HARP_SHARED_DATA") or ROOT.parent / "shared/data")
MODELS = Path(os.environ.get("HARP_TEST_MODELS") or ROOT / ".deps/models")
TINY = SHARED / "models/stories260K/stories260K-f32.gguf"
SMOL = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"

needs_tiny = unittest.skipUnless(TINY.is_file(), f"no {TINY}")
needs_smol = unittest.skipUnless(SMOL.is_file(), f"no {SMOL}")


def environment(**extra):
    """The environment without variables that change a program's behaviour; with one thread, so that a busy machine does not stall it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HARP_", "LLAMA_")) and k != "NO_COLOR"}
    return {**kept, "TERM": "xterm-256color", "LLAMA_ARG_THREADS": "1", **extra}
