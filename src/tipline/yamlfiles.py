"""YAML files that a person writes, read into frozen pydantic models; what is wrong with them is said in one message."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tipline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Model = TypeVar("Model", bound=BaseModel)


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """The mapping of a node."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: Path, model: type[Model], absent: str) -> Model:
    """Read and check a file.

    Parameters
    ----------
    absent
        What to do where there is no such file.

    Raises
    ------
    UsageError
        Naming each thing that is wrong.
    """
    values = read(path, absent)
    try:
        # As json, because strict python input would refuse a list where a tuple is asked for.
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        problems = [explain(dict(problem), model) for problem in error.errors()]
        raise UsageError("; ".join(problems) + ".", str(path), "Correct the file and run it again.") from None


def read(path: Path, absent: str) -> dict[str, Any]:
    """The file as a mapping."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)  # noqa: S506 (a SafeLoader)
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"There is no {path.name}.", str(path), absent) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = f"The file is not valid YAML: {' '.join(str(error).split())}."
        raise UsageError(what, str(path), "Correct the line.") from None
    if not isinstance(values, dict):
        raise UsageError("The file is not a mapping of sections.", str(path), "Write it as `key: value` lines.")
    return values


def explain(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One problem that pydantic found, in words, with the nearest known key for an unknown one."""
    location = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        known = known_keys(model, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.4)
        return f"unknown key {location}" + (f", did you mean {near[0]}?" if near else "")
    if problem["type"] == "missing":
        return f"the key {location} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{location}: {message}" if location else message


def known_keys(model: Any, location: tuple[Any, ...]) -> list[str]:  # noqa: ANN401 (a model, or a mapping to models)
    """The keys that a file may have at a place."""
    section = model
    for part in location:
        if hasattr(section, "model_fields"):
            section = {field.alias or name: field.annotation for name, field in section.model_fields.items()}[part]
        else:
            section = get_args(section)[-1]
    return [field.alias or name for name, field in section.model_fields.items()]
