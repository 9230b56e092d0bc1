import os
import zlib

import h5py
import numpy as np
import pytest

from dataset.sevir.reader import Sevir
from tests.dataset.conftest import SevirFolder
from tests.fuzz.children import ACCEPTED, REFUSED, fuzz, mutate
from utils.errors import InputError

GZIP = {"chunks": (1, 16, 16, 1), "compression": "gzip", "shuffle": True, "fletcher32": True}
LZF = {"chunks": (2, 16, 16, 49), "compression": "lzf"}


@pytest.fixture
def sevir(tmp_path) -> SevirFolder:
    return SevirFolder(tmp_path)


def read(sevir):
    dataset = Sevir(sevir.path, "train", 16)
    return dataset[0], dataset[len(dataset) - 1]


def rewrite(sevir, ids=("A", "B"), libver=None, id_options=None, **options):
    """The file of A and B, with a `vil` of these options of `create_dataset`."""
    with h5py.File(sevir.file("A"), "w", libver=libver) as file:
        file.create_dataset("id", data=np.array(ids, dtype="S"), **(id_options or {}))
        if "external" not in options and "shape" not in options:
            options["data"] = np.stack([sevir.vil["A"], sevir.vil["B"]])
        file.create_dataset("vil", dtype="u1", **options)


@pytest.mark.slow
def test_mutated_files_are_read_or_refused(sevir):
    path, samples = sevir.file("A"), [sevir.file("A").read_bytes()]
    for options in (GZIP, LZF, GZIP | {"libver": "latest"}):
        rewrite(sevir, **options)
        samples.append(path.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["id"]
        file["id"] = ["A", "B"]  # of variable length
    samples.append(path.read_bytes())
    outcomes = fuzz("HDF5", lambda rng: path.write_bytes(mutate(samples, rng)), lambda: read(sevir), megabytes=600)
    assert min(outcomes[ACCEPTED], outcomes[REFUSED]) > 10


def declared_larger_than_the_world(sevir):
    rewrite(sevir, shape=(10**9, 384, 384, 49), chunks=(1, 384, 384, 1))


def declared_ids_larger_than_the_world(sevir):
    rewrite(sevir)
    with h5py.File(sevir.file("A"), "r+") as file:
        del file["id"]
        file.create_dataset("id", shape=(2,), dtype=f"S{2**30}")


def huge_frames(sevir):
    rewrite(sevir, shape=(2, 2**16, 2**16, 49), chunks=(1, 2**8, 2**8, 1))


def huge_chunks(sevir):
    rewrite(sevir, shape=(2, 2048, 2048, 49), chunks=(2, 2048, 2048, 49), compression="gzip")


def tiny_chunks(sevir):
    rewrite(sevir, shape=(2, 2048, 2048, 49), chunks=(1, 1, 1, 1), compression="gzip")


def two_compressors(sevir):
    rewrite(sevir)
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((1, 16, 16, 1))
    plan.set_deflate(9)
    plan.set_deflate(9)
    with h5py.File(sevir.file("A"), "r+") as file:
        del file["vil"]
        h5py.h5d.create(file.id, b"vil", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((2, 16, 16, 49)), plan)


def another_file_as_frames(sevir):
    rewrite(sevir, shape=(2, 16, 16, 49), external=[("/etc/passwd", 0, 2 * 16 * 16 * 49)])


def a_link_to_another_file(sevir):
    with h5py.File(sevir.file("A"), "r+") as file:
        del file["vil"]
        file["vil"] = h5py.ExternalLink(str(sevir.file("C")), "vil")


def a_mosaic_of_other_files(sevir):
    layout = h5py.VirtualLayout((2, 16, 16, 49), "u1")
    layout[:] = h5py.VirtualSource(str(sevir.file("C")), "vil", (2, 16, 16, 49))
    with h5py.File(sevir.file("A"), "r+") as file:
        del file["vil"]
        file.create_virtual_dataset("vil", layout)


def ids_without_end(sevir):
    rewrite(sevir)
    with h5py.File(sevir.file("A"), "r+") as file:
        del file["id"]
        file["id"] = ["A", "B" * 10**6]


@pytest.mark.parametrize(
    "spoil",
    [
        declared_larger_than_the_world,
        declared_ids_larger_than_the_world,
        huge_frames,
        two_compressors,
        another_file_as_frames,
        a_link_to_another_file,
        a_mosaic_of_other_files,
        ids_without_end,
    ],
)
def test_a_hostile_layout_is_skipped(sevir, spoil):
    spoil(sevir)
    with pytest.raises(InputError, match="2 x file is not ids and square"):
        read(sevir)


@pytest.mark.parametrize("spoil", [huge_chunks, tiny_chunks])
def test_hostile_chunks_are_refused(sevir, spoil):
    spoil(sevir)
    with pytest.raises(InputError, match=r"event A .*its chunks .* are too large or too many"):
        read(sevir)


@pytest.mark.parametrize(("size", "reason"), [(16, "a chunk of 256 bytes takes"), (1024, "inflates to more")])
def test_a_chunk_that_inflates_to_more_than_it_declares_is_refused(sevir, size, reason):
    rewrite(sevir, shape=(2, size, size, 49), chunks=(1, size, size, 1), compression="gzip")
    packer, megabyte = zlib.compressobj(), bytes(2**20)
    bomb = b"".join(packer.compress(megabyte) for _ in range(300)) + packer.flush()
    with h5py.File(sevir.file("A"), "r+") as file:
        file["vil"].id.write_direct_chunk((0, 0, 0, 3), bomb)
    with pytest.raises(InputError, match=reason):
        read(sevir)


def test_a_whole_event_in_one_gzip_chunk_is_read(sevir):
    frames = np.random.default_rng(0).integers(0, 255, (2, 128, 128, 49), "u1")  # may inflate beyond the bound
    rewrite(sevir, shape=frames.shape, chunks=(1, *frames.shape[1:]), compression="gzip")
    with h5py.File(sevir.file("A"), "r+") as file:
        file["vil"][:] = frames
    first, _ = (Sevir(sevir.path, "train", 128)[i] for i in (0, 5))
    assert np.array_equal(first[:, 0].numpy() * 255, np.moveaxis(frames[0, :, :, :25], -1, 0))


def test_a_pipe_in_place_of_a_file_does_not_block(sevir):
    sevir.file("A").unlink()
    os.mkfifo(sevir.file("A"))
    with pytest.raises(InputError, match="2 x file is missing"):
        read(sevir)
