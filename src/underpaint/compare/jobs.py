"""Tasks as SLURM jobs, by submitit (`pip install "underpaint[cluster]"`).

All tasks are an array of jobs, each with an allocation of its own, so the folder of the study and
the cache must lie on a disk that all machines share. Where there is no SLURM, submitit runs them
as processes of this machine. What a job printed, and what submitit keeps of it, is below `folder`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from underpaint.compare.pool import Result, Task, named, refused
from underpaint.errors import Interrupted, RunFailed, UserError

MINUTES = 24 * 60  # of a job, if nothing is said; submitit's are few
POLL = 1.0  # seconds


def settings(texts: Sequence[str]) -> dict[str, Any]:
    """What `KEY=VALUE` says of a job, in submitit's names. Raises UserError."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise UserError(f"--job {text}: give KEY=VALUE, such as slurm_partition=gpu")
        found[key] = yaml.safe_load(value)
    return found


def gather(
    tasks: Sequence[Task],
    work: Callable[[Task], Result],
    workers: int,
    name: Callable[[Task], str],
    done: Callable[[Task, Result], None],
    *,
    folder: Path,
    asked: Mapping[str, Any],
) -> None:
    """As `pool.gather`, which see, in jobs of which `workers` run at once.

    `asked`: what each job asks for, as submitit's `update_parameters` takes it. Raises UserError
    without submitit and for what it does not know.
    """
    try:
        import submitit
        from submitit.helpers import as_completed
    except ModuleNotFoundError:
        raise UserError(
            '--launcher submitit needs the package submitit: pip install "underpaint[cluster]"'
        ) from None
    if not tasks:
        return
    executor = submitit.AutoExecutor(folder=folder)
    slurm = executor.cluster == "slurm"
    given = {"timeout_min": MINUTES, "name": "underpaint"} | dict(asked)
    try:
        executor.update_parameters(slurm_array_parallelism=workers, **given)
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f"--job: {error}") from None
    running: list[Any] = []
    size = len(tasks) if slurm else workers
    try:
        for first in range(0, len(tasks), size):
            some = tasks[first : first + size]
            running = executor.map_array(functools.partial(refused, work), some)
            task_of = {job.job_id: task for job, task in zip(running, some, strict=True)}
            for job in as_completed(running, poll_frequency=POLL):
                task = task_of[job.job_id]
                with named(name(task)):
                    result = _result(job, submitit.core.utils.UncompletedJobError)
                done(task, result)
    except KeyboardInterrupt:
        raise Interrupted("the study was stopped; the same command goes on with it") from None
    finally:
        for job in running:
            if not job.done():
                job.cancel()


def _result(job: Any, failure: type[Exception]) -> Any:
    """What a job gave. Raises what its task raised, or RunFailed if the job died."""
    try:
        result = job.result()
    except failure:
        raise RunFailed(f"job {job.job_id} died; {job.paths.stderr} has what it said") from None
    if isinstance(result, Exception):
        raise result
    return result
