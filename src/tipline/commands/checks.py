"""What may be wrong with a project: each finding with the command that mends it."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any

import yaml

from tipline import cluster, files, git
from tipline.commands import check
from tipline.errors import TiplineError
from tipline.model import artifact, loader, pyfunc
from tipline.paths import month_name
from tipline.registry import history, model_versions, store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.store import Version
    from tipline.scoring.plan import Month

COMMITTED = ("params.yaml", "dvc.lock", "models/promotions.jsonl")
SCHEDULER_SECONDS = 5


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or worth a hint, and the command that mends it."""

    what: str
    todo: str
    wrong: bool = True


@dataclass(frozen=True)
class Registry:
    """What MLflow has."""

    champion: Version | None
    versions: Sequence[Version]
    words: Mapping[int, str]  # on the champion and on the newest version, by number
    environment: Mapping[str, str] | str | None  # the champion's libraries, as `environment` gives them

    @property
    def digests(self) -> set[str]:
        """The digests of all versions."""
        return {version.tags[store.DIGEST] for version in self.versions if store.DIGEST in version.tags}


@dataclass(frozen=True)
class State:
    """What the checks look at."""

    settings: Settings
    paths: Paths
    ref: Mapping[str, Any] | None  # the champion in models/champion/
    registry: Registry | None  # None where the store cannot be asked
    trouble: TiplineError | None  # why it cannot be
    planned: Sequence[Month]  # as `scoring.plan` gives them: months to score
    failed: Mapping[str, str]  # and those that cannot be


PIN = re.compile(r"^([\w.-]+)==([\w.]+)$", re.MULTILINE)


def read_environment(version: Version) -> dict[str, str] | str:
    """What a version's requirements.txt and MLmodel say of libraries and Python, by name; words where they cannot."""
    try:
        with model_versions.open_download(version) as root:
            pins = PIN.findall((root / "requirements.txt").read_text(encoding="utf-8"))
            flavors = yaml.safe_load((root / "MLmodel").read_text(encoding="utf-8"))["flavors"]
        return dict(pins) | {"python": str(flavors["python_function"].get("python_version", platform.python_version()))}
    except TiplineError as error:
        return error.parts[0]
    except (OSError, LookupError, TypeError, yaml.YAMLError):
        return "its files are no model"


# ---- the checks: None where there is nothing to look at ----


def store_answers(state: State) -> list[Finding]:
    """Whether MLflow's store answers."""
    if state.trouble is None:
        return []
    what, _, todo = state.trouble.parts
    return [Finding(what, todo)]


def alias(state: State) -> list[Finding] | None:
    """Whether the registry has the champion that scores here."""
    if state.registry is None or state.ref is None:
        return None
    if state.registry.champion is None:
        return [Finding("the registry has no champion, models/champion/ has one", "dvc repro")]
    written = history.read_last_champion(state.paths, state.settings.model.name)
    digest = state.registry.champion.tags.get(store.DIGEST)
    if written is not None and digest not in {None, written["digest"]}:
        what = "models/promotions.jsonl ends with another champion than the registry has"
        return [Finding(what, "git pull; then dvc repro register", wrong=False)]
    return []


def champion_files(state: State) -> list[Finding] | None:
    """Whether models/champion/ has the files of its digest."""
    paths = state.paths
    if state.ref is None:
        return [Finding("models/champion/ is not there", "dvc repro register")] if paths.predictions.is_dir() else None
    digest = artifact.try_read_digest(paths.champion)
    if digest == state.ref["digest"]:
        return []
    what = (
        "the files in models/champion/ are not those of its digest"
        if digest
        else "a file in models/champion/ is missing"
    )
    return [Finding(what, "dvc repro register")]


