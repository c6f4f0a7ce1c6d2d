"""Connect to dask: a local cluster, or the scheduler that the environment names."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

import dask
import distributed.utils
from distributed import Client, KilledWorker, LocalCluster, Worker, WorkerPlugin, as_completed, get_worker
from distributed.comm.core import CommClosedError

from tipline import processes
from tipline.errors import TiplineError
from tipline.processes import ADDRESS

__all__ = ["ADDRESS", "Client", "Worker", "WorkerPlugin", "get_worker"]  # what other modules use of dask

T = TypeVar("T")

WAIT_SECONDS = 30
LOCAL_CONFIG = {
    # For spawned workers, and for a forkserver that has to be started again.
    **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in processes.ENVIRONMENT.items()},
    # The next block waits at each worker, which would be idle while the driver handles the last one.
    "distributed.scheduler.worker-saturation": 2.0,
    # Profiling looks at each worker's stack a hundred times a second.
    "distributed.worker.profile.enabled": False,
}


@contextlib.contextmanager
def connect_client(n_workers: int | None) -> Iterator[Client]:
    """Connect to the scheduler in DASK_SCHEDULER_ADDRESS, or start a LocalCluster that ends with the block.

    The local cluster has `n_workers` processes (None: one per core) and listens on 127.0.0.1 only. Raises a
    TiplineError if the scheduler does not answer, has no worker after WAIT_SECONDS, or is lost during the block.
    """
    # Failures come back as exceptions. Beside them distributed, and the event loop below it, log pages of tracebacks.
    for name in ("distributed", "distributed.client", "tornado.application", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = os.environ.get(ADDRESS)
    try:
        with connect_remote(address) if address else start_local_cluster(n_workers) as client:
            yield client
    except (CancelledError, CommClosedError) as error:
        where, todo = address or "the local cluster", "Start it and run it again; finished parts are kept."
        raise TiplineError("The dask scheduler is gone or does not answer any more.", where, todo) from error


@contextlib.contextmanager
def start_local_cluster(n_workers: int | None) -> Iterator[Client]:
    # dask's defaults, whatever the user has configured for other clusters.
    config = dask.config.merge(*dask.config.defaults) | LOCAL_CONFIG
    if processes.start_forkserver(__name__):
        config |= {"distributed.worker.multiprocessing-method": "forkserver"}
        # Otherwise dask would let the forkserver preload all that it can use, pandas among it.
        vars(distributed.utils)["_forkserver_preload_set"] = True
    with dask.config.set(config):
        with processes.ignore_interrupts():
            cluster = LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                # The forkserver may be older than what the environment holds now, S3 keys for example.
                env={**os.environ, **processes.ENVIRONMENT},
                silence_logs=logging.CRITICAL,
            )
            client = Client(cluster)
        try:
            yield client
        finally:
            # A second Ctrl-C would cost ten seconds: dask waits for a cluster whose end is interrupted.
            with processes.ignore_interrupts():
                client.close()
                cluster.close()


@contextlib.contextmanager
def connect_remote(address: str) -> Iterator[Client]:
    todo = f"Start it, or unset {ADDRESS} to use this machine."
    try:
        client = Client(address, timeout=WAIT_SECONDS)
    # ValueError: not an address. TypeError, RuntimeError: TLS without certificates, or required by the configuration.
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        raise TiplineError(f"The dask scheduler does not answer: {error}.", address, todo) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WAIT_SECONDS)
        except TimeoutError as error:
            todo = f"Start one: dask worker {address}"
            raise TiplineError("The dask scheduler has no workers.", address, todo) from error
        yield client


@contextlib.contextmanager
def register_plugin(client: Client, plugin: WorkerPlugin, name: str) -> Iterator[None]:
    """Keep a plugin on all workers, new ones included, during the block."""
    try:
        client.register_plugin(plugin, name)
        yield
    finally:
        if client.cluster is None and client.status == "running":  # neither a local cluster, nor a lost one
            with contextlib.suppress(OSError):  # a worker has just died
                client.unregister_worker_plugin(name)


def run_tasks(client: Client, task: Callable[[T], Any], items: Sequence[T]) -> Iterator[tuple[T, Any]]:
    """Run a task for each item on the workers; yield items with results or exceptions, as they come.

    A task that kills its worker is tried again some times and can take other tasks of that worker with it. Tasks that
    ended like this run once more, one at a time, which shows whose fault it is.
    """
    futures = dict(zip(client.map(task, items, pure=False, retries=1), items, strict=True))
    killed = []
    for future, result in iterate_results(list(futures)):
        if isinstance(result, CancelledError):
            raise result
        if isinstance(result, KilledWorker):
            killed.append(futures[future])
        else:
            yield futures[future], result
    for item in killed:
        ((_, result),) = iterate_results([client.submit(task, item, pure=False)])
        if isinstance(result, KilledWorker):
            what = "Every worker that took this block died: most likely out of memory, or killed."
            todo = "Give workers more memory: a smaller cluster.n_workers, or `dask worker --memory-limit`."
            result = TiplineError(what, str(result.last_worker.address), todo)
        yield item, result


def iterate_results(futures: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield futures with their results or exceptions, as they finish, fetched in batches to spare the driver."""
    for batch in as_completed(futures, with_results=True, raise_errors=False).batches():
        for future, result in batch:
            is_error = future.status == "error"
            future.release()  # its block would be scored again if its worker died
            yield future, result[1] if is_error else result
