"""Runs the examples of a cell (a method on a task with a model), and passes on each one as soon as it is finished.

Cells of a task that scores given texts share their readings if their methods allow it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from harp import Model
from harp.lm_eval_model import Cost, HarpLM

from . import tasks
from .journal import ENTROPY_BIN_BITS, ENTROPY_BINS, Example
from .methods import Method


@dataclass(frozen=True)
class CellSpec:
    """Everything a worker needs; can be sent to another process."""

    model_path: str
    task: str  # of tasks.TASKS
    protocol: str  # of tasks.PROTOCOLS
    method: Method
    seed: int
    data: str  # folder
    limit: int | None = None
    batch_size: int = 8
    max_length: int = 2048
    n_threads: int | None = None
    kernels: bool = True
    llama_args: tuple[str, ...] = ()
    run_generated_code: bool = False  # whether tasks may run programs that a model writes
    beside: tuple[Method, ...] = ()  # methods scored from the same readings; see can_share_readings()


#: called with a finished example and its owner: 0 for the cell's own method, 1, 2, ... for those beside it
OnExample = Callable[[Example, int], None]


def can_share_readings(method: Method, other: Method) -> bool:
    """Whether one reading with HARP scores given texts for both methods: they differ only in gate, threshold, beta and
    plausibility, or one is vanilla.

    Uniform noise is scaled by where a sequence first hesitates, so with it gate and threshold must be the same. Methods with
    HARP and `redraw` share no readings.
    """
    if method.only_generates or other.only_generates or method.options is None:
        return False
    options = other.options or method.options
    gate = {name: getattr(method.options, name) for name in ("gate", "threshold")}
    mix = {name: getattr(method.options, name) for name in ("beta", "plausibility")}
    is_uniform = method.options.has_masks and method.options.perturbation == "uniform"
    if is_uniform and options != options.replace(**gate):
        return False
    has_draws = method.options.has_masks and method.options.redraw > 0
    reads_same = method.options == options.replace(**gate, **mix) and (other.options is None or
                                                                       method.negative_prompt == other.negative_prompt)
    return reads_same and not has_draws


class CellRunner:
    """A task with its model. The model stays loaded for the next cell with the same model."""

    _model: tuple[tuple, Model] | None = None

    def __init__(self, spec: CellSpec):
        self.spec = spec
        self.task = tasks.load(spec.task, spec.protocol, spec.data, spec.limit, spec.run_generated_code)
        method = spec.method
        options = dataclasses.asdict(method.options) | {"seed": spec.seed} if method.options else {}
        beside = [one.options and one.options.replace(seed=spec.seed) for one in spec.beside]
        self.lm = HarpLM(model=self._load(spec), enabled=method.options is not None, batch_size=spec.batch_size,
                         max_length=spec.max_length, seed_of_sampler=spec.seed, beams=method.beams, pause=method.pause,
                         negative_prompt=method.negative_prompt, beside=beside, **options)
        is_chat = spec.protocol == "generative" and self.lm.model.has_chat_template
        with contextlib.redirect_stderr(io.StringIO()):  # hides lm-eval's progress bar for a second of work
            self.task.build_all_requests(rank=0, world_size=1, apply_chat_template=is_chat,
                                         chat_template=self.lm.apply_chat_template if is_chat else None,
                                         tokenizer_name=self.lm.tokenizer_name if is_chat else "")
        self._instances: dict[int, list] = {}
        for instance in self.task.instances:
            self._instances.setdefault(instance.doc_id, []).append(instance)

    @classmethod
    def _load(cls, spec: CellSpec) -> Model:
        key = spec.model_path, spec.n_threads, spec.kernels, spec.llama_args
        if cls._model is None or cls._model[0] != key:
            cls._model = None  # frees the old one before the new one is loaded
            cls._model = key, Model(spec.model_path, n_threads=spec.n_threads, kernels=spec.kernels,
                                    llama_args=spec.llama_args)
        return cls._model[1]

    def run(self, ids: Iterable[str], on_example: OnExample) -> None:
        """Runs many examples at once; on_example gets each one when it is finished."""
        instances = [instance for id in ids for instance in self._instances[int(id)]]
        if self.spec.method.sampling:
            for instance in instances:
                context, settings = instance.arguments
                instance.arguments = context, {**settings, "do_sample": True, **self.spec.method.sampling}
        growing: dict[tuple[int, int], list[tuple[object, object, Cost]]] = {}

        def on_response(index: int, response: object, cost: Cost, which: int) -> None:
            number = instances[index].doc_id
            done = growing.setdefault((number, which), [])
            done.append((instances[index], response, cost))
            if len(done) == len(self._instances[number]):
                del growing[number, which]
                for instance, response, _ in done:
                    instance.resps, instance.filtered_resps = [response], {}
                on_example(self._example(number, [cost for _, _, cost in done]), which)

        self.lm.on_response = on_response
        getattr(self.lm, self.task.OUTPUT_TYPE.replace("multiple_choice", "loglikelihood"))(instances, disable_tqdm=True)

    def _example(self, number: int, costs: list[Cost]) -> Example:
        instances = self._instances[number]
        for ensemble in self.task._filters:
            ensemble.apply(instances)
        document = instances[0].doc
        chosen = tasks.TASKS[self.spec.task].filter[self.spec.protocol]
        values = self.task.process_results(document, [instance.filtered_resps[chosen] for instance in instances])
        entropies = np.concatenate([cost.entropies for cost in costs])
        bins = np.minimum((entropies / ENTROPY_BIN_BITS).astype(int), ENTROPY_BINS - 1)
        return Example(id=str(number), metrics={key: float(value) for key, value in values.items() if np.isscalar(value)},
                       answer=self._answer(instances), target=self._target(document),
                       n_tokens=sum(cost.n_tokens for cost in costs), seconds=sum(cost.seconds for cost in costs),
                       steps=sum(cost.steps for cost in costs), hesitations=sum(cost.hesitations for cost in costs),
                       entropies=np.bincount(bins, minlength=ENTROPY_BINS).tolist())

    def _answer(self, instances: list) -> str:
        """The generated text; for given texts, the most likely one."""
        if self.task.OUTPUT_TYPE == "generate_until":
            return instances[0].resps[0]
        if self.task.OUTPUT_TYPE == "loglikelihood":
            log_likelihood, is_greedy = instances[0].resps[0]
            return f"{instances[0].args[1]!r}: {log_likelihood:.4f}{', greedy' if is_greedy else ''}"
        best = max(instances, key=lambda instance: instance.resps[0][0])
        return best.args[1].strip()

    def _target(self, document: dict) -> str:
        target = self.task.doc_to_target(document)
        if isinstance(target, int) and self.task.OUTPUT_TYPE == "multiple_choice":
            return str(self.task.doc_to_choice(document)[target])
        return str(target)
