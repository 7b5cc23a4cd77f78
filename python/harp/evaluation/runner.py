"""Runs an evaluation: models x tasks x methods x seeds, each example once, into a journal from which it can be continued."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

import harp
from harp.identity import llama_environment, model_hash, named_files, sha256_of
from harp.lm_eval_model import MAX_GEN_TOKS
from harp.session import most_sequences

from . import tasks
from .cells import CellRunner, CellSpec, OnExample, can_share_readings
from .journal import Cell, Example, Journal
from .methods import Method
from .tasks import programs

#: evaluates ids of a cell and calls back with each finished example
Engine = Callable[[CellSpec, list[str], OnExample], None]


@dataclass(frozen=True)
class Plan:
    models: tuple[str, ...]  # paths
    tasks: tuple[str, ...]
    protocols: tuple[str, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    settings: dict  # of CellSpec, the same for all

    def cells(self) -> Iterator[CellSpec]:
        """The cells of the plan; only one for seeds that change nothing."""
        for model in self.models:
            for task in self.tasks:
                for protocol in self.protocols:
                    for method in self.methods:
                        for seed in self.seeds if method.is_random else self.seeds[:1]:
                            yield CellSpec(model, task, protocol, method, seed, **self.settings)


def in_process(spec: CellSpec, ids: list[str], on_example: OnExample) -> None:
    """The engine that runs cells in this process and needs nothing else."""
    CellRunner(spec).run(ids, on_example)


def run(plan: Plan, directory: Path, engine: Engine = in_process, show_progress: bool = True) -> int:
    """Runs what the journal in `directory` does not have yet. @return number of examples run now

    Raises JournalError (another configuration, another writer, disk full), HarpError, ValueError, FileNotFoundError.
    """
    specs = list(plan.cells())
    check_names(specs)
    n_run = 0
    with Journal(directory) as journal:
        # Declares all cells before the first runs, so that what cannot run, or is there with another config, is reported at once.
        todo = []
        for spec in specs:
            cell = Cell(label_of(spec.model_path), f"{spec.task} ({spec.protocol})", spec.method.name, spec.seed)
            n_examples, scores, max_tokens = look_at(spec.task, spec.protocol, spec.data, spec.limit, spec.run_generated_code)
            check_sizes(spec, max_tokens)
            if scores and spec.method.only_generates:
                raise ValueError(f"method {spec.method.name!r} chooses tokens, and {spec.task} in the protocol {spec.protocol} "
                                 "scores given ones; use the protocol generative")
            ids = [str(number) for number in range(n_examples)]
            journal.begin_anew(cell, config_of(spec, len(ids)))
            finished = journal.finished(cell)
            todo.append(Work(spec, cell, [id for id in ids if id not in finished], scores))
        readings = list(share_readings([work for work in todo if work.ids]))
        for number, works in enumerate(readings, 1):
            spec, cell = works[0].spec, works[0].cell
            spec = dataclasses.replace(spec, beside=tuple(work.spec.method for work in works[1:]))
            others = f" and {len(spec.beside)} beside" if spec.beside else ""
            title = f"[{number}/{len(readings)}] {cell.model} {cell.task} {cell.method}{others} seed {cell.seed}"
            missing = [set(work.ids) for work in works]
            ids = sorted(set().union(*missing), key=int)
            with tqdm(total=sum(map(len, missing)), desc=title, unit="example", disable=not show_progress) as progress:
                def on_example(example: Example, which: int, works=works, missing=missing, progress=progress) -> None:
                    if example.id in missing[which]:
                        journal.add(works[which].cell, example)
                        progress.update()

                engine(spec, ids, on_example)
            n_run += sum(map(len, missing))
    return n_run


@dataclass(frozen=True)
class Work:
    """The missing examples of a cell."""

    spec: CellSpec
    cell: Cell
    ids: list[str]
    scores: bool  # whether the task scores given texts


def share_readings(works: list[Work]) -> Iterator[list[Work]]:
    """Groups of cells whose examples come from one reading; the one that reads comes first."""
    left = list(works)
    while left:
        # vanilla joins the first cell with HARP that it can share a reading with
        leader = next((work for work in left if can_join(work, left[0])), left[0])
        group = [leader] + [work for work in left if work is not leader and can_join(leader, work)]
        left = [work for work in left if work not in group]
        yield group


def can_join(leader: Work, other: Work) -> bool:
    alike = dataclasses.replace(other.spec, method=leader.spec.method) == leader.spec
    return leader.scores and alike and can_share_readings(leader.spec.method, other.spec.method)


def check_names(specs: Iterable[CellSpec]) -> None:
    """Refuses two files of the same name, which would be the same column, and whatever is given twice, in other words too."""
    labels: dict[str, str] = {}
    seen = set()
    methods: list[Method] = []
    for spec in specs:
        for other in methods:
            if other.name != spec.method.name and dataclasses.replace(other, name=spec.method.name) == spec.method:
                raise ValueError(f"methods {other.name!r} and {spec.method.name!r} are the same; leave one out")
        methods.append(spec.method)
        column = spec.model_path, spec.task, spec.protocol, spec.method.name, spec.seed
        if column in seen:
            raise ValueError(f"{label_of(spec.model_path)}, {spec.task}, {spec.method.name}: a model, task or method is given twice")
        seen.add(column)
        known = labels.setdefault(label_of(spec.model_path), spec.model_path)
        if known != spec.model_path:
            raise ValueError(f"models {known} and {spec.model_path} have the same name; rename one")


def check_sizes(spec: CellSpec, max_tokens: int) -> None:
    """Refuses what has no room in a sequence or a context."""
    least = max(2, max_tokens + spec.method.pause + 1)
    if spec.max_length < least:
        raise ValueError(f"--max-length: {spec.max_length} leaves no room for a prompt, as answers to {spec.task} in the protocol "
                         f"{spec.protocol} have up to {max_tokens} tokens{' behind pauses' if spec.method.pause else ''}; allowed: {least}..")
    most = most_sequences(spec.method.options)
    what, n_sequences = ("beams", spec.method.beams) if spec.method.beams > 1 else ("--batch-size", spec.batch_size)
    if n_sequences > most:
        raise ValueError(f"method {spec.method.name!r}: {what}: {n_sequences}; allowed: 1..{most}")


def label_of(model_path: str) -> str:
    return Path(model_path).name.removesuffix(".gguf")


@functools.cache
def look_at(task: str, protocol: str, data: str, limit: int | None, run_generated_code: bool) -> tuple[int, bool, int]:
    """How many examples a task has, whether it scores given texts, and most tokens of an answer that it lets a model write."""
    loaded = tasks.load(task, protocol, data, limit, run_generated_code)
    scores = loaded.OUTPUT_TYPE != "generate_until"
    return len(loaded.eval_docs), scores, 0 if scores else loaded.config.generation_kwargs.get("max_gen_toks", MAX_GEN_TOKS)


def config_of(spec: CellSpec, n_examples: int) -> dict:
    """Everything that the results of a cell depend on."""
    task = tasks.TASKS[spec.task]
    options = dataclasses.asdict(spec.method.options) | {"seed": spec.seed} if spec.method.options else {"enabled": False}
    if spec.method.negative_prompt:
        options["negative_prompt"] = spec.method.negative_prompt
    data = Path(spec.data)
    environment = llama_environment()
    others = {"files_sha256": named_files([*spec.llama_args, *environment.values()]), "environment": environment,
              "programs": programs.LIMITS if task.runs_code else {}}
    return {
        "options": {key: str(value) if value == float("inf") else value for key, value in options.items()},
        "decoding": spec.method.decoding, "sampling": spec.method.sampling, "protocol": spec.protocol,
        "metric": task.metric, "binary": task.binary, "higher_is_better": True, "n_examples": n_examples,
        "task_title": task.title, "paper_column": task.paper_column,
        "model_file": Path(spec.model_path).name, "model_sha256": model_hash(spec.model_path),
        "max_length": spec.max_length, "kernels": spec.kernels, "llama_args": list(spec.llama_args),
        "data_sha256": {name: sha256_of(data / name) for name in task.files[spec.protocol]},
        "versions": {"harp": harp.__version__, "llama.cpp": harp.build_info()["llama.cpp"], "lm-eval": version("lm-eval")},
        **{key: value for key, value in others.items() if value},
    }
