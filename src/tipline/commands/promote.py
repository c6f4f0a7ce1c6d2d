"""`tipline promote` and `tipline rollback`: make a version the champion, or the previous champion again."""

import contextlib
import logging
import re
from collections.abc import Mapping
from typing import Any

from tipline.config import PartialSettings, Settings
from tipline.errors import GateRefusedError, UsageError, join_lines
from tipline.evaluation import comparison, gate
from tipline.model import artifact
from tipline.paths import Paths
from tipline.registry import champion, model_versions, runs, store
from tipline.registry.store import Client, Version

log = logging.getLogger(__name__)

UNREADABLE = (*comparison.FAILURES, OSError)


def run(
    settings: Settings, paths: Paths, version: str | None = None, force: str | None = None, *, trust_code: bool = False
) -> None:
    """Make a version the champion; raise GateRefusedError if the gate refuses or cannot judge, and there is no `force`.

    `version` is a number, or a run (its id, name or DVC experiment), which is registered if it has no version. The
    default is the model in models/challenger, or without one the newest version. A model with code that the project
    does not know, or with a pickle, needs `trust_code`.
    """
    if force is not None and not force.strip():
        raise UsageError("--force has no reason.", "command line, --force", 'Give one: --force "reason"')
    name = settings.model.name
    with store.connect_store(paths) as client, store.lock_store(paths):
        found = find_version(client, paths, name, version)
        chosen = model_versions.adopt_version(client, settings, paths, found, trust_code=trust_code)
        now = champion.find_champion(client, paths, name)
        if now and now.tags.get(store.DIGEST) == model_versions.get_digest(chosen):
            log.info("version %s of %s is the champion already", chosen.version, name)
            return
        contents = model_versions.read_files(chosen)  # only files of the registered digest may score
        if not trust_code:
            model_versions.check_known_code(paths, contents, chosen)
        words = "There was no other champion."
        if now:
            champion.record_external_change(client, now)
            verdict = ask_gate(client, settings, paths, chosen, contents, now)
            words = str(verdict["words"])
            if not verdict["promote"] and force is None:
                where = f"{model_versions.format_version(chosen)} against the champion, version {now.version}"
                todo = f'Keep the champion, or overrule the gate: tipline promote {chosen.version} --force "reason"'
                raise GateRefusedError(words, where, todo)
            log.info("%s%s", words, "" if verdict["promote"] else f" It is promoted because of --force: {force}")
        elif force is None:
            champion.check_first_champion(client, paths, name, model_versions.get_digest(chosen))
        chosen = model_versions.tag_version(client, chosen, {model_versions.VERDICT: words})
        champion.change_champion(client, chosen, "promote", force)
    was = f", it was version {now.version}" if now else ""
    log.info("champion of %s: version %s%s. Next: dvc repro", name, chosen.version, was)


def find_version(client: Client, paths: Paths, name: str, wanted: str | None) -> Version:
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


def ask_gate(
    client: Client, settings: Settings, paths: Paths, chosen: Version, contents: Mapping[str, bytes], now: Version
) -> dict[str, Any]:
    """Return the gate's verdict and record it. What keeps the champion from being compared is a reason to refuse."""

    def compare_with(other: Version) -> dict[str, Any]:
        former = model_versions.adopt_version(client, settings, paths, other)
        both = {"challenger": contents, "champion": model_versions.read_files(former)}
        tagged = {role: model_versions.get_months(one) for role, one in (("challenger", chosen), ("champion", former))}
        return comparison.compare_models(settings, paths, both, tagged)[0]

    try:
        report = compare_with(now)
    except UNREADABLE as error:
        return gate.build_verdict([f"it cannot judge: {join_lines(error)}"])
    verdict: dict[str, Any] = report["gate"]
    if verdict["gain"] is None:
        return verdict
    # A version that passes has to pass against the best champion of the history, too.
    reason, best, tolerance = None, report["champion"]["log_loss"], settings.evaluate.tolerance
    former = champion.list_former_champions(champion.list_changes(client, chosen.name)) if verdict["promote"] else ()
    for digest in dict.fromkeys(one.digest for one in former):
        version = model_versions.find_version(client, chosen.name, digest)
        if version is None or digest in report["made"].values():
            continue
        with contextlib.suppress(*UNREADABLE):  # one that cannot be judged on the same months is left out
            other = compare_with(version)
            gain, loss = other["gate"]["gain"], other["champion"]["log_loss"]
            if gain and other["gate"]["months"] == verdict["months"] and loss < best:
                named = f"it may be worse than version {version.version}, the best champion so far"
                words = f"{named}: its gain may be as low as {gain['lower']:+.4f}, which is not above {-tolerance:+.4f}"
                reason, best = words if gain["lower"] <= -tolerance else None, loss
    if reason:
        verdict = gate.add_reason(verdict, reason)
    decision = champion.Decision(months=verdict["months"], promote=verdict["promote"], **report["made"])
    verdict["words"] += gate.describe_decisions(*champion.count_decisions(client, chosen.name, decision))
    return verdict


def roll_back(settings: PartialSettings, paths: Paths, reason: str | None = None) -> None:
    name = settings.model_name
    if name is None:
        raise settings.problem or UsageError("model.name is missing.", str(paths.params), "Add it.")
    where, todo = f"the registered model {name}", "Name the version that is to score: tipline promote VERSION"
    with store.connect_store(paths) as client, store.lock_store(paths):
        now = model_versions.get_champion(client, name)
        if now is None:
            raise UsageError(f"{name} has no champion.", where, "Run: dvc repro register")
        champion.record_external_change(client, now)
        previous = champion.find_previous_champion(champion.list_changes(client, name), now.tags.get(store.DIGEST))
        version = model_versions.find_version(client, name, previous.digest) if previous else None
        if version is None:
            before = f"champion before version {now.version}"
            what = f"MLflow's history has no {before}."
            if previous:
                what = f"MLflow's registry has lost the {before}: version {previous.version}."
            raise UsageError(what, where, todo)
        model_versions.read_files(version)  # only files of the registered digest may score
        champion.change_champion(client, version, "rollback", reason)
    moved = f"version {version.version} again, it was version {now.version}"
    log.info("champion of %s: %s. Next: dvc repro", name, moved)
