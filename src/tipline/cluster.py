"""The one place where dask clients are made: a local cluster, or the scheduler that the environment names."""

from __future__ import annotations

import contextlib
import logging
import os
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dask
import distributed.utils
from distributed import Client, KilledWorker, LocalCluster, Worker, WorkerPlugin, as_completed, get_worker
from distributed.comm.core import CommClosedError

from tipline import processes
from tipline.errors import TiplineError
from tipline.processes import ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

__all__ = ["ADDRESS", "Client", "Worker", "WorkerPlugin", "get_worker"]  # to others, these come from here

# Its start and end are a page of lines at level INFO.
logging.getLogger("distributed").setLevel(logging.WARNING)

T = TypeVar("T")

WAIT_SECONDS = 30
ORDERS = {
    # Of workers that are spawned, and of what is started anew to fork others from, should it be killed.
    **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in processes.ENVIRONMENT.items()},
    # The next block waits at each worker. It would be idle while the driver, on the same cores, hears of the last one.
    "distributed.scheduler.worker-saturation": 2.0,
    # Each worker's stack is looked at a hundred times a second, for a page that nobody opens in a batch.
    "distributed.worker.profile.enabled": False,
}


@contextlib.contextmanager
def connect_client(count: int | None) -> Iterator[Client]:
    """Give a client: of the scheduler in DASK_SCHEDULER_ADDRESS, else of `count` new processes (0: one a core).

    A local cluster listens on 127.0.0.1 only, its dashboard too, and ends with the block.

    Raises
    ------
    TiplineError
        Where the scheduler cannot be reached, has no worker within half a minute, or goes away in the block.
    """
    # What fails comes back as an exception; of a scheduler that dies distributed, and the event loop below it, log a
    # page of traces beside it.
    for name in ("distributed", "distributed.client", "tornado.application", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if os.environ.get(ADDRESS):
        with explain_lost_scheduler(os.environ[ADDRESS]), connect_remote(os.environ[ADDRESS]) as client:
            yield client
        return
    with contextlib.ExitStack() as stack:
        # At the end, a second Ctrl-C would cost ten seconds: a cluster whose end is interrupted is waited for.
        ignore_interrupts = stack.enter_context(processes.allow_ignoring_interrupts())
        forked = processes.start_forkserver(__name__)
        stack.enter_context(dask.config.set(build_dask_config(forked=forked)))
        with processes.defer_interrupts() if forked else processes.ignore_interrupts():
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=count or processes.count_cpus(),
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    # As it is now: what they are forked from may have been there before keys were put into it.
                    env={**os.environ, **processes.ENVIRONMENT},
                    # A heartbeat that meets a closing scheduler is logged with its trace as an error; what fails in
                    # a task comes back with the task.
                    silence_logs=logging.CRITICAL,
                )
            )
        stack.enter_context(explain_lost_scheduler("the local cluster"))
        client = stack.enter_context(Client(cluster))
        try:
            yield client
        finally:
            ignore_interrupts()


def build_dask_config(*, forked: bool) -> dict[str, Any]:
    """What dask is to do otherwise for workers that are forked, or spawned."""
    if not forked:
        return ORDERS
    # Else dask imports all that it can use here, pandas for one, to name it to a process that runs already.
    vars(distributed.utils)["_forkserver_preload_set"] = True
    return {"distributed.worker.multiprocessing-method": "forkserver"} | ORDERS


@contextlib.contextmanager
def connect_remote(address: str, seconds: float | None = None) -> Iterator[Client]:
    """A client of a running scheduler, which is waited for for so long, by default WAIT_SECONDS."""
    patience = WAIT_SECONDS if seconds is None else seconds
    todo = f"Start it, or unset {ADDRESS} to use this machine."
    try:
        client = Client(address, timeout=patience)
    # ValueError: the address is none; TypeError: it says tls, and no certificates are configured
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise TiplineError(f"The dask scheduler does not answer: {error}.", address, todo) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=patience)
        except TimeoutError as error:
            raise TiplineError(
                "The dask scheduler has no workers.", address, f"Start one: dask worker {address}"
            ) from error
        yield client


@contextlib.contextmanager
def explain_lost_scheduler(address: str) -> Iterator[None]:
    """Say in one way what distributed says in several: results are cancelled, connections closed."""
    try:
        yield
    except (CancelledError, CommClosedError) as error:
        todo = "Start it and run it again; finished parts are kept."
        raise TiplineError("The dask scheduler is gone, or does not answer any more.", address, todo) from error


def run_tasks(
    client: Client, task: Callable[[T], Any], items: Sequence[T], group: Callable[[T], Hashable] = id
) -> Iterator[tuple[T, Any]]:
    """Run a task for each item on the workers; give items and results, or the exceptions, as they come.

    A task that takes its worker down with it is tried some times, and can take others of the same worker with it. So
    those that ended like that run once more by themselves: then it is clear whose fault it is. Each death costs
    seconds, so the rest of its group waits meanwhile, and is not run and not given where one of the group is to blame.

    Raises
    ------
    CancelledError, CommClosedError
        Where the scheduler goes away; `connect` says so.
    """
    blamed: set[Hashable] = set()
    left = list(items)
    while left:
        futures = dict(zip(client.map(task, left, pure=False, retries=1), left, strict=True))
        killed, left = list[T](), list[T]()
        for future, given in iterate_finished(list(futures)):
            if future not in futures:
                continue  # it waits
            item, result = futures.pop(future), read_outcome(future, given)
            # Before the result is given: were it still held and its worker died, the block would be scored once more.
            future.release()
            if not isinstance(result, KilledWorker):
                yield item, result
                continue
            killed.append(item)
            waiting = [other for other in futures if group(futures[other]) == group(item)]
            left += [futures.pop(other) for other in waiting]
            client.cancel(waiting)
        for item in killed:
            if group(item) in blamed:
                continue
            ((future, given),) = iterate_finished([client.submit(task, item, pure=False)])
            result = read_outcome(future, given)
            if isinstance(result, KilledWorker):
                blamed.add(group(item))
                result = explain_killed_worker(result)
            yield item, result
        left = [item for item in left if group(item) not in blamed]


def iterate_finished(futures: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Futures as they finish, with what came of them.

    Results are fetched many at once: one by one, the driver is busy twice as long for each task.
    """
    for batch in as_completed(futures, with_results=True, raise_errors=False).batches():
        yield from batch


def read_outcome(future: Any, given: Any) -> Any:  # noqa: ANN401 (what a task returns)
    """A task's result or exception."""
    if isinstance(given, CancelledError):
        raise given
    return given[1] if future.status == "error" else given


def explain_killed_worker(error: KilledWorker) -> TiplineError:
    """What a dead worker means, in words."""
    what = "Every worker that took this block died: out of memory, most likely, or killed."
    todo = "Give the workers more memory: a smaller `score.workers`, or a larger --memory-limit of `dask worker`."
    return TiplineError(what, str(error.last_worker.address), todo)


def get_peak_memory() -> int:
    """Most memory that this process ever held (VmHWM); `ru_maxrss` would count what its parent held, too."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
