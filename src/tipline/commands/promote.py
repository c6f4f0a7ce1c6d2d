"""`tipline promote`: which version scores from now on, if the gate lets it."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.errors import GateRefusedError, TiplineError, UsageError, one_line
from tipline.mlflow import champion, promotions, registry, tracking, training
from tipline.models import comparison
from tipline.params import check_month
from tipline.statistics import gate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tipline.layout import Layout
    from tipline.mlflow.tracking import Client, Version
    from tipline.params import Settings

log = logging.getLogger(__name__)

FORCED, BY = "tipline.forced", "tipline.promoted_by"


def run(settings: Settings, layout: Layout, wanted: str | None = None, force: str | None = None) -> None:
    """Make a version the champion, by default the newest.

    Parameters
    ----------
    wanted
        A version's number, or a run (its id, its name or its DVC experiment), which becomes a version if it is none.
    force
        Why it is to be the champion whatever the gate says; kept with the version.

    Raises
    ------
    UsageError
        Where there is no such version, or one that cannot score prepared trips, or `force` is empty.
    GateRefusedError
        Where the gate refuses it, or cannot be asked.
    """
    if wanted is not None and not wanted.strip():
        raise UsageError("No version or run is named.", "command line", "Name one, or none for the newest version.")
    if force is not None and not force.strip():
        raise UsageError("--force has no reason.", "command line, --force", 'Say why: --force "reason"')
    with tracking.connect(layout) as client, tracking.alone(layout):
        version = registry.adopt(client, settings, layout, asked_for(client, settings.register_.name, wanted))
        now = registry.by_alias(client, version.name)
        if now and now.tags.get(tracking.DIGEST) == registry.digest_of(version):
            log.info("version %s of %s is the champion already", version.version, version.name)
            return
        challenger = registry.contents(version)  # whatever the gate says: only files that are of the digest may score
        if now:
            promotions.notice(client, layout, now)
        before = now or former(client, layout, version.name, force)
        if before is None or before.tags.get(tracking.DIGEST) == registry.digest_of(version):
            words = "There was no other champion."
        else:
            verdict = judged(client, settings, layout, {"challenger": version, "champion": before}, challenger)
            words = admitted(verdict, version, before, force)
        note(client, layout, version, words, force)
        promotions.change(client, layout, "promote", before, version, words, force)
    was = f", it was version {before.version}" if before else ""
    log.info("champion of %s: version %s%s. %s", version.name, version.version, was, champion.follows(settings))


def former(client: Client, layout: Layout, name: str, force: str | None) -> Version | None:
    """The version that was champion last, where no alias names it any more; None where there never was one.

    A lost one, which nothing can be compared with, is an error unless `force` says why.
    """
    last = champion.last(layout, name)
    if last is None:
        return None
    found = registry.versions(client, name, last["digest"])
    if not found and force is None:
        digest = last["digest"][:12]
        what = f"MLflow's registry has no champion of {name}, and has lost the one that was (digest {digest})."
        todo = 'Run: dvc repro register, which puts it back or says what to do; or overrule this: --force "reason"'
        raise TiplineError(what, "MLflow's registry", todo)
    return found[0] if found else None


def asked_for(client: Client, name: str, wanted: str | None) -> Version:
    """The version of a number or of a run, or the newest."""
    if wanted is not None and re.fullmatch(r"-?\d{1,9}", wanted):
        return registry.by_number(client, name, int(wanted), "MLflow's registry")
    if wanted is not None:
        return registry.version_of_run(client, name, training.named(client, wanted))
    versions = registry.versions(client, name)
    if not versions:
        raise UsageError(f"{name} has no versions yet.", "MLflow's registry", "Run: dvc repro register")
    return versions[0]


def judged(
    client: Client,
    settings: Settings,
    layout: Layout,
    versions: dict[str, Version],
    challenger: dict[str, bytes],
) -> dict[str, Any]:
    """The gate's verdict on a version: what `evaluate` has written, if that is of the same models, rows and settings.

    Whatever goes wrong is a reason to refuse.
    """
    try:
        versions = versions | {"champion": registry.adopt(client, settings, layout, versions["champion"])}
        return written(settings, layout, versions) or computed(settings, layout, versions, challenger)
    except (*comparison.FAILURES, OSError) as error:
        return gate.refused([f"it cannot judge: {one_line(error)}"])


def written(settings: Settings, layout: Layout, versions: Mapping[str, Version]) -> dict[str, Any] | None:
    """The verdict in reports/evaluation.json, None where it is not the one that is asked for."""
    if any(gate.MONTHS_TAG in version.tags for version in versions.values()):  # which `evaluate` does not see
        return None
    report = files.read_json_if_any(layout.evaluation) or {}
    digests = {role: registry.digest_of(version) for role, version in versions.items()}
    verdict: dict[str, Any] | None = report.get("gate")
    return verdict if report.get("made") == comparison.made_from(settings, layout, digests) else None


def computed(
    settings: Settings, layout: Layout, versions: Mapping[str, Version], challenger: dict[str, bytes]
) -> dict[str, Any]:
    """The verdict from the registry's files of both versions."""
    named = (f"{role} version {version.version}" for role, version in versions.items())
    log.info("asking the gate: %s", ", ".join(named))
    contents = {"challenger": challenger, "champion": registry.contents(versions["champion"])}
    specs = comparison.specs_of(contents)
    report, _ = comparison.compare(
        settings, layout, contents, {role: made_on(specs[role], versions[role].tags) for role in versions}
    )
    verdict: dict[str, Any] = report["gate"]
    return verdict


def made_on(spec: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Sequence[str]] | None:
    """The months that a model was made on, by its model.json or else by its version's tag; None where neither says."""
    if spec.get("months") is not None:
        months: dict[str, Sequence[str]] = spec["months"]
        return months
    tag = tags.get(gate.MONTHS_TAG)
    return {"fit": [check_month(month.strip()) for month in tag.split(",")]} if tag else None


def admitted(verdict: Mapping[str, Any], version: Version, now: Version, force: str | None) -> str:
    """The verdict in words, of a version that passes or is forced through; of any other it is an error."""
    words = str(verdict["words"])
    if verdict["promote"] or force is not None:
        log.info("%s%s", words, "" if verdict["promote"] else f" It is promoted all the same: {force}")
        return words
    where = f"{registry.called(version)} against the champion, version {now.version}"
    todo = (
        f'Keep the champion and try other settings; or overrule it: tipline promote {version.version} --force "reason"'
    )
    raise GateRefusedError(words, where, todo)


def note(client: Client, layout: Layout, version: Version, words: str, force: str | None) -> None:
    """Keep with the version what the gate said, who promoted it, and why if it was forced."""
    tags = {registry.VERDICT: words, BY: promotions.who(layout), **({} if force is None else {FORCED: force})}
    if force is None and FORCED in version.tags:
        client.delete_model_version_tag(version.name, str(version.version), FORCED)
    registry.tag(client, version, tags)
