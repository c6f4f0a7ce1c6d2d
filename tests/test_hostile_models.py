"""A hostile model in the registry is refused, with a reason and before anything of it has run.

Each model here would leave a file behind if it ran; where MLflow alone would run it, that is shown first.
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
UNCHANGED = "are not those that were registered"
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
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    """A project with a champion; hostile versions are added to its registry, and no refusal changes it."""
    template = request.getfixturevalue("mlflow_template")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    paths = workbench.copy_project(workbench.trained(request), tmp_path_factory.mktemp("hostile"))
    shutil.copyfile(template, paths.root / "mlflow.db")
    workbench.run(paths, "register")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield paths
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a hostile model would leave a file."""
    monkeypatch.setenv(TRACE, str(tmp_path / "trace"))
    return tmp_path / "trace"


@contextlib.contextmanager
def connected(paths: Paths) -> Iterator[MlflowClient]:
    with store.connect_store(paths) as client:
        yield client
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def logged(paths: Paths) -> Path:
    """The champion as MLflow logged it."""
    with connected(paths) as client:
        found = model_versions.get_champion(client, NAME)
        assert found is not None
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=found.source))


def copied(paths: Paths) -> Path:
    """The champion's files as MLflow logged them, for a test to change; a model with a digest of its own."""
    number = next(COUNT)
    folder = paths.root / "elsewhere" / str(number)
    shutil.copytree(logged(paths), folder, ignore=shutil.ignore_patterns(loader.NOTE, loader.COMPILED))
    spec = folder / "artifacts" / pyfunc.SPEC
    spec.write_text(spec.read_text() + " " * number)
    return folder


def digest_of(folder: Path) -> str:
    """The digest that a model in this folder would be registered with."""
    names = {artifact.CODE: artifact.CODE, **loader.OWN_ARTIFACTS}
    return artifact.hash_artifact({name: (folder / path).read_bytes() for name, path in names.items()})


def consistent(folder: Path) -> dict[str, str]:
    """The tags of somebody who knows how tipline registers a model."""
    loader.remove_leftovers(folder)
    return {store.DIGEST: digest_of(folder), loader.FILES: loader.hash_files(loader.read_files(folder, "here"))}


def add(paths: Paths, folder: Path, tags: dict[str, str]) -> ModelVersion:
    """Register the files of a folder."""
    with connected(paths) as client:
        return client.create_model_version(NAME, source=folder.as_uri(), tags=tags)


def assert_refused(paths: Paths, version: ModelVersion, run_cli: Cli, trace: Path, said: str) -> None:
    """No command takes the version, forced or not, nor where its alias was set in MLflow's page."""
    before = workbench.read_tree(paths.champion)
    for forced in ((), ("--force", "I know better")):
        code, printed = run_cli(paths.root, "promote", str(version.version), *forced)
        assert code in {1, 2}, printed
        assert said in printed
        assert f"version {version.version}" in printed
    with connected(paths) as client:
        champion = model_versions.get_champion(client, NAME)
        assert champion is not None
        assert int(champion.version) == 1
        client.set_registered_model_alias(NAME, model_versions.CHAMPION, str(version.version))
    try:
        code, printed = run_cli(paths.root, "register")
    finally:
        with connected(paths) as client:
            client.set_registered_model_alias(NAME, model_versions.CHAMPION, "1")
    assert code in {1, 2}, printed
    assert said in printed
    assert "Traceback" not in printed
    assert "defect" not in printed
    assert workbench.read_tree(paths.champion) == before
    assert not trace.exists()


def assert_mlflow_alone_runs_it(folder: Path, trace: Path) -> None:
    """What a test warns of does happen: MLflow loads the model, and the trace is there."""
    with contextlib.suppress(Exception):
        mlflow.pyfunc.load_model(str(folder))
    assert trace.exists()
    trace.unlink()


def change_settings(folder: Path, **settings: Any) -> None:
    """Change what MLmodel says of python_function; None takes a setting away."""
    mlmodel = yaml.safe_load((folder / "MLmodel").read_text())
    conf = mlmodel["flavors"]["python_function"] | settings
    mlmodel["flavors"]["python_function"] = {name: value for name, value in conf.items() if value is not None}
    (folder / "MLmodel").write_text(yaml.safe_dump(mlmodel))


