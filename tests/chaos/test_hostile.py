"""Bad inputs do no harm: pictures, model files, ids; and keys are not seen (10, 11, 13, 14).

What single files of each kind become is tested beside the decoder and the model files; here they
are many at once, in a process that is watched.
"""

import io
import os
import pickle
import random
import struct
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from tests.chaos.harness import PROCESSES, amount, make_complete_run, measured, tried
from tests.features.test_containers import chunk, segment, with_chunks, with_segments
from tests.features.test_decode import _VICTIMS, PLAIN, file, frames, oriented, png, scene
from tests.models.test_artifact import (
    FILES,
    _artifact,
    _as_npz,
    _as_pickle,
    _as_torch_zip,
    _Payload,
    replace_file,
)
from tests.servers import SeaweedFS, free_ports
from tests.storage.test_store import every_request
from visrec.cli.job import JobConfig
from visrec.cli.parse import parse
from visrec.config import plain
from visrec.errors import InputError, VisrecError
from visrec.features.decode import PictureLimits
from visrec.models.artifact import load_artifact, save_artifact
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.recommend import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.publication.list_tables import Layout, lists_file, lists_table
from visrec.publication.publish import publish_run
from visrec.publication.run_spec import run_store
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store

pytestmark = pytest.mark.chaos

# ------------------------------------------------------------------------------------- 10. pictures

LIMITS = PictureLimits(max_pixels=4_000_000, max_bytes=4 * 2**20)
ROOM = 16 * LIMITS.max_pixels + 32 * 2**20  # what the limits say a picture may take, and some more
REASONS = {
    *("empty", "too_many_bytes", "not_a_picture", "format_not_supported", "too_many_pixels"),
    *("too_many_scans", "too_many_blocks", "truncated", "corrupt", "out_of_memory"),
}


def patched(data: bytes, start: int, replacement: bytes) -> bytes:
    return data[:start] + replacement + data[start + len(replacement) :]


def polyglot(data: bytes, behind: bytes) -> bytes:
    return data + behind


def archive() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as zipped:
        zipped.writestr("run.py", "raise SystemExit")
    return sink.getvalue()


def exif(*entries: tuple[int, int, int, int]) -> bytes:
    """A JPEG with an EXIF directory of (tag, type, count, value), written by hand."""
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    block = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8)
    return file(scene(), "JPEG", exif=block)  # the next directory is this one again


