"""A hostile model in the registry is refused with a reason, before anything of it runs.

Each model here would leave a file behind if it ran. Where MLflow alone would run it, the test shows that first.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import pickle
import shutil
import zipfile
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import pytest
import skops.io
import yaml
from sklearn.linear_model import LogisticRegression

from tests import workbench
from tests.conftest import forget_store
from tipline import cluster
from tipline.errors import TiplineError
from tipline.model import artifact, golden_rows, loader, pipeline, pyfunc
from tipline.registry import model_versions, store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from tipline.paths import Paths

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
ESTIMATOR, SPEC = (loader.OWN_ARTIFACTS[name] for name in (pyfunc.ESTIMATOR, pyfunc.SPEC))


class Intruder(LogisticRegression):  # type: ignore[misc]
    """Runs when it is loaded, as a pickle and from a skops file that is trusted."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        touch()
        self.__dict__.update(state)

    def __reduce__(self) -> tuple[Any, ...]:
        return touch, ()


INTRUDER = f"{Intruder.__module__}.{Intruder.__name__}"


def touch() -> None:
    """Leave the trace."""
    Path(os.environ[TRACE]).touch()


def _load_pyfunc(path: str) -> None:
    """What MLflow calls of a module that MLmodel names as the loader."""
    del path
    touch()


@pytest.fixture(scope="module")
def project(
    trained_template: Paths, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Paths]:
    """A project with a champion; hostile versions are added to its registry, and no refusal changes it."""
    with forget_store():
        paths = workbench.copy_project(trained_template, tmp_path_factory.mktemp("hostile"))
        shutil.copyfile(mlflow_template, paths.root / "mlflow.db")
        workbench.run(paths, "register")
    with forget_store():
        yield paths


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


def get_logged(paths: Paths) -> Path:
    """Return the champion as MLflow logged it."""
    with connect(paths) as client:
        return Path(mlflow.artifacts.download_artifacts(client.get_model_version(NAME, "1").source))


def copy_logged(paths: Paths) -> Path:
    """Copy the champion's files as MLflow logged them, with a digest of their own, for a test to change."""
    number = next(COUNT)
    folder = paths.root / "elsewhere" / str(number)
    shutil.copytree(get_logged(paths), folder, ignore=shutil.ignore_patterns(loader.MLFLOW_NOTE, loader.COMPILED))
    (folder / SPEC).write_text((folder / SPEC).read_text() + " " * number)
    return folder


def compute_tags(folder: Path) -> dict[str, str]:
    """Return the tags that tipline would give the model, as an attacker can compute them."""
    loader.remove_leftovers(folder)
    names = {artifact.CODE: artifact.CODE, **loader.OWN_ARTIFACTS}
    digest = artifact.hash_artifact({name: (folder / path).read_bytes() for name, path in names.items()})
    return {store.DIGEST: digest, loader.FILES: loader.hash_files(loader.read_files(folder, "here"))}


def add(paths: Paths, folder: Path, tags: dict[str, str]) -> ModelVersion:
    """Register the files of a folder."""
    with connect(paths) as client:
        return client.create_model_version(NAME, source=folder.as_uri(), tags=tags)


def assert_refused(paths: Paths, version: ModelVersion, run_cli: Cli, trace: Path, message: str) -> None:
    """No command accepts the version, forced or with its alias set in MLflow's page."""
    before = workbench.read_tree(paths.champion)
    for forced in ((), ("--force", "I know better")):
        code, output = run_cli(paths.root, "promote", str(version.version), *forced)
        assert code in {1, 2}, output
        assert message in output
        assert f"version {version.version}" in output
    with connect(paths) as client:
        assert int(client.get_model_version_by_alias(NAME, model_versions.CHAMPION).version) == 1
        client.set_registered_model_alias(NAME, model_versions.CHAMPION, str(version.version))
    try:
        code, output = run_cli(paths.root, "register")
    finally:
        with connect(paths) as client:
            client.set_registered_model_alias(NAME, model_versions.CHAMPION, "1")
    assert code in {1, 2}, output
    assert message in output
    assert "Traceback" not in output
    assert "defect" not in output
    assert workbench.read_tree(paths.champion) == before
    assert not trace.exists()


