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
from tipline.mlflow import registry, tracking, trouble

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tipline.layout import Layout
    from tipline.mlflow.tracking import Client, Version

log = logging.getLogger(__name__)

WRITTEN = "tipline.champion"
ROLLBACK, NOTICED = "rollback", "noticed"
# What `dvc exp apply` leaves: the commit that it was asked on, and the files that were not committed then.
APPLIED_ON, BEFORE_APPLIED = "refs/exps/apply/ORIG_HEAD", "refs/exps/apply/stash"


def history(layout: Layout, name: str) -> list[dict[str, Any]]:
    """The changes of a model's champion, oldest first; a line that was cut off is none.

    In the order of time: git, where it merges two clones' lines, puts them one after the other.
    """
    if not layout.promotions.is_file():
        return []
    found = []
    for line in layout.promotions.read_text(encoding="utf-8", errors="replace").splitlines():
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


def bring_back(layout: Layout) -> None:
    """Put lines back that `dvc exp apply` took away: it brings every file in git to what the experiment had."""
    path = layout.promotions
    here = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    known = {identity(line): line for revision in applied_on(layout) for line in lines_of(layout, revision)}
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


def applied_on(layout: Layout) -> list[str]:
    """The commit, and what DVC keeps of the files as they were before it applied an experiment on this commit."""
    head, applied = (git.asked("rev-parse", "--verify", name, root=layout.home) for name in ("HEAD", APPLIED_ON))
    return ["HEAD", BEFORE_APPLIED] if head and head == applied else ["HEAD"]


def lines_of(layout: Layout, revision: str) -> list[str]:
    """The lines that a revision has."""
    name = layout.promotions.relative_to(layout.home).as_posix()
    return (git.asked("show", f"{revision}:./{name}", root=layout.home) or "").splitlines()


def last(layout: Layout, name: str) -> dict[str, Any] | None:
    """The champion that was written down last: version, digest and run."""
    changes = history(layout, name)
    return changes[-1]["to"] if changes else None


def before(layout: Layout, name: str, digest: str) -> dict[str, Any] | None:
    """The champion before the one of this digest; each rollback takes one back.

    None where the history has none, or ends with another champion.
    """
    champions: list[dict[str, Any]] = []
    for change in history(layout, name):
        then = [champion["digest"] for champion in champions]
        if change["how"] == ROLLBACK and change["to"]["digest"] in then:
            del champions[len(then) - then[::-1].index(change["to"]["digest"]) :]
        elif then[-1:] != [change["to"]["digest"]]:
            champions.append(change["to"])
    known = len(champions) > 1 and champions[-1]["digest"] == digest
    return champions[-2] if known else None


def change(
    client: Client,
    layout: Layout,
    how: str,
    old: Version | None,
    new: Version,
    verdict: str | None = None,
    reason: str | None = None,
) -> None:
    """Make a version the champion and write it down; where this is ended in between, `register` notices the change."""
    registry.promote(client, new)
    write(layout, how, registry.named(old) if old else last(layout, new.name), new, verdict, reason)
    client.set_registered_model_tag(new.name, WRITTEN, str(new.version))


def notice(client: Client, layout: Layout, champion: Version) -> None:
    """Write down a change of champion that was made elsewhere, in MLflow's page say, if nobody has yet.

    A version that is no model of trips, and so was never adopted, is not written down: it cannot score.

    Raises
    ------
    MlflowException
        Where this user may not write to the registry; nothing is written then.
    """
    written = client.get_registered_model(champion.name).tags.get(WRITTEN)
    if written == str(champion.version) or tracking.DIGEST not in champion.tags:
        return
    old = former(client, layout, champion.name, written)
    if old is None or old["digest"] != registry.digest_of(champion):
        client.set_registered_model_tag(champion.name, WRITTEN, written or "")  # who may not is told before the line
        write(layout, NOTICED, old, champion, champion.tags.get(registry.VERDICT))
    client.set_registered_model_tag(champion.name, WRITTEN, str(champion.version))


def former(client: Client, layout: Layout, name: str, written: str | None) -> Mapping[str, Any] | None:
    """The champion that was written down last: by any clone, as the registry says; else by this one."""
    there = trouble.if_there(client.get_model_version, name, written) if written else None
    return registry.named(there) if there else last(layout, name)


def write(
    layout: Layout, how: str, old: Mapping[str, Any] | None, new: Version, verdict: str | None, why: str | None = None
) -> None:
    """Add a line, whole: what an earlier one lacks, because its writer was killed, is ended first."""
    line = {
        "when": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "who": None if how == NOTICED else who(layout),
        "how": how,
        "name": new.name,
        "from": old and {key: old[key] for key in ("version", "digest")},
        "to": {key: registry.named(new)[key] for key in ("version", "digest", "run")},
        "verdict": verdict,
        "reason": why,
        "git": git.revision(),
    }
    bring_back(layout)
    files.append_line(layout.promotions, json.dumps(line))


def who(layout: Layout) -> str:
    """The user that MLflow's server knows, else as the system says."""
    served = tracking.database_of(layout) is None
    try:
        return (os.environ.get("MLFLOW_TRACKING_USERNAME") if served else None) or getpass.getuser()
    except (OSError, KeyError):  # a container's user that has no name
        return "unknown"
