"""Commands of the tests' stories as forks of a process that has imported what they need: a `dvc repro` starts a dozen.

`tipline` and `dvc` on the path of a story are two lines of shell that call this file as a client. It hands its
arguments, environment, folder and open files to a server, which forks: the fork runs the command's own `main`, as the
script in the environment would, and the client ends with its exit code. A client that is killed takes the fork with it.

The first `dvc repro` of `stories.copy_first` and commands that are to be killed or interrupted run as they are.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import random
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STREAMS = 3
LENGTH = struct.Struct("!I")
# What a command imports when it runs.
IMPORTS = {
    "tipline": (
        "tipline.cli",
        "tipline.stages.download",
        "tipline.stages.prepare",
        "tipline.stages.sample",
        "tipline.stages.learning_curve",
        "tipline.stages.train",
        "tipline.stages.register",
        "tipline.stages.evaluate",
        "tipline.stages.score",
        "tipline.stages.monitor",
        "tipline.stages.record",
        "mlflow.pyfunc",
        "mlflow.store.tracking.sqlalchemy_store",
        "mlflow.store.model_registry.sqlalchemy_store",
        "skops.io",
    ),
    "dvc": (
        "dvc.cli",
        "dvc.commands.repro",
        "dvc.repo",
        "dvc.stage.run",
        "dvc.repo.experiments",
        "dvc_objects.fs.local",
    ),
}


FOLDER = "TIPLINE_WARM"  # the environment's name for the folder of a session's servers


def begin() -> None:
    """Make the folder of the servers that this process owns; they end with it."""
    folder = Path(tempfile.mkdtemp(prefix="warm"))
    (folder / "owner").write_text(str(os.getpid()))
    (folder / "bin").mkdir()
    os.environ[FOLDER] = str(folder)


def end() -> None:
    """Remove the folder."""
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)


def commands() -> Path:
    """The folder of the clients; the servers are started by whoever asks first, also of several processes."""
    import filelock

    folder = Path(os.environ[FOLDER])
    with filelock.FileLock(folder / "lock"):
        missing = [name for name in IMPORTS if not (folder / "bin" / name).exists()]
        for name in missing:
            start(folder, name)
        while not all((folder / name).exists() for name in missing):
            time.sleep(0.05)
        for name in missing:
            client = folder / "bin" / name
            client.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" ask "{folder / name}" "$@"\n')
            client.chmod(0o755)
    return folder / "bin"


def start(folder: Path, name: str) -> None:
    """Start the server of a command: no child of this process, whose tests may end long before the last ones do."""
    arguments = ("-m", "tests.warm", "serve", str(folder / name), name, (folder / "owner").read_text())
    with (folder / f"{name}.log").open("wb") as log:
        detached = ("/bin/sh", "-c", '"$@" &', "sh", sys.executable, *arguments)
        subprocess.run(detached, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, check=True)


def send(connection: socket.socket, value: object) -> None:
    """Send a json value, its length first."""
    data = json.dumps(value).encode()
    connection.sendall(LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> Any:
    """Receive what `send` sent; EOFError where the other end is gone."""
    (length,) = LENGTH.unpack(exactly(connection, LENGTH.size))
    return json.loads(exactly(connection, length))


def exactly(connection: socket.socket, count: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def ask(address: str, arguments: list[str]) -> int:
    """Let the server run a command with this process's files, folder and environment; return its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        files = array.array("i", range(STREAMS))
        connection.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        send(connection, [arguments, str(Path.cwd()), dict(os.environ)])
        try:
            return int(receive(connection))
        except EOFError:
            return 1


def serve(address: str, command: str, owner: int) -> None:
    """Import what a command needs, then answer each client in a fork, as long as the owner, a process, is there."""
    import importlib

    before = set(os.environ)
    for name in IMPORTS[command]:
        importlib.import_module(name)
    imported = {name: value for name, value in os.environ.items() if name not in before}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that answer
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as events:
        listening.bind(f"{address}.new")
        listening.listen(64)
        Path(f"{address}.new").rename(address)
        events.register(listening, selectors.EVENT_READ)
        events.register(gone := os.pidfd_open(owner), selectors.EVENT_READ)
        while gone not in {key.fd for key, _ in events.select()}:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                answer(connection, command, imported)
            connection.close()


def answer(connection: socket.socket, command: str, imported: dict[str, str]) -> None:
    """Run one command in a fork of this process, tell its exit code, and end.

    Parameters
    ----------
    imported
        What the command's modules have put into the environment when they were imported.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, ancillary, *_ = connection.recvmsg(1, socket.CMSG_SPACE(STREAMS * array.array("i").itemsize))
    files = array.array("i", ancillary[0][2])
    arguments, folder, environment = receive(connection)
    child = os.fork()
    if child == 0:
        connection.close()
        become(list(files), folder, imported | environment)
        run(command, arguments)
    for file in (*files, *range(STREAMS)):
        with contextlib.suppress(OSError):
            os.close(file)
    watch(connection, child)
    os._exit(0)


def watch(connection: socket.socket, child: int) -> None:
    """Wait for a child and tell its exit code; end it where the client is gone."""
    with selectors.DefaultSelector() as events:
        events.register(connection, selectors.EVENT_READ)
        events.register(ended := os.pidfd_open(child), selectors.EVENT_READ)
        ready = {key.fd for key, _ in events.select()}
    if ended not in ready:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        send(connection, os.waitstatus_to_exitcode(status) & 255)


def become(files: list[int], folder: str, environment: dict[str, str]) -> None:
    """Take the client's place: its files, folder, environment."""
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # A process that is spawned from here would import this file again.
    main = sys.modules["__main__"]
    main.__spec__ = None
    main.__dict__.pop("__file__", None)
    random.seed()  # or each fork would go on with the same numbers


def run(command: str, arguments: list[str]) -> None:
    """Run a command's own `main` and end."""
    import traceback

    sys.argv = [command, *arguments]
    try:
        from importlib.metadata import entry_points

        (script,) = entry_points(group="console_scripts", name=command)
        code = script.load()()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
        code = 1
    end_with(code if isinstance(code, int) else int(code is not None))


def end_with(code: int) -> None:
    """End as the interpreter does: what was to be done at exit first."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    sys.exit(ask(sys.argv[2], sys.argv[3:]))
