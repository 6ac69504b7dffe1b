"""An input table as the configuration names it: where it is, and what its columns are called."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from visrec.config import digest
from visrec.errors import InputError, SchemaError, did_you_mean
from visrec.storage.column_guess import PLACEHOLDER, guess_columns, suggest_mapping
from visrec.storage.column_types import ID
from visrec.storage.schemas import NOT_UTF_8, Column, check_columns, describe_columns

_NUMBER = re.compile(r"[-+]?[0-9]+([.,][0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class InputTable:
    """A table that users write.

    Attributes:
        uri: a file or a directory.
        key: the configuration key that names it, without dashes, for errors.
        columns: the name in the files of each declared column that has another name there.
        columns_key: the configuration key of `columns`; None if it has none.
    """

    uri: str
    key: str
    columns: Mapping[str, str] = field(default_factory=dict)
    columns_key: str | None = None

    def stored_name(self, column: str) -> str:
        """The name of a declared column in the files."""
        return self.columns.get(column, column)

    def guess_names(self, columns: Sequence[Column], names: Sequence[str]) -> dict[str, str]:
        """The likeliest stored name of each declared column that the files lack; of the optional
        ones, ids alone, because rows without them would mean something else: a block list without
        its users blocks items for everybody.

        Args:
            columns: the declared columns.
            names: the columns of the files.
        """
        wanted = [c.name for c in columns if c.required or c.column_type is ID]
        missing = [name for name in wanted if self.stored_name(name) not in names]
        taken = {self.stored_name(column.name) for column in columns}
        return guess_columns(missing, [name for name in names if name not in taken])

    def identify(self, content_digest: str) -> str:
        """The digest of the files and of what their columns mean."""
        renamed = {name: stored for name, stored in self.columns.items() if name != stored}
        return digest(content_digest, renamed) if renamed else content_digest

    def check_columns(self, schema: pa.Schema, columns: Sequence[Column], where: str) -> None:
        """Refuses a file that does not have the declared columns, under their names in the files.

        Args:
            schema: the file's schema.
            columns: the declared columns.
            where: the file and the key that names the table, for the error.

        Raises:
            SchemaError: a column of the mapping does not exist, or as `schemas.check_columns`.
        """
        names = {column.name: self.stored_name(column.name) for column in columns}
        for name, stored in names.items():
            if name in self.columns and stored not in schema.names:
                raise self._unknown_column(name, schema, where)
        missing = [c.name for c in columns if c.required and names[c.name] not in schema.names]
        if missing:
            raise self._missing_columns(missing, columns, schema, where)
        declared = [
            stored_field.with_name(name)
            for name, stored in names.items()
            for stored_field in schema
            if stored_field.name == stored
        ]
        check_columns(pa.schema(declared), columns, where)

    def _unknown_column(self, name: str, schema: pa.Schema, where: str) -> SchemaError:
        stored = self.columns[name]
        if stored == PLACEHOLDER:
            return SchemaError(
                f"Found --{self.columns_key} {{{name}: {stored}}}; expected the name of a column "
                f"of {where} in place of {PLACEHOLDER}. Its columns are "
                f"{describe_columns(schema)}.",
                key=self.columns_key,
                column=name,
            )
        readable = [name for name in schema.names if NOT_UTF_8 not in name]
        return SchemaError(
            f"Found --{self.columns_key} {{{name}: {stored}}}, but {where} has no column {stored}"
            f"{did_you_mean(stored, readable) or '.'} Its columns are "
            f"{describe_columns(schema)}.",
            key=self.columns_key,
            column=name,
        )

    def _missing_columns(
        self, missing: Sequence[str], columns: Sequence[Column], schema: pa.Schema, where: str
    ) -> SchemaError:
        expected = ", ".join(c.name if c.required else f"{c.name} (optional)" for c in columns)
        message = (
            f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}. Found "
            f"{describe_columns(schema)}; expected {expected}."
        )
        if any(_NUMBER.fullmatch(name) for name in schema.names):
            return SchemaError(
                f"{message} Its first line looks like a row; add a header above it.",
                column=missing[0],
            )
        if self.columns_key is not None:
            guesses = self.guess_names(columns, schema.names)
            mapping = suggest_mapping(
                {**self.columns, **dict.fromkeys(missing, PLACEHOLDER), **guesses}
            )
            if guesses.keys() >= {*missing}:
                message += f" If the names mean what they say, add --{self.columns_key} {mapping}."
            else:
                message += (
                    f" If they have other names, add --{self.columns_key} {mapping} with these "
                    f"names in place of {PLACEHOLDER}."
                )
        return SchemaError(message, column=missing[0])


def check_mapping(mapping: Mapping[str, str], declared: Sequence[Column], key: str) -> None:
    """Refuses a mapping of columns that are not declared.

    Args:
        mapping: from declared columns to those of the files.
        declared: the columns of the table.
        key: the configuration key of the mapping, without dashes.

    Raises:
        InputError: names the column, and what was probably meant.
    """
    names = [column.name for column in declared]
    for name, stored in mapping.items():
        if name in names:
            continue
        hint = did_you_mean(name, names) or "."
        if stored in names:
            hint = f"; did you mean {{{stored}: {name}}}?"
        raise InputError(
            f"Found --{key} {{{name}: {stored}}}, but {name} is no column that visrec reads{hint} "
            f"Expected the name of a column of the files after each of {', '.join(names)}, "
            "where it differs.",
            key=key,
        )
