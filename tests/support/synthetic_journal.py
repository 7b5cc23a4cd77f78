"""A journal of an evaluation that never ran: two models, three tasks, a sweep, several seeds and an unfinished column."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import evaluation_sources  # noqa: F401
from harp.evaluation.journal import ENTROPY_BINS, Cell, Example, Journal

TASKS = {  # name: (title, metric, binary, the paper's column, level)
    "gsm8k": ("GSM8K", "exact_match", True, "gsm8k_acc", 0.31),
    "commonsense_qa": ("CommonsenseQA", "acc", True, "csqa_acc", 0.55),
    "cnn_dailymail": ("CNN/DailyMail", "rouge1", False, "cnn_dm_rouge1", 0.3),
}
DATA = dict.fromkeys(("gsm8k/test.jsonl", "csqa/dev_rand_split.jsonl", "cnn_dm/cnn_dm_test_50.jsonl"), "fedcba9876543210" * 4)
OFF = {"enabled": False}
HARP = {"threshold": 1.0, "beta": 0.5, "perturbation": "dropout", "strength": 0.2, "reframings": 1, "redraw": 0, "scope": "all"}
METHODS = {  # name: (decoding, options, gain, cost, seeds)
    "vanilla": ("greedy", OFF, 0.0, 1.0, [0]),
    "harp": ("greedy", HARP, 0.005, 1.2, [0]),
    "harp-threshold-0.5": ("greedy", HARP | {"threshold": 0.5}, -0.05, 1.45, [0]),
    "harp-threshold-2": ("greedy", HARP | {"threshold": 2.0}, 0.0, 1.08, [0]),
    "nucleus": ("nucleus", OFF, -0.08, 1.02, [0, 1, 2]),
    "beam": ("beam 3", OFF, 0.02, 2.8, [0]),
}


def config(task, method, seed, n, **changes):
    title, metric, binary, paper_column, _ = TASKS[task]
    decoding, options, *_ = METHODS[method]
    return {"options": options | {"seed": seed} if options is HARP else options, "decoding": decoding, "protocol": "generative",
            "metric": metric, "binary": binary, "higher_is_better": True, "n_examples": n, "model_file": "tiny-Q8_0.gguf",
            "model_sha256": "0123456789abcdef" * 4, "data_sha256": DATA, "versions": {"harp": "1.0.0", "llama.cpp": "b1"}, "task_title": title,
            "paper_column": paper_column, **changes}


def example(id, task, method, rng, level):
    _, metric, binary, _, base = TASKS[task]
    _, options, gain, cost, _ = METHODS[method]
    score = float(level[id] < base + gain + 0.02 * rng.standard_normal()) if binary else float(np.clip(
        base + gain / 5 + 0.3 * (level[id] - 0.5) + 0.03 * rng.standard_normal(), 0, 1))
    steps = int(rng.integers(20, 60))
    entropies = np.bincount(np.minimum(rng.exponential(1.1, steps) * 4, ENTROPY_BINS - 1).astype(int), minlength=ENTROPY_BINS)
    hesitations = int(entropies[int(options.get("threshold", 1e9) * 4):].sum()) if options is not OFF else 0
    return Example(str(id), {metric: score}, f"<b>answer</b> of {method} & co | `{score:.2f}`\nA second line, $5.",
                   f"target {id} <i>", steps, steps * 0.01 * cost * float(rng.normal(1, 0.1)), steps, hesitations,
                   entropies.tolist())


def unsynced(directory):
    """A journal that does not wait for the disk, because nothing can be lost here."""
    journal = Journal(directory)
    journal._database.execute("PRAGMA synchronous = OFF")
    return journal


def write_values(directory, columns, task="gsm8k", n=None, model="m"):
    """Columns {(method, seed): {id: value}} or, with changes to the config, {(method, seed): ({id: value}, changes)}."""
    with unsynced(directory) as journal:
        for (method, seed), values in columns.items():
            values, changes = values if isinstance(values, tuple) else (values, {})
            settings = config(task, "vanilla" if method == "vanilla" else "harp", seed, n or len(values)) | changes
            cell = Cell(model, task, method, seed)
            journal.begin(cell, settings)
            for id, value in values.items():
                journal.add(cell, Example(str(id), {settings["metric"]: value}, f"{method} says {id}", f"target {id}",
                                          10, 1.0, 10, 5, [10] + [0] * (ENTROPY_BINS - 1)))


def write_data(folder, questions):
    """Makes a data folder with these questions for gsm8k. @return what a config says about it"""
    path = folder / "gsm8k/test.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"question": text, "answer": "so #### 3"}) + "\n" for text in questions))
    return {"data_sha256": {"gsm8k/test.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}}


def write(directory, n=200, models=("SmolLM2-135M-Instruct Q8_0", "Gemma-3-270M-it Q8_0"), methods=METHODS, tasks=TASKS,
          unfinished=None):
    """`unfinished`: (method, number of examples that it has)."""
    rng = np.random.default_rng(1)
    with unsynced(directory) as journal:
        for model in models:
            for task in tasks:
                level = rng.random(n)
                for method in methods:
                    for seed in METHODS[method][4]:
                        cell = Cell(model, task, method, seed)
                        journal.begin(cell, config(task, method, seed, n))
                        for id in range(unfinished[1] if unfinished and unfinished[0] == method else n):
                            journal.add(cell, example(id, task, method, rng, level))


if __name__ == "__main__":
    write(sys.argv[1], unfinished=("beam", 120))
