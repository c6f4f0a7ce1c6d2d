"""`tipline status`: where the project stands, in a dozen lines, and for each thing that is wrong what mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.commands import checks
from tipline.errors import TiplineError, format_count, hide_secrets
from tipline.model import artifact
from tipline.registry import champion, model_versions, store
from tipline.scoring import plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tipline.commands.checks import State
    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.store import Client, Version


def run(settings: Any, paths: Paths) -> Iterator[str]:
    """Give the lines: store, models, months, evaluation, gate, last figures, what to do next, the checks.

    Raises
    ------
    TiplineError
        At the end, where something is wrong; hints are not.
    """
    if settings.problem:
        raise settings.problem
    settings = settings.settings
    state = look(settings, paths)
    missing = not_scored(state)
    yield f"project     {paths.root}"
    yield f"store       {hide_secrets(store.get_store_address(paths))}"
    yield from models(state)
    yield f"months      {len(settings.months)}, {len(settings.months) - len(missing)} scored with models/champion"
    yield f"not scored  {', '.join(missing) or '-'}"
    yield from evaluated(paths)
    yield from last_figures(paths)
    yield f"next        {advice(state, missing)}"
    yield from checked(state)


def look(settings: Settings, paths: Paths) -> State:
    """What there is; a store that cannot be asked is no reason not to tell the rest."""
    ref = champion.read_champion_ref(paths)
    found, trouble = None, None
    try:
        with store.connect_store(paths) as client:
            found = asked(client, settings.model.name)
    except TiplineError as error:
        trouble = error
    planned, failed = plan.plan_months(plan.Locations.resolve(paths), settings.months, ref["digest"] if ref else "")
    return checks.State(settings, paths, ref, found, trouble, planned, failed)


def asked(client: Client, name: str) -> checks.Registry:
    """What MLflow has of a model."""
    now, versions = model_versions.get_champion(client, name), model_versions.list_versions(client, name)
    shown = versions[:1] if now is None else [*versions[:1], now]
    words = {int(version.version): describe(client, version) for version in shown}
    return checks.Registry(now, versions, words, now and checks.read_environment(now))


def models(state: State) -> Iterator[str]:
    """The lines of the registered model; without MLflow, the one of models/champion."""
    found, name = state.registry, state.settings.model.name
    if found is None:
        number = state.ref["version"] if state.ref else None
        yield f"champion    {name} version {number}, as models/champion/ has it" if number else "champion    unknown"
        return
    count = len(found.versions)
    yield f"model       {name}, {format_count(count, 'version')}"
    yield f"champion    {found.words[int(found.champion.version)] if found.champion else 'none yet'}"
    yield f"challenger  {found.words[int(found.versions[0].version)] if count else 'none yet'} (the newest version)"


def checked(state: State) -> Iterator[str]:
    """The checks: one line for all that are fine, one for each finding; an error where something is wrong."""
    told = checks.run_checks(state)
    wrong = [name for name, found in told.items() if any(one.wrong for one in found)]
    yield f"checks      {len(told) - len(wrong)} of {len(told)} fine"
    for name, found in told.items():
        for one in found:
            yield f"{'wrong' if one.wrong else 'hint':12}{name}: {one.what.removesuffix('.')}; {one.todo}"
    if wrong:
        what = f"{len(wrong)} of {len(told)} checks found something wrong."
        raise TiplineError(what, ", ".join(wrong), "Do what the lines above say.")


def describe(client: Client, version: Version) -> str:
    """A version with the name and the evaluation of its run."""
    if version.run_id is None:
        return f"version {version.version}: not registered by tipline"
    training = model_versions.get_run(client, version)
    if training is None:
        return f"version {version.version}: its run is gone"
    skill = training.data.metrics.get("test.skill")
    worth = f", skill {skill:.4f}" if skill is not None else ""
    return f"version {version.version}: {training.info.run_name}{worth}"


def not_scored(state: State) -> list[str]:
    """Months without predictions of the model in models/champion/."""
    if state.ref is None:
        return list(state.settings.months)
    missing = {month.month for month in state.planned} | set(state.failed)
    return [month for month in state.settings.months if month in missing]


def evaluated(paths: Paths) -> list[str]:
    """What the challenger is worth, and what the gate says of it."""
    report = evaluation(paths)
    if report is None:
        return ["evaluation  none yet"]
    return [f"evaluation  {report['verdict']}", f"gate        {report['gate']['words']}"]


def evaluation(paths: Paths) -> dict[str, Any] | None:
    """What `evaluate` wrote last, None where it is not there or something else."""
    report = files.try_read_json(paths.evaluation)
    try:
        gate = {name: report["gate"][name] for name in ("words", "promote")}
        return {"verdict": str(report["verdict"]), "gate": gate}
    except (KeyError, TypeError):
        return None


def last_figures(paths: Paths) -> list[str]:
    """The figures of the last monitored month, and the verdict on them."""
    months = files.try_read_json(paths.monitoring / "months.json")
    if not months:
        return ["last month  none yet"]
    month = months[-1]
    names = ("mean_probability", "tip_rate", "log_loss", "skill", "auc")
    figures = ", ".join(f"{name.replace('_', ' ')} {month[name]:.4f}" for name in names if month[name] is not None)
    return [
        f"last month  {month['month']}: {month['rows']:,} rows, {figures}",
        f"verdict     {month['verdict']}: {month['reason']}",
    ]


def advice(state: State, missing: list[str]) -> str:
    """What to do next."""
    paths, ref, found = state.paths, state.ref, state.registry
    now = found.champion if found else None
    if ref is None or (found is not None and now is None):
        return "dvc repro"
    if not all((paths.challenger / name).is_file() for name in artifact.FILES):
        return "dvc repro: models/challenger is missing, its training did not end"
    pinned = isinstance(state.settings.score.model, int)
    if now is not None and now.tags.get(store.DIGEST) != ref["digest"] and not pinned:
        return f"dvc repro: the champion is version {now.version}, the predictions are version {ref['version']}'s"
    if missing:
        return f"dvc repro: {format_count(len(missing), 'month')} to score"
    return when_scored(paths)


def when_scored(paths: Paths) -> str:
    """What to do next where every month has its predictions."""
    report, months = evaluation(paths), files.try_read_json(paths.monitoring / "months.json")
    if report is None or not months or not paths.sample_size.is_file():
        return "dvc repro: not all reports are there"
    if report["gate"]["promote"]:
        return "tipline promote, if you want the challenger: the gate lets it pass"
    worse = ", ".join(month["month"] for month in months if month.get("verdict") == "retrain")
    if worse:
        return f"train on later months (params.yaml, sample.months): the scores of {worse} are worse than a tip rate"
    return "nothing to do"
