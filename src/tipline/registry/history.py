"""models/promotions.jsonl: which version became champion when, by whom and why; in git, only ever added to.

MLflow keeps no history of an alias (https://github.com/mlflow/mlflow/issues/2169). The tag `tipline.champion` of the
registered model says which champion was written down last: a change that one clone has written is none for the others.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tipline import files, git
from tipline.registry import client_errors, model_versions, store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tipline.paths import Paths
    from tipline.registry.store import Client, Version

log = logging.getLogger(__name__)

WRITTEN = "tipline.champion"
ROLLBACK, NOTICED = "rollback", "noticed"
# What `dvc exp apply` leaves: the commit that it was asked on, and the files that were not committed then.
APPLIED_ON, BEFORE_APPLIED = "refs/exps/apply/ORIG_HEAD", "refs/exps/apply/stash"


def promotions_file(paths: Paths) -> Path:
    return paths.workspace / "models" / "promotions.jsonl"


def append_line(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(line + "\n")


def history(paths: Paths, name: str) -> list[dict[str, Any]]:
    """The changes of a model's champion, oldest first; a line that was cut off is none.

    In the order of time: git, where it merges two clones' lines, puts them one after the other.
    """
    if not promotions_file(paths).is_file():
        return []
    found = []
    for line in promotions_file(paths).read_text(encoding="utf-8", errors="replace").splitlines():
        match parsed(line):
            case {
                "when": str(),
                "name": str(model),
                "how": str(),
                "to": {"digest": str(), "version": _},
            } as change if model == name:
                found.append(change)
    return sorted(found, key=lambda change: str(change["when"]))


def parsed(line: str) -> Any:  # noqa: ANN401 (whatever json holds)
    """A line's value, None where it is no json."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def restore_lost_lines(paths: Paths) -> None:
    """Put lines back that `dvc exp apply` took away: it brings every file in git to what the experiment had."""
    path = promotions_file(paths)
    here = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    known = {identity(line): line for revision in applied_on(paths) for line in lines_of(paths, revision)}
    missing = [line for key, line in known.items() if key not in set(map(identity, here))]
    if missing:
        lines = sorted([*here, *missing], key=lambda line: identity(line)[0])
        files.write_text(path, "".join(f"{line}\n" for line in lines))
        log.info("%s had lost lines: they are back", path.name)


def identity(line: str) -> tuple[str, ...]:
    """What tells a line from others, its time first: a word in it that was corrected makes no other line of it."""
    match parsed(line):
        case {"when": str(when), "name": str(name), "to": {"digest": str(digest)}}:
            return when, name, digest
    return "", line


def applied_on(paths: Paths) -> list[str]:
    """The commit, and what DVC keeps of the files as they were before it applied an experiment on this commit."""
    head, applied = (git.run_git("rev-parse", "--verify", name, root=paths.workspace) for name in ("HEAD", APPLIED_ON))
    return ["HEAD", BEFORE_APPLIED] if head and head == applied else ["HEAD"]


def lines_of(paths: Paths, revision: str) -> list[str]:
    """The lines that a revision has."""
    name = promotions_file(paths).relative_to(paths.workspace).as_posix()
    return (git.run_git("show", f"{revision}:./{name}", root=paths.workspace) or "").splitlines()


def read_last_champion(paths: Paths, name: str) -> dict[str, Any] | None:
    """The champion that was written down last: version, digest and run."""
    changes = history(paths, name)
    return changes[-1]["to"] if changes else None


def find_previous_champion(paths: Paths, name: str, digest: str) -> dict[str, Any] | None:
    """The champion before the one of this digest; each rollback takes one back.

    None where the history has none, or ends with another champion.
    """
    champions: list[dict[str, Any]] = []
    for change in history(paths, name):
        then = [champion["digest"] for champion in champions]
        if change["how"] == ROLLBACK and change["to"]["digest"] in then:
            del champions[len(then) - then[::-1].index(change["to"]["digest"]) :]
        elif then[-1:] != [change["to"]["digest"]]:
            champions.append(change["to"])
    known = len(champions) > 1 and champions[-1]["digest"] == digest
    return champions[-2] if known else None


def change_champion(
    client: Client,
    paths: Paths,
    how: str,
    old: Version | None,
    new: Version,
    verdict: str | None = None,
    reason: str | None = None,
) -> None:
    """Make a version the champion and write it down; where this is ended in between, `register` notices the change."""
    model_versions.set_champion(client, new)
    write(
        paths,
        how,
        model_versions.describe_version(old) if old else read_last_champion(paths, new.name),
        new,
        verdict,
        reason,
    )
    client.set_registered_model_tag(new.name, WRITTEN, str(new.version))


def record_external_change(client: Client, paths: Paths, champion: Version) -> None:
    """Write down a change of champion that was made elsewhere, in MLflow's page say, if nobody has yet.

    A version that is no model of trips, and so was never adopted, is not written down: it cannot score.

    Raises
    ------
    MlflowException
        Where this user may not write to the registry; nothing is written then.
    """
    written = client.get_registered_model(champion.name).tags.get(WRITTEN)
    if written == str(champion.version) or store.DIGEST not in champion.tags:
        return
    old = former(client, paths, champion.name, written)
    if old is None or old["digest"] != model_versions.get_digest(champion):
        client.set_registered_model_tag(champion.name, WRITTEN, written or "")  # who may not is told before the line
        write(paths, NOTICED, old, champion, champion.tags.get(model_versions.VERDICT))
    client.set_registered_model_tag(champion.name, WRITTEN, str(champion.version))


def former(client: Client, paths: Paths, name: str, written: str | None) -> Mapping[str, Any] | None:
    """The champion that was written down last: by any clone, as the registry says; else by this one."""
    there = client_errors.find_or_none(client.get_model_version, name, written) if written else None
    return model_versions.describe_version(there) if there else read_last_champion(paths, name)


def write(
    paths: Paths, how: str, old: Mapping[str, Any] | None, new: Version, verdict: str | None, why: str | None = None
) -> None:
    """Add a line, whole: what an earlier one lacks, because its writer was killed, is ended first."""
    line = {
        "when": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "who": None if how == NOTICED else get_user(paths),
        "how": how,
        "name": new.name,
        "from": old and {key: old[key] for key in ("version", "digest")},
        "to": {key: model_versions.describe_version(new)[key] for key in ("version", "digest", "run")},
        "verdict": verdict,
        "reason": why,
        "git": git.get_revision(),
    }
    restore_lost_lines(paths)
    append_line(promotions_file(paths), json.dumps(line))


def get_user(paths: Paths) -> str:
    """The user that MLflow's server knows, else as the system says."""
    served = store.get_database_path(paths) is None
    try:
        return (os.environ.get("MLFLOW_TRACKING_USERNAME") if served else None) or getpass.getuser()
    except (OSError, KeyError):  # a container's user that has no name
        return "unknown"
