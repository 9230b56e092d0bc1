import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dataset.demo_sequences import read_sequences
from tests.fuzz.children import ACCEPTED, REFUSED, fuzz, mutate
from utils.errors import InputError


@pytest.fixture
def frame(tmp_path):
    """Path of the only frame of a sequence."""
    (tmp_path / "storm" / "inputs").mkdir(parents=True)
    return tmp_path / "storm" / "inputs" / "0.png"


def read(frame):
    return read_sequences(frame.parents[2], 1, 1, 16)


def encoded(mode: str, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16), "u1")
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def with_valid_checksums(png: bytes) -> bytes:
    """The same chunks, as far as they can be told, with their checksums set right."""
    parts, at = [png[:8]], 8
    while at + 12 <= len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        parts.append(chunk(png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join(parts)


def redrawn(rng) -> bytes:
    """A well-formed PNG file of a mutated header, other chunks and mutated scanlines."""
    header = struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 0)
    scanlines = mutate([b"".join(bytes([row % 5]) + rng.randbytes(16) for row in range(16))], rng)
    kinds = (b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL", b"gAMA", b"pHYs", b"IHDR")
    others = [chunk(rng.choice(kinds), rng.randbytes(rng.randrange(40))) for _ in range(rng.randrange(3))]
    if rng.random() < 0.3:
        header = mutate([header], rng)
    parts = [chunk(b"IHDR", header), *others, chunk(b"IDAT", zlib.compress(scanlines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.slow
def test_mutated_pictures_are_read_or_refused(frame):
    samples = [encoded("L"), encoded("RGB"), encoded("P"), encoded("RGBA", optimize=True)]

    def write(rng):
        kind = rng.randrange(3)
        png = redrawn(rng) if kind == 0 else mutate(samples, rng)
        frame.write_bytes(with_valid_checksums(png) if kind == 1 else png)

    outcomes = fuzz("PNG", write, lambda: read(frame), megabytes=300)
    assert min(outcomes[ACCEPTED], outcomes[REFUSED]) > 5


@pytest.mark.parametrize("side", [4096, 2**31 - 1])
def test_absurd_sizes_are_refused_by_the_header(frame, side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(2**20), 9))
    frame.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    with pytest.raises(InputError, match=r"0\.png"):
        read(frame)


def test_a_text_that_inflates_without_end_is_refused(frame):
    png, bomb = encoded("L"), b"note\0\0" + zlib.compress(bytes(2**27), 9)
    frame.write_bytes(png[:33] + chunk(b"zTXt", bomb) + png[33:])
    with pytest.raises(InputError, match=r"0\.png"):
        read(frame)


def test_a_huge_file_is_refused_unread(frame):
    frame.write_bytes(encoded("L"))
    os.truncate(frame, 2**40)
    with pytest.raises(InputError, match=r"0\.png is no frame"):
        read(frame)


@pytest.mark.parametrize("other", ["GIF", "TIFF", "EPS", "BMP"])
def test_other_formats_under_the_name_of_png_are_refused(frame, other):
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(frame, other)
    with pytest.raises(InputError, match=r"0\.png"):
        read(frame)


def test_pipes_and_devices_are_refused_without_waiting(frame):
    os.mkfifo(frame)
    with pytest.raises(InputError, match=r"0\.png is no frame"):
        read(frame)
    frame.unlink()
    frame.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"0\.png is no frame"):
        read(frame)


def test_a_link_to_another_file_shows_nothing_of_it(frame, tmp_path):
    (tmp_path / "passwords").write_text("hunter2")
    frame.symlink_to(tmp_path / "passwords")
    with pytest.raises(InputError, match=r"0\.png") as refusal:
        read(frame)
    assert "hunter2" not in str(refusal.value)
