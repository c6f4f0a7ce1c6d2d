"""`tipline status`: show where the project stands and check it. Each finding names the command that fixes it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tipline import files, formats, validation
from tipline.commands.month import format_month
from tipline.config import PartialSettings
from tipline.errors import TiplineError, format_count, hide_secrets
from tipline.ingest import losses
from tipline.model import artifact, pyfunc
from tipline.monitoring.causes import ADVICE
from tipline.paths import Paths
from tipline.registry import champion, location, model_versions, store
from tipline.scoring import plan


@dataclass(frozen=True)
class Models:
    ref: champion.Ref | None  # models/champion/ref.json
    challenger_digest: str | None  # of models/challenger/
    # In MLflow; None if it does not have them or does not answer.
    champion: store.Version | None = None
    challenger: store.Version | None = None
    problem: TiplineError | None = None  # why MLflow does not answer

    @property
    def champion_digest(self) -> str | None:
        """The digest of MLflow's champion, or if that does not answer of the one in models/champion/."""
        if self.problem and self.ref:
            return str(self.ref["digest"])
        return self.champion.tags.get(store.DIGEST) if self.champion else None


def run(settings: PartialSettings, paths: Paths) -> Iterator[str]:
    """Yield the lines of the status. Raises TiplineError after the last line if a check found something wrong."""
    models = read_models(settings, paths)
    digest = models.ref["digest"] if models.ref else ""
    ids = settings.settings.score.id_columns if settings.settings else ()
    unscored, spec = list(settings.months), files.try_read_json(paths.champion / pyfunc.SPEC)
    if spec:
        planned, failed = plan.plan_months(plan.Locations.resolve(settings, paths), settings.months, digest, spec, ids)
        unscored = sorted({*(month.month for month in planned), *failed})
    report, months = files.try_read_json(paths.evaluation), files.try_read_json(paths.monitoring / "months.json")
    findings = list(check_project(settings, paths, models))
    yield f"project     {paths.root}"
    yield f"store       {hide_secrets(location.get_store_address(paths))}"
    yield f"champion    {describe_champion(models, paths.champion)}"
    yield f"challenger  {describe_challenger(models, paths.challenger)}"
    yield f"months      {len(settings.months)}, {len(settings.months) - len(unscored)} scored with models/champion"
    yield f"unscored    {', '.join(unscored) or '-'}"
    yield f"evaluation  {report['verdict'] if report else 'none yet'}"
    yield from [f"gate        {report['gate']['words']}"] if report else []
    yield from format_month(months[-1]) if months else ["last month  none yet"]
    yield f"next        {findings[0][1] if findings else advise_next(settings, paths, models, unscored)}"
    yield f"checks      {format_count(len(findings), 'problem') if findings else 'all passed'}"
    yield from (f"wrong       {problem}. Fix: {fix}" for problem, fix in findings)
    if findings:
        todo = "Run the commands after `Fix:`, the first one first."
        raise TiplineError("Some checks failed.", str(paths.root), todo)


def read_models(settings: PartialSettings, paths: Paths) -> Models:
    """Read which models there are; a store that does not answer does not hide the rest."""
    ref, digest = files.try_read_json(paths.champion_ref), artifact.try_read_digest(paths.challenger)
    name, database = settings.model_name, location.get_database_path(paths)
    if name is None or (database is not None and not database.is_file()):  # connecting would create it
        return Models(ref, digest)
    try:
        with store.connect_store(paths) as client:
            challenger = model_versions.find_version(client, name, digest) if digest else None
            return Models(ref, digest, model_versions.get_champion(client, name), challenger)
    except TiplineError as error:
        return Models(ref, digest, problem=error)


def describe_champion(models: Models, folder: Path) -> str:
    """Describe the version that MLflow calls champion; without MLflow, the one in models/champion/."""
    if models.problem:
        return f"version {models.ref['version']}, according to models/champion" if models.ref else "unknown"
    if models.champion is None:
        return "none yet"
    training = files.try_read_json(folder / artifact.TRAINING)
    is_here = training and models.ref and models.ref["digest"] == models.champion_digest
    return f"version {models.champion.version}" + (f": {training['name']}" if is_here else "")


def describe_challenger(models: Models, folder: Path) -> str:
    training = files.try_read_json(folder / artifact.TRAINING)
    if models.challenger_digest is None or training is None:
        return "none yet"
    if models.challenger_digest == models.champion_digest:
        return "the champion"
    version = f"version {models.challenger.version}" if models.challenger else "not registered"
    return f"{version}: {training['name']}"


def advise_next(settings: PartialSettings, paths: Paths, models: Models, unscored: Sequence[str]) -> str:
    version, ref = models.champion, models.ref
    report, months = files.try_read_json(paths.evaluation), files.try_read_json(paths.monitoring / "months.json")
    if ref is None or version is None or models.challenger_digest is None:
        return "dvc repro"
    is_pinned = settings.settings is not None and settings.settings.score.model != model_versions.CHAMPION
    if models.champion_digest != ref["digest"] and not is_pinned:
        return f"dvc repro (the champion is version {version.version}, version {ref['version']} scored the months)"
    if unscored:
        return f"dvc repro ({format_count(len(unscored), 'month')} to score)"
    made = {"challenger": models.challenger_digest, "champion": ref["digest"]}
    if not (months and report and report["made"] == made):
        return "dvc repro (reports are missing or out of date)"
    if report["gate"]["promote"] and models.challenger_digest != models.champion_digest:
        command = f"tipline promote {models.challenger.version}" if models.challenger else "dvc repro register"
        return f"{command} (the gate lets the challenger pass)"
    advised = next((month["verdict"] for month in reversed(months) if month["verdict"] in ADVICE), None)
    poor = ", ".join(month["month"] for month in months if month["verdict"] == advised)
    return f"{ADVICE[advised]} (scores of {poor} are poor)" if advised else "nothing"


def check_project(settings: PartialSettings, paths: Paths, models: Models) -> Iterator[tuple[str, str]]:
    """Check params.yaml, dvc.lock, MLflow, prepared months and models/champion/; yield each problem and its fix."""
    for error in (settings.problem, models.problem):
        if error:
            what, where, todo = error.parts
            yield f"{what.removesuffix('.')} ({where})", todo
    if (lock := paths.root / "dvc.lock").is_file() and validation.has_conflict(lock):
        yield "dvc.lock has the markers of a merge conflict", "git checkout --ours dvc.lock && dvc repro"
    accepted = settings.settings.prepare.accept if settings.settings else ()
    found = [files.try_read_json(paths.prepared(month) / files.MANIFEST) or {} for month in settings.months]
    prepared = [manifest for manifest in found if manifest.get("format") == formats.PREPARED]
    for month, shares in losses.find_unusual(prepared).items():
        if month not in accepted:
            yield f"{month} has {', '.join(shares)}", f"tipline check data/raw/{month} {month}"
    if models.ref and artifact.try_read_digest(paths.champion) != models.ref["digest"]:
        yield "models/champion/ lacks a file or has other files than the registered ones", "dvc repro register"
    if models.ref and models.champion is None and models.problem is None and settings.model_name:
        yield "MLflow has no champion, but models/champion/ has one", "dvc repro register"
