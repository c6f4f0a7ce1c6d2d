"""The history of champions: one tag of the registered model per change, never overwritten.

MLflow keeps no history of an alias (https://github.com/mlflow/mlflow/issues/2169).
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tipline.errors import shorten_text
from tipline.registry import client_errors, model_versions, store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tipline.registry.store import Client, Version

    How: TypeAlias = Literal["promote", "rollback", "first", "external"]

PREFIX = "tipline.champion."  # followed by the UTC time and a random suffix
TEXT_LETTERS = 1100  # two texts; a registry on PostgreSQL takes 5,000 letters of a tag, and JSON may double them


@dataclass(frozen=True)
class Champion:
    """A version that was champion; `digest` is None for one that tipline never adopted."""

    version: int
    digest: str | None


@dataclass(frozen=True)
class Change:
    """A change of champion; changes are listed in the order of `time`, which is UTC and a random suffix."""

    time: str
    before: Champion | None  # None for the first champion
    after: Champion
    how: How  # external: made elsewhere, in MLflow's page for example, and noticed later
    by: str | None = None
    reason: str | None = None
    verdict: str | None = None  # what the gate said


def list_changes(client: Client, name: str) -> list[Change]:
    """Return the changes of a registered model's champion, oldest first."""
    model = store.find_model(client, name)
    tags = model.tags if model else {}
    changes = (parse_change(key, tags[key]) for key in sorted(tags) if key.startswith(PREFIX))
    return [change for change in changes if change is not None]


def parse_change(key: str, value: str) -> Change | None:
    """Read a tag; return None if someone has edited it into something else."""
    try:
        change = json.loads(value)
        before, after = (Champion(**side) if side else None for side in (change.pop("from"), change.pop("to")))
        return Change(key.removeprefix(PREFIX), before, after, **change) if after else None
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def describe_champion(version: Version) -> Champion:
    """Return a version as the history holds it."""
    return Champion(int(version.version), version.tags.get(store.DIGEST))


def record_change(
    client: Client, before: Champion | None, version: Version, how: How, reason: str | None, verdict: str | None
) -> None:
    """Add a change to the history."""
    change: dict[str, Any] = {"from": before and asdict(before), "to": asdict(describe_champion(version)), "how": how}
    change["by"] = None if how == "external" else get_user()
    for name, text in {"reason": reason, "verdict": verdict}.items():
        change[name] = text and shorten_text(text, TEXT_LETTERS)
    key = f"{PREFIX}{datetime.now(UTC):%Y-%m-%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"
    client.set_registered_model_tag(version.name, key, json.dumps(change, ensure_ascii=False))


def change_champion(
    client: Client, now: Version | None, new: Version, how: How, reason: str | None, verdict: str | None
) -> None:
    """Move the alias, then record the change; if this ends in between, `register` records an external change."""
    client.set_registered_model_alias(new.name, model_versions.CHAMPION, str(new.version))
    record_change(client, describe_champion(now) if now else None, new, how, reason, verdict)


def record_external_change(client: Client, version: Version) -> None:
    """Record that a version is champion, unless the history ends with it or this user may not write.

    A version without a digest was never adopted. It cannot score, so it is not recorded.
    """
    changes, digest = list_changes(client, version.name), version.tags.get(store.DIGEST)
    last = changes[-1].after if changes else None
    if digest and (last is None or last.digest != digest):
        with client_errors.skip_if_forbidden():
            record_change(client, last, version, "external", None, version.tags.get(model_versions.VERDICT))


def find_previous_champion(changes: Sequence[Change], digest: str | None) -> Champion | None:
    """Return the champion before the one of this digest; each rollback takes one change back.

    Returns None if there was none, or if the history does not end with this digest. A digest of None stands for a
    champion that was never adopted: it is not in the history, so the last one there is the one before it.
    """
    champions: list[Champion] = []
    for change in changes:
        digests = [champion.digest for champion in champions]
        if change.how == "rollback" and change.after.digest in digests:
            del champions[len(digests) - digests[::-1].index(change.after.digest) :]
        elif digests[-1:] != [change.after.digest]:
            champions.append(change.after)
    if digest is None:
        return champions[-1] if champions else None
    return champions[-2] if len(champions) > 1 and champions[-1].digest == digest else None


def get_user() -> str:
    """Return the user name at MLflow's server, or else that of the system."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"
