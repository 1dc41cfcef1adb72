"""docs/asyncapi.yaml, for tests that hold something against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError

ROOT = Path(__file__).resolve().parents[2]

TEXT = (ROOT / "docs" / "asyncapi.yaml").read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML takes in silence: a key that stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        assert len(set(keys)) == len(keys), keys
        return super().construct_mapping(node, deep)


RAW = yaml.load(TEXT, _Loader)


def _resolved(value: Any) -> Any:
    """`value` with no references; ours never refer to themselves."""
    if isinstance(value, list):
        return [_resolved(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        found = RAW
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return _resolved(found)
    return {key: _resolved(each) for key, each in value.items()}


DOCUMENT = _resolved(RAW)

MESSAGES = DOCUMENT["components"]["messages"]


def check(schema: Any, value: Any) -> None:
    """That `value` fits, and what is JSON in its texts, too."""
    Draft202012Validator(schema).validate(value)
    if isinstance(schema, dict) and "contentSchema" in schema:
        check(schema["contentSchema"], json.loads(value))
    if isinstance(schema, dict) and isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                check(inner, value[name])


def fits(name: str, value: Any) -> bool:
    try:
        check(MESSAGES[name]["payload"], value)
    except ValidationError:
        return False
    return True


def is_told(operation: str, frame: Any) -> None:
    """That exactly one message of an operation is this one."""
    names = [each["$ref"].rpartition("/")[2] for each in RAW["operations"][operation].get("messages", [])]
    channel = RAW["operations"][operation]["channel"]["$ref"].rpartition("/")[2]
    fitting = [name for name in names or RAW["channels"][channel]["messages"] if fits(name, frame)]
    assert len(fitting) == 1, (fitting, frame)
