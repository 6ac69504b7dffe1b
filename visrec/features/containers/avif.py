"""AVIF: boxes of a HEIF file, which describe items: coded pictures, grids of them, and metadata.

The primary item is kept, with its tiles and its alpha channel. Sequences, thumbnails, depth maps
and metadata are not: a new file is written from what is kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from visrec.features.containers import base
from visrec.features.containers.av1 import describe_av1
from visrec.features.containers.base import FirstPicture, count_blocks
from visrec.features.containers.cursor import Cursor
from visrec.features.containers.orientation import read_orientation

_ALPHA = (
    b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha",
    b"urn:mpeg:hevc:2015:auxid:1",
)
_KEPT = {b"ispe", b"pixi", b"av1C", b"colr", b"auxC", b"a1op", b"lsel", b"a1lx"}
# The turns are applied from FirstPicture; Pillow ignores the crop and the shape of a pixel.
_DROPPED = {b"irot", b"imir", b"clap", b"pasp"}
# By the turns to the left, and by the axis of the mirroring that follows: EXIF's orientation.
_ORIENTATION = {
    None: (1, 8, 3, 6),
    0: (4, 5, 2, 7),  # top and bottom change places
    1: (2, 7, 4, 5),  # left and right
}
_IN_FILE, _IN_META = 0, 1  # where the bytes of an item are: its construction method


@dataclass(frozen=True)
class _Property:
    """A property of an item.

    Attributes:
        kind: the type of its box.
        body: the content of its box.
        is_essential: whether a reader that does not know the property must not show the item.
    """

    kind: bytes
    body: bytes
    is_essential: bool


@dataclass(frozen=True)
class _Items:
    """The items of a file.

    Attributes:
        primary: id of the picture to show.
        kinds: the type of each item, by id.
        places: the construction method of each item, and offset and length of its extents.
        references: the targets of each kind of reference from an item.
        properties: the properties of each item, in the order in which they apply.
        inline: bytes that the extents of some items point into.
    """

    primary: int
    kinds: Mapping[int, bytes]
    places: Mapping[int, tuple[int, list[tuple[int, int]]]]
    references: Mapping[tuple[bytes, int], list[int]]
    properties: Mapping[int, list[_Property]]
    inline: bytes

    def sources(self, kind: bytes, targets: Sequence[int]) -> list[int]:
        """Which items have a reference of this kind to one of the targets."""
        wanted = set(targets)
        return [s for (k, s), found in self.references.items() if k == kind and wanted & {*found}]

    def read(self, item: int, data: bytes) -> bytes:
        """The bytes of an item."""
        method, extents = self.places.get(item, (_IN_FILE, []))
        if method not in (_IN_FILE, _IN_META):
            raise base.format_not_supported("an AVIF with items inside items")
        source, pieces, total = (data, self.inline)[method], [], 0
        for offset, length in extents:
            if offset + length > len(source):
                raise base.truncated("AVIF", "in its pixels")
            pieces.append(source[offset : offset + length] if length else source[offset:])
            total += len(pieces[-1])
            if total > len(data):  # extents that overlap to fill the memory
                raise base.corrupt("AVIF", "an item that is longer than the file")
        if not total:
            raise base.corrupt("AVIF", f"no bytes of its item {item}")
        return b"".join(pieces)


def avif_first_picture(data: bytes) -> FirstPicture:
    start, end = _find_meta(data)
    items = _read_items(data, start, end)
    colour = _with_tiles(items.primary, items)
    alphas = [_with_tiles(item, items) for item in _alpha_of(colour, items)]
    kept = list(dict.fromkeys([*colour, *(item for alpha in alphas for item in alpha)]))
    contents = _read_contents(kept, items, data)
    coded = {item: describe_av1(contents[item]) for item in kept if items.kinds[item] == b"av01"}
    sizes = [
        *(_size(item, items) for item in kept),
        *(
            # A tile that a grid shows twice is decoded twice.
            sum(coded[item].pixels for item in group if item in coded)
            for group in (colour, *alphas)
        ),
    ]
    return FirstPicture(
        "AVIF",
        _write(kept, contents, items),
        _orientation(items, data),
        scans=max(one.frames for one in coded.values()),
        coded_pixels=max(sizes),
    )


def _read_contents(kept: list[int], items: _Items, data: bytes) -> dict[int, bytes]:
    contents, total = {}, 0
    for item in kept:
        contents[item] = items.read(item, data)
        total += len(contents[item])
        if total > len(data):  # items that share their bytes
            raise base.corrupt("AVIF", "items that are longer than the file")
    return contents


def _find_meta(data: bytes) -> tuple[int, int]:
    """Start and end of the box that describes the items. What follows it is not walked."""
    has_tracks = False
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"meta":
            return start + 4, end  # after version and flags
        has_tracks = has_tracks or kind == b"moov"
    if has_tracks:
        raise base.format_not_supported("an AVIF sequence without a still picture")
    raise base.corrupt("AVIF", "no description of its items")


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the body of each box between two positions."""
    position = start
    for _ in count_blocks("AVIF"):
        if position == end:
            return
        cursor = Cursor("AVIF", data, position, end)
        size, kind = cursor.number(4), cursor.take(4)
        if size == 1:
            size = cursor.number(8)
        stop = end if size == 0 else position + size
        if stop < cursor.position:
            raise base.corrupt("AVIF", "a box that is shorter than its header")
        if stop > end:
            raise base.truncated("AVIF", f"in its box {kind!r}")
        yield kind, cursor.position, stop
        position = stop