def crafted() -> dict[str, tuple[bytes, str]]:
    """Files and what is to become of them: pixels, or one of these reasons."""
    png_file, jpeg = file(scene(), "PNG"), file(scene(), "JPEG")
    gif, webp = file(scene(), "GIF"), file(scene(), "WEBP")
    inflated = zlib.compress(bytes(120 * 2**20))
    progressive = file(scene(1500, 1500), "JPEG", progressive=True)
    scan = progressive[progressive.rfind(b"\xff\xda") : -2]
    size_of_jpeg = jpeg.index(b"\xff\xc0") + 5
    return {
        "zero bytes": (b"", "empty"),
        "text": (b"hello, this is text\n" * 9, "not_a_picture"),
        "zeros": (bytes(1000), "not_a_picture"),
        "the first bytes of a JPEG": (b"\xff\xd8\xff", "truncated corrupt"),
        "the first bytes of a PNG": (png_file[:8], "truncated corrupt"),
        "the first bytes of a GIF": (b"GIF89a", "truncated corrupt"),
        "too many bytes": (jpeg + bytes(LIMITS.max_bytes), "too_many_bytes"),
        "BMP": (file(scene(), "BMP"), "format_not_supported"),
        "TIFF": (file(scene(), "TIFF"), "format_not_supported"),
        "EPS": (file(scene(), "EPS"), "format_not_supported"),
        "PDF": (file(scene(), "PDF"), "format_not_supported"),
        "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "format_not_supported"),
        "SVG with an entity bomb": (
            b'<!DOCTYPE svg [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>',
            "format_not_supported",
        ),
        "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "format_not_supported"),
        "PNG bomb": (png(2, 8, b"", 50_000, 50_000), "too_many_pixels"),
        "JPEG bomb": (patched(jpeg, size_of_jpeg, b"\xff\xff\xff\xff"), "too_many_pixels"),
        "GIF bomb": (patched(gif, 6, b"\xff\xff\xff\xff"), "too_many_pixels"),
        "WEBP bomb": (
            patched(frames("WEBP", lossless=True), 24, b"\xfe\x3f\0\xfe\x3f\0"),
            "too_many_pixels corrupt",
        ),
        "endless scans": (progressive[:-2] + scan * 200 + b"\xff\xd9", "too_many_scans"),
        "text that inflates": (with_chunks(chunk(b"zTXt", b"a\0\0" + inflated)), "pixels"),
        "profile that inflates": (with_chunks(chunk(b"iCCP", b"a\0\0" + inflated)), "pixels"),
        "orientation that inflates": (
            with_chunks(chunk(b"zTXt", b"Raw profile type exif\0\0" + inflated)),
            "pixels",
        ),
        "EXIF in pieces": (with_segments(segment(0xE1, b"Exif\0\0a") * 150_000), "pixels"),
        "segments without end": (with_segments(b"\xff\xfe\0\2" * 1_000_000), "too_many_blocks"),
        "video behind a JPEG": (jpeg + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 900_000, "pixels"),
        "pixels that inflate": (
            png_file[:33] + chunk(b"IDAT", inflated) + chunk(b"IEND", b""),
            "pixels",
        ),
        "chunks without end": (with_chunks(chunk(b"teSt", b"") * 100_000), "pixels"),
        "PNG truncated": (png_file[: len(png_file) // 2], "truncated"),
        "JPEG truncated": (jpeg[: len(jpeg) // 2], "truncated"),
        "GIF truncated": (gif[: len(gif) // 2], "truncated"),
        "WEBP truncated": (webp[: len(webp) // 2], "truncated"),
        "PNG of no width": (png(2, 8, b"", 0, 9), "corrupt truncated"),
        "JPEG of no height": (patched(jpeg, size_of_jpeg, b"\0\0"), "corrupt truncated"),
        "wrong checksum": (patched(png_file, 29, b"\0\0\0\0"), "corrupt"),
        "palette that is not there": (png(3, 8, bytes(2500), 50, 50), "pixels corrupt"),
        "GIF of an impossible code size": (
            patched(gif, gif.index(b",\0\0\0\0") + 10, b"\xff"),
            "corrupt truncated",
        ),
        "EXIF of no direction": (exif((ExifTags.Base.Orientation, 3, 1, 9)), "pixels"),
        "EXIF that leads to itself": (exif((0x8769, 4, 1, 8)), "pixels"),
        "EXIF of four billion values": (exif((0x0112, 3, 0xFFFFFFFF, 8)), "pixels"),
        "CMYK": (file(scene().convert("CMYK"), "JPEG"), "pixels"),
        "16 bits of grey": (png(0, 16, bytes(5000), 50, 50), "pixels"),
        "16 bits of RGBA": (png(6, 16, bytes(20_000), 50, 50), "pixels"),
        "palette with alpha": (file(scene().quantize(16), "PNG", transparency=3), "pixels"),
        "1x65535": (file(Image.new("L", (1, 65_535), 9), "PNG"), "pixels"),
        "65535x1": (file(Image.new("L", (65_535, 1), 9), "PNG"), "pixels"),
        "animated GIF": (frames("GIF"), "pixels"),
        "animated PNG": (frames("PNG"), "pixels"),
        "animated WEBP": (frames("WEBP"), "pixels"),
        "JPEG and ZIP": (polyglot(jpeg, archive()), "pixels"),
        "GIF and script": (polyglot(gif, b"*/=1;<script>alert(1)</script>"), "pixels"),
        "PDF and JPEG": (polyglot(b"%PDF-1.7\n", jpeg), "format_not_supported"),
        **{
            f"turned {way}": (oriented(scene(), way, "PNG"), "pixels like turned 1")
            for way in range(1, 9)
        },
    }


def mutated(seed: int) -> bytes:
    """A picture with some of its bytes changed, cut out, put in, repeated or cut off."""
    rng = random.Random(seed)
    data = bytearray(rng.choice(_VICTIMS))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(min(len(data), rng.choice((40, 300, len(data)))))
        length = rng.randint(1, rng.choice((1, 6, 200)))
        part = slice(at, at + length)
        change = rng.randrange(6)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[part] = rng.randbytes(length)
        elif change == 2:
            del data[part]
        elif change == 3:
            data[at:at] = rng.randbytes(length)
        elif change == 4:
            data[part] = rng.choice((b"\0", b"\xff")) * length
        else:
            data[at:at] = data[part] * rng.randint(1, 20)
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def watched(files: dict[str, bytes]) -> dict[str, tuple[str, str]]:
    """What becomes of the files in a process of their own; an error if it does not survive them."""
    with ProcessPoolExecutor(1, PROCESSES) as pool:
        return pool.submit(tried, files, PLAIN, LIMITS, ROOM).result()


def check_reasons(found: dict[str, tuple[str, str]]) -> int:
    """How many were refused, each with a reason and a sentence."""
    refused = {name: facts for name, facts in found.items() if facts[0] != "pixels"}
    for name, (reason, detail) in refused.items():
        assert reason in REASONS - {"out_of_memory"}, name
        assert detail.endswith("."), name
        assert "\n" not in detail, name
    return len(refused)


def test_crafted_pictures_do_no_harm() -> None:
    files = crafted()
    assert len(files) >= 40
    found = watched({name: data for name, (data, _) in files.items()})
    wrong = {}
    for name, (_, expected) in files.items():
        outcome, digest = found[name]
        if expected == "pixels like turned 1":
            fits = (outcome, digest) == found["turned 1"]
        else:
            fits = outcome in expected.split()
        if not fits:
            wrong[name] = (found[name], expected)
    assert wrong == {}
    refused = check_reasons(found)
    measured(10, bad_inputs=len(found), crashes=0, refused_with_a_reason=refused)


def test_mutated_pictures_do_no_harm() -> None:
    count = amount(200, 2000)
    found = watched({str(seed): mutated(seed) for seed in range(count)})
    assert len(found) == count
    refused = check_reasons(found)
    assert count / 10 < refused < count  # or they were not mutated, or not pictures any more
    measured(10, bad_inputs=count, crashes=0, refused_with_a_reason=refused)


def flipped(data: bytes, count: int) -> Iterator[bytes]:
    """Files with one bit of the compressed pixels changed: of the middle three quarters."""
    rng = random.Random(len(data))
    for _ in range(count):
        changed = bytearray(data)
        bit = rng.randrange(len(data), 7 * len(data))
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def pillow_refuses(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
    except Exception:
        return True
    return False


def of_noise(format: str, **options: Any) -> bytes:
    """A picture of which most bytes are compressed pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return file(Image.fromarray(noise), format, **options)


def test_flipped_bits_are_found_where_the_format_can() -> None:
    """PNG finds all. The others have no checksums: what their decoder says is not swallowed."""
    sound = {
        "PNG": of_noise("PNG"),
        "JPEG": of_noise("JPEG"),
        "progressive JPEG": of_noise("JPEG", progressive=True),
        "WEBP": of_noise("WEBP"),
        "lossless WEBP": of_noise("WEBP", lossless=True),
        "GIF": of_noise("GIF"),
    }
    count = amount(60, 1000)
    files = {f"{kind} {n}": damaged for kind, data in sound.items()
             for n, damaged in enumerate(flipped(data, count))}  # fmt: skip
    found = watched(files)
    check_reasons(found)
    refused = {name for name, facts in found.items() if facts[0] != "pixels"}
    assert {found[name][0] for name in refused} <= {"corrupt", "truncated"}
    assert {name for name in files if pillow_refuses(files[name])} <= refused
    for kind in sound:
        few = len({name for name in refused if name.startswith(f"{kind} ")})
        assert few == count or kind != "PNG"
        counts = {f"flipped_{kind}": count, f"refused_{kind}": few}
        measured(10, bad_inputs=count, crashes=0, errors_swallowed=0, **counts)


def test_the_watch_sees_what_wants_too_much() -> None:
    """With too little memory, most of it for the watch itself, or time, a plain one is stopped."""
    large = {"large": file(Image.new("RGB", (1900, 1900)), "PNG")}
    with ProcessPoolExecutor(1, PROCESSES) as pool:
        found = pool.submit(tried, large, PLAIN, LIMITS, 14 * 2**20).result()
    assert found["large"][0] == "out_of_memory"
    with ProcessPoolExecutor(1, PROCESSES) as pool, pytest.raises(BrokenProcessPool):
        pool.submit(tried, large, PLAIN, LIMITS, ROOM, 0.001).result()


# ---------------------------------------------------------------------------------- 11. model files


def _as_joblib(payload: _Payload) -> bytes:
    sink = io.BytesIO()
    joblib.dump({"weight": payload}, sink)
    return sink.getvalue()


def _as_python_type(payload: _Payload) -> bytes:
    """Parquet that asks for a type which older versions of pyarrow read by unpickling it."""
    marks = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(payload),
    }
    sink = pa.BufferOutputStream()
    schema = pa.schema([pa.field("item_id", pa.string(), metadata=marks)])
    pq.write_table(pa.table({"item_id": [f"i{n}" for n in range(8)]}, schema), sink)
    return bytes(sink.getvalue())


DISGUISES = (_as_pickle, _as_torch_zip, _as_npz, _as_joblib, _as_python_type)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_no_file_of_a_model_runs_code(
    tmp_path: Path, disguise: Callable[[_Payload], bytes]
) -> None:
    trace = tmp_path / "trace"
    data = disguise(_Payload(trace))
    harmless = disguise is _as_python_type  # for ids it is a file of strings
    for name in FILES:
        store = Store.at(str(tmp_path / f"model-{name}"))
        save_artifact(_artifact(), store)
        replace_file(store, name, data)
        if harmless and name.endswith("ids.parquet"):
            load_artifact(store)
        else:
            # A model's own parser may say it in its own words, all of which are ValueErrors.
            with pytest.raises((InputError, ValueError)):
                load_artifact(store)
        assert not trace.exists(), name
    measured(11, bad_inputs=len(FILES), crashes=0, traces=int(trace.exists()))


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_table_runs_no_code(tmp_path: Path, disguise: Callable[[_Payload], bytes]) -> None:
    trace = tmp_path / "trace"
    store = Store.at(str(tmp_path))
    store.write("items.parquet", disguise(_Payload(trace)))
    if disguise is _as_python_type:
        assert store.read_table("items.parquet")["item_id"].to_pylist()[0] == "i0"
    else:
        with pytest.raises((VisrecError, ValueError)):
            store.read_table("items.parquet")
    assert not trace.exists()
    measured(11, bad_inputs=1, crashes=0, traces=int(trace.exists()))


def test_a_joblib_payload_would_run_where_joblib_reads_it(tmp_path: Path) -> None:
    joblib.load(io.BytesIO(_as_joblib(_Payload(tmp_path / "trace"))))
    assert (tmp_path / "trace").exists()


# --------------------------------------------------------------------------------- 13. secret keys

CANARIES = {
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY0001",
    "AWS_SECRET_ACCESS_KEY": "canary/secret+key0123456789abcdefghijklm",
    "AWS_SESSION_TOKEN": "canary-token-0123456789",
    "HF_TOKEN": "hf_canary0123456789",
    "RAY_AUTH_TOKEN": "canary" * 10,
}
FLAGS: tuple[tuple[type[JobConfig], tuple[str, ...]], ...] = (
    (RecommendJob, ("--k", "0")),
    (RecommendJob, ("--k", "many")),
    (RecommendJob, ("--no_such_key", "1")),
    (RecommendJob, ("--gates.min_lists", "-1")),
    (RecommendJob, ("--force_publish", " ")),
    (TrainJob, ("--model.name", "oracle")),
    (TrainJob, ("--train.epochs", "0")),
    (EvaluateJob, ("--no_such_key", "1")),
)


def failures(place: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What fails with keys that no store accepts, in a store that is there and in none."""
    for name, request in every_request(Store.at(place)).items():
        yield f"{name} with wrong keys", request
    for name, request in every_request(Store.at(f"{place}-not/prefix")).items():
        yield f"{name} of another's bucket", request
    nowhere = Store("s3://bucket/x", f"http://127.0.0.1:{free_ports(1)[0]}")
    for name, request in every_request(nowhere).items():
        yield f"{name} of no server", request
    for kind, flags in FLAGS:
        yield " ".join(flags), lambda kind=kind, flags=flags: parse(kind, flags)
    yield "publish", lambda: make_complete_run(Store.at(place), "run")
    yield "point", lambda: publish_run(Store.at(place), "run")
    yield "run id", lambda: run_store(Store.at(place), "../up")
    yield "probe", Store.at(place).check_writable


@pytest.mark.s3
@pytest.mark.usefixtures("no_pauses")
def test_keys_are_in_no_message_config_or_file(
    s3: SeaweedFS,
    s3_env: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    forget_credentials()
    shown, count = [], 0
    for what, fails in failures(s3_env):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            fails()
        assert caught.value.__traceback__ is not None, what
        shown += traceback.format_exception(caught.value)
        shown += [repr(caught.value), repr(vars(caught.value))]
        count += 1
    assert count >= 30
    # What is written where the store takes it: here, and on the server by its own keys.
    local = Store.at(str(tmp_path))
    make_complete_run(local, "run")
    publish_run(local, "run")
    local.write_table("x.parquet", pa.table({"item_id": ["a"]}))
    for kind, flags in ((RecommendJob, ("--k", "7")), (TrainJob, ())):
        config = parse(kind, flags)
        local.write_json(f"{kind.__name__}.json", plain(config))
        shown += [repr(config), str(config)]
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    forget_credentials()
    remote = Store.at(f"{s3_env}/recommendations")
    make_complete_run(remote, "run")
    shown += [repr(local), repr(remote), repr(pickle.dumps(remote))]
    shown += [repr(remote.read(entry.name)) for entry in remote.list()]
    shown += [repr(path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()]
    shown += [*capfd.readouterr(), caplog.text]
    seen = "\n".join(shown)
    hidden = [*CANARIES.values(), s3.secret_key]
    assert len(seen) > 10_000
    leaks = [name for name in hidden if name in seen]
    assert leaks == []
    measured(13, failures=count, canaries=len(hidden), leaks=len(leaks))


# ---------------------------------------------------------------------------- 14. ids steer nothing

IDS = [
    *("../up", "../../../../etc/passwd", "..", ".", "/", "//", "/etc/passwd", "~", "~root", "\\"),
    *("..\\up", "C:\\windows", "%2F", "%2e%2e%2f", "%00", "a%20b", "+", "a+b", "a b", " a", "a "),
    *("", " ", "\t", "\n", "a\nb", "\r\n", "\0", "a\0b", "\x1b[31mred", "\x7f", "\u202egpj.exe"),
    *("\u200b", "\ufeff", "é", "e\u0301", "ß", "İ", "绘画", "ｆｕｌｌ", "\U0001f3a8", "👩‍👩‍👧‍👦"),
    *("x" * 2048, "绘" * 700, "NaN", "null", "None", "true", "0", "-1", "1e309", "007", "s3://b/k"),
    *("_manifest.json", "_latest.json", "run=other", "part-00000.parquet", "a=1/b=2", ".hidden"),
    *("*", "?", "[a-z]", "a,b", 'quo"te', "it's", "$(reboot)", "`id`", "; rm -rf /", "{0}", "%s"),
]  # fmt: skip


def publish_ids(lists: Store, ids: list[str], layout: Layout) -> dict[str, list[str]]:
    """Publishes a list for each id, of the next two ids, and reads it back as a reader would."""
    count = len(ids)
    row_BK = (np.arange(count)[:, None] + [1, 2]) % count
    table = lists_table(
        pa.array(ids),
        pa.array(ids),
        row_BK,
        np.tile(np.array([2, 1], np.float32), (count, 1)),
        row_BK,
        np.zeros(count, bool),
        layout,
    )
    run = run_store(lists, layout)
    run.write("part-00000.parquet", lists_file(table))
    make_complete_run(lists, f"{layout}-2")
    publish_run(lists, f"{layout}-2")
    read: dict[str, list[str]] = {}
    for row in run.read_table("part-00000.parquet").to_pylist():
        entries = row["items"] if layout == "nested" else [row]
        read.setdefault(row["user_id"], []).extend(
            entry[key] for entry in entries for key in ("item_id", "because_item_id")
        )
    return read


@pytest.mark.parametrize("layout", ["nested", "long"])
def test_ids_come_back_equal_and_name_nothing(store: Store, layout: Layout) -> None:
    assert len(set(IDS)) == len(IDS) >= 60
    plain_ids = [f"i{n}" for n in range(len(IDS))]
    odd, even = store / "odd", store / "plain"
    found = publish_ids(odd, IDS, layout)
    publish_ids(even, plain_ids, layout)
    assert list(found) == IDS
    for place, entries in enumerate(found.values()):
        first, second = (IDS[(place + step) % len(IDS)] for step in (1, 2))
        assert entries == [first, first, second, second]
    keys = [{entry.name for entry in place.list()} for place in (odd, even)]
    assert keys[0] == keys[1]
    assert {entry.name.partition("/")[0] for entry in store.list()} == {"odd", "plain"}
    if not store.is_s3:
        top = Path(store.root).parents[1]
        assert {name for name in os.listdir(top) if name != "some"} == set()
    measured(14, ids=len(IDS), ids_changed=0, new_prefixes=len(keys[0] - keys[1]))