def challenger_files(state: State) -> list[Finding] | None:
    """Whether models/challenger/ is whole, and is what was registered."""
    if state.ref is None:
        return None
    digest = artifact.try_read_digest(state.paths.challenger)
    if digest is None:
        return [Finding("models/challenger/ is not whole: its training did not end", "dvc repro register")]
    if state.registry is not None and digest not in state.registry.digests:
        what = "models/challenger/ is in no version: not registered yet, or its files were changed"
        return [Finding(what, "dvc repro register", wrong=False)]
    return []


def artifacts(state: State) -> list[Finding] | None:
    """Whether the registry has the files of the champion's version."""
    if state.registry is None or state.registry.champion is None:
        return None
    version = state.registry.champion
    if not isinstance(state.registry.environment, str):
        return []
    what = f"version {version.version} in the registry: {state.registry.environment}"
    if state.ref is None or version.tags.get(store.DIGEST) != state.ref["digest"]:
        return [Finding(what, "tipline rollback, or bring MLflow's artifacts back")]
    return [Finding(what, register_again(version, store.get_store_address(state.paths)))]


def register_again(version: Version, address: str) -> str:
    """The command that takes a version and its run away, and registers the model in models/champion/ anew."""
    # A server's address, which may hold a password, is in MLFLOW_TRACKING_URI anyway.
    client = f"mlflow.MlflowClient({address!r})" if address.startswith("sqlite:") else "mlflow.MlflowClient()"
    run = f"c.delete_run({version.run_id!r}); " if version.run_id else ""
    gone = f"c.delete_model_version({version.name!r}, '{version.version}')"
    return f"python -c {shlex.quote(f'import mlflow; c = {client}; {run}{gone}')} && dvc repro"


def predictions(state: State) -> list[Finding]:
    """Whether months are as their manifests say; those that are still to be scored are none of it."""
    paths, found = state.paths, []
    folder = paths.predictions
    spoilt = [one.month for one in state.planned if claims(folder, one.month) == one.key]
    if spoilt:
        found.append(Finding(f"predictions are not as their manifests say: {', '.join(spoilt)}", "dvc repro"))
    lost = [month for month in state.failed if claims(folder, month)]
    if lost:
        again = " ".join(f"prepare@{month}" for month in lost)
        found.append(Finding(f"prepared months are lost or damaged: {', '.join(lost)}", f"dvc repro -f {again}"))
    return found


def claims(predictions: Path, month: str) -> Any:  # noqa: ANN401 (anything that json can hold)
    """What the predictions of a month say that they were made from."""
    manifest = files.try_read_json(predictions / month_name(month) / files.MANIFEST)
    return manifest.get("key") if isinstance(manifest, dict) else None


def libraries(state: State) -> list[Finding] | None:
    """Whether what is installed is what the champion was made with."""
    found = [one for one in (unusable(state), other_libraries(state)) if one is not None]
    return found[:1] or (None if state.ref is None else [])


def unusable(state: State) -> Finding | None:
    """Another scikit-learn under a model that needs it; a linear one is scored from model.json."""
    try:
        own = artifact.read_artifact(state.paths.champion)
        if pyfunc.ESTIMATOR not in own or json.loads(own[pyfunc.SPEC])["linear"] is not None:
            return None
        reason = loader.find_other_sklearn(own[pyfunc.ESTIMATOR])
    except (TiplineError, LookupError, ValueError):  # `champion_files` says so
        return None
    todo = "uv pip install --require-hashes -r requirements.lock; or train with it and promote: dvc repro -f train"
    return Finding(f"the champion {reason}", todo) if reason else None


def other_libraries(state: State) -> Finding | None:
    """Libraries of other versions: a hint, as the canary rows are scored before anything else is."""
    made = state.registry.environment if state.registry else None
    if made is None or isinstance(made, str):
        return None
    here = {name: release_here(name) for name in made}
    # The last number of a version is none that a model would notice.
    others = [name for name, pin in made.items() if loader.truncate_version(pin) != loader.truncate_version(here[name])]
    if not others:
        return None
    pins = " ".join(f"{name}=={pin}" for name, pin in made.items() if name != "python")
    what = ", ".join(f"{name} {made[name]} (here {here[name]})" for name in others)
    return Finding(f"the champion was made with {what}", f"uv pip install {pins}", wrong=False)


