"""Distributes the examples of a cell over replicas on a Ray cluster. Losing a replica loses no finished example.

Each replica loads the model once and works on chunks of examples. The calling process journals finished chunks.
"""

from __future__ import annotations

import os
import socket
import sys

import ray
from ray.exceptions import RayError, RayTaskError

from harp import HarpError

from .cells import CellRunner, CellSpec, OnExample
from .journal import Example

MAX_LOSSES = 10  # replicas that may be lost one after the other, without a finished chunk in between
START_SECONDS = 120  # time for a replica to start where no other works


@ray.remote(num_cpus=1)
class _Replica:
    def __init__(self):
        self._runner: CellRunner | None = None

    def start(self) -> list:
        return []

    def run(self, spec: CellSpec, ids: list[str]) -> list[tuple[Example, int]]:
        if self._runner is None or self._runner.spec != spec:
            self._runner = CellRunner(spec)
        examples: list[tuple[Example, int]] = []
        self._runner.run(ids, lambda example, which: examples.append((example, which)))
        return examples


def _check_address(address: str) -> None:
    """Raises HarpError if nothing answers at HOST:PORT, which Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in address:  # empty, or one of Ray's other forms
        return
    try:
        socket.create_connection((host, int(port)), timeout=START_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise HarpError(f"--engine ray: nothing answers at {address} (RAY_ADDRESS): {error}", "io") from None


class RayEngine:
    """An engine for runner.run(). Starts Ray on this machine unless there is a cluster (RAY_ADDRESS).

    Raises HarpError if Ray cannot be started or reached, or if no replica starts or all are lost.
    """

    def __init__(self, n_replicas: int):
        if not ray.is_initialized():
            _check_address(os.environ.get("RAY_ADDRESS", ""))
            try:
                ray.init(log_to_driver=False, include_dashboard=False)
            except Exception as error:  # of many kinds
                raise HarpError(f"--engine ray: Ray did not start: {error}", "io") from None
        n_processors = int(ray.cluster_resources().get("CPU", 0))
        if n_processors < n_replicas:
            print(f"--replicas: {n_replicas}, and the Ray cluster has {n_processors} processors: as many replicas can work, one on each",
                  file=sys.stderr)
        self._replicas = [_Replica.remote() for _ in range(n_replicas)]
        self._has_started = [False] * n_replicas

    def __call__(self, spec: CellSpec, ids: list[str], on_example: OnExample) -> None:
        size = 2 * spec.batch_size
        waiting = [ids[i:i + size] for i in range(0, len(ids), size)][::-1]
        free = [replica for replica, has_started in enumerate(self._has_started) if has_started]
        # A replica for which the cluster has no room never starts, so it is given examples only once it has.
        starting = {replica.start.remote(): which for which, replica in enumerate(self._replicas) if which not in free}
        running: dict[ray.ObjectRef, tuple[int, list[str]]] = {}
        n_lost = 0
        while waiting or running:
            while waiting and free:
                replica, chunk = free.pop(), waiting.pop()
                running[self._replicas[replica].run.remote(spec, chunk)] = replica, chunk
            done, _ = ray.wait([*running, *starting], num_returns=1, timeout=None if running else START_SECONDS)
            if not done:
                raise HarpError(f"--engine ray: no replica has started within {START_SECONDS} s; each needs a processor, and of the cluster's "
                                f"{ray.cluster_resources().get('CPU', 0):g} there are {ray.available_resources().get('CPU', 0):g} free "
                                "(see `ray status`)", "io")
            [ready] = done
            replica, chunk = running.pop(ready) if ready in running else (starting.pop(ready), [])
            try:
                examples = ray.get(ready)
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                n_lost += 1
                if n_lost > MAX_LOSSES:
                    raise HarpError(f"--engine ray: {n_lost} replicas were lost one after the other; the last one: {error}", "aborted") from None
                waiting += [chunk] if chunk else []
                self._replicas[replica], self._has_started[replica] = _Replica.remote(), False
                starting[self._replicas[replica].start.remote()] = replica
                continue
            self._has_started[replica] = True
            free.append(replica)
            n_lost = 0 if chunk else n_lost
            for example, which in examples:
                on_example(example, which)