# ---- changed after it was registered ----

LOGGED = ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json", "pyfunc.py")
ARTIFACTS = ("artifacts/estimator.skops", "artifacts/model.json", "artifacts/training.json")


@pytest.mark.parametrize("name", [*LOGGED, "serving_input_example.json", *ARTIFACTS])
def test_a_version_of_which_a_file_was_changed_is_refused(project: Paths, name: str) -> None:
    folder = copied(project)
    version = add(project, folder, consistent(folder))
    with connected(project), model_versions.open_download(version) as root:  # as it is, it is taken
        assert (root / name).read_bytes() == (folder / name).read_bytes()
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with connected(project), pytest.raises(TiplineError, match=UNCHANGED), model_versions.open_download(version):
        pass


def change_code(folder: Path) -> None:
    code = folder / "pyfunc.py"
    code.write_text(code.read_text().replace("import functools\n", f"import functools\n{LEAVE_TRACE}"))


def change_loader(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "other_loader.py").write_text(f"{LEAVE_TRACE}\ndef _load_pyfunc(path): return None\n")
    change_settings(folder, loader_module="other_loader", code="code")


@pytest.mark.parametrize("change", [change_code, change_loader])
def test_code_that_was_put_into_a_registered_version_does_not_run(
    project: Paths, run_cli: Cli, trace: Path, change: Change
) -> None:
    folder = copied(project)
    version = add(project, folder, consistent(folder))
    change(folder)
    assert_mlflow_alone_runs_it(folder, trace)
    assert_refused(project, version, run_cli, trace, UNCHANGED)


@pytest.mark.parametrize("name", ["more.txt", "conda.yaml"])
def test_a_file_that_was_added_or_taken_away_is_seen(project: Paths, name: str) -> None:
    folder = copied(project)
    version = add(project, folder, consistent(folder))
    if (folder / name).exists():
        (folder / name).unlink()
    else:
        (folder / name).touch()
    with connected(project), pytest.raises(TiplineError, match=UNCHANGED), model_versions.open_download(version):
        pass


def test_the_tag_is_written_with_the_run_and_the_version(project: Paths) -> None:
    with connected(project) as client:
        version = client.get_model_version(NAME, "1")
        run = client.get_run(version.run_id)
        with model_versions.open_download(version) as root:
            assert (
                version.tags[loader.FILES]
                == run.data.tags[loader.FILES]
                == loader.hash_files(loader.read_files(root, ""))
            )


def test_compiled_code_in_the_store_is_left_out_whoever_wrote_it(project: Paths) -> None:
    """MLflow compiles a model's code where it lies; what is there could as well be something else."""
    compiled_code_beside_the_code(logged(project))
    with connected(project) as client:
        champion = model_versions.get_champion(client, NAME)
        assert champion is not None
        with model_versions.open_download(champion) as root:
            assert not list(root.rglob("*.pyc"))


# ---- built to mislead, and registered so ----


def own_loader_named_only(folder: Path) -> None:
    change_settings(folder, loader_module="tests.test_hostile_models")


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
    own_loader_named_only: "names the loader tests.test_hostile_models",
    pickled_model: "names the loader mlflow.pyfunc.model",
    pickle_without_a_name: "data/weights.bin is a pickle",
    pickle_by_name: "scaler.joblib is a pickle",
    modules_of_its_own: "modules of its own",
    path_outside: "../../../../mlflow.db",
    path_of_the_machine: "/etc",
    no_yaml: "says nothing of how it is loaded",
    yaml_that_would_run: "says nothing of how it is loaded",
    another_model_in_it: "another model in it",
}


