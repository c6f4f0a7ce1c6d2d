"""`tipline status`: show where the project stands and check it. Each finding names the command that fixes it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from tipline import files, validation
from tipline.commands.month import format_month
from tipline.errors import TiplineError, format_count, hide_secrets
from tipline.model import artifact, pyfunc
from tipline.paths import month_folder
from tipline.registry import champion, model_versions, store
from tipline.scoring import plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tipline.config import PartialSettings
    from tipline.paths import Paths
    from tipline.registry.store import Version

    # The problem, and the command that fixes it.
    Findings = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class State:
    """The state of the project. The versions are None if MLflow does not have them or does not answer."""

    paths: Paths
    settings: PartialSettings
    ref: Mapping[str, Any] | None  # models/champion/ref.json
    problem: TiplineError | None  # why MLflow does not answer
    champion: Version | None
    challenger: Version | None
    champion_digest: str | None  # of the version; without MLflow, of models/champion/
    challenger_digest: str | None  # of models/challenger/
    planned: Sequence[plan.Month]  # months to score
    failed: Mapping[str, str]  # months that cannot be scored, with the reason
    unscored: Sequence[str]  # both of these


def run(settings: PartialSettings, paths: Paths) -> Iterator[str]:
    """Yield the lines of the status. Raises TiplineError after the last line if a check found something wrong."""
    state = read_state(settings, paths)
    report, months = files.try_read_json(paths.evaluation), files.try_read_json(paths.monitoring / "months.json")
    findings = [*check_settings(state), *check_models(state), *check_months(state)]
    yield f"project     {paths.root}"
    yield f"store       {hide_secrets(store.get_store_address(paths))}"
    yield f"champion    {describe_champion(state)}"
    yield f"challenger  {describe_challenger(state)}"
    scored = len(settings.months) - len(state.unscored)
    yield f"months      {len(settings.months)}, {scored} scored with models/champion"
    yield f"unscored    {', '.join(state.unscored) or '-'}"
    yield f"evaluation  {report['verdict'] if report else 'none yet'}"
    yield from [f"gate        {report['gate']['words']}"] if report else []
    yield from format_month(months[-1]) if months else ["last month  none yet"]
    yield f"next        {findings[0][1] if findings else advise_next(state, report, months)}"
    yield f"checks      {format_count(len(findings), 'problem') if findings else 'all passed'}"
    yield from (f"wrong       {problem}. Fix: {fix}" for problem, fix in findings)
    if findings:
        todo = "Run the commands after `Fix:`, the first one first."
        raise TiplineError("Some checks failed.", str(paths.root), todo)


def read_state(settings: PartialSettings, paths: Paths) -> State:
    """Read the state; a store that does not answer does not hide the rest."""
    ref, challenger_digest = champion.read_champion_ref(paths), artifact.try_read_digest(paths.challenger)
    problem, champion_version, challenger_version = None, None, None
    name, database = settings.model_name, store.get_database_path(paths)
    try:
        if name and (database is None or database.is_file()):  # connecting would create it
            with store.connect_store(paths) as client:
                champion_version = model_versions.get_champion(client, name)
                if challenger_digest:
                    challenger_version = model_versions.find_version(client, name, challenger_digest)
    except TiplineError as error:
        problem = error
    champion_digest = champion_version.tags.get(store.DIGEST) if champion_version else None
    if problem and ref:
        champion_digest = ref["digest"]
    planned, failed = plan.plan_months(plan.Locations.resolve(paths), settings.months, ref["digest"] if ref else "")
    missing = {month.month for month in planned} | set(failed)
    unscored = [month for month in settings.months if ref is None or month in missing]
    versions = (champion_version, challenger_version, champion_digest, challenger_digest)
    return State(paths, settings, ref, problem, *versions, planned, failed, unscored)


def describe_champion(state: State) -> str:
    """Describe the version that MLflow calls champion; without MLflow, the one in models/champion/."""
    if state.problem:
        return f"version {state.ref['version']}, according to models/champion" if state.ref else "unknown"
    if state.champion is None:
        return "none yet"
    training = files.try_read_json(state.paths.champion / artifact.TRAINING)
    is_here = training and state.ref and state.ref["digest"] == state.champion_digest
    return f"version {state.champion.version}" + (f": {training['name']}" if is_here else "")


def describe_challenger(state: State) -> str:
    """Describe the model that this workspace trained."""
    training = files.try_read_json(state.paths.challenger / artifact.TRAINING)
    if state.challenger_digest is None or training is None:
        return "none yet"
    if state.challenger_digest == state.champion_digest:
        return "the champion"
    version = state.challenger
    return f"{f'version {version.version}' if version else 'not registered'}: {training['name']}"


def advise_next(state: State, report: Mapping[str, Any] | None, months: Sequence[Mapping[str, Any]] | None) -> str:
    """Advise what to type next, if no check found anything."""
    settings, version, ref = state.settings.settings, state.champion, state.ref
    if ref is None or version is None or state.challenger_digest is None:
        return "dvc repro"
    is_pinned = settings is not None and settings.score.model != model_versions.CHAMPION
    if state.champion_digest != ref["digest"] and not is_pinned:
        return f"dvc repro (the champion is version {version.version}, version {ref['version']} scored the months)"
    if state.unscored:
        return f"dvc repro ({format_count(len(state.unscored), 'month')} to score)"
    made = report["made"] if report else {}
    if not months or (made.get("challenger"), made.get("champion")) != (state.challenger_digest, ref["digest"]):
        return "dvc repro (reports are missing or out of date)"
    if report and report["gate"]["promote"] and state.challenger_digest != state.champion_digest:
        command = f"tipline promote {state.challenger.version}" if state.challenger else "dvc repro register"
        return f"{command} (the gate lets the challenger pass)"
    worse = ", ".join(month["month"] for month in months if month["verdict"] == "retrain")
    return f"train on later months: sample.months in params.yaml (scores of {worse} are poor)" if worse else "nothing"


def check_settings(state: State) -> Findings:
    """Check what every command needs: params.yaml, dvc.lock and MLflow."""
    if state.settings.problem:
        yield describe_problem(state.settings.problem)
    path = state.paths.root / "dvc.lock"
    if path.is_file() and validation.has_conflict(path):
        yield "dvc.lock has the markers of a merge conflict", "git checkout --ours dvc.lock && dvc repro"
    if state.problem:
        yield describe_problem(state.problem)


def describe_problem(error: TiplineError) -> tuple[str, str]:
    """Turn an error into a finding."""
    what, where, todo = error.parts
    return f"{what.removesuffix('.')} ({where})", todo


def check_models(state: State) -> Findings:
    """Check the two models against their digests and MLflow, and the champion against scikit-learn here."""
    ref, champion_folder = state.ref, state.paths.champion
    if ref is None:
        if state.paths.predictions.is_dir():
            yield "there are predictions, but no models/champion/", "dvc repro register"
        return
    if artifact.try_read_digest(champion_folder) != ref["digest"]:
        yield "models/champion/ lacks a file or has other files than the registered ones", "dvc repro register"
    if state.champion is None and state.problem is None and state.settings.model_name:
        yield "MLflow has no champion, but models/champion/ has one", "dvc repro register"
    if state.challenger_digest is None:
        yield "models/challenger/ lacks a file", "dvc repro register"
    training, spec = (files.try_read_json(champion_folder / name) for name in (artifact.TRAINING, pyfunc.SPEC))
    if training and spec and spec.get("linear") is None:  # a linear model is scored without scikit-learn
        trained, here = training["libraries"]["scikit-learn"], metadata.version("scikit-learn")
        if trained.split(".")[:2] != here.split(".")[:2]:
            problem = f"the champion was trained with scikit-learn {trained}, installed is {here}"
            yield problem, f"uv pip install scikit-learn=={trained} (or: dvc repro -f train, and promote the result)"


def check_months(state: State) -> Findings:
    """Check predictions against their manifests and prepared months; months that are still to be scored are fine."""
    paths = {month: month_folder(state.paths.predictions, month) / files.MANIFEST for month in state.settings.months}
    manifests = {month: files.try_read_json(path) for month, path in paths.items()}
    if damaged := [month.month for month in state.planned if (manifests[month.month] or {}).get("key") == month.key]:
        yield f"predictions differ from their manifests: {', '.join(damaged)}", "dvc repro score"
    if lost := [month for month in state.failed if manifests[month]]:
        targets = " ".join(f"prepare@{month}" for month in lost)
        yield f"prepared months are missing or damaged: {', '.join(lost)}", f"dvc repro -f {targets}"
