"""A hostile model in the registry is refused with a reason, before anything of it runs.

Each model here would leave a file behind if it ran. Where MLflow alone would run it, the test shows that first.
"""

from __future__ import annotations

import contextlib
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


class Intruder(LogisticRegression):  # type: ignore[misc]
    """Runs when it is loaded, as a pickle and from a skops file that is trusted."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        touch()
        self.__dict__.update(state)

    def __reduce__(self) -> tuple[Any, ...]:
        return touch, ()


def touch() -> None:
    """Leave the trace."""
    Path(os.environ[TRACE]).touch()


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
        found = model_versions.get_champion(client, NAME)
        assert found is not None
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=found.source))


def copy_logged(paths: Paths) -> Path:
    """Copy the champion's files as MLflow logged them, with a digest of their own, for a test to change."""
    number = next(COUNT)
    folder = paths.root / "elsewhere" / str(number)
    shutil.copytree(get_logged(paths), folder, ignore=shutil.ignore_patterns(loader.MLFLOW_NOTE, loader.COMPILED))
    spec = folder / "artifacts" / pyfunc.SPEC
    spec.write_text(spec.read_text() + " " * number)
    return folder


def digest_of(folder: Path) -> str:
    """Return the digest that a model in this folder would be registered with."""
    names = {artifact.CODE: artifact.CODE, **loader.OWN_ARTIFACTS}
    return artifact.hash_artifact({name: (folder / path).read_bytes() for name, path in names.items()})


def compute_tags(folder: Path) -> dict[str, str]:
    """Return the tags that tipline would give the model, as an attacker can compute them."""
    loader.remove_leftovers(folder)
    return {store.DIGEST: digest_of(folder), loader.FILES: loader.hash_files(loader.read_files(folder, "here"))}


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
        champion = model_versions.get_champion(client, NAME)
        assert champion is not None
        assert int(champion.version) == 1
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
    with contextlib.suppress(Exception):
        mlflow.pyfunc.load_model(str(folder))
    assert trace.exists()
    trace.unlink()


def change_settings(folder: Path, **settings: Any) -> None:
    """Change the settings of python_function in MLmodel; None removes one."""
    mlmodel = yaml.safe_load((folder / "MLmodel").read_text())
    conf = mlmodel["flavors"]["python_function"] | settings
    mlmodel["flavors"]["python_function"] = {name: value for name, value in conf.items() if value is not None}
    (folder / "MLmodel").write_text(yaml.safe_dump(mlmodel))


# ---- changed after registration ----

LOGGED = ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json", "pyfunc.py")
ARTIFACTS = ("artifacts/estimator.skops", "artifacts/model.json", "artifacts/training.json")


@pytest.mark.parametrize("name", [*LOGGED, "serving_input_example.json", *ARTIFACTS])
def test_version_with_a_changed_file_is_refused(project: Paths, name: str) -> None:
    folder = copy_logged(project)
    version = add(project, folder, compute_tags(folder))
    with connect(project), model_versions.open_download(version) as root:  # as it is, it is taken
        assert (root / name).read_bytes() == (folder / name).read_bytes()
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with connect(project), pytest.raises(TiplineError, match=CHANGED), model_versions.open_download(version):
        pass


def change_code(folder: Path) -> None:
    code = folder / "pyfunc.py"
    code.write_text(code.read_text().replace("import functools\n", f"import functools\n{LEAVE_TRACE}"))


def change_loader(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "other_loader.py").write_text(f"{LEAVE_TRACE}\ndef _load_pyfunc(path): return None\n")
    change_settings(folder, loader_module="other_loader", code="code")


@pytest.mark.parametrize("change", [change_code, change_loader])
def test_code_added_to_a_registered_version_does_not_run(
    project: Paths, run_cli: Cli, trace: Path, change: Change
) -> None:
    folder = copy_logged(project)
    version = add(project, folder, compute_tags(folder))
    change(folder)
    assert_mlflow_alone_runs_it(folder, trace)
    assert_refused(project, version, run_cli, trace, CHANGED)


