"""Distributes the examples of a cell over replicas on a Ray cluster. Losing a replica loses no finished example.

Each replica loads the model once and works on chunks of examples. The calling process journals finished chunks.
"""

from __future__ import annotations

import ray
from ray.exceptions import RayActorError

from .cells import CellRunner, CellSpec, OnExample
from .journal import Example

MAX_LOSSES = 100  # replicas that one cell may lose before it is given up


@ray.remote(num_cpus=1)
class _Replica:
    def __init__(self):
        self._runner: CellRunner | None = None

    def run(self, spec: CellSpec, ids: list[str]) -> list[tuple[Example, int]]:
        if self._runner is None or self._runner.spec != spec:
            self._runner = CellRunner(spec)
        examples: list[tuple[Example, int]] = []
        self._runner.run(ids, lambda example, which: examples.append((example, which)))
        return examples


class RayEngine:
    """An engine for runner.run(). Starts Ray on this machine unless RAY_ADDRESS names a cluster."""

    def __init__(self, n_replicas: int):
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        self._replicas = [_Replica.remote() for _ in range(n_replicas)]

    def __call__(self, spec: CellSpec, ids: list[str], on_example: OnExample) -> None:
        size = 2 * spec.batch_size
        waiting = [ids[i:i + size] for i in range(0, len(ids), size)][::-1]
        running: dict[ray.ObjectRef, tuple[int, list[str]]] = {}
        free = list(range(len(self._replicas)))
        n_lost = 0
        while waiting or running:
            while waiting and free:
                replica, chunk = free.pop(), waiting.pop()
                running[self._replicas[replica].run.remote(spec, chunk)] = replica, chunk
            [ready], _ = ray.wait(list(running), num_returns=1)
            replica, chunk = running.pop(ready)
            free.append(replica)
            try:
                for example, which in ray.get(ready):
                    on_example(example, which)
            except RayActorError:
                n_lost += 1
                if n_lost > MAX_LOSSES:
                    raise
                self._replicas[replica] = _Replica.remote()
                waiting.append(chunk)
