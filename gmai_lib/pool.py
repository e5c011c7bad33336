"""A pool of processes: results in order, few jobs at a time, no orphans.

    for result in ordered(work, jobs, processes=4): ...
    future = in_background(work, argument)
    for record in counted(work, jobs, ledger, processes=4): ...
    for result in on_cluster(work, jobs): ...   # pip install ".[cluster]"

With one process everything happens here; results never depend on how many there are, or where.
"""

import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from gmai_lib.schema import Ledger


def ordered(work: Callable, jobs: Iterable, *, processes: int = 1) -> Iterator:
    """Yield `work(job)` for every job, in the order of the jobs.

    At most `processes` + 1 jobs are taken from `jobs` ahead of what was yielded, so memory does not
    grow with their number. `work` and the jobs must be picklable if there is more than one process.

    Raises ValueError if `processes` is not positive or `work` cannot be sent to another process,
    RuntimeError if a process was killed.
    """
    if processes < 1:
        raise ValueError(f"processes {processes} is not positive")
    if processes == 1:
        yield from map(work, jobs)
        return
    try:
        pickle.dumps(work)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ValueError(f"cannot be sent to another process, use one ({error})") from error
    pool = _fresh_processes(processes)
    try:
        for future in _in_order(jobs, partial(pool.submit, work), processes):
            yield future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of {processes} processes was killed, perhaps for memory; run again, with fewer "
            "processes if it happens again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def in_background(work: Callable, *arguments) -> Future:
    """Start `work(*arguments)` in a fresh process, which ends with it; return its Future at once.

    `work`, its arguments and its result must be picklable.
    """
    pool = _fresh_processes(1)
    future = pool.submit(work, *arguments)
    pool.shutdown(wait=False)
    return future


def on_cluster(work: Callable, jobs: Iterable) -> Iterator:
    """Yield `work(job)` for every job, in the order of the jobs, from machines of a Ray cluster.

    The cluster is the one that RAY_ADDRESS names, or a new one of this machine. As many jobs are on
    their way as the cluster has processors, and one more: jobs are a stream, so they are Ray tasks
    and not a Ray dataset, which wants to hold them. `work` must only write to folders that all
    machines share.

    Raises ValueError if Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError('a cluster needs Ray: pip install ".[cluster]"') from error
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        # A failed task is not tried again: the error is about the data and would come back.
        # Ray takes functions and no partial ones.
        task = ray.remote(max_retries=0)(lambda job: work(job))
        processors = int(ray.cluster_resources().get("CPU", 1))
        for reference in _in_order(jobs, task.remote, processors):
            yield ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, ValueError) else error from error
    finally:
        if started:
            ray.shutdown()


def _in_order(jobs: Iterable, submit: Callable, ahead: int) -> Iterator:
    """Yield `submit(job)` for every job, each only once `ahead` more are on their way."""
    waiting = deque()
    for job in jobs:
        waiting.append(submit(job))
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def counted(work: Callable, jobs: Iterable, ledger: Ledger, *, processes: int = 1) -> Iterator:
    """Yield what the generators `work(ledger, job)` yield, in order; `ledger` gets all counts."""
    if processes == 1:
        for job in jobs:
            yield from work(ledger, job)
        return
    for found, own in ordered(partial(_collected, work), jobs, processes=processes):
        ledger.merge(own)
        yield from found


def _collected(work: Callable, job) -> tuple[list, Ledger]:
    ledger = Ledger()
    return list(work(ledger, job)), ledger


def _fresh_processes(number: int) -> ProcessPoolExecutor:
    # Fresh ones: forking a process that has run torch threads can hang.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(number, mp_context=context, initializer=_begin)


def _begin():
    # Libraries, not imported yet, would draw their bars over those of the other processes.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    _leave_with_parent()


def _leave_with_parent():
    """End this process when its parent is gone: a pool would wait for ever for its next job."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
