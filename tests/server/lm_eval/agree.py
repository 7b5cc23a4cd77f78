#!/usr/bin/env python3
"""Three ways to a log-likelihood agree: lm-eval's `local-completions` and `gguf` with harp-server, and `--model harp` without a server.

    tests/server/lm_eval/agree.py [--limit 100] [--model model.gguf] [-- HARP FLAGS, for example --harp-threshold 1]

LAMBADA's first examples, and edge cases: emoji, Chinese, an empty context, continuations of one token, of nearly and of more than max_length, trailing
spaces. Prints differences of more than TOLERANCE. Each client is compared with what the adapter gives for the tokens that the client asks for: `gguf`
splits a text by characters, `local-completions` reads without a beginning-of-sequence token (the adapter's add_bos_token=False). Not part of ./test: it
needs lm_eval with its API models (in build/lm_eval/venv, made on the first call), the installed package and the shared data.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parents[1] / "support"))
from compare import ROOT, VENV, ensure_lm_eval
from programs import MODELS, SHARED, environment
from running_server import EXACT, Server

OURS = ROOT / ".deps/venv/bin"
TOLERANCE = 1e-2  # nats
MAX_LENGTH = 480  # tokens that are read; more than LAMBADA's longest text has, even in small vocabularies
SHOWN = 8  # differences shown for a comparison
LOCAL_REFUSES = "a context of spaces"  # without an added token it has no tokens, and that client asserts that there are some
WORDS = "one two three four five six seven eight nine ten"


def edge_cases(n):
    long = " ".join([WORDS] * 60)
    return {
        "emoji behind a text": ["I feel", " 😀"],
        "emoji behind emoji": ["I feel 😀", "😀🎉"],
        "emoji of several characters": ["A family:", " 👨‍👩‍👧 and"],
        "Chinese": ["你好，", "世界。"],
        "empty context": ["", "Once upon a time"],
        "empty context, emoji": ["", "😀 Once"],
        "one token": ["Once upon a", " time"],
        "a context of more than max_length": [long, " and"],
        "a continuation that just fits": ["Once", " and" * n],
        "a continuation of more than max_length": ["Once", " and" * (n + 8)],
        "a space before the border": ["Once upon a ", "time"],
        "spaces before the border": ["Once upon a   ", "time there"],
        "spaces behind": ["Once upon a", " time  "],
        "a context of spaces": ["  ", "Once"],
        "a line end": ["Once upon a time", "\n"],
        "a control token's name": ["Once", " <|im_end|>"],
    }


def lambada(limit):
    lines = (SHARED / "lambada/lambada_test.jsonl").read_text(encoding="utf-8").split("\n")[:limit]
    texts = [json.loads(line)["text"] for line in lines if line]
    return [[text.rpartition(" ")[0], " " + text.rpartition(" ")[2]] for text in texts]


def ask(python, model, arguments, pairs):
    done = subprocess.run([python, HERE / "ask.py"], input=json.dumps({"model": model, "arguments": arguments, "pairs": pairs}), text=True,
                          env=environment(HF_HUB_OFFLINE="1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SAID")]
    if not lines:
        sys.exit(done.stderr[-3000:])
    return json.loads(lines[0][5:])


def option_arguments(flags):
    """The server's flags --harp-NAME VALUE as model_args of the adapter."""
    names = [flag.removeprefix("--harp-").replace("-", "_") for flag in flags[::2]]
    return dict(zip(names, flags[1::2], strict=True))


def compare(title, names, theirs, ours):
    """Prints what differs. @return the number of differences"""
    different, largest, n_refused, n_client = [], 0.0, 0, 0
    for name, a, b in zip(names, theirs, ours, strict=True):
        if name == LOCAL_REFUSES and "Context length must be greater than 0" in str(a):
            n_client += 1
            continue
        if isinstance(a, str) and isinstance(b, str):
            n_refused += 1
            continue
        difference = float("inf") if isinstance(a, str) or isinstance(b, str) else abs(a[0] - b[0])
        largest = max(largest, difference if difference < float("inf") else 0)
        if difference > TOLERANCE:
            different.append(f"    {name}: {a}, harp {b}")
    print(f"  {title}: {len(ours)} log-likelihoods, {len(different)} different, {n_refused} refused by both, {n_client} by the "
          f"client, largest difference {largest:.2e} nats")
    print("\n".join(different[:SHOWN]), end="\n" if different else "")
    return len(different)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100, help="examples of LAMBADA")
    parser.add_argument("--model", type=Path, default=MODELS / "SmolLM2-135M-Instruct-F32.gguf")
    parser.add_argument("--max-length", type=int, default=MAX_LENGTH)
    parser.add_argument("harp_flags", nargs="*", help="after --; without: HARP off")
    options = parser.parse_args()
    ensure_lm_eval()
    edges, examples = edge_cases(options.max_length), lambada(options.limit)
    pairs, names = [*examples, *edges.values()], [f"LAMBADA {i}" for i in range(len(examples))] + list(edges)
    flags = options.harp_flags or ["--harp-off"]
    server = Server("-np", "1", "-c", "1024", *EXACT, *flags, model=options.model)
    try:
        local = ask(VENV / "python", "local-completions", {"model": "any", "base_url": f"{server.url}/v1/completions", "max_retries": 1,
                                                           "max_length": options.max_length + 2}, pairs)["pairs"]
        gguf = ask(VENV / "python", "gguf", {"base_url": server.url}, pairs)["pairs"]
    finally:
        server.stop()
    ours = ask(OURS / "python", "harp", {"path": str(options.model), "max_length": options.max_length, "n_threads": 1, "shared_masks": True,
                                         "kernels": bool(options.harp_flags), "llama_args": EXACT,
                                         **(option_arguments(options.harp_flags) or {"enabled": False})}, pairs)
    n = len(examples)
    print(f"{options.model.name}, {' '.join(flags)}")
    failed = 0
    for part, where in (("LAMBADA", slice(0, n)), ("edges", slice(n, None))):
        failed += compare(f"{part}, local-completions", names[where], local[where], ours["as local-completions"][where])
        failed += compare(f"{part}, gguf", names[where], gguf[where], ours["as gguf"][where])
    failed += compare("LAMBADA, gguf's split and the adapter's", names[:n], ours["as gguf"][:n], ours["pairs"][:n])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
