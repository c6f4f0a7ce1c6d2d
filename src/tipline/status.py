"""`tipline status`: where the project stands, in a dozen lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tipline import files, modelfiles, registry, scoring, tracking
from tipline.stages.register import current

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from tipline.layout import Layout
    from tipline.params import Settings


def run(settings: Settings, layout: Layout) -> list[str]:
    """The lines: store, champion, challenger, months, evaluation, gate, last figures, verdict, what to do next."""
    with tracking.connect(layout) as client:
        champion = registry.by_alias(client, settings.register_.name)
        versions = registry.versions(client, settings.register_.name)
        shown = versions[:1] if champion is None else [*versions[:1], champion]
        named = {int(version.version): describe(client, version) for version in shown}
    ref = current(layout)
    missing = not_scored(settings, layout, ref)
    return [
        f"project     {layout.root}",
        f"store       {tracking.without_password(tracking.store(layout))}",
        f"model       {settings.register_.name}, {len(versions)} version{'s' * (len(versions) != 1)}",
        f"champion    {named[int(champion.version)] if champion else 'none yet'}",
        f"challenger  {named[int(versions[0].version)] if versions else 'none yet'} (the newest version)",
        f"months      {len(settings.months)}, {len(settings.months) - len(missing)} scored with models/champion",
        f"not scored  {', '.join(missing) or '-'}",
        *evaluated(layout),
        *last_figures(layout),
        f"next        {advice(layout, champion, ref, missing)}",
    ]


def describe(client: MlflowClient, version: ModelVersion) -> str:
    """A version with the name and the evaluation of its run."""
    if version.run_id is None:
        return f"version {version.version}: not registered by tipline"
    training = client.get_run(version.run_id)
    skill = training.data.metrics.get("evaluate.skill")
    return f"version {version.version}: {training.info.run_name}" + (
        f", skill {skill:.4f}" if skill is not None else ""
    )


def not_scored(settings: Settings, layout: Layout, ref: dict[str, Any] | None) -> list[str]:
    """Months without predictions of the model in models/champion/."""
    if ref is None:
        return list(settings.months)
    planned, failed = scoring.plan(scoring.Places.of(layout), settings.months, ref["digest"])
    missing = {month.month for month in planned} | set(failed)
    return [month for month in settings.months if month in missing]


def evaluated(layout: Layout) -> list[str]:
    """What the challenger is worth, and what the gate says of it."""
    report = evaluation(layout)
    if report is None:
        return ["evaluation  none yet"]
    return [f"evaluation  {report['verdict']}", f"gate        {report['gate']['words']}"]


def evaluation(layout: Layout) -> dict[str, Any] | None:
    """What `evaluate` wrote last, None where it is not there or something else."""
    report = files.read_json_if_any(layout.evaluation)
    try:
        gate = {name: report["gate"][name] for name in ("words", "promote")}
        return {"verdict": str(report["verdict"]), "gate": gate}
    except (KeyError, TypeError):
        return None


def last_figures(layout: Layout) -> list[str]:
    """The figures of the last monitored month, and the verdict on them."""
    months = files.read_json_if_any(layout.monitoring / "months.json")
    if not months:
        return ["last month  none yet"]
    month = months[-1]
    names = ("mean_probability", "tip_rate", "log_loss", "skill", "auc")
    figures = ", ".join(f"{name.replace('_', ' ')} {month[name]:.4f}" for name in names if month[name] is not None)
    return [
        f"last month  {month['month']}: {month['rows']:,} rows, {figures}",
        f"verdict     {month['verdict']}: {month['reason']}",
    ]


def advice(layout: Layout, champion: ModelVersion | None, ref: dict[str, Any] | None, missing: list[str]) -> str:
    """What to do next."""
    if champion is None or ref is None:
        return "dvc repro"
    if not all((layout.challenger / name).is_file() for name in modelfiles.FILES):
        return "dvc repro: models/challenger is missing, its training did not end"
    if champion.tags.get(tracking.DIGEST) != ref["digest"]:
        return f"dvc repro: the champion is version {champion.version}, the predictions are version {ref['version']}'s"
    return f"dvc repro: {len(missing)} months to score" if missing else when_scored(layout)


def when_scored(layout: Layout) -> str:
    """What to do next where every month has its predictions."""
    report, months = evaluation(layout), files.read_json_if_any(layout.monitoring / "months.json")
    if report is None or not months or not layout.sample_size.is_file():
        return "dvc repro: not all reports are there"
    if report["gate"]["promote"]:
        return "tipline promote, if you want the challenger: the gate lets it pass"
    worse = [month["month"] for month in months if month.get("verdict") == "retrain"]
    return (
        f"train again: the scores of {', '.join(worse)} are shown worse than a tip rate" if worse else "nothing to do"
    )
