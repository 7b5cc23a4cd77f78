#!/usr/bin/env python3
"""Starts the server under test as llama.cpp's tests ask for it, with the models that are here instead of downloads.

HARP_UPSTREAM_SERVER is llama-server, harp-off or harp-on. A model that is not here ends it with exit 97.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MODELS = Path(os.environ["HARP_UPSTREAM_MODELS"])
LOCAL = {"ggml-org/test-model-stories260K": MODELS / "stories260K-f32.gguf"}


def local_arguments(arguments):
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument == "--hf-repo":
            repository = next(rest)
            if repository not in LOCAL:
                print(f"error: no local file for {repository}", file=sys.stderr)
                sys.exit(97)
            kept += ["--model", str(LOCAL[repository])]
        elif argument == "--hf-file":
            next(rest)
        else:
            kept.append(argument)
    return kept


which = os.environ["HARP_UPSTREAM_SERVER"]
arguments = local_arguments(sys.argv[1:])
program = ROOT / ("build/llama-server/bin/llama-server" if which == "llama-server" else "build/release/bin/harp-server")
if which == "harp-off":
    arguments.append("--harp-off")
os.execv(program, [str(program), *arguments])
