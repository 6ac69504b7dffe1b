"""What a file is, by its name and by its first bytes."""

import re

HEAD_BYTES = 1024  # what `format_of` looks at; an SVG may begin with a comment

# The formats that visrec opens.
OPENED = ("JPEG", "PNG", "WEBP", "GIF")

_MAGIC = {
    b"\xff\xd8\xff\xf7": "JPEG-LS",
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    # Pictures whose parsers stay shut.
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "BigTIFF",
    b"MM\0+": "BigTIFF",
    b"IIRO": "Olympus raw",
    b"IIU\0": "Panasonic raw",
    b"FUJIFILMCCD-RAW": "Fujifilm raw",
    b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
    b"gimp xcf": "XCF",
    b"\0\0\1\0": "ICO",
    **dict.fromkeys((b"\0\0\2\0\0\0\0\0", b"\0\0\n\0\0\0\0\0"), "TGA"),
    b"\0\0\2\0": "CUR",
    b"\n\5\1\x08": "PCX",
    b"\x01\xda\0\1": "SGI",
    b"\x01\xda\1\1": "SGI",
    b"icns": "ICNS",
    b"\xd7\xcd\xc6\x9a": "WMF",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"II\xbc": "JPEG XR",
    b"\x8aMNG": "MNG",
    b"\x8bJNG": "JNG",
    b"qoif": "QOI",
    b"DDS ": "DDS",
    b"v/1\1": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"FLIF": "FLIF",
    b"BPG\xfb": "BPG",
    b"AT&TFORM": "DjVu",
}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes; "BM" alone is the start of a text, too
_SVG, _HTML = re.compile(rb"<svg[\s>]"), re.compile(rb"\s*<(!doctype )?html")
_NETPBM = re.compile(rb"P[1-7fF]\s")
# By the first of the brands of an ISO base media file that is here; all others are videos'.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"),
    **dict.fromkeys((b"mif1", b"mif2", b"mif3", b"msf1", b"miaf"), "HEIF"),
    b"jxl ": "JPEG XL",
    b"crx ": "Canon raw",
}

# By these endings a file counts as a picture. Formats that visrec does not open are here too, so
# that their files are rejected by name instead of missing without a word.
_SUFFIXES = {
    *("jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjpg", "mpo", "png", "apng", "webp", "gif"),
    *("bmp", "dib", "tif", "tiff", "btf", "heic", "heics", "heif", "heifs", "hif", "avif", "avifs"),
    *("jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "jpm", "jxl"),
    *("jxr", "jls", "svg", "svgz", "eps", "psd", "psb", "xcf"),
    *("ico", "cur", "pcx", "tga", "dds", "exr", "hdr", "qoi", "pbm", "pgm", "ppm", "pnm", "pam"),
    *("dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf"),
}
_ENDING = re.compile(r"[A-Za-z][A-Za-z0-9]{0,7}")  # of other kinds of files: txt, json, parquet


def format_of(head: bytes) -> str | None:
    """The format of a picture by the first bytes of its file; None where it is no picture."""
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    if _NETPBM.match(head):
        return "Netpbm"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    text = head[:HEAD_BYTES].lower()
    if _SVG.search(text) and not _HTML.match(text):  # a page that a server sent in its place
        return "SVG"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def _of_brands(head: bytes) -> str | None:
    """By the major brand, or where that is a general one, by those that the file agrees with."""
    size = min(int.from_bytes(head[:4]), HEAD_BYTES)
    places = (8, *range(16, size - 3, 4))
    return next((_BRANDS[head[n : n + 4]] for n in places if head[n : n + 4] in _BRANDS), None)


def item_of(name: str) -> str | None:
    """The item id in the name of a picture's file; None where it does not end like one.

    What a download left behind the ending, as in `a.jpg?width=200`, is not part of the id.
    """
    folder, slash, file = name.rpartition("/")
    for known in (file, file.partition("?")[0]):
        stem, _, ending = known.rpartition(".")
        if stem and ending.lower() in _SUFFIXES:
            return f"{folder}{slash}{stem}"
    return None


def other_ending(name: str) -> str | None:
    """The ending, such as `txt`, of a file that is no picture; None where the name does not say."""
    ending = name.rpartition("/")[2].rpartition(".")
    return ending[2].lower() if ending[1] and _ENDING.fullmatch(ending[2]) else None
