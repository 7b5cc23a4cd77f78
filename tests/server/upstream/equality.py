#!/usr/bin/env python3
"""With HARP off harp-server gives the same tokens as llama-server, and the same log-probabilities to 1e-5: ours sum probabilities
in double precision (patches/server-no-candidates.patch).

    tests/server/upstream/equality.py [model.gguf]      default: SmolLM2 Q4_1

llama-server is built from the same source (build_llama_server.sh). Asks both, and also a harp-server with HARP on by requests with
{"enabled": false}: completions and chats, greedy and sampled with a seed, one at a time, with the prompt cache on.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/support"))
from programs import SERVER, SMOL
from running_server import Server

LLAMA_SERVER = ROOT / "build/llama-server/bin/llama-server"
QUESTIONS = ["What is the capital of France?", "Write a haiku about rain.", "Explain what a compiler does.", "Name three rivers.",
             "Why is the sky blue?", "Give me a recipe for bread.", "What is 17 times 3?", "Tell a story about a fox."]
SAMPLING = [{"temperature": 0}, {"temperature": 0.8, "seed": 7}, {"temperature": 1.5, "top_p": 0.9, "seed": 1}]


def answers(server, options):
    said = []
    for question in QUESTIONS:
        for sampling in SAMPLING:
            ask = {**sampling, "n_predict": 48, "max_tokens": 48, "n_probs": 3, **options}
            completion = server.post("/completion", {"prompt": question, "return_tokens": True, **ask})
            said.append((completion["tokens"], [(token["id"], token["logprob"]) for token in completion["completion_probabilities"]]))
            chat = {"messages": [{"role": "user", "content": question}], "logprobs": True, "top_logprobs": 3, **ask}
            choice = server.post("/v1/chat/completions", chat)["choices"][0]
            said.append((choice["message"]["content"], [(token["id"], token["logprob"]) for token in choice["logprobs"]["content"]]))
    return said


def same_answer(one, other):
    """The same tokens, and log-probabilities to the rounding of a sum in single precision."""
    return one[0] == other[0] and all(a[0] == b[0] and abs(a[1] - b[1]) <= 1e-5 for a, b in zip(one[1], other[1], strict=True))


def main():
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else SMOL
    servers = {"llama-server": (LLAMA_SERVER, [], {}), "harp-server --harp-off": (SERVER, ["--harp-off"], {}),
               "harp-server, enabled: false": (SERVER, [], {"harp": {"enabled": False}})}
    said = {}
    for name, (program, flags, options) in servers.items():
        server = Server("-np", "1", "-c", "2048", *flags, model=model, program=program)
        try:
            said[name] = answers(server, options)
        finally:
            server.stop()
    expected = said["llama-server"]
    code = 0
    for name, found in list(said.items())[1:]:
        tokens = sum(json.dumps(a[0]) == json.dumps(b[0]) for a, b in zip(expected, found, strict=True))
        same = sum(same_answer(a, b) for a, b in zip(expected, found, strict=True))
        print(f"{name}: {tokens} of {len(expected)} answers are llama-server's, {same} with their log-probabilities")
        code |= same != len(expected)
    sys.exit(code)


if __name__ == "__main__":
    main()
