"""A hostile model in the registry is refused with a reason, before anything of it runs.

Each model here would leave a file behind if it ran. Where MLflow alone would run it, the test shows that first.
"""

import contextlib
import functools
import io
import itertools
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import skops.io
import yaml
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient
from sklearn.linear_model import LogisticRegression

from tests import workbench
from tests.conftest import forget_store
from tipline import cluster
from tipline.errors import TiplineError
from tipline.model import artifact, loader, persistence, pyfunc
from tipline.paths import Paths
from tipline.registry import model_versions, runs, store

Change = Callable[[Path], None]
Cli = Callable[..., tuple[int, str]]

pytestmark = [
    *workbench.MLFLOW_WARNINGS,
    pytest.mark.filterwarnings("ignore:.*pickle.*"),
    pytest.mark.filterwarnings("ignore:.*Saving scikit-learn models.*"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.InconsistentVersionWarning"),
]
NAME = "tip-probability"
TRACE = "TIPLINE_TEST_TRACE"
LEAVE_TRACE = f"import os, pathlib\npathlib.Path(os.environ[{TRACE!r}]).touch()\n"
CHANGED = "are not those that were registered"
COUNT = itertools.count(1)
ESTIMATOR, SPEC, CODE = (f"{loader.ARTIFACTS}{name}" for name in (pyfunc.ESTIMATOR, pyfunc.SPEC, workbench.CODE))
OWN_FILES = {*loader.OWN_FILES, CODE}


class Intruder(LogisticRegression):  # type: ignore[misc]
    """Runs when it is loaded, as a pickle and from a skops file that is trusted."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        touch()
        self.__dict__.update(state)

    def __reduce__(self) -> tuple[Any, ...]:
        return touch, ()


INTRUDER = f"{Intruder.__module__}.{Intruder.__name__}"


def touch() -> None:
    Path(os.environ[TRACE]).touch()


@pytest.fixture(scope="module")
def project(scored_template: Paths, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    """A project with a champion; hostile versions are added to its registry, and no refusal changes it."""
    with forget_store():
        yield workbench.copy_with_store(scored_template, tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a hostile model would leave behind."""
    monkeypatch.setenv(TRACE, str(tmp_path / "trace"))
    return tmp_path / "trace"


@contextlib.contextmanager
def connect(paths: Paths) -> Iterator[MlflowClient]:
    with store.connect_store(paths) as client:
        yield client
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def copy_logged(paths: Paths) -> Path:
    """Copy the champion's files as MLflow logged them, with a digest of their own, for a test to change."""
    number = next(COUNT)
    folder = paths.root / "elsewhere" / str(number)
    with connect(paths) as client:
        logged = mlflow.artifacts.download_artifacts(client.get_model_version(NAME, "1").source)
    shutil.copytree(logged, folder, ignore=shutil.ignore_patterns(loader.MLFLOW_NOTE, loader.COMPILED))
    (folder / SPEC).write_text((folder / SPEC).read_text() + " " * number)
    return folder


def add(paths: Paths, folder: Path, tags: dict[str, str] | None = None) -> ModelVersion:
    """Register a folder with the tags that tipline would give the model, as an attacker can compute them."""
    if tags is None:
        loader.remove_leftovers(folder)
        digest = artifact.read_digest(folder / loader.ARTIFACTS)
        tags = {store.DIGEST: digest, loader.FILES: loader.hash_files(loader.read_files(folder, "here"))}
    with connect(paths) as client:
        return client.create_model_version(NAME, source=folder.as_uri(), tags=tags)


def test_run_and_version_carry_the_digest_of_all_files_but_compiled_code(project: Paths) -> None:
    """MLflow compiles a model's code where it lies; what is there could as well be something else."""
    with connect(project) as client:
        version = client.get_model_version(NAME, "1")
        logged = Path(mlflow.artifacts.download_artifacts(version.source))
        write("__pycache__/pyfunc.cpython-311.pyc", b"\0" * 16)(logged)
        run = client.get_run(version.run_id)
        with model_versions.open_download(version) as root:
            assert set(workbench.read_tree(root)) == OWN_FILES
            files = loader.read_files(root, "")
    with pytest.raises(TiplineError, match=r"types that tipline does not load: transformers_\w+\.OtherLevel"):
        loader.check_external_model(files, "here")  # without its tags, its code is anybody's
    assert version.tags[loader.FILES] == run.data.tags[loader.FILES] == loader.hash_files(files)


def write(name: str = "", data: bytes | str = b"", /, **settings: Any) -> Change:
    """Write a file, and change the settings of python_function in MLmodel; None removes one."""

    def change(folder: Path) -> None:
        if name:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        if settings:
            mlmodel = yaml.safe_load((folder / "MLmodel").read_text())
            conf = mlmodel["flavors"]["python_function"] | settings
            mlmodel["flavors"]["python_function"] = {key: value for key, value in conf.items() if value is not None}
            (folder / "MLmodel").write_text(yaml.safe_dump(mlmodel))

    return change


def change_code(name: str) -> Change:
    def change(folder: Path) -> None:
        code = (folder / name).read_text()
        (folder / name).write_text(code.replace("import numpy as np\n", f"import numpy as np\n{LEAVE_TRACE}"))

    return change


def pack(name: str, data: bytes, packed: int = zipfile.ZIP_STORED) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", packed) as file:
        file.writestr(name, data)
    return archive.getvalue()


def intruder(folder: Path, artifacts: str = "artifacts", **spec: Any) -> None:
    """Make the intruder the estimator, let MLflow's wrapper, if there is one, trust it, and change model.json."""
    (folder / artifacts / pyfunc.ESTIMATOR).write_bytes(persistence.make_canonical(skops.io.dumps(Intruder())))
    for code in folder.glob(loader.WRAPPER):
        code.write_text(code.read_text().replace('"functools.partial",', f'"functools.partial", "{INTRUDER}",'))
    model = folder / artifacts / pyfunc.SPEC
    model.write_text(json.dumps(json.loads(model.read_text()) | spec))


def replace_in_dump(dump: bytes, old: str, new: str) -> bytes:
    """A skops file with other text in it."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(dump)) as before, zipfile.ZipFile(changed, "w") as after:
        for entry in before.infolist():
            after.writestr(entry.filename, before.read(entry).replace(old.encode(), new.encode()))
    return changed.getvalue()


def set_sklearn_version(dump: bytes, version: str) -> bytes:
    """A skops file as another scikit-learn would have written it."""
    return replace_in_dump(dump, installed("scikit-learn"), version)


def other_sklearn(folder: Path, **spec: Any) -> None:
    (folder / ESTIMATOR).write_bytes(set_sklearn_version((folder / ESTIMATOR).read_bytes(), "1.2.0"))
    (folder / SPEC).write_text(json.dumps(json.loads((folder / SPEC).read_text()) | spec))


def sklearn_model(**options: Any) -> Change:
    def change(folder: Path) -> None:
        shutil.rmtree(folder)
        fitted = Intruder().fit([[0.0], [1.0]], [0, 1])
        mlflow.sklearn.save_model(fitted, str(folder), pip_requirements=["scikit-learn"], **options)

    return change


OTHER_LOADER = f"{LEAVE_TRACE}\ndef _load_pyfunc(path): return None\n"
change_loader = write("code/other_loader.py", OTHER_LOADER, loader_module="other_loader", code="code")
PICKLED = pickle.dumps(Intruder())
PICKLE_LOADER = {"loader_module": "mlflow.pyfunc.model", "python_model": "model.pkl", "model_code_path": None}
CODE_LOADER = {"python_model": "model.pkl", "model_code_path": None}
BOMB = pack("schema.json", b" " * (loader.UNPACKED_BYTES + 1), zipfile.ZIP_DEFLATED)
OUTSIDE = {"model.json": {"path": "../../../../mlflow.db", "uri": "x"}}
GADGET = skops.io.dumps(functools.partial(pd.read_pickle, "model.pkl"))
RUNNING_YAML = f"flavors: {{python_function: !!python/object/apply:{__name__}.touch []}}"
UNTRUSTED = f"has types that tipline does not load: {INTRUDER}"
TRUSTING = {"serialization_format": "skops", "skops_trusted_types": [INTRUDER]}
# Registered by its tags as tipline's and changed then; registered as tipline's after the change; anybody's.
THEN, OWN, ANY = "changed then", "tipline's", "somebody's"
RUNS = True  # MLflow alone would run it
REFUSED: list[tuple[str, Change, str, bool]] = [
    (THEN, change_code(loader.WRAPPER), CHANGED, RUNS),
    (THEN, change_loader, CHANGED, RUNS),
    (THEN, write("added.txt"), CHANGED, False),
    (OWN, write("weights.json", PICKLED), "weights.json may be a pickle", False),
    (OWN, write("notes.txt"), "tipline's models have no file notes.txt", False),
    (OWN, write("artifacts/code/a.py"), "tipline's models have no file artifacts/code/a.py", False),
    (OWN, write("requirements.txt", pack("a", b"")), "requirements.txt is not a readable skops file", False),
    (OWN, intruder, UNTRUSTED, False),
    (OWN, functools.partial(intruder, linear=None), UNTRUSTED, RUNS),
    (OWN, functools.partial(other_sklearn, linear=None), "was made with scikit-learn 1.2, this is", False),
    (ANY, change_loader, "names the loader other_loader", False),
    (ANY, write("model.pkl", PICKLED, **PICKLE_LOADER), "names the loader mlflow.pyfunc.model", RUNS),
    (ANY, write("model.pkl", PICKLED, **CODE_LOADER), "model_code_path: None", RUNS),
    (ANY, write("data/weights.bin", pickle.dumps(Intruder(), 0)), "data/weights.bin may be a pickle", False),
    (ANY, write("code/numpy.py", LEAVE_TRACE, code="code"), "modules of its own", False),
    (ANY, write(artifacts=OUTSIDE), "../../../../mlflow.db", False),
    (ANY, write(data="/etc"), "/etc", False),
    (ANY, write(data=ESTIMATOR), ESTIMATOR, False),
    (ANY, write("MLmodel", "flavors: [python_function: {"), "does not say how it is loaded", False),
    (ANY, write("MLmodel", RUNNING_YAML), "does not say how it is loaded", False),
    (ANY, write("sub/MLmodel", "flavors: {}"), "a second model", False),
    (ANY, write("a.json", pack("a/data.pkl", PICKLED)), "a.json is not a readable skops file", False),
    (ANY, write("a.skops", skops.io.dumps(Intruder())), f"a.skops {UNTRUSTED}", False),
    (ANY, write("a.skops", GADGET), "does not load: pandas.read_pickle", False),
    (ANY, write("a.skops", BOMB), "a.skops unpacks to far more", False),
    (ANY, sklearn_model(serialization_format="cloudpickle"), "cloudpickle for sklearn", RUNS),
    (ANY, sklearn_model(**TRUSTING), UNTRUSTED, RUNS),
]


@pytest.mark.parametrize(("whose", "change", "message", "runs"), REFUSED)
def test_version_that_could_run_other_code_is_refused(
    project: Paths, run_cli: Cli, trace: Path, whose: str, change: Change, message: str, *, runs: bool
) -> None:
    """No command accepts the version, forced or with its alias set in MLflow's page.

    The commands that ask first have one loader in common; they are tried where code would really run.
    """
    folder = copy_logged(project)
    if whose == THEN:
        version = add(project, folder)
    change(folder)
    if whose != THEN:
        version = add(project, folder, {} if whose == ANY else None)
    if runs:
        with contextlib.suppress(Exception):
            mlflow.pyfunc.load_model(str(folder))
        assert trace.exists()
    trace.unlink(missing_ok=True)
    before, number = workbench.read_tree(project.champion), str(version.version)
    asking = (f"promote {number}", f"compare champion {number} 2009-01") if runs else ()
    for command in (f"promote {number} --force ok", *asking):
        code, output = run_cli(project.root, *command.split())
        assert code in {1, 2}, output
        assert message in output
        assert f"version {number}" in output
    with connect(project) as client:
        assert int(client.get_model_version_by_alias(NAME, model_versions.CHAMPION).version) == 1
        client.set_registered_model_alias(NAME, model_versions.CHAMPION, number)
    code, output = run_cli(project.root, "register")
    with connect(project) as client:
        client.set_registered_model_alias(NAME, model_versions.CHAMPION, "1")
    assert code in {1, 2}, output
    assert message in output
    assert "Traceback" not in output
    assert "defect" not in output
    assert workbench.read_tree(project.champion) == before
    assert not trace.exists()


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").symlink_to("/etc/passwd")
    with pytest.raises(TiplineError, match=r"notes\.txt is a link"):
        loader.read_files(tmp_path, "here")


def test_linear_model_of_another_scikit_learn_is_scored_and_a_patch_release_is_accepted(project: Paths) -> None:
    folder = copy_logged(project)
    other_sklearn(folder)
    with connect(project), model_versions.open_download(add(project, folder)) as root:
        assert set(workbench.read_tree(root)) == OWN_FILES
    here = ".".join(installed("scikit-learn").split(".")[:2])
    dump = (project.champion / pyfunc.ESTIMATOR).read_bytes()
    code = pyfunc.list_code(artifact.read_artifact(project.champion))
    loader.check_skops("dump", set_sklearn_version(dump, f"{here}.99"), "here", code)


def test_poisoned_champion_is_not_loaded(
    scored_project: Paths, run_cli: Cli, trace: Path, dask_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """models/champion was changed with a matching ref.json, as a poisoned remote would bring it."""
    monkeypatch.setenv(cluster.ADDRESS, dask_address)
    folder, before = scored_project.champion, workbench.read_tree(scored_project.predictions)
    intruder(folder, ".", linear=None)
    ref = workbench.read_json(scored_project.champion_ref) | {"digest": artifact.read_digest(folder)}
    scored_project.champion_ref.write_text(json.dumps(ref))
    code, output = run_cli(scored_project.root, "score")
    assert code == 1
    assert UNTRUSTED in output
    _, evaluated = run_cli(scored_project.root, "evaluate")
    assert UNTRUSTED in evaluated + json.dumps(workbench.read_json(scored_project.evaluation))
    assert "Traceback" not in output + evaluated
    assert workbench.read_tree(scored_project.predictions) == before
    assert not trace.exists()


def own_code(folder: Path) -> None:
    """A model of tipline's with a code file that nobody has read."""
    (folder / loader.ARTIFACTS / "features.py").write_text(LEAVE_TRACE)
    (folder / SPEC).write_text(json.dumps(json.loads((folder / SPEC).read_text()) | {"linear": None}))


def own_transformers(folder: Path) -> None:
    """A model of tipline's whose copy of `transformers.py` does more than ours."""
    change_code(CODE)(folder)
    files = (artifact.TRANSFORMERS, folder / CODE)
    old, new = (pyfunc.name_module(workbench.CODE, path.read_bytes()) for path in files)
    (folder / ESTIMATOR).write_bytes(replace_in_dump((folder / ESTIMATOR).read_bytes(), old, new))


def forged_trust(folder: Path) -> dict[str, str]:
    """A pickle, with the tags that `promote --trust-code` would give it."""
    inputs = [{"name": "fare_amount", "type": "number", "declared": "double"}]
    spec = json.loads((folder / SPEC).read_text()) | {"name": "x", "inputs": inputs}
    sklearn_model(serialization_format="cloudpickle")(folder)
    digest = artifact.hash_artifact({f"mlflow/{name}": data for name, data in loader.read_files(folder, "").items()})
    return {store.DIGEST: digest, runs.EXTERNAL_SPEC: json.dumps(spec | {"trusted": digest})}


@pytest.mark.parametrize("command", ["promote {}", "promote {} --force ok", "compare 1 {} 2009-01"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (own_code, "carries code that this project does not have: features.py"),
        (own_transformers, "carries code that this project does not have: transformers.py"),
        (forged_trust, "cloudpickle for sklearn"),
    ],
)
def test_code_that_nobody_has_trusted_here_does_not_run(
    project: Paths, run_cli: Cli, trace: Path, make: Callable[[Path], dict[str, str] | None], message: str, command: str
) -> None:
    """The registry's tags, which an attacker can write, do not say that a person has read it."""
    folder = copy_logged(project)
    number = add(project, folder, make(folder)).version
    code, output = run_cli(project.root, *command.format(number).split())
    with connect(project) as client:
        client.set_registered_model_alias(NAME, model_versions.CHAMPION, "1")
    assert not trace.exists(), output
    assert code in {1, 2}, output
    assert message in output
