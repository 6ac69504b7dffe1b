"""What every configuration shares: its plain form and its digest."""

import dataclasses
import hashlib
import json
import math
from typing import Any


def plain(config: Any) -> Any:
    """A dataclass as dicts, lists and scalars, for JSON and YAML; what JSON cannot say is None."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value) for value in config]
    return None if isinstance(config, float) and not math.isfinite(config) else config


def digest(*values: Any) -> str:
    """16 hexadecimal digits that change with any of the values."""
    text = json.dumps([plain(value) for value in values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
