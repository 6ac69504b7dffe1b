"""Keys that several jobs share, and `visrec.yaml`, in which a workspace remembers them.

Every command and `visrec.Workspace` read that file before anything else: a flag or a file of
`--config` that sets the same key wins.
"""

from dataclasses import dataclass, field
from typing import Any

from visrec.cli.job import JobConfig
from visrec.cli.keys import (
    KeyTypes,
    Yaml,
    check_yaml,
    config_keys,
    flatten,
    has_value,
    key_exists,
    parse_yaml,
    without_secrets,
)
from visrec.config import check_fields
from visrec.errors import InputError, VisrecError, did_you_mean
from visrec.features.item_features import ItemFeatures
from visrec.features.sentences import TextConfig
from visrec.publication.tables import PublishConfig
from visrec.retrieval.rules import RulesConfig
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.store import Store

WORKSPACE_FILE = "visrec.yaml"
AS_OF_KEY = "interactions.as_of"  # a date, which no workspace keeps


@dataclass(frozen=True, kw_only=True)
class WorkspaceKeys:
    """The keys that several jobs share.

    Attributes:
        images: pictures: a directory or prefix of <item_id>.jpg (.png, .webp, .gif, .avif), or
            Parquet; by default images of the workspace.
        image_pattern: names of several pictures of an item, such as {item_id}_{view}.jpg or
            {item_id}/{view}.jpg; by default a name is an item id.
        features: features directory of the pictures; by default features of the workspace.
        text: the model that embeds titles and descriptions.
        text_features: features directory of the texts; by default text_features of the workspace.
        item_features: what the model knows about an item: its picture, its text, or both.
        interactions: which users took which items.
        items: items table; by default items.* of the workspace, if it exists.
        items_columns: its columns that have other names in the files, such as {item_id: sku}.
        users: users table; by default users.* of the workspace, if it exists.
        users_columns: its columns that have other names in the files.
        rules: what a list may hold.
        publish: how lists reach readers who do not follow the pointer.
    """

    images: str | None = None
    image_pattern: str | None = None
    features: str | None = None
    text: TextConfig = field(default_factory=TextConfig)
    text_features: str | None = None
    item_features: ItemFeatures = "pictures"
    interactions: InteractionsConfig = field(default_factory=InteractionsConfig)
    items: str | None = None
    items_columns: dict[str, str] = field(default_factory=dict)
    users: str | None = None
    users_columns: dict[str, str] = field(default_factory=dict)
    rules: RulesConfig = field(default_factory=RulesConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)

    def __post_init__(self) -> None:
        check_fields(self, "")


@dataclass(frozen=True)
class WorkspaceValues:
    """What a workspace's `visrec.yaml` says of a job's keys.

    Attributes:
        values: by dotted key; empty without that file.
        path: the location of the file.
    """

    values: Yaml = field(default_factory=dict)
    path: str = ""

    @property
    def summary_row(self) -> dict[str, str]:
        """The row of a job's summary that names the file and its keys; empty without keys."""
        return {"keys from": f"{self.path}: {', '.join(self.values)}"} if self.values else {}

    def explain(self, error: VisrecError) -> str:
        """A sentence on which keys that an error names are set in the file; empty for none."""
        named = [key for key in self.values if key in error.keys]
        verb = "is" if len(named) == 1 else "are"
        return f" ({', '.join(named)} {verb} set in {self.path}.)" if named else ""


def read_workspace_values(workspace: str, keys: KeyTypes) -> WorkspaceValues:
    """Reads the `visrec.yaml` of a workspace, which may not have one.

    Args:
        workspace: its location.
        keys: the keys of the job.

    Raises:
        InputError: the file is not YAML, or has a key that no workspace keeps.
        StorageError: the workspace cannot be read.
    """
    known = {key: kind for key, kind in config_keys(WorkspaceKeys).items() if key != AS_OF_KEY}
    store = Store.at(workspace)
    path = store.uri(WORKSPACE_FILE)
    found = store.read_if_exists(WORKSPACE_FILE) if keys.keys() & known.keys() else None
    if found is None:
        return WorkspaceValues()
    content = parse_yaml(found[0], path)
    for key, _ in flatten(content, known):
        if not key_exists(key, known):
            hint = did_you_mean(key, known) or "."
            raise InputError(
                f"Found the key {without_secrets(key)} in {path}, which a workspace does not keep"
                f"{hint} Expected some of {', '.join(known)}; others belong in a file of --config.",
                path=path,
                key=key,
            )
    check_yaml(path, content, known)
    values = {
        key: value
        for key, value in flatten(content, known)
        if value is not None and has_value(key, keys)
    }
    return WorkspaceValues(values, path)


def values_used_by(job: JobConfig) -> WorkspaceValues:
    """What the `visrec.yaml` of a job's workspace gave the job; other values were set elsewhere."""
    remembered = read_workspace_values(job.workspace, config_keys(type(job)))
    used = {key: value for key, value in remembered.values.items() if value_of(job, key) == value}
    return WorkspaceValues(used, remembered.path)


def value_of(job: object, key: str) -> Any:
    """The value of a dotted key of a configuration, which may be of any type."""
    value: Any = job
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return value
