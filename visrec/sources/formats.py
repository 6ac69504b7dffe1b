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
    b"\0\0\2\0": "CUR",
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
_NETPBM = re.compile(rb"P[1-7fF]\s")
# By the major brand of an ISO base media file; any other brand is a video's.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"),
    **dict.fromkeys((b"mif1", b"mif2", b"msf1"), "HEIF"),
    b"crx ": "Canon raw",
}

# By these endings a file counts as a picture. Formats that visrec does not open are here too, so
# that their files are rejected by name instead of missing without a word.
_SUFFIXES = {
    *("jpg", "jpeg", "jpe", "jfif", "jif", "mpo", "png", "apng", "webp", "gif"),
    *("bmp", "dib", "tif", "tiff", "btf", "heic", "heics", "heif", "heifs", "hif", "avif", "avifs"),
    *("jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "jpm", "jxl"),
    *("jxr", "jls", "svg", "svgz", "eps", "psd", "psb", "xcf"),
    *("ico", "cur", "tga", "dds", "exr", "hdr", "qoi", "pbm", "pgm", "ppm", "pnm", "pam"),
    *("dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf"),
}
_ENDING = re.compile(r"[A-Za-z][A-Za-z0-9]{0,7}")  # of other kinds of files: txt, json, parquet


def format_of(head: bytes) -> str | None:
    """The format of a picture by the first bytes of its file; None where it is no picture."""
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if _NETPBM.match(head):
        return "Netpbm"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if b"<svg" in head[:HEAD_BYTES].lower():
        return "SVG"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


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