@pytest.mark.parametrize("name", ["more.txt", "conda.yaml"])
def test_added_or_removed_file_is_noticed(project: Paths, name: str) -> None:
    folder = copy_logged(project)
    version = add(project, folder, compute_tags(folder))
    if (folder / name).exists():
        (folder / name).unlink()
    else:
        (folder / name).touch()
    with connect(project), pytest.raises(TiplineError, match=CHANGED), model_versions.open_download(version):
        pass


def test_run_and_version_carry_the_digest_of_all_files(project: Paths) -> None:
    with connect(project) as client:
        version = client.get_model_version(NAME, "1")
        run = client.get_run(version.run_id)
        with model_versions.open_download(version) as root:
            assert (
                version.tags[loader.FILES]
                == run.data.tags[loader.FILES]
                == loader.hash_files(loader.read_files(root, ""))
            )


def test_compiled_code_in_the_store_is_left_out(project: Paths) -> None:
    """MLflow compiles a model's code where it lies; what is there could as well be something else."""
    compiled_code_beside_the_code(get_logged(project))
    with connect(project) as client:
        champion = model_versions.get_champion(client, NAME)
        assert champion is not None
        with model_versions.open_download(champion) as root:
            assert not list(root.rglob("*.pyc"))


# ---- built to mislead and registered like that ----


def own_loader_named_only(folder: Path) -> None:
    change_settings(folder, loader_module="tests.test_loader")


def _load_pyfunc(path: str) -> None:
    """What MLflow calls of a module that MLmodel names as the loader."""
    del path
    touch()


def pickled_model(folder: Path) -> None:
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Intruder()))
    change_settings(folder, loader_module="mlflow.pyfunc.model", python_model="python_model.pkl", model_code_path=None)


def pickle_without_a_name(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "weights.bin").write_bytes(pickle.dumps(Intruder(), protocol=0))


def pickle_by_name(folder: Path) -> None:
    (folder / "scaler.joblib").write_bytes(b"who knows")


def modules_of_its_own(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "numpy.py").write_text(LEAVE_TRACE)
    change_settings(folder, code="code")


def compiled_code_beside_the_code(folder: Path) -> None:
    (folder / "__pycache__").mkdir(exist_ok=True)
    (folder / "__pycache__" / "pyfunc.cpython-311.pyc").write_bytes(b"\0" * 16)


def path_outside(folder: Path) -> None:
    change_settings(folder, artifacts={"model.json": {"path": "../../../../mlflow.db", "uri": "x"}})


def path_of_the_machine(folder: Path) -> None:
    change_settings(folder, data="/etc")


def no_yaml(folder: Path) -> None:
    (folder / "MLmodel").write_text("flavors: [python_function: {")


def yaml_that_would_run(folder: Path) -> None:
    call = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{os.environ[TRACE]}]]"
    (folder / "MLmodel").write_text(f"flavors: {{python_function: {call}}}")


def another_model_in_it(folder: Path) -> None:
    (folder / "sub").mkdir()
    shutil.copyfile(folder / "MLmodel", folder / "sub" / "MLmodel")


ANY: dict[Change, str] = {
    change_loader: "names the loader other_loader",
    own_loader_named_only: "names the loader tests.test_loader",
    pickled_model: "names the loader mlflow.pyfunc.model",
    pickle_without_a_name: "data/weights.bin is a pickle",
    pickle_by_name: "scaler.joblib is a pickle",
    modules_of_its_own: "modules of its own",
    path_outside: "../../../../mlflow.db",
    path_of_the_machine: "/etc",
    no_yaml: "does not say how it is loaded",
    yaml_that_would_run: "does not say how it is loaded",
    another_model_in_it: "contains a second model",
}


@pytest.mark.parametrize("change", ANY)
@pytest.mark.parametrize("whose", ["tipline's, by its tags", "somebody's"])
def test_version_that_could_run_other_code_is_refused(
    project: Paths, run_cli: Cli, trace: Path, change: Change, whose: str
) -> None:
    folder = copy_logged(project)
    change(folder)
    version = add(project, folder, {} if whose == "somebody's" else compute_tags(folder))
    if change in {own_loader_named_only, pickled_model}:
        assert_mlflow_alone_runs_it(folder, trace)
    assert_refused(project, version, run_cli, trace, ANY[change])