def _read_items(data: bytes, start: int, end: int) -> _Items:
    boxes: dict[bytes, tuple[int, int]] = {}
    for kind, body, stop in _boxes(data, start, end):
        boxes.setdefault(kind, (body, stop))
    for kind in (b"pitm", b"iinf", b"iloc", b"iprp"):
        if kind not in boxes:
            raise base.corrupt("AVIF", f"no box {kind.decode()}")
    cursors = {kind: Cursor("AVIF", data, *span) for kind, span in boxes.items()}
    kinds = _read_kinds(data, cursors[b"iinf"])
    primary = cursors[b"pitm"]
    items = _Items(
        primary=primary.number(4 if primary.version_and_flags()[0] else 2),
        kinds=kinds,
        places=_read_places(cursors[b"iloc"]),
        references=_read_references(data, cursors[b"iref"]) if b"iref" in boxes else {},
        properties=_read_properties(data, *boxes[b"iprp"]),
        inline=data[slice(*boxes.get(b"idat", (0, 0)))],
    )
    if items.primary not in kinds:
        raise base.corrupt("AVIF", "no picture")
    return items


def _read_kinds(data: bytes, cursor: Cursor) -> dict[int, bytes]:
    cursor.number(4 if cursor.version_and_flags()[0] else 2)  # how many
    kinds = {}
    for kind, start, end in _boxes(data, cursor.position, cursor.end):
        if kind == b"infe":
            entry = Cursor("AVIF", data, start, end)
            version = entry.version_and_flags()[0]
            if version < 2:
                raise base.format_not_supported("an AVIF with entries of an old version")
            item = entry.number(2 if version == 2 else 4)
            if entry.number(2):  # index of a protection scheme
                raise base.format_not_supported("an encrypted AVIF")
            kinds[item] = entry.take(4)
    return kinds


def _read_places(cursor: Cursor) -> dict[int, tuple[int, list[tuple[int, int]]]]:
    version = cursor.version_and_flags()[0]
    sizes, more_sizes = cursor.number(1), cursor.number(1)
    offset_size, length_size, base_size = sizes >> 4, sizes & 15, more_sizes >> 4
    index_size = more_sizes & 15 if version else 0
    places = {}
    blocks = count_blocks("AVIF")
    for _ in range(cursor.number(4 if version == 2 else 2)):
        next(blocks)
        item = cursor.number(4 if version == 2 else 2)
        method = cursor.number(2) & 15 if version else _IN_FILE
        cursor.number(2)  # index of another file, which is not opened
        start, extents = cursor.number(base_size), []
        for _ in range(cursor.number(2)):
            next(blocks)
            cursor.number(index_size)
            offset = start + cursor.number(offset_size)
            extents.append((offset, cursor.number(length_size)))
        places[item] = (method, extents)
    return places


def _read_references(data: bytes, cursor: Cursor) -> dict[tuple[bytes, int], list[int]]:
    size = 4 if cursor.version_and_flags()[0] else 2
    references: dict[tuple[bytes, int], list[int]] = {}
    blocks = count_blocks("AVIF")
    for kind, start, end in _boxes(data, cursor.position, cursor.end):
        entry = Cursor("AVIF", data, start, end)
        source, count = entry.number(size), entry.number(2)
        targets = references.setdefault((kind, source), [])
        for _ in range(count):
            next(blocks)
            targets.append(entry.number(size))
    return references


def _read_properties(data: bytes, start: int, end: int) -> dict[int, list[_Property]]:
    known: list[tuple[bytes, bytes]] = []
    found: dict[int, list[_Property]] = {}
    for kind, body, stop in _boxes(data, start, end):
        if kind == b"ipco":
            known += [(k, data[s:e]) for k, s, e in _boxes(data, body, stop)]
        elif kind == b"ipma":
            for item, index, is_essential in _associations(Cursor("AVIF", data, body, stop)):
                if index > len(known):
                    raise base.corrupt("AVIF", "a property that is not there")
                if index:  # 0 stands for no property
                    found.setdefault(item, []).append(_Property(*known[index - 1], is_essential))
    return found


def _associations(cursor: Cursor) -> Iterator[tuple[int, int, bool]]:
    """Item, number of a property from 1, and whether the property is essential."""
    version, flags = cursor.version_and_flags()
    size, bits = (2, 15) if flags & 1 else (1, 7)
    blocks = count_blocks("AVIF")
    for _ in range(cursor.number(4)):
        item = cursor.number(4 if version else 2)
        for _ in range(cursor.number(1)):
            next(blocks)
            value = cursor.number(size)
            yield item, value & ((1 << bits) - 1), bool(value >> bits)