def assert_mlflow_alone_runs_it(folder: Path, trace: Path) -> None:
    """The attack works: MLflow loads the model and the trace appears."""
    trace.unlink(missing_ok=True)
    with contextlib.suppress(Exception):
        mlflow.pyfunc.load_model(str(folder))
    assert trace.exists()
    trace.unlink()


# ---- changed after registration ----


@pytest.mark.parametrize("name", [*sorted(loader.OWN_FILES), "added.txt", "removed"])
def test_version_with_other_files_is_refused(project: Paths, name: str) -> None:
    folder = copy_logged(project)
    version = add(project, folder, compute_tags(folder))
    with connect(project), model_versions.open_download(version) as root:  # as it is, it is taken
        assert set(workbench.read_tree(root)) == loader.OWN_FILES
    if name == "removed":
        (folder / "conda.yaml").unlink()
    else:
        with (folder / name).open("ab") as file:
            file.write(b" ")
    with connect(project), pytest.raises(TiplineError, match=CHANGED), model_versions.open_download(version):
        pass


def change_code(folder: Path) -> None:
    code = folder / artifact.CODE
    code.write_text(code.read_text().replace("import functools\n", f"import functools\n{LEAVE_TRACE}"))


def change_settings(**settings: Any) -> Change:
    """Change the settings of python_function in MLmodel; None removes one."""

    def change(folder: Path) -> None:
        mlmodel = yaml.safe_load((folder / "MLmodel").read_text())
        conf = mlmodel["flavors"]["python_function"] | settings
        mlmodel["flavors"]["python_function"] = {name: value for name, value in conf.items() if value is not None}
        (folder / "MLmodel").write_text(yaml.safe_dump(mlmodel))

    return change


def write(name: str, data: bytes | str, **settings: Any) -> Change:
    """Write a file, and change the settings of python_function in MLmodel."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        if settings:
            change_settings(**settings)(folder)

    return change


OTHER_LOADER = f"{LEAVE_TRACE}\ndef _load_pyfunc(path): return None\n"
change_loader = write("code/other_loader.py", OTHER_LOADER, loader_module="other_loader", code="code")


@pytest.mark.parametrize("change", [change_code, change_loader])
def test_code_added_to_a_registered_version_does_not_run(
    project: Paths, run_cli: Cli, trace: Path, change: Change
) -> None:
    folder = copy_logged(project)
    version = add(project, folder, compute_tags(folder))
    change(folder)
    assert_mlflow_alone_runs_it(folder, trace)
    assert_refused(project, version, run_cli, trace, CHANGED)
    code, output = run_cli(project.root, "compare", "champion", str(version.version), "2009-01")
    assert code == 1
    assert CHANGED in output
    assert not trace.exists()


def test_run_and_version_carry_the_digest_of_all_files_but_compiled_code(project: Paths) -> None:
    """MLflow compiles a model's code where it lies; what is there could as well be something else."""
    write("__pycache__/pyfunc.cpython-311.pyc", b"\0" * 16)(get_logged(project))
    with connect(project) as client:
        version = client.get_model_version(NAME, "1")
        run = client.get_run(version.run_id)
        with model_versions.open_download(version) as root:
            assert not list(root.rglob("*.pyc"))
            files = loader.read_files(root, "")
    loader.check_external_model(files, "here")  # it is logged from code, as anybody's model may be
    digest = loader.hash_files(files)
    assert version.tags[loader.FILES] == run.data.tags[loader.FILES] == digest


# ---- built to mislead and registered like that ----


def pack(name: str, data: bytes, packed: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive with one entry."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", packed) as file:
        file.writestr(name, data)
    return archive.getvalue()


def change_spec(folder: Path, **changed: Any) -> None:
    """Change model.json."""
    spec = folder / pyfunc.SPEC
    spec.write_text(json.dumps(json.loads(spec.read_text()) | changed))


def write_intruder(folder: Path, artifacts: Path) -> None:
    """Make the intruder the estimator, and let the model's code trust it."""
    (artifacts / pyfunc.ESTIMATOR).write_bytes(pipeline.make_canonical(skops.io.dumps(Intruder())))
    code = folder / artifact.CODE
    code.write_text(code.read_text().replace('"functools.partial",', f'"functools.partial", "{INTRUDER}",'))


def intruder(folder: Path, **spec: Any) -> None:
    write_intruder(folder, folder / "artifacts")
    change_spec(folder / "artifacts", **spec)


