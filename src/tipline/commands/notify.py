"""Events for the command `notify` of params.yaml: published months, verdicts, changes of champion, failures.

When a command ends, what is published is compared with what was seen before, and each difference becomes a file of the
outbox. It stays there until the command `notify` has taken it: a kill or a failure repeats an event, with the same id.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from tipline import files
from tipline.commands.month import ReproFailedError, get_environment
from tipline.config import Settings
from tipline.errors import TiplineError, format_count, hide_secrets, join_lines, shorten_text
from tipline.paths import Paths

log = logging.getLogger(__name__)

SECONDS = 60  # that the command may take
KINDS = {"score": "published", "monitor": "verdict"} | dict.fromkeys(("register", "promote", "rollback"), "champion")
PIPELINES = {"month", "upstream", "record"}  # these succeed only if no stage fails
NO_FAILURES = {3, 5, 6}  # exit codes: refused by the gate, not published yet, published again
FIGURES = ("reason", "rows", "labelled_rows", "skill", "skill_low", "skill_high")
UNCOMPARED = {"text", *FIGURES}  # a change of these alone is no event
Facts = dict[str, Any]


class Events(contextlib.AbstractContextManager[None]):
    """Collect and send the events of a command that runs in the block; failing to do so is only a warning."""

    def __init__(self, settings: Settings, paths: Paths, command: str) -> None:
        self.settings, self.paths, self.command, self.kind = settings, paths, command, KINDS.get(command)
        self.outbox = paths.staging / "outbox"

    def __enter__(self) -> None:
        """Take what is published already as seen if this is the first time, in a new clone for example."""
        with self.survive(), self.open_seen() as seen:
            if self.kind and self.kind not in seen:
                seen[self.kind] = {subject: [hash_facts(facts), None] for subject, facts in self.list_facts().items()}

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error and not isinstance(error, Exception):
            return  # interrupted; the next command collects
        with self.survive(), self.open_seen() as seen:
            self.add_failure(error, seen.setdefault("failure", {}))
        with self.survive(), self.open_seen() as seen:
            if self.kind in seen:
                old, now = seen[self.kind], self.list_facts()
                seen[self.kind] = {name: self.add_event(self.kind, one, old.get(name)) for name, one in now.items()}
        with self.survive():
            self.send()

    @contextlib.contextmanager
    def survive(self) -> Iterator[None]:
        try:
            yield
        except (TiplineError, OSError, LookupError, TypeError, ValueError) as error:
            log.warning("notify: %s", join_lines(error))

    @contextlib.contextmanager
    def open_seen(self) -> Iterator[dict[str, dict[str, Any]]]:
        """Yield what was seen, {kind: {subject: [digest of its facts, id of its event]}}, and save it."""
        path = self.paths.staging / "seen.json"
        with files.hold_lock(path.with_suffix(".lock"), "collecting events", wait=True):
            seen = files.try_read_json(path) or {}
            yield seen
            files.write_json(path, seen)

    def list_facts(self) -> dict[str, Facts]:
        """Return the facts that are published now, by subject: month, or number of the change of champion."""
        if self.kind == "verdict":
            months = files.try_read_json(self.paths.monitoring / "months.json") or ()
            texts = [f"{one['month']}: {one['verdict']}: {one['reason']}" for one in months]
            return {
                one["month"]: {"text": text, **{name: one.get(name) for name in ("month", "verdict", *FIGURES)}}
                for one, text in zip(months, texts, strict=True)
            }
        if self.kind == "champion":
            from tipline.registry import champion, store  # noqa: PLC0415 (MLflow takes seconds)

            name = self.settings.model.name
            with store.connect_store(self.paths) as client:
                changes = [change.model_dump(by_alias=True) for change in champion.list_changes(client, name)]
            return {
                str(number): {"text": f"champion of {name}: version {one['to']['version']} ({one['how']})", **one}
                for number, one in enumerate(changes)
            }
        found = dict[str, Facts]()
        for path in sorted(self.paths.predictions.glob(f"month=*/{files.MANIFEST}")):
            manifest = files.read_json(path, "Run: dvc repro score")
            month, made, key, rows = (manifest[name] for name in ("month", "made", "key", "rows"))
            count = format_count(rows, "row")
            text = f"{month}: {count} scored with {made['name']} version {made['version']}"
            facts = {"month": month, "rows": rows, "version": made["version"], "digest": key["model"]}
            found[month] = {"text": text, **facts, "key": files.hash_json(key)}
        return found

    def add_event(self, kind: str, facts: Facts, before: list[str] | None) -> list[str | None]:
        """Put an event into the outbox unless its subject had these facts `before`; return what is to be seen as."""
        state, last = hash_facts(facts), before[1] if before else None
        if before and before[0] == state:
            return list(before)
        # The event before is part of the id, so that a model that comes back by a rollback is no repeat.
        event_id, now = files.hash_json([kind, state, last]), f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        event = {"id": event_id, "kind": kind, "time": now, "model": self.settings.model.name, **facts}
        files.write_text(self.outbox / f"{event_id}.json", json.dumps(event) + "\n")
        return [state, event_id]

    def add_failure(self, error: BaseException | None, seen: dict[str, list[Any]]) -> None:
        """Note whether the command failed. The same failure is one event until the command succeeds."""
        if error is None:
            for command, state in seen.items():
                if command == self.command or self.command in PIPELINES:
                    state[0] = None
        elif getattr(error, "exit_code", 1) not in NO_FAILURES and self.command not in {"promote", "rollback"}:
            stages = [state for command, (state, _) in seen.items() if command not in PIPELINES]
            if not (isinstance(error, ReproFailedError) and any(stages)):  # the stage has given its reason
                message = shorten_text(hide_secrets(join_lines(error)), 2000)
                facts = {"text": f"tipline {self.command} failed: {message}", "command": self.command}
                facts["message"] = message
                seen[self.command] = self.add_event("failure", facts, seen.get(self.command))

    def send(self) -> None:
        """Give the events to the command, the oldest first, until one cannot be given."""
        waiting = sorted(self.outbox.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        if waiting:
            with files.hold_lock(self.outbox / ".lock", "sending events"):
                for number, path in enumerate(waiting):
                    if path.exists() and (problem := self.run_command(path.read_bytes())):
                        kept = format_count(len(waiting) - number, "event")
                        log.warning("notify: %s; %s will be sent next time", problem, kept)
                        return
                    path.unlink(missing_ok=True)

    def run_command(self, event: bytes) -> str | None:
        """Run the command with an event as its input; return what went wrong."""
        options: dict[str, Any] = {"cwd": self.paths.root, "env": get_environment(), "start_new_session": True}
        with tempfile.TemporaryFile() as printed:
            options |= {"stdin": subprocess.PIPE, "stdout": printed, "stderr": printed}
            process = subprocess.Popen(self.settings.notify or "", shell=True, **options)  # noqa: S602 (the user's own)
            try:
                process.communicate(event, SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return f"the command did not end within {SECONDS} s"
            printed.seek(0)
            lines = printed.read().decode(errors="replace").split()
        return f"the command ended with {process.returncode}: {' '.join(lines)[-200:]}" if process.returncode else None


def hash_facts(facts: Facts) -> str:
    return files.hash_json({name: value for name, value in facts.items() if name not in UNCOMPARED})
