"""Recognize pictures by their first bytes or by their suffix, and remove metadata that a decoder cannot read."""

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Literal

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
HEAD_BYTES = 32
SIGNATURES = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("WEBP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("BMP", re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00", re.DOTALL)),  # size of the second header
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("TIFF", re.compile(rb"II[*+]\x00|MM\x00[*+]")),
    ("AVIF", re.compile(rb".{4}ftyp(avif|avis)", re.DOTALL)),
    ("HEIF", re.compile(rb".{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)),  # mif1, msf1: HEIF or AVIF
)
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo", ".webp", ".bmp"),
    *(".dib", ".gif", ".tif", ".tiff", ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"),
    *(".jp2", ".j2k", ".jpf", ".jpx", ".jpm", ".jxl", ".jxr", ".svg", ".ico", ".psd", ".tga", ".pbm", ".pgm", ".ppm"),
    *(".pnm", ".exr", ".hdr", ".dng", ".raw", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf"),
    *(".pef", ".srw"),
)
TIFF_TAGS = (  # those that describe the pixels. Source: TIFF 6.0, 1992
    *(*range(256, 260), 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, *range(322, 326), 332),
    *(*range(336, 340), 347, *range(512, 522), *range(529, 533)),
)


def picture_format(head: bytes) -> str | None:
    """The format that the first HEAD_BYTES of a file announce, one of FORMATS, or None."""
    return next((name for name, signature in SIGNATURES if signature.match(head)), None)


def has_picture_suffix(name: str) -> bool:
    """Whether the suffix is that of a picture, in one of FORMATS or another format."""
    return PurePath(name).suffix.lower() in SUFFIXES


def without_metadata(content: bytes) -> Iterator[bytes]:
    """Yield the file, then the file with its EXIF data only, then without any metadata; only if they differ."""
    yield content
    strip = {"PNG": strip_png, "JPEG": strip_jpeg, "TIFF": strip_tiff, "AVIF": strip_items, "HEIF": strip_items}.get(
        picture_format(content[:HEAD_BYTES]) or ""
    )
    if strip is not None:
        previous = content
        for keep_exif in (True, False):
            stripped = strip(content, keep_exif)
            if stripped != previous:
                yield stripped
            previous = stripped


def strip_png(content: bytes, keep_exif: bool) -> bytes:
    """Keep critical chunks, and valid transparency."""
    view, position = memoryview(content), 8
    parts = [view[:position]]
    transparency_bytes = {b"\0": 2, b"\2": 6}.get(content[25:26])  # by color type
    while position + 12 <= len(content):
        length, kind = int.from_bytes(content[position : position + 4], "big"), content[position + 4 : position + 8]
        critical = not kind[0] & 0x20
        transparency = kind == b"tRNS" and transparency_bytes in (None, length)
        if critical or transparency or (keep_exif and kind == b"eXIf"):
            parts.append(view[position : position + 12 + length])
        position += 12 + length
    return b"".join(parts)


def strip_jpeg(content: bytes, keep_exif: bool) -> bytes:
    """Keep the segments before the first scan that a decoder needs: no comments and only valid JFIF and Adobe ones."""
    view, position = memoryview(content), 2
    parts = [view[:position]]
    while content[position : position + 1] == b"\xff" and content[position + 1 : position + 2] not in (b"", b"\xda"):
        marker = content[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        end = position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        start = content[position + 4 : position + 10]
        metadata = marker == 0xFE or 0xE0 <= marker <= 0xEF
        color = (start[:5] == b"JFIF\0" and end - position >= 16) or (start[:5] == b"Adobe" and end - position >= 14)
        if not metadata or color or (keep_exif and start == b"Exif\0\0"):
            parts.append(view[position:end])
        position = end
    return b"".join((*parts, view[position:]))


def has_all_scans(content: bytes) -> bool:
    """Whether the scans of a JPEG hold all 64 coefficients of every color, with all bits.

    Source: ITU-T T.81, 1992, B.2.2, B.2.3 and G.1.1.1.
    """
    content = strip_jpeg(content, keep_exif=False)  # without a preview, which has scans, too
    frame = re.search(rb"\xff[\xc0-\xc2]\x00[\x0b\x0e\x11\x14].{5}([\x01-\x04])", content, re.DOTALL)
    if frame is None:
        return False
    colors = content[frame.end() : frame.end() + 3 * frame[1][0] : 3]
    lowest_bits: dict[tuple[int, int], int] = {}
    for header in re.finditer(rb"\xff\xda\x00[\x08\x0a\x0c\x0e]([\x01-\x04])", content):
        end = header.end() + 2 * content[header.end() - 1]
        first, last, bits = content[end : end + 3]
        for color in content[header.end() : end : 2]:
            lowest_bits.update({(color, index): bits & 15 for index in range(first, last + 1)})
    return all(lowest_bits.get((color, index)) == 0 for color in colors for index in range(64))


def strip_tiff(content: bytes, keep_exif: bool) -> bytes:  # noqa: ARG001, the orientation describes the pixels
    """Keep the tags of the first picture that describe its pixels. BigTIFF stays unchanged."""
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    start = int.from_bytes(content[4:8], order)
    count = int.from_bytes(content[start : start + 2], order)
    if int.from_bytes(content[2:4], order) != 42 or start + 6 + 12 * count > len(content):
        return content
    entries = [content[position : position + 12] for position in range(start + 2, start + 2 + 12 * count, 12)]
    kept = [entry for entry in entries if int.from_bytes(entry[:2], order) in TIFF_TAGS]
    directory = len(kept).to_bytes(2, order) + b"".join(kept) + bytes(4)
    return b"".join((content[:start], directory, memoryview(content)[start + len(directory) :]))


def strip_items(content: bytes, keep_exif: bool) -> bytes:
    """Give EXIF items of AVIF and HEIF another type, which decoders ignore. The rotation is not in EXIF."""
    return content if keep_exif else re.sub(rb"(infe[\x02\x03].{7,9}?)Exif", rb"\1none", content, flags=re.DOTALL)
