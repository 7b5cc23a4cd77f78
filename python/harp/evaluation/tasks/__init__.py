"""The paper's five tasks and HumanEval as lm-eval tasks that read local files: a table of them, and `load`. See docs/TASKS.md."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import programs

PROTOCOLS = ("lm-eval", "generative")


@dataclass(frozen=True)
class Task:
    """A task. What depends on the protocol is a mapping by protocol."""

    name: str
    title: str
    metric: str  # key of the value that lm-eval reports for each example, the same in both protocols
    binary: bool  # whether that value is 0 or 1
    paper_column: str | None  # column of the paper's result table, in percent; None if it is not there
    lm_eval_name: Mapping[str, str]
    filter: Mapping[str, str]  # lm-eval reports a value for each of a task's filters; this one is used
    files: Mapping[str, tuple[str, ...]]  # relative to the data folder; the first has the questions
    runs_code: bool = False  # whether it runs programs that the model writes


def _task(name, title, metric, paper_column, questions, shots=(), lm_eval_filter="none", runs_code=False):
    return Task(name, title, metric, not metric.startswith("rouge"), paper_column,
                lm_eval_name={"lm-eval": f"harp_{name}", "generative": f"harp_{name}_generative"},
                filter={"lm-eval": lm_eval_filter, "generative": "none"},
                files={"lm-eval": (questions, *shots), "generative": (questions,)}, runs_code=runs_code)


TASKS = {task.name: task for task in (
    _task("commonsense_qa", "CommonsenseQA", "acc", "csqa_acc", "csqa/dev_rand_split.jsonl"),
    _task("gsm8k", "GSM8K", "exact_match", "gsm8k_acc", "gsm8k/test.jsonl", ("gsm8k/train.jsonl",), "flexible-extract"),
    _task("lambada_openai", "LAMBADA (OpenAI)", "acc", "lambada_acc", "lambada/lambada_test.jsonl"),
    _task("mmlu_pro", "MMLU-Pro", "exact_match", "mmlu_pro_acc", "mmlu_pro/test_first300.jsonl", ("mmlu_pro/validation.jsonl",),
          "custom-extract"),
    _task("cnn_dailymail", "CNN/DailyMail", "rouge1", "cnn_dm_rouge1", "cnn_dm/cnn_dm_test_50.jsonl"),
    _task("humaneval", "HumanEval", "pass@1", None, "human_eval/HumanEval.jsonl.gz", runs_code=True),
)}


def load(name, protocol, data=None, limit=None, run_generated_code=False):
    """lm-eval's task object for a name of TASKS and a protocol of PROTOCOLS.

    data: the data folder; by default the one in HARP_EVAL_DATA. limit: keep only the first questions, but all worked examples.
    run_generated_code: allows a task that runs programs written by the model. Raises FileNotFoundError for a missing file, ValueError for
    a malformed line or a wrong argument, programs.CannotRun if such a task cannot confine its programs.
    """
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; there are {', '.join(TASKS)}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    # Everything is local, so no library that lm-eval imports needs the hub. They read these variables when first imported.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    from lm_eval.tasks import TaskManager

    chosen = {"data": None if data is None else str(data), "limit": limit, "run_generated_code": run_generated_code or None}
    manager = TaskManager(include_path=str(Path(__file__).parent), include_defaults=False,
                          metadata={key: value for key, value in chosen.items() if value is not None})
    lm_eval_name = TASKS[name].lm_eval_name[protocol]
    if TASKS[name].runs_code and run_generated_code:
        programs.check()
    return manager.load(lm_eval_name)["tasks"][lm_eval_name]
