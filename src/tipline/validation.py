"""Read YAML files into frozen pydantic models and report all mistakes in one message."""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tipline.errors import UsageError, join_lines, shorten_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Model = TypeVar("Model", bound=BaseModel)


class Loader(yaml.SafeLoader):
    """Refuse repeated keys, of which YAML would silently take the last, and read 1e-3 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """Construct a mapping whose keys are scalars and distinct."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"the key {key!r} is repeated"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# PyYAML reads 1e-3 as text, as YAML 1.1 did; DVC, which reads and writes the same file, as a number.
POWER_OF_TEN = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", POWER_OF_TEN, list("-+.0123456789"))


def validate_values(values: Mapping[str, Any], model: type[Model], path: Path) -> Model:
    """Validate what a file holds; raise a UsageError that names every mistake."""
    try:
        # As JSON, because strict Python input would refuse a list where a tuple is expected.
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        problems = [dict(problem) for problem in error.errors()]
        # A list is also called too short if a value in it was refused.
        found = [p for p in problems if not (p["type"] == "too_short" and p["input"])]
        what = "; ".join(explain_problem(problem, model) for problem in found)
        what += "" if what.endswith("?") else "."
        raise UsageError(what, str(path), "Correct the file and run the command again.") from None
    except ValueError as error:
        what = f"The file cannot be read: {join_lines(error)}."  # an alias that contains itself
        raise UsageError(what, str(path), "Write the values out, without aliases (* and &).") from None


def read_mapping(path: Path, missing: str) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; raise a UsageError for anything else.

    `missing` says what to do if there is no such file.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 (a SafeLoader)
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"There is no {path.name}.", str(path), missing) from None
    except yaml.MarkedYAMLError as error:
        mark, what = error.problem_mark or error.context_mark, error.problem or error.context
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        hint = " Does a merge conflict stand there?" if mark and has_conflict(path) else ""
        raise UsageError(f"The file is not valid YAML: {what}.{hint}", where, "Correct the line.") from None
    except RecursionError:
        raise UsageError("The file is nested too deeply.", str(path), "Write it as `key: value` lines.") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"The file is not valid YAML: {join_lines(error)}.", str(path), "Correct the line.") from None
    if not isinstance(values, dict):
        raise UsageError("The file is not a mapping of sections.", str(path), "Write it as `key: value` lines.")
    return values


def has_conflict(path: Path) -> bool:
    """Whether git has left the markers of a merge conflict in a file."""
    return bool(re.search(r"^(<{7}|>{7}) ", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE))


def explain_problem(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Shorten pydantic's message; an unknown key comes with the nearest known one."""
    # Positions in a list are left out, because the message names the value.
    location = ".".join(part for part in problem["loc"] if isinstance(part, str) and part != "[key]")
    kind, value, message = problem["type"], problem["input"], problem["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(location.split(".")[-1], list_known_keys(model, problem["loc"][:-1]), 1, 0.4)
        return f"unknown key {location}" + (f", did you mean {near[0]}?" if near else "")
    if kind == "missing":
        return f"the key {location} is missing"
    if kind in {"too_short", "string_too_short"}:
        return f"{location} must not be empty"
    if message.startswith("Input should be "):
        hint = ": put it in quotes" if kind == "string_type" and value is not None else ""
        shown = "empty" if value is None else shorten_text(json.dumps(value, ensure_ascii=False))
        return f"{location} has to be {message.removeprefix('Input should be ')}, not {shown}{hint}"
    return f"{location}: {message}" if location else message


def list_known_keys(model: Any, location: tuple[Any, ...]) -> list[str]:  # noqa: ANN401 (a model, or a mapping to models)
    """List the keys that a file may have at a location."""
    section = model
    for part in location:
        if hasattr(section, "model_fields"):
            section = {field.alias or name: field.annotation for name, field in section.model_fields.items()}[part]
        else:
            section = get_args(section)[-1]
    return [field.alias or name for name, field in section.model_fields.items()]
