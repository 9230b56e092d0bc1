import io
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch

from diffcast.forecaster import Architecture, load_forecaster
from tests.fuzz.children import ACCEPTED, INPUTS, REFUSED, fuzz, mutate
from utils.checkpoint import save_checkpoint, verify
from utils.errors import InputError
from utils.official import read_official
from utils.pickles import load_pickle
from utils.weights import load_metadata, load_weights, save_weights

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2, dtype=torch.bfloat16)}

TINY = Architecture("convgru", False, (1, 16, 16), 2, 4, {"stem_dim": 4}, 8, (1, 2), 2, 50)
OPTIONS = ("stem_dim", "dims", "kernel_sizes", "translator_depth", "stem_factors", "heads")
VALUES = (
    *(None, True, False, -1, 0, 1, 2, 3, 8, 4096, 65535, 2**31, 2**62, 10**30, 0.5, float("nan"), "", "x", "simvp"),
    *("convgru", "earthformer", "phydnet", "advection", "os:system", "a" * 10_000, [], [8], [1, 16, 16], [1, -2]),
    *([1] * 10_000, [[8]], {}, {"dim": 3}, [2**40], [1, 2, 4, 8]),
)


@pytest.fixture
def folder(tmp_path):
    """A `ckpt-1` folder."""
    return save_checkpoint(tmp_path, 1, WEIGHTS, {"step": 1}, {"model": WEIGHTS, "step": 1, "names": ["x", None]})


def pickled(legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": WEIGHTS, "step": 1}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def rezipped(source: bytes, change, compression=zipfile.ZIP_STORED) -> bytes:
    """The same archive, after `change(name, content)` of each entry."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


@pytest.mark.slow
def test_mutated_safetensors_are_read_or_refused(folder):
    path = folder / "weights.safetensors"
    samples = [path.read_bytes()]

    def read():
        load_metadata(path)
        load_weights(path)

    outcomes = fuzz("safetensors", lambda rng: path.write_bytes(mutate(samples, rng)), read, megabytes=200)
    assert outcomes[REFUSED] > 0.9 * INPUTS  # a hash guards them: what is accepted has not changed


@pytest.mark.slow
def test_forged_descriptions_are_built_or_refused(tmp_path):
    """The hash is that of what is written: only what is checked besides it guards."""
    path, weights = tmp_path / "a.safetensors", TINY.build().state_dict()
    plain = TINY.to_metadata()

    def write(rng):
        options = dict(plain["backbone_options"])
        forged = plain | {"backbone_options": options}
        for _ in range(rng.choice((1, 1, 2, 4))):
            place = options if rng.random() < 0.4 else forged
            place[rng.choice([*forged, *OPTIONS])] = rng.choice(VALUES)
        changed = dict(weights)
        if rng.random() < 0.3:
            del changed[rng.choice(list(changed))]
        save_weights(path, changed, {"architecture": forged})

    save_weights(path, weights, {"architecture": plain})
    load_forecaster(path)  # what PyTorch imports for it is not measured
    outcomes = fuzz("descriptions", write, lambda: load_forecaster(path), megabytes=300)
    assert min(outcomes[ACCEPTED], outcomes[REFUSED]) > 0


@pytest.mark.slow
def test_mutated_pickles_are_read_or_refused(tmp_path):
    path, whole = tmp_path / "a.pt", pickled()
    samples = [whole, pickled(legacy=True)]

    def write(rng):
        inside = rng.random() < 0.5  # where a checksum does not stop it
        change = lambda name, content: mutate([content], rng) if name.endswith("data.pkl") else content  # noqa: E731
        path.write_bytes(rezipped(whole, change) if inside else mutate(samples, rng))

    outcomes = fuzz("pickles", write, lambda: read_official(path), megabytes=300)
    assert min(outcomes[ACCEPTED], outcomes[REFUSED]) > 5


@pytest.mark.slow
def test_mutated_manifests_are_verified_or_refused(folder):
    path = folder / "manifest.json"
    samples = [path.read_bytes()]
    outcomes = fuzz("manifests", lambda rng: path.write_bytes(mutate(samples, rng)), lambda: verify(folder), 100)
    assert outcomes[REFUSED] > 0


class Order:
    def __init__(self, function, *arguments):
        self.order = function, arguments

    def __reduce__(self):
        return self.order


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_gives_orders_is_refused_and_not_obeyed(tmp_path, legacy):
    target, path = tmp_path / "obeyed", tmp_path / "a.pt"
    torch.save({"model": Order(os.mkdir, str(target))}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="refused"):
        load_pickle(path)
    assert not target.exists()


def test_a_bare_pickle_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps({"model": Order(os.getcwd)}))
    with pytest.raises(InputError):
        load_pickle(path)


def test_a_zip_bomb_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    bomb = rezipped(
        pickled(), lambda name, content: bytes(2**27) if "/data/" in name else content, zipfile.ZIP_DEFLATED
    )
    assert len(bomb) < 2**20
    path.write_bytes(bomb)
    with pytest.raises(InputError, match=r"a\.pt"):
        load_pickle(path)


def test_a_pickle_that_asks_for_memory_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    content = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (2**34).to_bytes(5, "little") + b"\x85R."
    path.write_bytes(rezipped(pickled(), lambda name, content_: content if name.endswith("data.pkl") else content_))
    with pytest.raises(InputError, match=r"a\.pt"):
        load_pickle(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{" * 10**5,
        b'{"a":{"dtype":"F32","shape":[1000000000000,1000000000000],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4611686018427387904]}}',
        json.dumps({"__metadata__": {"diffcast": "[" * 10**5}}).encode(),
    ],
)
def test_absurd_headers_of_safetensors_are_refused(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(InputError, match=r"a\.safetensors"):
        load_weights(path)


@pytest.mark.parametrize("length", [2**63, 2**40])
def test_an_absurd_length_of_the_header_is_refused(tmp_path, length):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(InputError, match=r"a\.safetensors"):
        load_weights(path)
