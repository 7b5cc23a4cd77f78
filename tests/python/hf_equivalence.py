#!/usr/bin/env python3
"""Checks that lm-eval's own Hugging Face backend and `--model harp` with HARP off give the same, with the same weights and examples.

    tests/python/hf_equivalence.py [--limit 200] [--model F32.gguf] [--threads 2] [--edges]

Both read one float32 GGUF file. First edge cases of a context (only these with --edges): empty ones, full or too long ones, spaces,
emoji, Chinese, windows of long texts. Then tasks: prints the largest difference of log-likelihoods, both accuracies, and examples per
second (only scoring, without loading). Not part of ./test: it needs torch and transformers (in build/hf/venv, made on the first
call, some 5 GB) and the shared data.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))
from programs import MODELS, SHARED

VENV = ROOT / "build/hf/venv/bin"
OURS = ROOT / ".deps/venv/bin"
TASKS_FOLDER = ROOT / "python/harp/evaluation/tasks"
TASKS = ["harp_lambada_openai", "harp_commonsense_qa"]
TOLERANCE = 1e-2  # nats

# lm_eval's command, with scoring timed
TIMED = """
import sys, time
import lm_eval.api.model as api
if sys.argv.pop(1) == "harp":
    from harp.lm_eval_model import HarpLM as Model
else:
    from lm_eval.models.huggingface import HFLM as Model
score = Model._loglikelihood_tokens
def timed(self, requests, *arguments, **more):
    start = time.perf_counter()
    answers = score(self, requests, *arguments, **more)
    print("SECONDS", time.perf_counter() - start, file=sys.stderr)
    return answers
Model._loglikelihood_tokens = timed
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""

EDGES_LENGTH = 24  # tokens of max_length
EDGES = """
import json, sys
from lm_eval.api.instance import Instance
kind, arguments, pairs, texts = json.loads(sys.argv[1])
if kind == "harp":
    from harp.lm_eval_model import HarpLM as Model
else:
    from lm_eval.models.huggingface import HFLM as Model
lm = Model(**arguments)
def ask(call, kind, arguments):
    try:
        return call([Instance(kind, {}, tuple(arguments), 0)], disable_tqdm=True)[0]
    except (AssertionError, ValueError, IndexError) as error:
        return "refused"
said = [ask(lm.loglikelihood, "loglikelihood", pair) for pair in pairs]
said += [ask(lm.loglikelihood_rolling, "loglikelihood_rolling", [text]) for text in texts]
print("SAID", json.dumps([lm.prefix_token_id, said]))
"""


def edge_cases():
    """Pairs of context and continuation, and texts to read in windows."""
    words = " one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen".split(" ")[1:]

    def text(n):  # about one token per word
        return " ".join((words * 4)[:n])

    n = EDGES_LENGTH
    pairs = [("", "Once"), ("", "Once upon a time"), ("   ", "Once upon"), ("\n\n", "Once upon"), (" ", " "), ("Once upon a", " time"),
             ("Once upon a ", "time"), ("Once upon a   ", "time"), ("Once", "\n"), ("I feel 😀", " 😀😀"), ("你好", "，世界"), ("", "你好"),
             ("A", "B"), ("Once upon a time", ""), ("<|im_start|>user\nHi", "<|im_end|>")]
    pairs += [(text(length), " and") for length in range(n - 4, n + 5)]  # lengths around a full context
    pairs += [(text(4), " " + text(length)) for length in range(n - 6, n + 4)]  # continuations that just fit, or just do not
    return pairs, ["", "Once", text(n - 3), text(n), text(n + 1), text(60), "你好，世界 😀 " * 6]


