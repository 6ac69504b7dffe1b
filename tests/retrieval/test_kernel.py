"""The compiled kernel: built once, or a reason why it is not available."""

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
    """An empty build folder; libraries that other tests loaded are forgotten."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_and_load.cache_clear()
    yield tmp_path / "visrec"
    compile_and_load.cache_clear()


@needs_kernel
def test_kernel_is_built_once_per_source_and_processor(
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
def test_concurrent_builds_do_not_interfere(cache: Path) -> None:
    build = partial(compile_and_load.__wrapped__, kernel._SOURCE)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: build(), range(2)))
    assert all(kernel is not None and reason is None for kernel, reason in found)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.usefixtures("cache")
def test_kernel_is_unavailable_with_a_reason_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    assert kernel.load_kernel() is None
    assert "compiler" in (kernel.kernel_unavailable_reason() or "")


@needs_kernel
@pytest.mark.usefixtures("cache")
def test_kernel_is_unavailable_with_a_reason_on_an_unsupported_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = tuple(flag.replace("native", "x86-64") for flag in visrec.native._FLAGS)
    monkeypatch.setattr("visrec.native._FLAGS", flags)
    assert kernel.load_kernel() is None
    assert "AVX-512" in (kernel.kernel_unavailable_reason() or "")
