#!/usr/bin/env python3
"""lm-evaluation-harness with harp-server: its log-likelihoods are those of `harp score` for the same text.

    tests/server/lm_eval/compare.py [--limit 100] [--model model.gguf] [-- HARP FLAGS of server and command]

Runs LAMBADA and CommonsenseQA with `lm_eval --model local-completions` and the server's own tokenizer. For each example the command
scores the context alone and with its continuation; the difference is the continuation's log-likelihood. Not part of ./test: it
needs lm_eval (in build/lm_eval/venv, made on the first call) and the shared data.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))
from programs import HARP, MODELS, SHARED, environment
from running_server import EXACT, Server

VENV = ROOT / "build/lm_eval/venv/bin"
DATA = {"lambada.jsonl": SHARED / "lambada/lambada_test.jsonl", "csqa.jsonl": SHARED / "csqa/dev_rand_split.jsonl"}
TASKS = ["lambada_local", "csqa_local"]


def ensure_lm_eval():
    if not (VENV / "lm_eval").is_file():
        subprocess.run([sys.executable, "-m", "venv", VENV.parent], check=True)
        subprocess.run([VENV / "pip", "install", "-q", "lm-eval[api]==0.4.13"], check=True)


def ask(server, limit, folder):
    """What lm_eval gives: {task: [(context, continuation, log-likelihood)]}"""
    for name, path in DATA.items():
        (folder / name).symlink_to(path)
    arguments = f"model=any,base_url={server.url}/v1/completions,num_concurrent=4,max_retries=1"
    subprocess.run([VENV / "lm_eval", "--model", "local-completions", "--model_args", arguments, "--tasks", ",".join(TASKS),
                    "--include_path", HERE, "--limit", str(limit), "--log_samples", "--output_path", folder / "out"],
                   cwd=folder, check=True, env=environment(HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=str(folder / "cache")))
    answers = {}
    for task in TASKS:
        [path] = (folder / "out").rglob(f"samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        answers[task] = [(request["arg_0"], request["arg_1"], float(answer[0][0]))
                         for sample in samples
                         for request, answer in zip(sample["arguments"].values(), sample["resps"], strict=True)]
    return answers


class Command:
    """Log-likelihoods of texts by `harp score`; each text is scored once."""

    def __init__(self, model, flags):
        self.command = [HARP, "score", "-m", str(model), "--json", *flags]
        self.known = {}

    def __call__(self, text):
        if text not in self.known:
            with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
                file.write(text)
                file.flush()
                done = subprocess.run([*self.command, "-f", file.name], env=environment(), capture_output=True, check=True)
            said = json.loads(done.stdout)
            self.known[text] = -said.get("harp", said["vanilla"])["mean"] * said["tokens"]
        return self.known[text]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100, help="examples of each task")
    parser.add_argument("--model", type=Path, default=MODELS / "SmolLM2-135M-Instruct-F32.gguf")
    parser.add_argument("harp_flags", nargs="*", help="after --")
    options = parser.parse_args()
    flags = ["-c", "1024", *EXACT, *options.harp_flags]
    ensure_lm_eval()
    server = Server("-np", "1", *flags, model=options.model)
    try:
        with tempfile.TemporaryDirectory() as folder:
            answers = ask(server, options.limit, Path(folder))
    finally:
        server.stop()
    command = Command(options.model, flags)
    for task, asked in answers.items():
        differences = []
        for number, (context, continuation, said) in enumerate(asked):
            differences.append(abs(command(context + continuation) - command(context) - said))
            print(f"\r{task}: {number + 1} of {len(asked)}", end="", file=sys.stderr)
        print(file=sys.stderr)
        print(f"{task}: {len(asked)} log-likelihoods, largest difference {max(differences):.2e}, "
              f"root of mean square {math.sqrt(sum(d * d for d in differences) / len(differences)):.2e}")


if __name__ == "__main__":
    main()
