"""Picture formats, detected by file name and by first bytes."""

import re

HEAD_BYTES = 1024  # that `detect_format` needs; an SVG may start with a comment

# Formats that visrec decodes.
OPENED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")

_MAGIC = {
    b"\xff\xd8\xff\xf7": "JPEG-LS",
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    # Formats that are only recognized, never parsed.
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
_BMP_HEADER_BYTES = (12, 16, 40, 52, 56, 64, 108, 124)  # a text may start with "BM" too
_SVG, _HTML = re.compile(rb"<svg[\s>]"), re.compile(rb"\s*<(!doctype )?html")
_NETPBM = re.compile(rb"P[1-7fF]\s")
# Brands of an ISO base media file; all other brands are those of videos.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"),
    **dict.fromkeys((b"mif1", b"mif2", b"mif3", b"msf1", b"miaf"), "HEIF"),
    b"jxl ": "JPEG XL",
    b"crx ": "Canon raw",
}

# Extensions of picture files. Formats that visrec does not decode are included, so that their files
# are rejected by name instead of silently missing.
_EXTENSIONS = {
    *("jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjpg", "mpo", "png", "apng", "webp", "gif"),
    *("bmp", "dib", "tif", "tiff", "btf", "heic", "heics", "heif", "heifs", "hif", "avif", "avifs"),
    *("jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "jpm", "jxl"),
    *("jxr", "jls", "svg", "svgz", "eps", "psd", "psb", "xcf"),
    *("ico", "cur", "pcx", "tga", "dds", "exr", "hdr", "qoi", "pbm", "pgm", "ppm", "pnm", "pam"),
    *("dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf"),
}
_ANY_EXTENSION = re.compile(  # such as txt, json, parquet, and those of unfinished downloads
    r"[A-Za-z][A-Za-z0-9]{0,7}|crdownload|opdownload", re.IGNORECASE
)


def detect_format(head: bytes) -> str | None:
    """The format of a picture from the first bytes of its file; None if it is not a picture."""
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _detect_by_brand(head)
    if _NETPBM.match(head):
        return "Netpbm"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES:
        return "BMP"
    text = head[:HEAD_BYTES].lower()
    if _SVG.search(text) and not _HTML.match(text):  # not an error page saved as a picture
        return "SVG"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def _detect_by_brand(head: bytes) -> str | None:
    """The format from the major brand or, if that one is generic, from the compatible brands."""
    size = min(int.from_bytes(head[:4]), HEAD_BYTES)
    offsets = (8, *range(16, size - 3, 4))
    found = [_BRANDS[head[n : n + 4]] for n in offsets if head[n : n + 4] in _BRANDS]
    # Brands of HEIF do not say how its pictures are coded.
    return next((name for name in found if name != "HEIF"), found[0] if found else None)


def item_id_from_name(name: str) -> str | None:
    """The item id in a file name; None if the name does not have the extension of a picture.

    A query string after the extension, as in `a.jpg?width=200`, is not part of the id.
    """
    folder, slash, file = name.rpartition("/")
    for candidate in (file, file.partition("?")[0]):
        stem, _, extension = candidate.rpartition(".")
        if stem and extension.lower() in _EXTENSIONS:
            return f"{folder}{slash}{stem}"
    return None


def other_extension(name: str) -> str | None:
    """The extension, such as `txt`, of a file that is not a picture; None without an extension."""
    _, dot, extension = name.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot and _ANY_EXTENSION.fullmatch(extension) else None
