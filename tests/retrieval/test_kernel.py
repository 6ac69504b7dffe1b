"""The compiled kernel: built once, or a reason why it is not available."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.retrieval import COMPILED
from visrec import native
from visrec.isas import of_machine
from visrec.retrieval import kernel

needs_kernel = pytest.mark.skipif(
    kernel.load_kernel() is None,
    reason=f"no compiled kernel here: {kernel.kernel_unavailable_reason()}",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty build folder; libraries that were loaded or packaged are forgotten."""
    source = tmp_path / "source" / kernel._SOURCE.name
    shutil.copytree(kernel._SOURCE.parent, source.parent, ignore=shutil.ignore_patterns("*.so"))
    shutil.copy2(kernel._SOURCE.parents[1] / "threads.h", tmp_path)
    monkeypatch.setattr(kernel, "_SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._load.cache_clear()
    yield tmp_path / "visrec"
    native._load.cache_clear()


@needs_kernel
def test_kernel_is_built_once_per_source_and_instruction_set(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, COMPILED[0])
    assert kernel.load_kernel() is not None
    (first,) = cache.iterdir()
    assert first.name.startswith(f"kernel-{COMPILED[0]}-")
    built = first.stat().st_mtime_ns
    native._load.cache_clear()
    assert kernel.load_kernel() is not None
    assert first.stat().st_mtime_ns == built
    header = kernel._SOURCE.parents[1] / "threads.h"
    header.write_text(header.read_text() + "// changed\n")
    monkeypatch.setenv(native.ISA_VARIABLE, COMPILED[-1])
    native._load.cache_clear()
    assert kernel.load_kernel() is not None
    assert len(list(cache.iterdir())) == 2


@needs_kernel
def test_packaged_kernel_needs_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel.load_kernel() is not None
    (built,) = cache.iterdir()
    built.rename(kernel._SOURCE.with_name(built.name))
    native._load.cache_clear()
    monkeypatch.setenv("PATH", os.devnull)
    assert kernel.load_kernel() is not None


@needs_kernel
def test_concurrent_builds_do_not_interfere(cache: Path) -> None:
    isa = native.usable_isas()[0]
    build = partial(native._load.__wrapped__, kernel._SOURCE, isa)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: build(), range(2)))
    assert all(kernel is not None and reason is None for kernel, reason in found)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.usefixtures("cache")
def test_kernel_is_unavailable_with_a_reason_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(native, "processor_flags", lambda: of_machine()[0].needs)
    assert kernel.load_kernel() is None
    assert "compiler" in (kernel.kernel_unavailable_reason() or "")


def test_kernel_is_unavailable_with_a_reason_on_an_unsupported_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "processor_flags", lambda: frozenset({"sse2"}))
    assert kernel.load_kernel() is None
    assert of_machine()[0].name in (kernel.kernel_unavailable_reason() or "")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2 fma bmi1 bmi2 f16c abm movbe", "avx2"),
        ("avx2 fma bmi1 bmi2 f16c abm movbe avx_vnni", "avxvnni"),
        ("avx2 fma bmi1 bmi2 f16c abm movbe avx512f avx512bw avx512cd avx512dq avx512vl", "avx512"),
    ],
)
def test_fastest_instruction_set_of_the_processor_is_chosen(
    flags: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(native, "processor_flags", lambda: frozenset(flags.split()))
    assert native.usable_isas()[0].name == expected


@needs_kernel
def test_slower_instruction_set_is_used_if_the_compiler_does_not_know_the_fastest(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest, *others = native.usable_isas()
    if not others:
        pytest.skip("this processor has one instruction set")
    unknown = replace(fastest, name="future", flags=("-march=future",))
    monkeypatch.setattr(native, "usable_isas", lambda: [unknown, *others])
    assert kernel.load_kernel() is not None
    assert kernel.kernel_label() == others[0].name
    assert [path.name.split("-")[1] for path in cache.iterdir()] == [others[0].name]
    monkeypatch.setattr(native, "usable_isas", lambda: [unknown])
    assert kernel.load_kernel() is None
    assert "future" in kernel.kernel_label()
