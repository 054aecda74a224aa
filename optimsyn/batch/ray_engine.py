"""Runs of a batch as tasks of a Ray cluster: `optimsyn batch … --engine ray` (extra `ray`).

Each task starts `optimsyn run` on its node and waits for it. The nodes share a file system: the root of the runs, the
recipes' files and the working directory have the same paths everywhere. Each node has optimsyn installed and the
services' keys in its environment, because keys are not sent over the network.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimsyn.base.environment import RAY_ADDRESS, RAY_USAGE_STATS_ENABLED, set_default, variable
from optimsyn.base.errors import OptimsynError
from optimsyn.base.secrets.redaction import redact
from optimsyn.batch.child_process import ChildProcess, run_command, watch
from optimsyn.batch.engines import Started, arguments
from optimsyn.batch.plan import Job

_STOP_S = 60.0
_INTERRUPTED = 130


class RayEngine:
    """Runs on the nodes of a Ray cluster.

    Args:
        most: How many run at once, on all nodes together.
        address: The cluster (`auto`, `ray://host:10001`, `host:6379`); None: `RAY_ADDRESS`, else a local cluster that
            ends with the batch.

    Raises:
        OptimsynError: Ray is not installed, or the cluster cannot be reached.
    """

    name = "ray"
    here = False

    def __init__(self, most: int, address: str | None = None) -> None:
        # Ray sends usage statistics unless that is switched off.
        set_default(RAY_USAGE_STATS_ENABLED, "0")
        try:
            import ray
        except ImportError as error:
            raise OptimsynError("--engine ray needs Ray: run `pip install 'optimsyn[ray]'`") from error
        self._ray = ray
        chosen = address or variable(RAY_ADDRESS) or "local"
        options: dict[str, Any] = {"include_dashboard": False} if chosen == "local" else {}
        try:
            ray.init(address=chosen, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise OptimsynError(
                f"--ray-address {chosen}: the Ray cluster cannot be used ({error}); start it, or leave out "
                "--ray-address to start a local one"
            ) from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._cpus = cpus_of_a_run([int(node.get("CPU", 0)) for node in nodes], most)
        self._gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
        self._refs: list[Any] = []

    def start(self, job: Job, log: Path, variables: Mapping[str, str]) -> Started:
        """Submits a run; a run that loads a model gets a GPU if the cluster has one."""
        run = job.opened
        task = self._ray.remote(_work).options(
            num_cpus=self._cpus,
            num_gpus=1 if job.gpu and self._gpus else 0,
            max_retries=0,
            scheduling_strategy="SPREAD",
            name=f"optimsyn run {run.name}",
        )
        ref = task.remote(arguments(job), str(log), dict(variables), run.secret_names, str(Path.cwd()))
        self._refs.append(ref)
        return _Task(self._ray, ref, log)

    def wait(self, seconds: float) -> None:
        """Waits for a run to end."""
        if self._refs:
            _, self._refs = self._ray.wait(self._refs, timeout=seconds)
        else:
            time.sleep(seconds)

    def close(self) -> None:
        """Leaves the cluster; a local one ends."""
        self._ray.shutdown()


class _Task:
    """One submitted run."""

    def __init__(self, ray: Any, ref: Any, log: Path) -> None:
        self._ray = ray
        self._ref = ref
        self._log = log
        self._code: int | None = None

    def ended(self) -> int | None:
        """The exit code of the run; 1 when Ray lost it, with Ray's reason in the log."""
        if self._code is None and self._ray.wait([self._ref], timeout=0)[0]:
            try:
                self._code = int(self._ray.get(self._ref))
            except self._ray.exceptions.TaskCancelledError:
                self._code = _INTERRUPTED
            except self._ray.exceptions.RayError as error:
                self._code = 1
                with self._log.open("a", encoding="utf-8") as log:
                    log.write(redact(f"{type(error).__name__}: {error}\n"))
        return self._code

    def stop(self) -> None:
        """Interrupts the task, which ends its run cleanly."""
        self._ray.cancel(self._ref, force=False)

    def kill(self) -> None:
        """Ends the task's worker; the run notices and ends."""
        self._ray.cancel(self._ref, force=True)


def cpus_of_a_run(cpus: Sequence[int], most: int) -> int:
    """CPUs for each run, so that `most` runs fill the nodes; Ray also sets the number of threads by it."""
    cpus = [count for count in cpus if count > 0]
    if not cpus:
        return 1
    return max(1, min(cpus) // math.ceil(most / len(cpus)))


def _work(arguments: list[str], log: str, variables: dict[str, str], secret_names: Sequence[str], folder: str) -> int:
    """The task on a node: starts `optimsyn` and waits for it."""
    child = ChildProcess(
        run_command(arguments), Path(log), variables=variables, secret_names=secret_names, folder=folder
    )
    try:
        watch([child], math.inf)
        return child.ended() or 0
    except BaseException:
        # Ray interrupts a cancelled task.
        child.stop()
        try:
            watch([child], _STOP_S)
        finally:
            child.kill()
        raise
