"""`tipline promote`: which version scores from now on, if the gate lets it."""

from __future__ import annotations

import getpass
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tipline import files, gate, modelfiles, registry, tracking
from tipline.errors import GateRefusedError, TiplineError, UsageError, one_line
from tipline.params import check_month
from tipline.stages import evaluate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)

FORCED, BY = "tipline.forced", "tipline.promoted_by"


def run(settings: Settings, layout: Layout, number: int | None, force: str | None = None) -> None:
    """Make a version the champion, by default the newest.

    Parameters
    ----------
    force
        Why it is to be the champion whatever the gate says; kept with the version.

    Raises
    ------
    UsageError
        Where there is no such version, or one that cannot score prepared trips, or `force` is empty.
    GateRefusedError
        Where the gate refuses it, or cannot be asked.
    """
    if force is not None and not force.strip():
        raise UsageError("--force has no reason.", "command line, --force", 'Say why: --force "reason"')
    with tracking.connect(layout) as client:
        version = registry.adopt(client, settings, layout, asked_for(client, settings.register_.name, number))
        before = registry.by_alias(client, version.name) or scoring(client, layout, version.name, force)
        if before and before.tags.get(tracking.DIGEST) == registry.digest_of(version):
            log.info("version %s of %s is the champion already", version.version, version.name)
            return
        if before:
            words = admitted(judged(client, settings, layout, version, before), version, before, force)
        else:
            words = "There was no champion."
        note(client, version, words, force)
        registry.promote(client, version)
    was = f", it was version {before.version}" if before else ""
    log.info("champion of %s: version %s%s. `dvc repro` scores with it.", version.name, version.version, was)


def scoring(client: MlflowClient, layout: Layout, name: str, force: str | None) -> ModelVersion | None:
    """The version whose files are in models/champion/, where no alias names it any more; None where nothing scores.

    Raises
    ------
    TiplineError
        Where the registry has lost it and nothing is forced: there is nothing to compare with.
    """
    ref = files.read_json_if_any(layout.ref)
    if not ref or ref.get("name") != name:
        return None
    found = registry.versions(client, name, ref["digest"])
    if not found and force is None:
        what = "The registry has neither the alias champion nor the model in models/champion/."
        raise TiplineError(what, name, "Run: dvc repro register, which puts it back; then promote.")
    return found[0] if found else None


def asked_for(client: MlflowClient, name: str, number: int | None) -> ModelVersion:
    """The version of a number, or the newest."""
    if number is not None:
        return registry.by_number(client, name, number, "MLflow's registry")
    versions = registry.versions(client, name)
    if not versions:
        raise UsageError(f"{name} has no versions yet.", "MLflow's registry", "Run: dvc repro register")
    return versions[0]


def judged(
    client: MlflowClient, settings: Settings, layout: Layout, version: ModelVersion, champion: ModelVersion
) -> dict[str, Any]:
    """The gate's verdict on a version: what `evaluate` has written, if that is of the same models, rows and settings.

    Whatever goes wrong is a reason to refuse.
    """
    try:
        champion = registry.adopt(client, settings, layout, champion)
        challenger = fetched(version)  # whatever the verdict: only files that are those of the digest may score
        return written(settings, layout, version, champion) or computed(
            settings, layout, {"challenger": version, "champion": champion}, challenger
        )
    except (*evaluate.FAILURES, OSError) as error:
        return gate.refused([f"it cannot judge: {one_line(error)}"])


def written(settings: Settings, layout: Layout, version: ModelVersion, champion: ModelVersion) -> dict[str, Any] | None:
    """The verdict in reports/evaluation.json, None where it is not the one that is asked for."""
    if gate.MONTHS_TAG in version.tags or gate.MONTHS_TAG in champion.tags:  # which `evaluate` does not see
        return None
    report = files.read_json_if_any(layout.evaluation) or {}
    digests = {"challenger": registry.digest_of(version), "champion": registry.digest_of(champion)}
    verdict: dict[str, Any] | None = report.get("gate")
    return verdict if report.get("made") == evaluate.made_from(settings, layout, digests) else None


def computed(
    settings: Settings, layout: Layout, versions: Mapping[str, ModelVersion], challenger: dict[str, bytes]
) -> dict[str, Any]:
    """The verdict from the registry's files of both versions."""
    named = (f"{role} version {version.version}" for role, version in versions.items())
    log.info("asking the gate: %s", ", ".join(named))
    contents = {"challenger": challenger, "champion": fetched(versions["champion"])}
    specs = evaluate.specs_of(contents)
    report, _, _ = evaluate.evaluated(
        settings, layout, contents, {role: made_on(specs[role], versions[role].tags) for role in versions}
    )
    verdict: dict[str, Any] = report["gate"]
    return verdict


def fetched(version: ModelVersion) -> dict[str, bytes]:
    """A version's files, out of a folder that does not outlive this."""
    with tempfile.TemporaryDirectory(prefix="tipline-") as folder:
        registry.fetch(version, Path(folder))
        return modelfiles.read(Path(folder))


def made_on(spec: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Sequence[str]] | None:
    """The months that a model was made on, by its model.json or else by its version's tag; None where neither says."""
    if spec.get("months") is not None:
        months: dict[str, Sequence[str]] = spec["months"]
        return months
    tag = tags.get(gate.MONTHS_TAG)
    return {"fit": [check_month(month.strip()) for month in tag.split(",")]} if tag else None


def admitted(verdict: Mapping[str, Any], version: ModelVersion, champion: ModelVersion, force: str | None) -> str:
    """The verdict in words, of a version that passes or is forced through.

    Raises
    ------
    GateRefusedError
        Where it neither passes nor is forced.
    """
    words = str(verdict["words"])
    if verdict["promote"] or force is not None:
        log.info("%s%s", words, "" if verdict["promote"] else f" It is promoted all the same: {force}")
        return words
    where = f"{version.name} version {version.version} against the champion, version {champion.version}"
    todo = f'Mend that; or overrule the gate: tipline promote {version.version} --force "reason"'
    raise GateRefusedError(words, where, todo)


def note(client: MlflowClient, version: ModelVersion, words: str, force: str | None) -> None:
    """Keep with the version what the gate said, who promoted it, and why if it was forced."""
    tags = {registry.VERDICT: words, BY: user(), **({} if force is None else {FORCED: force})}
    if force is None and FORCED in version.tags:
        client.delete_model_version_tag(version.name, str(version.version), FORCED)
    for name, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), name, value)


def user() -> str:
    """Who runs this, as the system says."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user that has no name
        return "unknown"
