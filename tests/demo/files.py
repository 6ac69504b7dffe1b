"""A gallery's files in memory, as tables."""

import io
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from visrec.demo.gallery import GalleryConfig, write_gallery

Files = dict[str, bytes]


@cache
def gallery(config: GalleryConfig) -> tuple[Files, dict[str, int]]:
    """The files that `write_gallery` writes, and the counts that it returns."""
    files: Files = {}
    counts = write_gallery(config, files.__setitem__)
    return files, counts


def table(files: Files, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(files[name]))


def frame(files: Files, name: str) -> pd.DataFrame:
    return table(files, name).to_pandas()


def vectors(files: Files, name: str) -> npt.NDArray[np.float32]:
    return np.stack(table(files, name)["vector"].to_pylist()).astype(np.float32)