def set_sklearn_version(dump: bytes, version: str) -> bytes:
    """A skops file as another scikit-learn would have written it."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(dump)) as before, zipfile.ZipFile(changed, "w") as after:
        for entry in before.infolist():
            data = before.read(entry)
            after.writestr(entry.filename, data.replace(installed("scikit-learn").encode(), version.encode()))
    return changed.getvalue()


def other_sklearn(folder: Path, **spec: Any) -> None:
    (folder / ESTIMATOR).write_bytes(set_sklearn_version((folder / ESTIMATOR).read_bytes(), "1.2.0"))
    change_spec(folder / "artifacts", **spec)


def yaml_that_would_run(folder: Path) -> None:
    call = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{os.environ[TRACE]}]]"
    (folder / "MLmodel").write_text(f"flavors: {{python_function: {call}}}")


def another_model_in_it(folder: Path) -> None:
    write("sub/MLmodel", (folder / "MLmodel").read_bytes())(folder)


PICKLED = pickle.dumps(Intruder())
PICKLE_LOADER = {"loader_module": "mlflow.pyfunc.model", "python_model": "model.pkl", "model_code_path": None}
CODE_LOADER = {"python_model": "model.pkl", "model_code_path": None}
BOMB = pack("schema.json", b" " * (loader.UNPACKED_BYTES + 1), zipfile.ZIP_DEFLATED)
OUTSIDE = {"model.json": {"path": "../../../../mlflow.db", "uri": "x"}}
GADGET = skops.io.dumps(functools.partial(pd.read_pickle, "model.pkl"))
ANY: dict[str, tuple[Change, str]] = {
    "another loader": (change_loader, "names the loader other_loader"),
    "loader that is here": (change_settings(loader_module="tests.test_loader"), "names the loader tests.test_loader"),
    "pickled model": (write("model.pkl", PICKLED, **PICKLE_LOADER), "names the loader mlflow.pyfunc.model"),
    "pickled model as code": (write("model.pkl", PICKLED, **CODE_LOADER), "model_code_path: None"),
    "pickle, protocol 0": (write("data/weights.bin", pickle.dumps(Intruder(), 0)), "data/weights.bin may be a pickle"),
    "pickle by content": (write("weights.json", PICKLED), "weights.json may be a pickle"),
    "pickle by name": (write("scaler.joblib", "who knows"), "scaler.joblib may be a pickle"),
    "torch's archive": (write("weights.bin", pack("a/data.pkl", PICKLED)), "weights.bin may be a pickle"),
    "shadowing modules": (write("code/numpy.py", LEAVE_TRACE, code="code"), "modules of its own"),
    "path outside": (change_settings(artifacts=OUTSIDE), "../../../../mlflow.db"),
    "path of the machine": (change_settings(data="/etc"), "/etc"),
    "path in a subfolder": (change_settings(data=ESTIMATOR), ESTIMATOR),
    "no yaml": (write("MLmodel", "flavors: [python_function: {"), "does not say how it is loaded"),
    "yaml that would run": (yaml_that_would_run, "does not say how it is loaded"),
    "another model": (another_model_in_it, "a second model"),
}
OWN: dict[str, tuple[Change, str]] = {
    "extra file": (write("notes.txt", ""), "tipline's models have no file notes.txt"),
    "archive by content": (write("requirements.txt", pack("a", b"")), "requirements.txt is not a readable skops file"),
    "untrusted estimator, not needed": (intruder, f"does not load: {INTRUDER}"),
    "untrusted estimator": (functools.partial(intruder, linear=None), f"does not load: {INTRUDER}"),
    "another scikit-learn": (functools.partial(other_sklearn, linear=None), "was made with scikit-learn 1.2, this is"),
}
EXTERNAL: dict[str, tuple[Change, str]] = {
    "archive by content": (write("a.json", pack("a/data.pkl", PICKLED)), "a.json is not a readable skops file"),
    "untrusted type": (
        write("a.skops", skops.io.dumps(Intruder())),
        f"a.skops has types that tipline does not load: {INTRUDER}",
    ),
    "untrusted function": (write("a.skops", GADGET), "does not load: pandas.read_pickle"),
    "zip bomb": (write("a.skops", BOMB), "a.skops unpacks to far more"),
}
TABLES = {"tipline's, by its tags": ANY | OWN, "somebody's": ANY | EXTERNAL}
MLFLOW_RUNS_IT = {"loader that is here", "pickled model", "pickled model as code", "untrusted estimator"}


@pytest.mark.parametrize(("whose", "name"), [(whose, name) for whose, table in TABLES.items() for name in table])
def test_version_that_could_run_other_code_is_refused(
    project: Paths, run_cli: Cli, trace: Path, whose: str, name: str
) -> None:
    folder, (change, message) = copy_logged(project), TABLES[whose][name]
    change(folder)
    version = add(project, folder, {} if whose == "somebody's" else compute_tags(folder))
    if name in MLFLOW_RUNS_IT:
        assert_mlflow_alone_runs_it(folder, trace)
    assert_refused(project, version, run_cli, trace, message)


def test_link_is_not_followed(project: Paths, run_cli: Cli, trace: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a key")
    folder = copy_logged(project)
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    version = add(project, folder, {})
    code, output = run_cli(project.root, "promote", str(version.version), "--force", "test")
    assert code != 0
    assert "a key" not in output
    assert not trace.exists()
    with pytest.raises(TiplineError, match=r"notes\.txt is a link"):
        loader.read_files(folder, "here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"serialization_format": "cloudpickle"}, "serialization_format: cloudpickle for sklearn"),
        ({"serialization_format": "pickle"}, "serialization_format: pickle for sklearn"),
        ({"serialization_format": "skops", "skops_trusted_types": [INTRUDER]}, f"does not load: {INTRUDER}"),
    ],
)
def test_sklearn_model_that_runs_code_is_refused_whatever_mlmodel_trusts(
    project: Paths, run_cli: Cli, trace: Path, options: dict[str, Any], message: str
) -> None:
    folder = project.root / "elsewhere" / str(next(COUNT))
    fitted = Intruder().fit([[0.0], [1.0]], [0, 1])
    mlflow.sklearn.save_model(fitted, str(folder), pip_requirements=["scikit-learn"], **options)
    assert_mlflow_alone_runs_it(folder, trace)
    assert_refused(project, add(project, folder, {}), run_cli, trace, message)


# ---- other releases of scikit-learn ----


def test_linear_model_of_another_scikit_learn_is_scored(project: Paths, tmp_path: Path) -> None:
    folder = copy_logged(project)
    other_sklearn(folder)
    version = add(project, folder, compute_tags(folder))
    with connect(project):
        model_versions.download_files(version, tmp_path)
    contents = artifact.read_artifact(tmp_path)
    assert golden_rows.check_golden_rows(artifact.load_model(contents, artifact.hash_artifact(contents)), "here") == 0


def test_other_patch_release_of_scikit_learn_is_accepted(project: Paths) -> None:
    dump = (project.champion / pyfunc.ESTIMATOR).read_bytes()
    here = ".".join(installed("scikit-learn").split(".")[:2])
    loader.check_skops("dump", set_sklearn_version(dump, f"{here}.99"), "here")
    for version in ("0.24.2", "2.0.dev0"):
        with pytest.raises(TiplineError, match=f"made with scikit-learn {version[:3]}"):
            loader.check_skops("dump", set_sklearn_version(dump, version), "here")


# ---- the champion's files, as git and DVC brought them ----


@pytest.mark.parametrize("stage", ["score", "evaluate"])
def test_poisoned_champion_is_not_loaded(
    scored_project: Paths, run_cli: Cli, trace: Path, dask_address: str, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """models/champion was changed with a matching ref.json, as a poisoned remote would bring it."""
    monkeypatch.setenv(cluster.ADDRESS, dask_address)
    folder, before = scored_project.champion, workbench.read_tree(scored_project.predictions)
    write_intruder(folder, folder)
    change_spec(folder, linear=None)
    ref = workbench.read_json(scored_project.champion_ref) | {"digest": artifact.read_digest(folder)}
    scored_project.champion_ref.write_text(json.dumps(ref))
    code, output = run_cli(scored_project.root, stage)
    if stage == "evaluate":
        output += json.dumps(workbench.read_json(scored_project.evaluation))
    else:
        assert code == 1
    assert f"does not load: {INTRUDER}" in output
    assert "Traceback" not in output
    assert workbench.read_tree(scored_project.predictions) == before
    assert not trace.exists()
