"""Connect to dask: a cluster that a function returns, a scheduler that the environment names, or a local cluster."""

import contextlib
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar, cast

from tipline.errors import DaskConfigError, ReportedCode, TiplineError, UsageError

try:
    import dask
except ValueError as error:  # dask reads all files of the user's configuration at once
    todo = "Correct this file, which all programs of yours that use dask read."
    raise DaskConfigError(f"{str(error).partition(',')[0]}.", "dask's configuration", todo) from error
import distributed.utils
from dask.utils import format_bytes
from distributed import Client, KilledWorker, LocalCluster, Worker, WorkerPlugin, as_completed, get_worker
from distributed.comm.core import CommClosedError
from tornado.ioloop import PeriodicCallback

from tipline import processes
from tipline.paths import find_project
from tipline.processes import ADDRESS, FACTORY

# What other modules use of dask.
__all__ = ["ADDRESS", "FACTORY", "Client", "Worker", "WorkerPlugin", "get_worker"]

T = TypeVar("T")

log = logging.getLogger(__name__)

WAIT_SECONDS = 30
FACTORY_WAIT_SECONDS = 600  # machines have to be found and booted
REGISTER_TRIES = 5
WATCH_SECONDS = 2
MORE_MEMORY = "Give workers more memory: a smaller cluster.n_workers, or `dask worker --memory-limit`."
LOCAL_CONFIG = {
    # For spawned workers, and for a forkserver that has to be started again.
    **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in processes.ENVIRONMENT.items()},
    # The next block waits at each worker, which would be idle while the driver handles the last one.
    "distributed.scheduler.worker-saturation": 2.0,
    # Profiling looks at each worker's stack a hundred times a second.
    "distributed.worker.profile.enabled": False,
}


