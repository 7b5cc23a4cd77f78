#!/usr/bin/env python3
"""Compares a portable build (GGML_BACKEND_DL, GGML_CPU_ALL_VARIANTS) with the normal one: same kernels in use, same answers.

    packaging/try_portable.py PORTABLE NORMAL MODEL      two harp commands and a quantised model

For example, after packaging/wheel.sh or packaging/deb.sh:
    packaging/try_portable.py build/portable/bin/harp build/release/bin/harp .deps/models/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import json
import os
import re
import subprocess
import sys

PORTABLE, NORMAL, MODEL = sys.argv[1:]
PROMPTS = ["Why is the sky blue?", "Name three rivers.", "Write a short story about a dog and a bird."]
FLAGS = ["-t", "2", "--harp-schedule", "fused", "--harp-threshold", "2"]


def run(program, command, *flags):
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    return subprocess.run([program, command, "-m", MODEL, *flags], env=environment, capture_output=True, text=True, check=True)


def kernels(program, *flags):
    """The build as `harp info` reports it, and whether llama.cpp gave weights to our buffer type."""
    done = run(program, "info", "--json", "-v", *flags)
    return json.loads(done.stdout)["build"], bool(re.search(r"HARP model buffer size", done.stderr))


def tokens(program, prompt, *flags):
    done = run(program, "generate", "-p", prompt, "-n", "48", "--temp", "0", "--json", *FLAGS, *flags)
    return [token["id"] for token in json.loads(done.stdout)["tokens"]]


build, _ = kernels(PORTABLE)
best, failed = build["kernels"], 0
assert best == kernels(NORMAL)[0]["kernels"] != "none", best
print(f"the portable build chooses {best} here; llama.cpp's back end: {build['system']}")
names = ["avx2", "vnni", "amx"]
for name in [*names[: names.index(best) + 1], "off"]:
    build, is_packed = kernels(PORTABLE, "--harp-kernels", name)
    assert is_packed == (name != "off"), f"{name}: weights in our buffer type: {is_packed}"
    assert build["kernels"] == (name if name != "off" else "llama.cpp's"), build["kernels"]
    same = 0
    for prompt in PROMPTS:
        ours, theirs = (tokens(program, prompt, "--harp-kernels", name) for program in (PORTABLE, NORMAL))
        n = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), len(theirs))
        same += ours == theirs
        if ours != theirs:
            print(f"  {name}: {prompt!r}: {n} of {len(theirs)} tokens, then others")
    failed += same < len(PROMPTS)
    print(f"{build['kernels']}: {same} of {len(PROMPTS)} answers equal the normal build's")
sys.exit(failed > 0)
