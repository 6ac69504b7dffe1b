"""What the configuration of every job has in common."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from visrec.models import MODELS
from visrec.storage.store import Store
from visrec.storage.workspace_tables import find_workspace_table


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """The keys that every job has.

    Attributes:
        workspace: directory or s3:// prefix that holds the inputs and outputs unless a key names
            another path.
        local: start Ray in this process, on this machine alone; otherwise the job joins the cluster
            that it was submitted to.
        debug: show stack traces.
        quiet: print only warnings and errors; the summary is in the workspace.
        log_json: print one JSON object a line instead of text.
        given_keys: the dotted keys that flags or files of --config have set, to whatever values;
            parsing sets it, and a copy with other values has none.
    """

    given_keys: ClassVar[frozenset[str]] = frozenset()

    workspace: str = "runs/demo"
    local: bool = False
    debug: bool = False
    quiet: bool = False
    log_json: bool = False

    @classmethod
    def explain_foreign_key(cls, key: str) -> str:
        """The end of a sentence about a key of another job; empty if it is unknown here."""
        del key
        return ""

    def resolve(self, path: str | None, default: str) -> str:
        """The path as configured, or the default name inside the workspace."""
        return path or f"{self.workspace.rstrip('/')}/{default}"

    def resolve_file_if_exists(self, path: str | None, default: str) -> str | None:
        """As `resolve`; None if no path is set and the workspace has no file of that name."""
        if path is None and not Store.at(self.workspace).exists(default):
            return None
        return self.resolve(path, default)

    def find_table(self, path: str | None, name: str, key: str) -> str | None:
        """The table as configured, or the one of that name in the workspace; None without either.

        Raises:
            InputError: the workspace has several.
        """
        return path or find_workspace_table(Store.at(self.workspace), name, key)


Job = TypeVar("Job", bound=JobConfig)


@dataclass(frozen=True)
class ModelChoice:
    """A model by name, and the configuration of that model.

    Attributes:
        name: a key of `MODELS`.
        config: an instance of that model's `Config`; each model has a class of its own.
    """

    name: str = "hybrid"
    config: Any = field(default_factory=MODELS["hybrid"].Config)
