"""The data sets from local JSON Lines files, as the documents that lm-eval's own tasks get from the hub.

Each function is a task's `custom_dataset`: lm-eval calls it with the task's metadata and uses the {split: Dataset} that it returns.
    data   the folder with the files; by default the one in HARP_EVAL_DATA
    limit  keep only the first questions
    run_generated_code  for tasks that run programs written by a model: whether they may
lm-eval loads this file by its path, so it imports nothing next to it.
"""

import gzip
import json
import os
import re
import zlib
from pathlib import Path

from datasets import Dataset

VARIABLE = "HARP_EVAL_DATA"
HUB = {  # task: (lm-eval's own task, its data set on the hub)
    "commonsense_qa": ("commonsense_qa", "tau/commonsense_qa"),
    "gsm8k": ("gsm8k", "openai/gsm8k"),
    "lambada_openai": ("lambada_openai", "EleutherAI/lambada_openai"),
    "mmlu_pro": ("mmlu_pro", "TIGER-Lab/MMLU-Pro"),
    "cnn_dailymail": ("cnn_dailymail_abisee", "abisee/cnn_dailymail"),
    "humaneval": ("humaneval", "openai/openai_humaneval"),
}
KINDS = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def commonsense_qa(data=None, limit=None, **_):
    return {"validation": _read("commonsense_qa", data, "csqa/dev_rand_split.jsonl", _commonsense_qa, limit)}


def gsm8k(data=None, limit=None, **_):
    return {**gsm8k_questions(data, limit), "train": _read("gsm8k", data, "gsm8k/train.jsonl", _gsm8k)}


def gsm8k_questions(data=None, limit=None, **_):
    return {"test": _read("gsm8k", data, "gsm8k/test.jsonl", _gsm8k, limit)}


def lambada_openai(data=None, limit=None, **_):
    return {"test": _read("lambada_openai", data, "lambada/lambada_test.jsonl", _lambada, limit)}


def mmlu_pro(data=None, limit=None, **_):
    return {**mmlu_pro_questions(data, limit), "validation": _read("mmlu_pro", data, "mmlu_pro/validation.jsonl", _mmlu_pro)}


def mmlu_pro_questions(data=None, limit=None, **_):
    return {"test": _read("mmlu_pro", data, "mmlu_pro/test_first300.jsonl", _mmlu_pro, limit)}


def cnn_dailymail(data=None, limit=None, **_):
    return {"test": _read("cnn_dailymail", data, "cnn_dm/cnn_dm_test_50.jsonl", _cnn_dailymail, limit)}


def humaneval(data=None, limit=None, run_generated_code=False, **_):
    if run_generated_code is not True:
        raise ValueError("task humaneval runs programs that the model writes, which may do anything that they can: allow it with "
                         "harp-eval run --run-generated-code (in lm_eval: --metadata '{\"run_generated_code\": true}'); docs/TASKS.md says how "
                         "they are kept in")
    return {"test": _read("humaneval", data, "human_eval/HumanEval.jsonl.gz", _humaneval, limit)}


def _read(task, data, file, document, limit=None):
    """A Dataset in memory with document(record) for each line. Every line is checked, also those that the limit leaves out."""
    path = _path(task, data, file)
    documents = []
    # Split only at "\n": a JSON text may contain characters that splitlines() takes for line ends.
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"task {task}: {path}: {error}") from None
    lines = content.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            documents.append(document(json.loads(line.decode()) if line.strip() else _wrong("the line is empty")))
        except ValueError as error:  # JSON and UTF-8 errors are ValueErrors
            raise ValueError(f"task {task}: {path}, line {number}: {error}") from None
    return Dataset.from_list(documents[:limit])


def _path(task, data, file):
    folder = data or os.environ.get(VARIABLE)
    path = Path(folder or ".") / file
    if folder and path.is_file():
        return path
    missing = f"there is no file {path}" if folder else f"{file} is looked for in the folder of {VARIABLE}, which is not set"
    own, hub = HUB[task]
    raise FileNotFoundError(f"task {task}: {missing}. {VARIABLE} names the folder with the data. "
                            f"With internet access lm-eval's own task {own} takes the data set {hub} from the hub instead."
                            + (" scripts/fetch humaneval brings it to .deps/data." if task == "humaneval" else ""))


def _commonsense_qa(record):
    question = _field(record, "question", dict)
    choices = _field(question, "choices", list)
    labels = [_field(choice, "label", str) for choice in choices]
    if labels != list("ABCDE"):
        _wrong(f"the choices must be labelled A to E, not {labels}")
    return {"id": _field(record, "id", str),
            "question": _field(question, "stem", str),
            "question_concept": question.get("question_concept", ""),
            "choices": {"label": labels, "text": [_field(choice, "text", str) for choice in choices]},
            "answerKey": _one_of(_field(record, "answerKey", str), labels, "answerKey")}


def _gsm8k(record):
    answer = _field(record, "answer", str)
    if not re.search(r"#### -?[0-9][0-9.,]*\Z", answer):
        _wrong("the answer must end in '#### ' and a number")
    return {"question": _field(record, "question", str), "answer": answer}


def _lambada(record):
    text = _field(record, "text", str)
    if not text.split(" ")[-1].strip() or len(text.split()) < 2:
        _wrong("the text must end in a word, with others before it")
    return {"text": text}


def _mmlu_pro(record):
    options = _field(record, "options", list)
    if not 2 <= len(options) <= 10 or not all(isinstance(option, str) and option for option in options):
        _wrong("options must be 2 to 10 texts")
    answer = _one_of(_field(record, "answer", str), "ABCDEFGHIJ"[:len(options)], "answer")
    index = _field(record, "answer_index", int)
    if index != ord(answer) - ord("A"):
        _wrong(f"answer {answer} and answer_index {index} disagree")
    return {"question_id": _field(record, "question_id", int),
            "question": _field(record, "question", str),
            "options": options,
            "answer": answer,
            "answer_index": index,
            "cot_content": _field(record, "cot_content", str, empty=True),
            "category": _field(record, "category", str),
            "src": record.get("src", "")}


def _cnn_dailymail(record):
    return {name: _field(record, name, str) for name in ("article", "highlights", "id")}


def _humaneval(record):
    names = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    document = {name: _field(record, name, str) for name in names}
    if not re.search(rf"^def {re.escape(document['entry_point'])}\(", document["prompt"], re.MULTILINE):
        _wrong(f"the prompt must define the entry_point {document['entry_point']!r}")
    return document


def _field(record, name, kind, empty=False):
    if not isinstance(record, dict):
        _wrong(f"an object with a field {name!r} is expected, not {json.dumps(record)[:60]}")
    if name not in record:
        _wrong(f"there is no field {name!r}")
    value = record[name]
    if type(value) is not kind:
        _wrong(f"{name} must be {KINDS[kind]}, not {json.dumps(value)[:60]}")
    if kind is str:
        value.encode()  # half of a surrogate pair is valid JSON but not text: UnicodeEncodeError, a ValueError
        if not empty and not value.strip():
            _wrong(f"{name} is empty")
    return value


def _one_of(value, allowed, name):
    return value if value in tuple(allowed) else _wrong(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def _wrong(what):
    raise ValueError(what)