@pytest.mark.parametrize("change", ANY)
@pytest.mark.parametrize("whose", ["tipline's, by its tags", "somebody's"])
def test_a_version_that_could_run_something_else_is_refused(
    project: Paths, run_cli: Cli, trace: Path, change: Change, whose: str
) -> None:
    folder = copied(project)
    change(folder)
    version = add(project, folder, {} if whose == "somebody's" else consistent(folder))
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
    ("change", "said"),
    [
        (torch_zip, "weights.bin has a pickle in it"),
        (skops_of_its_own_types, "extra.bin has types that tipline does not load from a file: tests.test_hostile"),
        (zip_bomb, "extra.bin unpacks to far more"),
    ],
)
def test_archives_of_somebodys_model_are_looked_into(
    project: Paths, run_cli: Cli, trace: Path, change: Change, said: str
) -> None:
    folder = copied(project)
    change(folder)
    assert_refused(project, add(project, folder, {}), run_cli, trace, said)


def test_a_file_that_tiplines_models_have_not_is_refused_in_one(project: Paths, run_cli: Cli, trace: Path) -> None:
    folder = copied(project)
    (folder / "notes.txt").touch()
    version = add(project, folder, consistent(folder))
    assert_refused(project, version, run_cli, trace, "notes.txt is no file of a model of tipline's")


def test_a_link_is_not_followed(project: Paths, run_cli: Cli, trace: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a key")
    folder = copied(project)
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    version = add(project, folder, {})
    code, printed = run_cli(project.root, "promote", str(version.version), "--force", "test")
    assert code != 0
    assert "a key" not in printed
    assert not trace.exists()
    with pytest.raises(TiplineError, match=r"notes\.txt is a link"):
        loader.read_files(folder, "here")


# ---- scikit-learn's models of somebody's, as MLflow logs them ----


def scikit_learn(paths: Paths, **options: Any) -> Path:
    """An estimator that runs when it is loaded, as a colleague's MLflow would write it."""
    folder = paths.root / "elsewhere" / str(next(COUNT))
    fitted = Intruder().fit([[0.0], [1.0]], [0, 1])
    mlflow.sklearn.save_model(fitted, str(folder), pip_requirements=["scikit-learn"], **options)
    return folder


INTRUDER = f"{Intruder.__module__}.{Intruder.__name__}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"serialization_format": "cloudpickle"}, "serialization_format: cloudpickle of sklearn"),
        ({"serialization_format": "pickle"}, "serialization_format: pickle of sklearn"),
        ({"serialization_format": "skops", "skops_trusted_types": [INTRUDER]}, f"from a file: {INTRUDER}"),
    ],
)
def test_an_estimator_that_runs_when_it_is_loaded_is_refused_whatever_mlmodel_trusts(
    project: Paths, run_cli: Cli, trace: Path, options: dict[str, Any], said: str
) -> None:
    folder = scikit_learn(project, **options)
    trace.unlink(missing_ok=True)  # MLflow loads what it has saved
    assert_mlflow_alone_runs_it(folder, trace)
    assert_refused(project, add(project, folder, {}), run_cli, trace, said)


# ---- estimators of tipline's models ----


def with_estimator(folder: Path, dump: bytes, **spec: Any) -> None:
    """Put another estimator into a model, and change what model.json says."""
    (folder / "artifacts" / pyfunc.ESTIMATOR).write_bytes(dump)
    told = json.loads((folder / "artifacts" / pyfunc.SPEC).read_text())
    (folder / "artifacts" / pyfunc.SPEC).write_text(json.dumps(told | spec))