def release_here(name: str) -> str:
    """The version of a package, or of Python, that runs here."""
    try:
        return platform.python_version() if name == "python" else installed(name)
    except PackageNotFoundError:
        return "not installed"


def disk(state: State) -> list[Finding]:
    """Whether the months that are still to be fetched, prepared and scored have room, in data/ and in DVC's cache."""
    free, needed = shutil.disk_usage(state.paths.root).free, needed_bytes(state)
    if free >= needed:
        return []
    what = f"{check.format_size(free)} are free, the months to come need about {check.format_size(needed)}"
    return [Finding(what, "dvc gc -w (what it takes: docs/monthly.md)")]


def needed_bytes(state: State) -> float:
    """Twice what is still to be written, for DVC's cache may hold a copy; a new month is as large as the mean one."""
    trips, written, _ = check.measure_rates(state.paths)
    prepared = manifests(state.paths.prepared("*").parent, f"month=*/{files.MANIFEST}")
    raw = manifests(state.paths.raw_manifest("*").parent, "*.json")
    rows = check.compute_mean([(one["rows_out"], 1) for one in prepared])
    published = check.compute_mean([(one["bytes"], 1) for one in raw])
    scored = sum(block.rows for month in state.planned for block in month.open) * written
    new = [month for month in state.failed if not state.paths.prepared(month).is_dir()]
    return 2 * (scored + len(new) * (published + rows * (trips + written)))


def manifests(folder: Path, names: str) -> list[dict[str, Any]]:
    """The manifests below a folder."""
    return [found for path in folder.glob(names) if (found := files.try_read_json(path))]


def scheduler(state: State) -> list[Finding] | None:
    """Whether the scheduler that the environment names answers, and has workers."""
    del state
    address = os.environ.get(cluster.ADDRESS)
    if not address:
        return None
    try:
        with cluster.connect_remote(address, SCHEDULER_SECONDS):
            return []
    except TiplineError as error:
        what, where, todo = error.parts
        return [Finding(f"{what} ({where})", todo)]


def remote(state: State) -> list[Finding] | None:
    """Whether DVC has somewhere to keep what git does not."""
    if not (state.paths.root / ".dvc").is_dir():
        return None
    what = "DVC has no remote: data and models are on this disk alone"
    return [] if get_dvc_remote(state.paths.root) else [Finding(what, "dvc remote add -d NAME ADDRESS", wrong=False)]


def get_dvc_remote(root: Path) -> str | None:
    """The name of DVC's default remote."""
    from dvc.config import Config  # noqa: PLC0415 (half a second)

    name: str | None = Config(str(root / ".dvc"))["core"].get("remote")
    return name


def committed(state: State) -> list[Finding] | None:
    """Whether git has what tells how the results came about."""
    changed = git.list_uncommitted(state.paths.root, COMMITTED)
    if not changed:
        return None if changed is None else []
    names = " ".join(changed)
    return [Finding(f"not committed: {', '.join(changed)}", f"git add {names} && git commit", wrong=False)]


CHECKS: dict[str, Callable[[State], list[Finding] | None]] = {
    "store": store_answers,
    "alias": alias,
    "champion": champion_files,
    "challenger": challenger_files,
    "artifacts": artifacts,
    "predictions": predictions,
    "libraries": libraries,
    "disk": disk,
    "scheduler": scheduler,
    "remote": remote,
    "git": committed,
}


def run_checks(state: State) -> dict[str, list[Finding]]:
    """What each check found, but for those that have nothing to look at."""
    told = {name: check(state) for name, check in CHECKS.items()}
    return {name: found for name, found in told.items() if found is not None}
