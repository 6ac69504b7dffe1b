"""The compiled kernel: built once, whoever else builds it, and done without where there is none."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import visrec.native
from visrec.native import compile_and_load
from visrec.retrieval import kernel

needs_kernel = pytest.mark.skipif(
    kernel.load_kernel() is None,
    reason=f"no compiled kernel here: {kernel.kernel_unavailable_reason()}",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for what is built, and nothing remembered of other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_and_load.cache_clear()
    yield tmp_path / "visrec"
    compile_and_load.cache_clear()


@needs_kernel
def test_it_is_built_once_for_a_source_and_a_processor(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kernel.load_kernel() is not None
    (first,) = cache.iterdir()
    built = first.stat().st_mtime_ns
    compile_and_load.cache_clear()
    assert kernel.load_kernel() is not None
    assert first.stat().st_mtime_ns == built
    monkeypatch.setattr("visrec.native._processor_flags", lambda: "another")
    compile_and_load.cache_clear()
    assert kernel.load_kernel() is not None
    assert len(list(cache.iterdir())) == 2


@needs_kernel
def test_those_who_build_at_the_same_time_do_no_harm(cache: Path) -> None:
    build = partial(compile_and_load.__wrapped__, kernel._SOURCE)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: build(), range(2)))
    assert all(kernel is not None and reason is None for kernel, reason in found)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.usefixtures("cache")
def test_without_a_compiler_there_is_none_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    assert kernel.load_kernel() is None
    assert "compiler" in (kernel.kernel_unavailable_reason() or "")


@needs_kernel
@pytest.mark.usefixtures("cache")
def test_on_another_processor_there_is_none_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = tuple(flag.replace("native", "x86-64") for flag in visrec.native._FLAGS)
    monkeypatch.setattr("visrec.native._FLAGS", flags)
    assert kernel.load_kernel() is None
    assert "AVX-512" in (kernel.kernel_unavailable_reason() or "")
