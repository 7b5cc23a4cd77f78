"""Examples of a task that scores given texts, in the form that harp calibrate reads."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from . import tasks


def examples_of(name: str, data: str, which: slice) -> Iterator[dict]:
    """For each example its context, and its continuation or its choices with the index of the right one.

    ValueError for a task without such examples, that is, one that generates.
    """
    if name not in tasks.TASKS:
        raise ValueError(f"--task: no task {name!r}; there are {', '.join(tasks.TASKS)}")
    task = tasks.load(name, "lm-eval", data, which.stop)
    if task.OUTPUT_TYPE not in ("loglikelihood", "multiple_choice"):
        raise ValueError(f"--task: {name} generates answers; there are "
                         f"{', '.join(other for other in tasks.TASKS if _scores(other, data))}")
    with contextlib.redirect_stderr(io.StringIO()):  # hides lm-eval's progress bar
        task.build_all_requests(rank=0, world_size=1)
    instances: dict[int, list] = {}
    for instance in task.instances:
        instances.setdefault(instance.doc_id, []).append(instance)
    for number in sorted(instances)[which]:
        requests = instances[number]
        contexts, continuations = zip(*(instance.args for instance in requests), strict=True)
        example = {"id": str(number), "context": contexts[0]}
        if task.OUTPUT_TYPE == "loglikelihood":
            yield example | {"continuation": continuations[0]}
        else:
            target = task.doc_to_target(requests[0].doc)
            answer = target if isinstance(target, int) else task.doc_to_choice(requests[0].doc).index(target)
            yield example | {"choices": list(continuations), "answer": answer}


def _scores(name: str, data: str) -> bool:
    with contextlib.suppress(FileNotFoundError, ValueError):  # no data, malformed data, a task that runs programs
        return tasks.load(name, "lm-eval", data, 1).OUTPUT_TYPE != "generate_until"
    return False