def compare_edges(options):
    """Compares both, and prints what differs. @return whether nothing does"""
    pairs, texts = edge_cases()
    said = {}
    for kind, python, arguments in (
            ("hf", VENV / "python", {"pretrained": str(options.model.parent), "gguf_file": options.model.name, "dtype": "float32",
                                     "max_length": EDGES_LENGTH, "device": "cpu", "batch_size": 1}),
            ("harp", OURS / "python", {"path": str(options.model), "enabled": False, "max_length": EDGES_LENGTH,
                                       "n_threads": options.threads, "llama_args": "-ctk f32 -ctv f32 -fa off"})):
        done = subprocess.run([python, "-c", EDGES, json.dumps([kind, arguments, pairs, texts])],
                              env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)},
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(done.stderr[-3000:])
        [line] = [line for line in done.stdout.splitlines() if line.startswith("SAID")]
        said[kind] = json.loads(line[5:])
    (their_prefix, theirs), (our_prefix, ours) = said["hf"], said["harp"]
    n_different, n_read, largest = 0, 0, 0.0
    for case, a, b in zip([*pairs, *texts], theirs, ours, strict=True):
        difference = 0.0 if a == b else float("inf")
        if a == "refused" and isinstance(b, list) and case[0].isspace():  # it has no tokens, so we read the prefix token instead
            n_read += 1
            continue
        if "refused" not in (a, b):
            difference = abs(a[0] - b[0]) if isinstance(a, list) else abs(a - b)
            largest = max(largest, difference)
        if difference > TOLERANCE or (isinstance(a, list) and isinstance(b, list) and a[1] != b[1]):
            n_different += 1
            print(f"  {str(case)[:100]!r}: {a} (Hugging Face), {b} (harp)")
    n_refused = sum(answer == "refused" for answer in theirs)
    print(f"edges: {len(theirs)} cases, {n_refused} refused by Hugging Face (of them {n_read} with a context of spaces, which "
          f"we read), {n_different} different; largest difference "
          f"{largest:.2g} nats; empty contexts are token {their_prefix} (Hugging Face), {our_prefix} (harp)")
    return n_different == 0


def ensure_hugging_face():
    if not (VENV / "lm_eval").is_file():
        subprocess.run([sys.executable, "-m", "venv", VENV.parent], check=True)
        subprocess.run([VENV / "pip", "install", "-q", "torch", "transformers", "accelerate", "gguf", "lm-eval==0.4.13"],
                       check=True)


def run(python, model, arguments, task, options):
    """({document: [log-likelihood]}, accuracy, seconds)"""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, "-c", TIMED, model, "--model", model, "--model_args", arguments, "--tasks", task, "--include_path",
             TASKS_FOLDER, "--limit", str(options.limit), "--batch_size", "8", "--device", "cpu", "--log_samples", "--output_path", folder],
            env={**os.environ, "HARP_EVAL_DATA": str(SHARED), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(done.stderr[-3000:])
        [samples] = Path(folder).rglob(f"samples_{task}_*.jsonl")
        [results] = Path(folder).rglob("results_*.json")
        values = {sample["doc_id"]: [float(answer[0][0]) for answer in sample["resps"]]
                  for sample in map(json.loads, samples.read_text().splitlines())}
        accuracy = json.loads(results.read_text())["results"][task]["acc,none"]
    seconds = sum(float(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("SECONDS"))
    return values, accuracy, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=MODELS / "SmolLM2-135M-Instruct-F32.gguf")
    parser.add_argument("--edges", action="store_true", help="only them")
    options = parser.parse_args()
    ensure_hugging_face()
    failed = not compare_edges(options)
    for task in TASKS if not options.edges else []:
        theirs, their_accuracy, their_seconds = run(
            VENV / "python", "hf", f"pretrained={options.model.parent},gguf_file={options.model.name},dtype=float32",
            task, options)
        ours, accuracy, seconds = run(
            OURS / "python", "harp", f"path={options.model},enabled=False,max_length=1024,n_threads={options.threads},"
            "llama_args=-ctk f32 -ctv f32 -fa off", task, options)
        pairs = [(a, b) for document in theirs for a, b in zip(theirs[document], ours[document], strict=True)]
        largest = max(abs(a - b) for a, b in pairs)
        print(f"{task}: {len(pairs)} log-likelihoods of {len(theirs)} examples, largest difference {largest:.2g} nats; "
              f"accuracy {their_accuracy:.4f} (Hugging Face), {accuracy:.4f} (harp); "
              f"{len(theirs) / their_seconds:.2f} and {len(ours) / seconds:.2f} examples/s")
        failed = failed or largest > TOLERANCE or accuracy != their_accuracy or set(theirs) != set(ours)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