def _with_tiles(item: int, items: _Items) -> list[int]:
    """An item and, if it is a grid, its tiles; a tile that occurs twice is there twice."""
    kind = items.kinds[item]
    tiles = items.references.get((b"dimg", item), []) if kind == b"grid" else []
    for part in (item, *tiles):
        if items.kinds.get(part) not in ((b"av01",) if part != item else (b"av01", b"grid")):
            name = items.kinds.get(part, b"none").decode("latin-1")
            raise base.format_not_supported(f"an AVIF with a picture of the kind {name!r}")
    if kind == b"grid" and not tiles:
        raise base.corrupt("AVIF", "a grid without tiles")
    return [item, *tiles]


def _alpha_of(colour: list[int], items: _Items) -> list[int]:
    """The alpha channels of a picture, or of its tiles."""
    return [
        source
        for source in items.sources(b"auxl", colour)
        if any(
            one.kind == b"auxC" and one.body[4:].partition(b"\0")[0] in _ALPHA
            for one in items.properties.get(source, [])
        )
    ]


def _size(item: int, items: _Items) -> int:
    """Width times height, as the properties say."""
    for one in items.properties.get(item, []):
        if one.kind == b"ispe":
            cursor = Cursor("AVIF", one.body, 4, len(one.body))
            return cursor.number(4) * cursor.number(4)
    raise base.corrupt("AVIF", "a picture without a size")


def _orientation(items: _Items, data: bytes) -> int:
    """From the item's turns if it has any, otherwise from the metadata."""
    turns = {one.kind: one.body[:1] for one in items.properties[items.primary]}
    angle, axis = turns.get(b"irot"), turns.get(b"imir")
    if angle is not None or axis is not None:
        return _ORIENTATION[axis[0] & 1 if axis else None][angle[0] & 3 if angle else 0]
    found = {b"Exif": b"", b"mime": b""}
    for item in items.sources(b"cdsc", [items.primary]):
        if (kind := items.kinds.get(item, b"")) in found:
            try:
                found[kind] = found[kind] or items.read(item, data)
            except base.PictureError:  # broken metadata is no reason to reject a picture
                continue
    exif = found[b"Exif"]
    return read_orientation(exif[4 + int.from_bytes(exif[:4]) :], found[b"mime"])


# The new file.


def _write(kept: list[int], contents: Mapping[int, bytes], items: _Items) -> bytes:
    number = {item: n for n, item in enumerate(kept, start=1)}
    lengths = [len(contents[item]) for item in kept]
    head = _box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")
    size = len(head) + len(_meta(number, lengths, 0, items)) + 8
    meta = _meta(number, lengths, size, items)
    return b"".join([head, meta, _box(b"mdat", *(contents[item] for item in kept))])


def _meta(number: Mapping[int, int], lengths: list[int], start: int, items: _Items) -> bytes:
    """The description of the kept items, whose bytes follow one another from `start` on."""
    entries = [
        _box(b"infe", bytes([2, 0, 0, 0]), _two(n), bytes(2), items.kinds[item], b"\0")
        for item, n in number.items()
    ]
    places = [_two(len(number))]
    for n, length in enumerate(lengths, start=1):
        places += [_two(n), bytes(2), _two(1), start.to_bytes(4), length.to_bytes(4)]
        start += length
    references = [
        _box(kind, _two(number[source]), _two(len(targets)), *(_two(number[t]) for t in targets))
        for (kind, source), targets in items.references.items()
        if kind in (b"auxl", b"dimg", b"prem") and {source, *targets} <= number.keys()
    ]
    return _box(
        b"meta",
        bytes(4),
        _box(b"hdlr", bytes(8), b"pict", bytes(13)),
        _box(b"pitm", bytes(4), _two(1)),
        _box(b"iloc", bytes(4), b"\x44\0", *places),
        _box(b"iinf", bytes(4), _two(len(entries)), *entries),
        _box(b"iref", bytes(4), *references),
        _properties(number, items),
    )


def _properties(number: Mapping[int, int], items: _Items) -> bytes:
    known: dict[tuple[bytes, bytes], int] = {}
    associations = []
    for item, n in number.items():
        indices = [
            known.setdefault((one.kind, one.body), len(known) + 1) | one.is_essential << 15
            for one in items.properties.get(item, [])
            if _is_kept(one)
        ]
        associations += [_two(n), bytes([len(indices)]), *map(_two, indices)]
    boxes = [_box(kind, body) for kind, body in known]
    return _box(
        b"iprp",
        _box(b"ipco", *boxes),
        _box(b"ipma", bytes([0, 0, 0, 1]), len(number).to_bytes(4), *associations),
    )


def _is_kept(one: _Property) -> bool:
    if one.is_essential and one.kind not in _KEPT | _DROPPED:
        name = one.kind.decode("latin-1")
        raise base.format_not_supported(f"an AVIF with the essential property {name!r}")
    return one.kind in _KEPT and (one.kind != b"colr" or one.body[:4] == b"nclx")


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return (8 + len(body)).to_bytes(4) + kind + body


def _two(number: int) -> bytes:
    return number.to_bytes(2)
