"""Start the process that workers of a local cluster are forked from.

It is started before all else and imports on one core what workers need while the driver reads its settings on another.
Spawned workers would import for a second each, again after each restart.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

# They name a cluster that is used instead of a local one.
ADDRESS = "DASK_SCHEDULER_ADDRESS"
FACTORY = "TIPLINE_CLUSTER"
# macOS has fork, but it is not safe there without exec: workers are spawned.
CAN_FORK = sys.platform == "linux"
# Read when a process starts. One BLAS thread per worker. dask makes glibc return memory at once (64 KiB), so every
# temporary array is mapped and cleared again, which doubles the time of the arithmetic; blocks are bounded anyway.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") | dict.fromkeys(
    ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 28)
)


def start_forkserver(*modules: str) -> bool:
    """Start the forkserver, which imports dask and modules, unless it runs already; return whether there is one.

    There is none if the environment names another cluster, or if its socket has no place: the temporary folder is
    full, or its path is too long for the name of a socket.
    """
    if not CAN_FORK or os.environ.get(ADDRESS) or os.environ.get(FACTORY):
        return False
    forkserver.set_forkserver_preload(["tipline.cluster", *modules])
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        with ignore_interrupts():
            forkserver.ensure_running()
    except OSError:
        return False
    finally:
        os.environ.clear()
        os.environ.update(before)
    return True


def set_kernel_cache(folder: Path) -> None:
    """Let numba keep compiled kernels in a folder if it cannot keep them beside their source; workers inherit this."""
    if not os.access(Path(__file__).parent / "model", os.W_OK):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(folder))


@contextlib.contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C, which a terminal sends to all processes. Those that start in the block ignore it for good."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
