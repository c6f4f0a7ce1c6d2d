"""`tipline promote`: make a version the champion if the gate lets it pass."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.errors import GateRefusedError, UsageError, join_lines
from tipline.evaluation import comparison, gate
from tipline.model import artifact
from tipline.registry import champion, history, model_versions, runs, store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.store import Client, Version

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths, version: str | None = None, force: str | None = None) -> None:
    """Make a version the champion.

    Parameters
    ----------
    version
        A version's number, or a run (its id, name or DVC experiment), which is registered if it has no version.
        Default: the challenger, the model in models/challenger, or without one the newest version.
    force
        The reason to promote it whatever the gate says. Without one, GateRefusedError if it refuses or cannot judge.
    """
    if version is not None and not version.strip():
        raise UsageError("The version or run is empty.", "command line", "Name one, or none for the challenger.")
    if force is not None and not force.strip():
        raise UsageError("--force has no reason.", "command line, --force", 'Give one: --force "reason"')
    name = settings.model.name
    with store.connect_store(paths) as client, store.lock_store(paths):
        chosen = model_versions.adopt_version(client, settings, paths, find_version(client, paths, name, version))
        digest = model_versions.get_digest(chosen)
        now = model_versions.get_champion(client, name) or champion.restore_champion(client, paths, name)
        if now and now.tags.get(store.DIGEST) == digest:
            log.info("version %s of %s is the champion already", chosen.version, name)
            return
        contents = model_versions.read_files(chosen)  # also with --force: only files of the registered digest may score
        words = "There was no other champion."
        if now:
            history.record_external_change(client, now)
            words = check_gate(chosen, now, judge_version(client, settings, paths, chosen, now, contents), force)
        elif force is None:
            champion.check_first_champion(client, paths, name, digest)
        model_versions.tag_version(client, chosen, {model_versions.VERDICT: words})
        history.change_champion(client, now, chosen, "promote", force, words)
    was = f", it was version {now.version}" if now else ""
    log.info("champion of %s: version %s%s. %s", name, chosen.version, was, champion.describe_next_repro(settings))


def find_version(client: Client, paths: Paths, name: str, wanted: str | None) -> Version:
    """Return the version of a number or a run, or the default."""
    if wanted is not None and re.fullmatch(r"-?[0-9]{1,9}", wanted):
        return model_versions.get_version(client, name, int(wanted), "MLflow's registry")
    if wanted is not None:
        return model_versions.register_run(client, name, runs.find_training_run(client, wanted))
    digest = artifact.try_read_digest(paths.challenger)
    versions = model_versions.list_versions(client, name, digest)
    if versions:
        return versions[-1 if digest else 0]
    what = "The model in models/challenger is not registered yet." if digest else f"{name} has no versions yet."
    raise UsageError(what, "MLflow's registry", "Run: dvc repro register")


def judge_version(
    client: Client, settings: Settings, paths: Paths, chosen: Version, now: Version, contents: Mapping[str, bytes]
) -> dict[str, Any]:
    """Return the gate's verdict; whatever goes wrong is a reason to refuse."""
    try:
        now = model_versions.adopt_version(client, settings, paths, now)
        versions = {"challenger": chosen, "champion": now}
        months = {role: model_versions.get_months(version) for role, version in versions.items()}
        report = files.try_read_json(paths.evaluation) or {}
        digests = {role: model_versions.get_digest(version) for role, version in versions.items()}
        # `evaluate` may have asked the gate about the same models, rows and settings, but not about tags of versions.
        if not any(months.values()) and report.get("made") == comparison.hash_inputs(settings, paths, digests):
            return dict(report["gate"])
        log.info("asking the gate: challenger version %s, champion version %s", chosen.version, now.version)
        both = {"challenger": contents, "champion": model_versions.read_files(now)}
        made_on = {role: spec.get("months") or months[role] for role, spec in comparison.load_specs(both).items()}
        return dict(comparison.compare_models(settings, paths, both, made_on)[0]["gate"])
    except (*comparison.FAILURES, OSError) as error:
        return gate.build_refusal([f"it cannot judge: {join_lines(error)}"])


def check_gate(chosen: Version, now: Version, verdict: Mapping[str, Any], force: str | None) -> str:
    """Return the verdict's text; raise GateRefusedError for a version that neither passes nor is forced."""
    words = str(verdict["words"])
    if not verdict["promote"] and force is None:
        where = f"{model_versions.format_version(chosen)} against the champion, version {now.version}"
        todo = f'Keep the champion, or overrule the gate: tipline promote {chosen.version} --force "reason"'
        raise GateRefusedError(words, where, todo)
    log.info("%s%s", words, "" if verdict["promote"] else f" It is promoted because of --force: {force}")
    return words