def of_scikit_learn(dump: bytes, version: str) -> bytes:
    """A skops file as another scikit-learn would have written it."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(dump)) as before, zipfile.ZipFile(changed, "w") as after:
        for entry in before.infolist():
            data = before.read(entry)
            after.writestr(entry.filename, data.replace(installed("scikit-learn").encode(), version.encode()))
    return changed.getvalue()


@pytest.mark.parametrize("kind", ["linear", "not linear"])
def test_an_estimator_with_a_type_that_is_not_on_tiplines_list_is_refused(
    project: Paths, run_cli: Cli, trace: Path, kind: str
) -> None:
    folder = copied(project)
    dump = pipeline.canonical(skops.io.dumps(Intruder()))
    with_estimator(folder, dump, **({} if kind == "linear" else {"linear": None}))
    skops.io.loads(dump, trusted=[INTRUDER])
    assert trace.exists()
    trace.unlink()
    # Its own list is no help: the one that counts is tipline's.
    code = folder / "pyfunc.py"
    code.write_text(code.read_text().replace('"numpy.dtype",', f'"numpy.dtype", "{INTRUDER}",'))
    if kind != "linear":
        assert_mlflow_alone_runs_it(folder, trace)
    assert_refused(project, add(project, folder, consistent(folder)), run_cli, trace, f"from a file: {INTRUDER}")


def test_an_estimator_of_another_scikit_learn_is_refused_where_it_is_needed(
    project: Paths, run_cli: Cli, trace: Path
) -> None:
    folder = copied(project)
    dump = (folder / "artifacts" / pyfunc.ESTIMATOR).read_bytes()
    with_estimator(folder, of_scikit_learn(dump, "1.2.0"), linear=None)
    version = add(project, folder, consistent(folder))
    assert_refused(project, version, run_cli, trace, "was made with scikit-learn 1.2, here is")


def test_a_linear_model_of_another_scikit_learn_is_scored_without_it(project: Paths, tmp_path: Path) -> None:
    folder = copied(project)
    dump = (folder / "artifacts" / pyfunc.ESTIMATOR).read_bytes()
    with_estimator(folder, of_scikit_learn(dump, "1.2.0"))
    version = add(project, folder, consistent(folder))
    with connected(project):
        (tmp_path / "model").mkdir()
        model_versions.download_files(version, tmp_path / "model")
    contents = artifact.read_artifact(tmp_path / "model")
    assert golden_rows.check_golden_rows(artifact.load_model(contents, artifact.hash_artifact(contents)), "here") == 0


def test_another_patch_release_of_scikit_learn_will_do(project: Paths) -> None:
    contents = artifact.read_artifact(project.champion)
    here = loader.truncate_version(installed("scikit-learn"))
    for version, refused in ((f"{here}.99", False), ("0.24.2", True), ("2.0.dev0", True)):
        dump = of_scikit_learn(contents[pyfunc.ESTIMATOR], version)
        assert bool(loader.find_other_sklearn(dump)) == refused


# ---- the champion's files, as git and DVC brought them ----


@pytest.fixture
def poisoned(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A project whose models/champion was changed, with a ref.json that fits: what a poisoned remote would bring."""
    monkeypatch.setenv(cluster.ADDRESS, workbench.dask_cluster(request))
    paths = workbench.copy_project(workbench.scored(request), tmp_path)
    told = json.loads((paths.champion / pyfunc.SPEC).read_text())
    (paths.champion / pyfunc.SPEC).write_text(json.dumps(told | {"linear": None}))
    (paths.champion / pyfunc.ESTIMATOR).write_bytes(pipeline.canonical(skops.io.dumps(Intruder())))
    code = paths.champion / "pyfunc.py"
    code.write_text(code.read_text().replace('"numpy.dtype",', f'"numpy.dtype", "{INTRUDER}",'))
    ref = workbench.read_json(paths.champion_ref)
    paths.champion_ref.write_text(json.dumps(ref | {"digest": artifact.read_digest(paths.champion)}))
    return paths


def test_workers_look_at_the_estimator_too(poisoned: Paths, run_cli: Cli, trace: Path) -> None:
    before = workbench.read_tree(poisoned.predictions)
    code, printed = run_cli(poisoned.root, "score")
    assert code == 1
    assert f"from a file: {INTRUDER}" in printed
    assert "Traceback" not in printed
    assert workbench.read_tree(poisoned.predictions) == before
    assert not trace.exists()


def test_evaluate_does_not_load_it_and_says_why(poisoned: Paths, run_cli: Cli, trace: Path) -> None:
    code, printed = run_cli(poisoned.root, "evaluate")
    assert INTRUDER in printed + json.dumps(workbench.read_json(poisoned.evaluation)), code
    assert not trace.exists()


def test_compare_refuses_a_hostile_version(project: Paths, run_cli: Cli, trace: Path) -> None:
    folder = copied(project)
    version = add(project, folder, consistent(folder))
    change_code(folder)
    code, printed = run_cli(project.root, "compare", "champion", str(version.version), "2009-01")
    assert code == 1
    assert UNCHANGED in printed
    assert not trace.exists()
