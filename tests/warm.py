"""Commands of the tests' stories as forks of a process that has imported what they need: a `dvc repro` starts a dozen.

`tipline` and `dvc` on the path of a story are two lines of shell that run this file as a client. It hands its
arguments, environment, folder and open files to a server. The server forks, the fork runs the command's own `main`, as
the script in the environment would, and the client ends with its exit code. A client that is killed takes the fork
with it.

The first `dvc repro` of `stories.copy_first` and commands that are to be killed or interrupted run as they are.
"""

import atexit
import contextlib
import gc
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = "TIPLINE_WARM"  # the environment's name for the folder of a session's servers
STAGES = "download prepare sample learning_curve train register evaluate score monitor record".split()  # noqa: SIM905
# What a command imports when it runs.
IMPORTS = {
    "tipline": (
        *("tipline.cli", *(f"tipline.stages.{stage}" for stage in STAGES)),
        *("mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "skops.io"),
        *("mlflow.store.model_registry.sqlalchemy_store", "tipline.registry.mirror"),
    ),
    "dvc": ("dvc.cli", "dvc.commands.repro", "dvc.repo", "dvc.stage.run", "dvc.repo.experiments"),
}
servers: list[subprocess.Popen[bytes]] = []


def start_servers() -> None:
    """Start the servers of this session; they end with this process, because it holds their input open."""
    folder = Path(tempfile.mkdtemp(prefix="warm"))
    os.environ[FOLDER] = str(folder)
    for name in IMPORTS:
        arguments = [sys.executable, "-m", "tests.warm", "serve", str(folder / f"{name}.socket"), name]
        with (folder / f"{name}.log").open("wb") as log:
            servers.append(subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log))
        ask = f'exec "{sys.executable}" -S -E "{__file__}" ask "{folder}/{name}.socket" "$@"'
        (folder / name).write_text(f"#!/bin/sh\n{ask}\n")
        (folder / name).chmod(0o755)


def stop_servers() -> None:
    for server in servers:
        server.communicate()
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)


def ask(address: str, arguments: list[str]) -> int:
    """Let the server run a command with the files, folder and environment of this process; return its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        while not Path(address).exists():  # the server is still importing
            time.sleep(0.05)
        connection.connect(address)
        request = json.dumps([arguments, str(Path.cwd()), dict(os.environ)]).encode()
        socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(request)
        return int(connection.makefile().readline() or 1)


def serve(address: str, command: str) -> None:
    """Import what a command needs, then answer each client in a fork, until the input ends.

    Returns in the fork that is to run the command, in the client's place.
    """
    import importlib

    before = set(os.environ)
    for name in IMPORTS[command]:
        importlib.import_module(name)
    imported = {name: value for name, value in os.environ.items() if name not in before}
    gc.freeze()  # or each fork would look through all that was imported when it ends
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that answer
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as events:
        listening.bind(f"{address}.new")
        listening.listen(64)
        Path(f"{address}.new").rename(address)
        events.register(listening, selectors.EVENT_READ)
        events.register(sys.stdin, selectors.EVENT_READ)
        while sys.stdin not in {key.fileobj for key, _ in events.select()}:
            connection, _ = listening.accept()
            if os.fork() == 0:
                answer_client(connection, imported)
                return
            connection.close()
    os._exit(0)


def answer_client(connection: socket.socket, imported: dict[str, str]) -> None:
    """Return in a fork that has taken the client's place; meanwhile wait for it and send its exit code.

    `imported` is what the command's modules put into the environment when they were imported.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, *_ = socket.recv_fds(connection, 4, 3)
    request = connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    arguments, folder, environment = json.loads(request)
    child = os.fork()
    if child == 0:
        connection.close()
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(imported | environment)
        sys.argv[1:] = arguments
        return
    for file in (*files, 0, 1, 2):
        os.close(file)
    with selectors.DefaultSelector() as events:
        events.register(connection, selectors.EVENT_READ)
        events.register(ended := os.pidfd_open(child), selectors.EVENT_READ)
        if ended not in {key.fd for key, _ in events.select()}:  # the client was killed
            os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status) & 255}\n".encode())
    os._exit(0)


def run_command(command: str) -> None:
    """Run a command's own `main` and end with its exit code."""
    import random
    from importlib.metadata import entry_points

    random.seed()  # otherwise each fork would go on with the same numbers
    # A process that is spawned from here would import this file again.
    main = sys.modules["__main__"]
    main.__spec__ = None
    main.__dict__.pop("__file__", None)
    sys.argv[0] = command
    (script,) = entry_points(group="console_scripts", name=command)
    code: object = 0
    try:
        code = script.load()()
    except SystemExit as error:
        code = error.code
    except BaseException:  # noqa: BLE001 (as Python itself reports it)
        traceback.print_exc()
        code = 1
    # As Python ends, but for taking all that was imported apart, which takes longer than most commands.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
    wanted = sys.argv[3]
    serve(sys.argv[2], wanted)
    run_command(wanted)