def torch_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "weights.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Intruder()))


def skops_of_its_own_types(folder: Path) -> None:
    (folder / "extra.bin").write_bytes(skops.io.dumps(Intruder()))


def zip_bomb(folder: Path) -> None:
    with zipfile.ZipFile(folder / "extra.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b" " * (loader.UNPACKED_BYTES + 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch_zip, "weights.bin contains a pickle"),
        (skops_of_its_own_types, "extra.bin has types that tipline does not load: tests.test_loader"),
        (zip_bomb, "extra.bin unpacks to far more"),
    ],
)
def test_archives_of_external_models_are_inspected(
    project: Paths, run_cli: Cli, trace: Path, change: Change, message: str
) -> None:
    folder = copy_logged(project)
    change(folder)
    assert_refused(project, add(project, folder, {}), run_cli, trace, message)


def test_extra_file_in_tiplines_model_is_refused(project: Paths, run_cli: Cli, trace: Path) -> None:
    folder = copy_logged(project)
    (folder / "notes.txt").touch()
    version = add(project, folder, compute_tags(folder))
    assert_refused(project, version, run_cli, trace, "tipline's models have no file notes.txt")


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


# ---- external scikit-learn models ----


def save_sklearn_model(paths: Paths, **options: Any) -> Path:
    """An estimator that runs when it is loaded, as a colleague's MLflow would write it."""
    folder = paths.root / "elsewhere" / str(next(COUNT))
    fitted = Intruder().fit([[0.0], [1.0]], [0, 1])
    mlflow.sklearn.save_model(fitted, str(folder), pip_requirements=["scikit-learn"], **options)
    return folder


INTRUDER = f"{Intruder.__module__}.{Intruder.__name__}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"serialization_format": "cloudpickle"}, "serialization_format: cloudpickle for sklearn"),
        ({"serialization_format": "pickle"}, "serialization_format: pickle for sklearn"),
        ({"serialization_format": "skops", "skops_trusted_types": [INTRUDER]}, f"does not load: {INTRUDER}"),
    ],
)
def test_estimator_that_runs_code_is_refused_whatever_mlmodel_trusts(
    project: Paths, run_cli: Cli, trace: Path, options: dict[str, Any], message: str
) -> None:
    folder = save_sklearn_model(project, **options)
    trace.unlink(missing_ok=True)  # MLflow loads what it has saved
    assert_mlflow_alone_runs_it(folder, trace)
    assert_refused(project, add(project, folder, {}), run_cli, trace, message)


# ---- estimators of tipline's models ----


def replace_estimator(folder: Path, dump: bytes, **spec: Any) -> None:
    """Put another estimator into a model, and change what model.json says."""
    (folder / "artifacts" / pyfunc.ESTIMATOR).write_bytes(dump)
    spec_ = json.loads((folder / "artifacts" / pyfunc.SPEC).read_text())
    (folder / "artifacts" / pyfunc.SPEC).write_text(json.dumps(spec_ | spec))


