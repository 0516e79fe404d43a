"""The image size that a JPEG, JPEG-LS or JPEG 2000 codestream states, read before anything is decoded."""

_FRAME_MARKERS = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}


def codestream_size(content: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) of a codestream; None for RLE and anything else that is no JPEG codestream."""
    if content[:4] == b"\xff\x4f\xff\x51":
        return _jpeg_2000(content)
    if content[:12] == b"\x00\x00\x00\x0cjP  \r\n\x87\n":  # the JP2 box format, which some writers embed whole
        start = content.find(b"\xff\x4f\xff\x51")
        return _jpeg_2000(content[start : start + 64]) if start > 0 else (0, 0)
    return _jpeg(content) if content[:2] == b"\xff\xd8" else None


def _jpeg_2000(content: bytes) -> tuple[int, int]:
    """Return the size of a SIZ segment: image extent less image offset on the reference grid (ISO 15444-1, A.5.1)."""
    if len(content) < 24:
        return (0, 0)
    right, bottom, left, top = (int.from_bytes(content[8 + 4 * i : 12 + 4 * i], "big") for i in range(4))
    return (bottom - top, right - left)


def _jpeg(content: bytes) -> tuple[int, int]:
    """Return the size of the frame header (ISO 10918-1, B.2.2; ISO 14495-1, C.2.2), (0, 0) when there is none."""
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _FRAME_MARKERS:
            rows = int.from_bytes(content[at + 5 : at + 7], "big")
            return (rows, int.from_bytes(content[at + 7 : at + 9], "big"))
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return (0, 0)
