"""The ids of the users that `visrec forget` removes."""

import re

import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError
from visrec.ids import TEXT, id_array
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store, file_at
from visrec.storage.table_files import is_table_name
from visrec.storage.tables import load_table
from visrec.storage.text_encoding import detect_encoding


def read_user_ids(uri: str) -> pa.LargeStringArray:
    """The distinct ids in a table with user_id, or in the lines of a text file.

    Raises:
        InputError: there are none; or the file is not text in a known encoding, or a line of it
            begins or ends with white space.
    """
    if not is_table_name(uri) and not any(Store.at(uri).list()):
        store, name = file_at(uri)
        found = store.read_if_exists(name)
        if found is None:
            raise InputError(
                f"There is no file {uri} (--users); expected a text file with an id in each line, "
                "or a table with user_id. Change --users.",
                path=uri,
                key="users",
            )
        # Not `splitlines`: an id may have other characters at which it would split.
        lines = re.split("\r\n|\r|\n", _decode(found[0], f"{uri} (--users)"))
        for number, line in enumerate(lines, 1):
            if line.strip() not in ("", line):
                raise InputError(
                    f"Found {line!r} in line {number:,} of {uri} (--users); expected an id without "
                    "white space around it. Remove the white space; or, if it is part of the id, "
                    "use a table with user_id.",
                    path=uri,
                    key="users",
                )
        ids = pa.array([line for line in lines if line.strip()], TEXT)
        if not len(ids):
            raise InputError(
                f"Found no id in {uri}; expected a text file with an id in each line, or a table "
                "with user_id. Change --users.",
                path=uri,
                key="users",
            )
    else:
        ids = id_array(load_table(InputTable(uri=uri, key="users"), schemas.USERS)["user_id"])
    return pc.unique(ids)


def _decode(data: bytes, where: str) -> str:
    expected = "UTF-8, or UTF-16 with a byte order mark."
    encoding = detect_encoding(data, where, f"ids, one in each line, in {expected}")
    try:
        return data.removeprefix(encoding.bom).decode(encoding.name)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not in {encoding.label}; expected {expected}") from error