def set_sklearn_version(dump: bytes, version: str) -> bytes:
    """A skops file as another scikit-learn would have written it."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(dump)) as before, zipfile.ZipFile(changed, "w") as after:
        for entry in before.infolist():
            data = before.read(entry)
            after.writestr(entry.filename, data.replace(installed("scikit-learn").encode(), version.encode()))
    return changed.getvalue()


@pytest.mark.parametrize("kind", ["linear", "not linear"])
def test_estimator_with_an_untrusted_type_is_refused(project: Paths, run_cli: Cli, trace: Path, kind: str) -> None:
    folder = copy_logged(project)
    dump = pipeline.make_canonical(skops.io.dumps(Intruder()))
    replace_estimator(folder, dump, **({} if kind == "linear" else {"linear": None}))
    skops.io.loads(dump, trusted=[INTRUDER])
    assert trace.exists()
    trace.unlink()
    # Its own list is no help: the one that counts is tipline's.
    code = folder / "pyfunc.py"
    code.write_text(code.read_text().replace('"numpy.dtype",', f'"numpy.dtype", "{INTRUDER}",'))
    if kind != "linear":
        assert_mlflow_alone_runs_it(folder, trace)
    assert_refused(project, add(project, folder, compute_tags(folder)), run_cli, trace, f"does not load: {INTRUDER}")


def test_estimator_of_another_scikit_learn_is_refused_if_needed(project: Paths, run_cli: Cli, trace: Path) -> None:
    folder = copy_logged(project)
    dump = (folder / "artifacts" / pyfunc.ESTIMATOR).read_bytes()
    replace_estimator(folder, set_sklearn_version(dump, "1.2.0"), linear=None)
    version = add(project, folder, compute_tags(folder))
    assert_refused(project, version, run_cli, trace, "was made with scikit-learn 1.2, this is")


def test_linear_model_of_another_scikit_learn_is_scored(project: Paths, tmp_path: Path) -> None:
    folder = copy_logged(project)
    dump = (folder / "artifacts" / pyfunc.ESTIMATOR).read_bytes()
    replace_estimator(folder, set_sklearn_version(dump, "1.2.0"))
    version = add(project, folder, compute_tags(folder))
    with connect(project):
        (tmp_path / "model").mkdir()
        model_versions.download_files(version, tmp_path / "model")
    contents = artifact.read_artifact(tmp_path / "model")
    assert golden_rows.check_golden_rows(artifact.load_model(contents, artifact.hash_artifact(contents)), "here") == 0


def test_other_patch_release_of_scikit_learn_is_accepted(project: Paths) -> None:
    contents = artifact.read_artifact(project.champion)
    here = loader.truncate_version(installed("scikit-learn"))
    for version, refused in ((f"{here}.99", False), ("0.24.2", True), ("2.0.dev0", True)):
        dump = set_sklearn_version(contents[pyfunc.ESTIMATOR], version)
        assert bool(loader.find_other_sklearn(dump)) == refused


# ---- the champion's files, as git and DVC brought them ----


@pytest.fixture
def poisoned(scored_project: Paths, dask_address: str, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A project with a changed models/champion and a matching ref.json, as a poisoned remote would bring it."""
    monkeypatch.setenv(cluster.ADDRESS, dask_address)
    paths = scored_project
    spec_ = json.loads((paths.champion / pyfunc.SPEC).read_text())
    (paths.champion / pyfunc.SPEC).write_text(json.dumps(spec_ | {"linear": None}))
    (paths.champion / pyfunc.ESTIMATOR).write_bytes(pipeline.make_canonical(skops.io.dumps(Intruder())))
    code = paths.champion / "pyfunc.py"
    code.write_text(code.read_text().replace('"numpy.dtype",', f'"numpy.dtype", "{INTRUDER}",'))
    ref = workbench.read_json(paths.champion_ref)
    paths.champion_ref.write_text(json.dumps(ref | {"digest": artifact.read_digest(paths.champion)}))
    return paths


def test_workers_inspect_the_estimator(poisoned: Paths, run_cli: Cli, trace: Path) -> None:
    before = workbench.read_tree(poisoned.predictions)
    code, output = run_cli(poisoned.root, "score")
    assert code == 1
    assert f"does not load: {INTRUDER}" in output
    assert "Traceback" not in output
    assert workbench.read_tree(poisoned.predictions) == before
    assert not trace.exists()


def test_evaluate_does_not_load_it(poisoned: Paths, run_cli: Cli, trace: Path) -> None:
    code, output = run_cli(poisoned.root, "evaluate")
    assert INTRUDER in output + json.dumps(workbench.read_json(poisoned.evaluation)), code
    assert not trace.exists()


def test_compare_refuses_a_hostile_version(project: Paths, run_cli: Cli, trace: Path) -> None:
    folder = copy_logged(project)
    version = add(project, folder, compute_tags(folder))
    change_code(folder)
    code, output = run_cli(project.root, "compare", "champion", str(version.version), "2009-01")
    assert code == 1
    assert CHANGED in output
    assert not trace.exists()
