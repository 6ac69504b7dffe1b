"""What Kubernetes and KubeRay accept: the fields in schema.json, and no others."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA = json.loads(Path(__file__).with_name("schema.json").read_text())


def faults(document: dict[str, Any]) -> list[str]:
    """What an API server would say against a document: where, and what was found there."""
    kind = document.get("kind")
    if kind not in SCHEMA["$defs"]:
        return [f"kind: {kind!r} is none that is described here"]
    schema = {"$ref": f"#/$defs/{kind}", "$defs": _closed(SCHEMA["$defs"])}
    found = Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


def _closed(schema: Any) -> Any:
    """The schema with every object closed to fields that it does not name.

    Kubernetes drops or refuses those. A map of any names to values of one type stays open, and what
    may be an integer or a string (x-kubernetes-int-or-string) has that as anyOf beside the mark.
    """
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed["additionalProperties"] = False
    return closed
