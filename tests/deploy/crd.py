"""What Kubernetes and KubeRay accept: the fields of schema.json and no others."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA = json.loads(Path(__file__).with_name("schema.json").read_text())


def find_errors(document: dict[str, Any]) -> list[str]:
    """The errors that an API server would find in a document: where, and what is there."""
    kind = document.get("kind")
    if kind not in SCHEMA["$defs"]:
        return [f"kind: {kind!r} is not described in schema.json"]
    schema = {"$ref": f"#/$defs/{kind}", "$defs": _without_additional_properties(SCHEMA["$defs"])}
    errors = Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


def _without_additional_properties(schema: Any) -> Any:
    """The schema with no additional properties in any object: Kubernetes drops or refuses them.

    A map from any name to values of one type stays as it is. A value that may be an integer or a
    string (x-kubernetes-int-or-string) has an anyOf besides that flag.
    """
    if isinstance(schema, list):
        return [_without_additional_properties(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _without_additional_properties(part) for name, part in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        strict["additionalProperties"] = False
    return strict
