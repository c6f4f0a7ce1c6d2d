"""`tipline promote`: which version scores from now on, if the gate lets it."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.config import check_month
from tipline.errors import GateRefusedError, TiplineError, UsageError, join_lines
from tipline.evaluation import comparison, gate
from tipline.registry import champion, history, model_versions, store, training_runs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.store import Client, Version

log = logging.getLogger(__name__)

FORCED, BY = "tipline.forced", "tipline.promoted_by"


def run(settings: Settings, paths: Paths, version: str | None = None, force: str | None = None) -> None:
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
    if version is not None and not version.strip():
        raise UsageError("No version or run is named.", "command line", "Name one, or none for the newest version.")
    if force is not None and not force.strip():
        raise UsageError("--force has no reason.", "command line, --force", 'Say why: --force "reason"')
    with store.connect_store(paths) as client, store.lock_store(paths):
        chosen = model_versions.adopt_version(client, settings, paths, asked_for(client, settings.model.name, version))
        now = model_versions.get_champion(client, chosen.name)
        if now and now.tags.get(store.DIGEST) == model_versions.get_digest(chosen):
            log.info("version %s of %s is the champion already", chosen.version, chosen.name)
            return
        challenger = model_versions.read_files(
            chosen
        )  # whatever the gate says: only files that are of the digest may score
        if now:
            history.record_external_change(client, paths, now)
        before = now or former(client, paths, chosen.name, force)
        if before is None or before.tags.get(store.DIGEST) == model_versions.get_digest(chosen):
            words = "There was no other champion."
        else:
            verdict = judged(client, settings, paths, {"challenger": chosen, "champion": before}, challenger)
            words = admitted(verdict, chosen, before, force)
        note(client, paths, chosen, words, force)
        history.change_champion(client, paths, "promote", before, chosen, words, force)
    was = f", it was version {before.version}" if before else ""
    log.info(
        "champion of %s: version %s%s. %s", chosen.name, chosen.version, was, champion.describe_next_repro(settings)
    )


def former(client: Client, paths: Paths, name: str, force: str | None) -> Version | None:
    """The version that was champion last, where no alias names it any more; None where there never was one.

    A lost one, which nothing can be compared with, is an error unless `force` says why.
    """
    last = champion.find_last_champion(paths, name)
    if last is None:
        return None
    found = model_versions.list_versions(client, name, last["digest"])
    if not found and force is None:
        digest = last["digest"][:12]
        what = f"MLflow's registry has no champion of {name}, and has lost the one that was (digest {digest})."
        todo = 'Run: dvc repro register, which puts it back or says what to do; or overrule this: --force "reason"'
        raise TiplineError(what, "MLflow's registry", todo)
    return found[0] if found else None


def asked_for(client: Client, name: str, wanted: str | None) -> Version:
    """The version of a number or of a run, or the newest."""
    if wanted is not None and re.fullmatch(r"-?\d{1,9}", wanted):
        return model_versions.get_version(client, name, int(wanted), "MLflow's registry")
    if wanted is not None:
        return model_versions.register_run(client, name, training_runs.find_training_run(client, wanted))
    versions = model_versions.list_versions(client, name)
    if not versions:
        raise UsageError(f"{name} has no versions yet.", "MLflow's registry", "Run: dvc repro register")
    return versions[0]


def judged(
    client: Client,
    settings: Settings,
    paths: Paths,
    versions: dict[str, Version],
    challenger: dict[str, bytes],
) -> dict[str, Any]:
    """The gate's verdict on a version: what `evaluate` has written, if that is of the same models, rows and settings.

    Whatever goes wrong is a reason to refuse.
    """
    try:
        versions = versions | {"champion": model_versions.adopt_version(client, settings, paths, versions["champion"])}
        return written(settings, paths, versions) or computed(settings, paths, versions, challenger)
    except (*comparison.FAILURES, OSError) as error:
        return gate.build_refusal([f"it cannot judge: {join_lines(error)}"])


def written(settings: Settings, paths: Paths, versions: Mapping[str, Version]) -> dict[str, Any] | None:
    """The verdict in reports/evaluation.json, None where it is not the one that is asked for."""
    if any(gate.MONTHS_TAG in version.tags for version in versions.values()):  # which `evaluate` does not see
        return None
    report = files.try_read_json(paths.evaluation) or {}
    digests = {role: model_versions.get_digest(version) for role, version in versions.items()}
    verdict: dict[str, Any] | None = report.get("gate")
    return verdict if report.get("made") == comparison.hash_inputs(settings, paths, digests) else None


def computed(
    settings: Settings, paths: Paths, versions: Mapping[str, Version], challenger: dict[str, bytes]
) -> dict[str, Any]:
    """The verdict from the registry's files of both versions."""
    named = (f"{role} version {version.version}" for role, version in versions.items())
    log.info("asking the gate: %s", ", ".join(named))
    contents = {"challenger": challenger, "champion": model_versions.read_files(versions["champion"])}
    specs = comparison.load_specs(contents)
    report, _ = comparison.compare_models(
        settings, paths, contents, {role: made_on(specs[role], versions[role].tags) for role in versions}
    )
    verdict: dict[str, Any] = report["gate"]
    return verdict


def made_on(spec: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Sequence[str]] | None:
    """The months that a model was made on, by its model.json or else by its version's tag; None where neither says."""
    if spec.get("months") is not None:
        months: dict[str, Sequence[str]] = spec["months"]
        return months
    tag = tags.get(gate.MONTHS_TAG)
    return {"train": [check_month(month.strip()) for month in tag.split(",")]} if tag else None


def admitted(verdict: Mapping[str, Any], version: Version, now: Version, force: str | None) -> str:
    """The verdict in words, of a version that passes or is forced through; of any other it is an error."""
    words = str(verdict["words"])
    if verdict["promote"] or force is not None:
        log.info("%s%s", words, "" if verdict["promote"] else f" It is promoted all the same: {force}")
        return words
    where = f"{model_versions.format_version(version)} against the champion, version {now.version}"
    todo = (
        f'Keep the champion and try other settings; or overrule it: tipline promote {version.version} --force "reason"'
    )
    raise GateRefusedError(words, where, todo)


def note(client: Client, paths: Paths, version: Version, words: str, force: str | None) -> None:
    """Keep with the version what the gate said, who promoted it, and why if it was forced."""
    tags = {model_versions.VERDICT: words, BY: history.get_user(paths), **({} if force is None else {FORCED: force})}
    if force is None and FORCED in version.tags:
        client.delete_model_version_tag(version.name, str(version.version), FORCED)
    model_versions.tag_version(client, version, tags)