@contextlib.contextmanager
def connect_client(n_workers: int | None, factory: str | None = None) -> Iterator[Client]:
    """Connect to the cluster that the environment names, else to that of `factory`, else to one that is started here.

    A factory is `module:function` and returns a dask Cluster or Client, which ends with the block. A local cluster
    has `n_workers` processes (None: one per core) and listens on 127.0.0.1 only. Raises a TiplineError if the cluster
    cannot be had, has no worker in time, or is lost during the block.
    """
    # Failures come back as exceptions. Beside them distributed, and the event loop below it, log pages of tracebacks.
    for name in ("distributed", "distributed.client", "tornado.application", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    named, address = os.environ.get(FACTORY), os.environ.get(ADDRESS)
    if named or (factory and not address):
        where = f"the environment, {FACTORY}: {named}" if named else f"params.yaml, cluster.factory: {factory}"
        connected = use_factory(named or str(factory), where)
    else:
        where = address or "the local cluster"
        connected = connect_remote(address) if address else start_local_cluster(n_workers)
    try:
        with connected as client, watch_memory(client):
            yield client
    except (CancelledError, CommClosedError) as error:
        todo = "Start it and run it again; finished parts are kept."
        raise TiplineError("The dask scheduler is gone or does not answer any more.", where, todo) from error


@contextlib.contextmanager
def start_local_cluster(n_workers: int | None) -> Iterator[Client]:
    # dask's defaults, whatever the user has configured for other clusters.
    config = dask.config.merge(*dask.config.defaults) | LOCAL_CONFIG
    if processes.start_forkserver():
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
    try:
        client = Client(address, timeout=WAIT_SECONDS)
    # ValueError: not an address. TypeError, RuntimeError: TLS without certificates, or required by the configuration.
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        todo = f"Start it, or unset {ADDRESS} to use this machine."
        if changed := ", ".join(list_changed_settings()):
            todo += f" Your configuration of dask sets {changed}."
        raise TiplineError(f"The dask scheduler does not answer: {error}.", address, todo) from error
    with client:
        wait_for_worker(client, WAIT_SECONDS, address, f"Start one: dask worker {address}")
        yield client


@contextlib.contextmanager
def use_factory(factory: str, where: str) -> Iterator[Client]:
    """Call a function whose module may be beside params.yaml; close the cluster that it returns."""
    root, todo = str(find_project().root), "Name a function that returns a dask Cluster or Client: docs/cluster.md."
    log.info("starting the cluster of %s", factory)
    sys.path.insert(0, root)
    try:
        with ReportedCode(factory, where, todo):
            cluster = pkgutil.resolve_name(factory)()
            # dask-gateway's cluster has a class of its own.
            if not (isinstance(cluster, Client) or hasattr(cluster, "get_client")):
                raise UsageError(f"{factory} returned {type(cluster).__name__}, which is no cluster.", where, todo)
            client = cluster if isinstance(cluster, Client) else cluster.get_client()
    finally:
        sys.path.remove(root)
    try:
        todo = "Let the function start workers: scale(8), or adapt(minimum=1, maximum=8)."
        wait_for_worker(client, FACTORY_WAIT_SECONDS, where, todo)
        yield client
    finally:
        cluster = client.cluster
        with processes.ignore_interrupts(), ReportedCode("Closing the cluster", where, "See that it does not run on."):
            client.close()
            if cluster is not None:
                cluster.close()


def wait_for_worker(client: Client, seconds: float, where: str, todo: str) -> None:
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError as error:
        raise TiplineError(f"The dask scheduler has no workers after {seconds} s.", where, todo) from error


def list_changed_settings() -> list[str]:
    """List the user's settings of distributed that are not its defaults; values may be secret."""

    def flatten(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in config.items():
            yield from flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]

    configs = dask.config.config, dask.config.merge(*dask.config.defaults)
    now, defaults = (dict(flatten(config["distributed"], "distributed.")) for config in configs)
    return sorted(key for key, value in now.items() if value != defaults.get(key))


@contextlib.contextmanager
def watch_memory(client: Client) -> Iterator[None]:
    """Warn when dask pauses or restarts a worker for its memory, of which only the worker's log would tell."""
    limits, paused = dict[str, int](), set[str]()
    scheduler, loop = cast(Any, client.scheduler), cast(Any, client.loop)

    async def look() -> None:
        workers = (await scheduler.identity())["workers"]
        limits.update({address: worker["memory_limit"] for address, worker in workers.items()})
        for address in {address for address, worker in workers.items() if worker["status"] == "paused"} - paused:
            paused.add(address)
            what = "has no memory for more work and is paused, until it holds less of its"
            log.warning("worker %s %s %s. %s", address, what, format_bytes(limits[address]), MORE_MEMORY)

    def report_restart(event: tuple[float, dict[str, Any]]) -> None:
        worker, held = event[1]["worker"], format_bytes(event[1]["rss"])
        limit = format_bytes(limits[worker]) if worker in limits else "its limit"
        log.warning("worker %s held %s of %s and is restarted. %s", worker, held, limit, MORE_MEMORY)

    watch = PeriodicCallback(look, WATCH_SECONDS * 1000)
    client.subscribe_topic("worker-restart-memory", report_restart)
    loop.add_callback(watch.start)
    try:
        yield
    finally:
        loop.add_callback(watch.stop)


@contextlib.contextmanager
def register_plugin(client: Client, plugin: WorkerPlugin, name: str) -> Iterator[None]:
    """Keep a plugin on all workers, new ones included, during the block."""
    try:
        for _ in range(REGISTER_TRIES):
            with contextlib.suppress(OSError):  # a worker that leaves just now
                client.register_plugin(plugin, name)
                break
        else:
            client.register_plugin(plugin, name)
        yield
    finally:
        if not isinstance(client.cluster, LocalCluster) and client.status == "running":  # it will end, or it is lost
            with contextlib.suppress(OSError, KeyError):  # a worker has just died
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
            result = TiplineError(what, str(result.last_worker.address), MORE_MEMORY)
        yield item, result


def iterate_results(futures: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield futures with their results or exceptions, as they finish, fetched in batches to spare the driver."""
    for batch in as_completed(futures, with_results=True, raise_errors=False).batches():
        for future, result in batch:
            is_error = future.status == "error"
            future.release()  # its block would be scored again if its worker died
            yield future, result[1] if is_error else result
