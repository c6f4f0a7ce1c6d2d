"""Clusters that a function starts: dask-gateway, processes with TLS, workers that come and go; and what goes wrong."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client
from distributed.security import Security

from tests import servers, workbench
from tests.conftest import ROOT
from tests.test_score import promote_another_model, read_parts
from tipline import cluster
from tipline.paths import Paths

RunCli = Callable[..., tuple[int, str]]

pytestmark = workbench.MLFLOW_WARNINGS
BIN = Path(sys.executable).parent
# Each block takes a while until a file is there, so that workers can come and go meanwhile.
SLOW = """
import os, time
def wait(trips):
    if not os.path.exists(os.environ.get("SLOW_UNTIL", "/")):
        time.sleep(0.5)
    return trips
"""


@pytest.fixture(scope="module")
def expected(scored_template: Paths, dask_address: str, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project of 40 blocks, scored on the session's cluster."""
    paths = workbench.copy_project(scored_template, tmp_path_factory.mktemp("expected"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        workbench.prepare_small_blocks(paths, monkeypatch, dask_address)
        (paths.root / "features.py").write_text(SLOW)
        workbench.change_settings(paths, model={"features": "wait"})
        promote_another_model(paths)
        workbench.run(paths, "score")
    return paths


@pytest.fixture
def project(expected: Paths, tmp_path: Path) -> Paths:
    return workbench.copy_unscored(expected, tmp_path)


@pytest.fixture(autouse=True)
def _forget_module() -> Iterator[None]:
    yield
    sys.modules.pop("clusters", None)


def read_recipe(heading: str) -> str:
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").partition(f"\n### {heading}\n")[2]
    return text.partition("```python\n")[2].partition("```")[0]


def score(project: Paths, code: str, environment: dict[str, str]) -> None:
    """Score with `clusters:start` of a file beside params.yaml, in a process of its own."""
    (project.root / "clusters.py").write_text(code)
    command, environment = [str(BIN / "tipline"), "score"], os.environ | environment
    done = subprocess.run(
        command, cwd=project.root, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "starting the cluster of clusters:" in done.stderr


# ---- real clusters ----


GATEWAY = """
c.DaskGateway.address = "127.0.0.1:0"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.SimpleAuthenticator.password = "none-that-matters"
c.Proxy.address, c.Proxy.tcp_address = "127.0.0.1:{http}", "127.0.0.1:{tcp}"
c.UnsafeLocalBackend.clusters_directory = "{folder}"
c.ClusterConfig.scheduler_cmd, c.ClusterConfig.worker_cmd = ["{bin}/dask", "scheduler"], ["{bin}/dask", "worker"]
c.ClusterConfig.worker_cores = 1
"""


def test_an_adaptive_cluster_of_dask_gateway_gives_the_same_bytes_and_ends(
    project: Paths, expected: Paths, tmp_path: Path
) -> None:
    http, tcp, config = servers.free_port(), servers.free_port(), tmp_path / "gateway.py"
    config.write_text(GATEWAY.format(http=http, tcp=tcp, folder=tmp_path, bin=BIN))
    environment = {
        "TIPLINE_CLUSTER": "clusters:start",
        "DASK_GATEWAY__ADDRESS": f"http://127.0.0.1:{http}",
        "DASK_GATEWAY__PROXY_ADDRESS": f"tls://127.0.0.1:{tcp}",
        "DASK_GATEWAY__AUTH__TYPE": "basic",
        "DASK_GATEWAY__AUTH__KWARGS": "{'password': 'none-that-matters'}",
    }
    log = tmp_path / "gateway.log"
    with workbench.running("dask-gateway-server", "-f", str(config), printed=log):
        workbench.wait_for(lambda: "server started" in log.read_text())
        workbench.change_settings(project, cluster={"factory": "no_such:module"})  # the environment wins
        code = read_recipe("dask-gateway").replace("maximum=64", "maximum=2")
        score(project, code, environment | {cluster.ADDRESS: "tcp://127.0.0.1:1"})
        printed = log.read_text()
    assert read_parts(project) == read_parts(expected)
    assert "is running" in printed
    assert "Stopping cluster" in printed


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[str]:
    """The address of a scheduler and a worker, each a process, that speak to who has a certificate in tmp_path."""
    security = Security.temporary()
    for name, content in (("member.pem", security.tls_client_cert), ("member.key", security.tls_client_key)):
        (tmp_path / name).write_text(content)
    (tmp_path / "authority.pem").write_text(security.tls_ca_file)
    tls = ["--tls-ca-file", "authority.pem", "--tls-cert", "member.pem", "--tls-key", "member.key"]
    tls = [part if part.startswith("--") else str(tmp_path / part) for part in tls]
    file = tmp_path / "scheduler.json"
    options = ("--protocol", "tls", "--port", "0", "--scheduler-file", str(file))
    with contextlib.ExitStack() as stack:
        stack.enter_context(workbench.running("dask", "scheduler", *workbench.LOCAL, *options, *tls))
        workbench.wait_for(lambda: file.exists() and file.stat().st_size)
        address = str(workbench.read_json(file)["address"])
        stack.enter_context(workbench.running("dask", "worker", address, *workbench.LOCAL, "--nthreads", "1", *tls))
        yield address


def test_a_function_connects_with_certificates_to_a_scheduler_that_goes_on(
    project: Paths, expected: Paths, secured: str, tmp_path: Path
) -> None:
    workbench.change_settings(project, cluster={"factory": "clusters:connect"})
    code = read_recipe("Certificates in the function")
    code = code.replace("/etc/dask", str(tmp_path)).replace("tls://10.0.0.1:8786", secured)
    score(project, code, {})
    assert read_parts(project) == read_parts(expected)
    scope: dict[str, Callable[[], Client]] = {}
    exec(code, scope)  # noqa: S102 (the code of the page)
    with scope["connect"]() as client:
        assert client.submit(abs, -1).result() == 1


# One worker is joined by two, these leave, another one joins.
COMES_AND_GOES = """
import os, pathlib, threading
from distributed import Client, SubprocessCluster

events = []

def start():
    cluster = SubprocessCluster(dashboard_address="127.0.0.1:0", n_workers=1, threads_per_worker=1)
    close, done = cluster.close, threading.Event()

    def scale():
        for count in (3, 1, 2):
            cluster.scale(count)
            while len(cluster.scheduler_info["workers"]) != count and not done.wait(0.1):
                pass
        pathlib.Path(os.environ["SLOW_UNTIL"]).touch()

    def stop():
        with Client(cluster.scheduler_address) as client:
            events.extend(event["action"] for _, event in client.get_events("all") if "worker" in event["action"])
        done.set()
        thread.join()
        close()

    thread = threading.Thread(target=scale)
    thread.start()
    cluster.close = stop
    return cluster
"""


def test_workers_that_come_and_go_while_scoring_give_the_same_bytes(
    project: Paths, expected: Paths, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLOW_UNTIL", str(tmp_path / "fast"))
    (project.root / "clusters.py").write_text(COMES_AND_GOES)
    workbench.change_settings(project, cluster={"factory": "clusters:start"})
    code, output = run_cli(project.root, "score")
    assert code == 0, output
    assert read_parts(project) == read_parts(expected)
    events = sys.modules["clusters"].events
    assert events.count("add-worker") == 4
    assert events.count("remove-worker") == 2


# ---- what goes wrong ----


BROKEN = """
from distributed import LocalCluster
number = 1
def none(): pass
def fails(): raise OSError("quota exceeded")
def takes(size): pass
def empty(): return LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0")
"""


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nothing:start", "ModuleNotFoundError: No module named 'nothing'."),
        ("clusters:start", "AttributeError: module 'clusters' has no attribute 'start'."),
        ("clusters:number", "TypeError: 'int' object is not callable."),
        ("clusters:takes", "TypeError: takes() missing 1 required positional argument: 'size'."),
        ("clusters:fails", "OSError: quota exceeded."),
        ("clusters:none", "clusters:none returned NoneType, which is no cluster."),
        ("clusters:empty", "The dask scheduler has no workers after 1 s."),
        ("no module", "ValueError: invalid format: 'no module'."),
    ],
)
def test_a_function_that_gives_no_cluster_is_named_in_one_message(
    project: Paths, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, factory: str, message: str
) -> None:
    (project.root / "clusters.py").write_text(BROKEN)
    monkeypatch.setattr(cluster, "FACTORY_WAIT_SECONDS", 1)
    monkeypatch.setenv(cluster.FACTORY, factory)
    path = list(sys.path)
    code, output = run_cli(project.root, "score")
    assert code in {1, 2}
    assert message in output
    assert f"where: the environment, TIPLINE_CLUSTER: {factory}\n" in output
    assert output.count("to do:") == 1
    assert "Traceback" not in output
    assert "defect" not in output
    assert sys.path == path


def test_a_worker_without_tipline_and_settings_that_keep_it_from_connecting_are_named(
    project: Paths, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without = "import sys; sys.modules['tipline'] = None; from dask.__main__ import main; sys.exit(main())"
    with workbench.scheduler(tmp_path) as address:
        with workbench.running("python", "-c", without, "worker", address, *workbench.LOCAL, "--no-nanny"):
            monkeypatch.setenv(cluster.ADDRESS, address)
            code, output = run_cli(project.root, "score")
        assert code == 1
        assert "A worker cannot import tipline.\n  where: tcp://127.0.0.1:" in output
        assert "Install the same packages" in output
        (file := tmp_path / "dask.yaml").write_text("distributed: {comm: {require-encryption: true}}")
        monkeypatch.setenv("DASK_CONFIG", str(file))
        command = [str(BIN / "tipline"), "score"]
        refused = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "Your configuration of dask sets distributed.comm.require-encryption." in refused.stderr
    file.write_text("distributed: {comm: [")
    monkeypatch.delenv(cluster.ADDRESS)
    broken = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=False)
    assert broken.returncode == 2
    assert f"A dask config file at '{file}' is malformed." in broken.stderr
    assert "Traceback" not in refused.stderr + broken.stderr


def test_workers_that_are_paused_and_restarted_for_memory_are_reported_with_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fill_memory(share: float, dask_worker: Any) -> None:  # in here, because workers cannot import this module
        dask_worker.kept = b""
        free = int(dask_worker.memory_manager.memory_limit * share) - psutil.Process().memory_info().rss
        dask_worker.kept = b"x" * free

    with workbench.scheduler(tmp_path) as address, workbench.workers(address, 1, "--memory-limit", "600MB"):
        monkeypatch.setenv(cluster.ADDRESS, address)
        monkeypatch.setattr(cluster, "WATCH_SECONDS", 0.1)
        with cluster.connect_client(1) as client:
            client.run(fill_memory, 0.87)
            workbench.wait_for(lambda: "is paused, until it holds less of its 572.20 MiB" in caplog.text)
            client.run(fill_memory, 0.97, on_error="ignore")  # it may end before it answers
            workbench.wait_for(lambda: "of 572.20 MiB and is restarted" in caplog.text)
