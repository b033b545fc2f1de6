"""Plots out of a sandbox: what nobody trusts is bounded and checked."""

import fcntl
import os
import struct

import pytest

from agentflow.sandbox.base import Result
from agentflow.sandbox.figures import MAX_WRITTEN_BYTES, FigureFile, with_figures
from agentflow.sandbox.guest_figures import MAX_FIGURE_BYTES, MAX_FIGURES
from tests.pictures import png


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def written(*images: bytes, claimed: int | None = None) -> bytes:
    head = number(len(images) if claimed is None else claimed)
    return head + b"".join(number(len(image)) + image for image in images)


SPOILT = png()[:-1] + b"x"
LARGE = png(padding=MAX_FIGURE_BYTES)


@pytest.mark.parametrize(
    ("content", "sizes", "num_lost"),
    [
        (b"", [], 0),
        (written(png(), png(3, 4)), [(2, 1), (3, 4)], 0),
        (written(png(), claimed=3), [(2, 1)], 2),
        (written(*[png()] * 6), [(2, 1)] * MAX_FIGURES, 2),
        (written(SPOILT, png()), [(2, 1)], 1),
        (written(b"<svg/>" * 9, b""), [], 2),
        (written(LARGE, png()), [(2, 1)], 1),
        (written(png())[:-1], [], 1),
        (number(1) + number(0xFFFFFFFF) + png(), [], 1),
        (number(0xFFFFFFFF), [], 99),
        (b"\x01", [], 0),
        (written(png(), claimed=0), [(2, 1)], 0),
    ],
)
def test_what_was_forged_is_counted_and_not_kept(content, sizes, num_lost):
    result = with_figures(Result("ok", exit_code=0), content)
    assert [image.size for image in result.images] == sizes
    assert (result.num_lost_images, result.status, result.exit_code) == (num_lost, "ok", 0)


def test_the_file_cannot_grow_and_forgets_what_was_taken():
    with FigureFile() as file:
        assert file.take() == b""
        for image in (png(), png(3)):
            os.pwrite(file.descriptor, written(image), 0)
            assert file.take().startswith(written(image))
            assert file.take() == b""
        with pytest.raises(PermissionError):
            os.pwrite(file.descriptor, b"x" * 2, MAX_WRITTEN_BYTES - 1)
        with pytest.raises(PermissionError):
            os.ftruncate(file.descriptor, MAX_WRITTEN_BYTES + 1)
        with pytest.raises(PermissionError):
            os.ftruncate(file.descriptor, 0)
    file.close()


def test_flags_of_the_programs_side_do_not_hold_for_the_host():
    with FigureFile() as file:
        os.pwrite(file.descriptor, written(png()), 0)
        fcntl.fcntl(file.descriptor, fcntl.F_SETFL, os.O_APPEND)
        assert file.take().startswith(written(png()))
        assert file.take() == b""
