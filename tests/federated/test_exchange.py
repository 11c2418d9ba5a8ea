"""States as bytes: what goes in comes out to the bit, and no bytes of others do anything but come out or be refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from federating import same
from fedrag.errors import InputError
from fedrag.federated.exchange import Packed, from_bytes, from_record, pack, size, to_bytes, to_record, unpack

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((), (0,), (3,), (2, 3), (1, 0, 4), (2, 1, 3))


def states() -> dict[str, Tensor]:
    """Every dtype and shape, in an order that sorting would change."""
    made = {
        f"{dtype}/{len(SHAPES) - i}".removeprefix("torch."): torch.randn(shape, dtype=torch.float64).to(dtype)
        for dtype in DTYPES
        for i, shape in enumerate(SHAPES)
    }
    return made | {"transposed": torch.randn(3, 5).T, "odd": torch.tensor([0.0, -0.0, 1e-45, float("inf")])}


def test_a_state_survives_both_ways() -> None:
    state = states()
    packs = pack(state)
    record = to_record(packs)
    arrived = ArrayRecord.inflate(record.deflate(), {part.object_id: part for part in record.children.values()})
    assert same(unpack(from_record(arrived)), state)
    packs_again, header = from_bytes(to_bytes(packs, {"round": "3"}))
    assert same(unpack(packs_again), state)
    assert header == {"round": "3"}
    assert from_bytes(to_bytes({})) == ({}, {})
    assert size(packs) == sum(value.numel() * value.element_size() for value in state.values())


def test_others_can_read_it() -> None:
    state = states()
    theirs = safetensors.torch.load(to_bytes(pack(state), {"a": "b"}))
    assert same({name: theirs[name] for name in state}, state)
    for name, array in to_record(pack(state)).items():
        if state[name].dtype != torch.bfloat16:
            assert np.array_equal(array.numpy(), state[name].numpy())


def test_sixteen_bits_stay_sixteen_bits() -> None:
    state = {"w": torch.randn(1000).to(torch.bfloat16)}
    array = to_record(pack(state))["w"]
    assert (array.dtype, len(array.data)) == ("bfloat16", 2000)


def test_half_precision_on_the_wire() -> None:
    state = {str(dtype): torch.randn(1000, dtype=torch.float64).to(dtype) for dtype in DTYPES}
    packs = pack(state, "bfloat16")
    assert [len(p.data) for p in packs.values()] == [2000] * 4
    assert [p.dtype for p in packs.values()] == ["bfloat16", "bfloat16", "float16", "bfloat16"]
    for name, value in unpack(packs).items():
        assert torch.all((value.double() - state[name].double()).abs() <= 2.0**-8 * state[name].double().abs())
    assert same({"x": unpack(packs)["torch.float16"]}, {"x": state["torch.float16"]})  # nothing is to be saved there


def test_what_is_no_float_is_refused() -> None:
    with pytest.raises(InputError, match="'steps' is of int64"):
        pack({"steps": torch.ones(1, dtype=torch.int64)})


def npy(array: np.ndarray, **settings: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **settings)
    return stream.getvalue()


def claiming(shape: str, dtype: str = "<f4") -> bytes:
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + b"\0" * 8


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def zipped() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, w=np.zeros(3, np.float32))
    return stream.getvalue()


ARRAYS = {
    "empty": b"",
    "cut": npy(np.zeros(30, np.float32))[:60],
    "half of the numbers": npy(np.zeros(30, np.float32))[:-60],
    "too many numbers": npy(np.zeros(3, np.float32)) + b"\0\0\0\0",
    "integers": npy(np.zeros(3, np.int64)),
    "complex": npy(np.zeros(3, np.complex64)),
    "big-endian": npy(np.zeros(3, ">f4")),
    "column by column": npy(np.asfortranarray(np.zeros((2, 3), np.float32))),
    "records": npy(np.zeros(3, [("a", "<f4")])),
    "a zip": zipped(),
    "a broken zip": zipped()[:40],
    "a terabyte": claiming("(1000000000000,)"),
    "more than there is": claiming("(99999999999999999, 99999999999999999)"),
    "nothing, but of any shape": claiming("(0, 99999999999999999, 99999999999999999)")[:-8],
    "a hundred dimensions": claiming("(" + "1, " * 100 + ")"),
    "negative": claiming("(-2,)"),
    "an expression": claiming("(2**1,)"),
    "deep": claiming("(" * 5000),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_lies_is_refused(name: str) -> None:
    record = ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", ARRAYS[name])})
    with pytest.raises(InputError, match="'w'"):
        from_record(record)


def test_no_array_runs_code(tmp_path: Path) -> None:
    bombs = np.array([Bomb(tmp_path / "here")], dtype=object)
    for data in (npy(bombs, allow_pickle=True), pickle.dumps(Bomb(tmp_path / "here"))):
        with pytest.raises(InputError):
            from_record(ArrayRecord({"w": Array("float32", (1,), "numpy.ndarray", data)}))
    assert not (tmp_path / "here").exists()
    np.load(io.BytesIO(npy(bombs, allow_pickle=True)), allow_pickle=True)
    assert (tmp_path / "here").exists()  # it would have


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("bfloat16", (3,), b"\0\0"),
        ("bfloat16", (-1, -1), b"\0\0"),
        ("bfloat16", (1,) * 99, b"\0\0"),
        ("bfloat16", (0, 2**60, 2**60), b""),
        ("int64", (1,), b"\0" * 8),
        ("torch.load", (1,), b"\0" * 8),
    ],
)
def test_raw_bytes_that_lie_are_refused(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(InputError, match="'w'"):
        from_record(ArrayRecord({"w": Array(dtype, shape, "fedrag.raw", data)}))


GOOD = to_bytes(pack({"w": torch.arange(6.0).view(2, 3), "h": torch.ones(2, dtype=torch.bfloat16)}), {"round": "1"})
ONE = npy(np.arange(6, dtype=np.float32).reshape(2, 3))
CHANGES = st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=4)


def changed(data: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    for at, piece, out in changes:
        at %= len(data) + 1
        data = data[:at] + piece + data[at + out :]
    return data


def sound(packs: dict[str, Packed]) -> None:
    for name, value in unpack(packs).items():
        assert value.numel() * value.element_size() == len(packs[name].data)


@given(CHANGES)
def test_changed_bytes_are_a_state_or_refused(changes: list[tuple[int, bytes, int]]) -> None:
    data = changed(GOOD, changes)
    try:
        packs, header = from_bytes(data)
    except InputError:
        return
    sound(packs)
    assert all(isinstance(value, str) for value in header.values())


@given(CHANGES)
def test_a_changed_array_is_an_array_or_refused(changes: list[tuple[int, bytes, int]]) -> None:
    try:
        packs = from_record(ArrayRecord({"w": Array("float32", (2, 3), "numpy.ndarray", changed(ONE, changes))}))
    except InputError:
        return
    sound(packs)


@pytest.mark.parametrize("header", ['{"__metadata__": null}', '{"__metadata__": {"a": 1}}', "[]", "{", '{"w": {}}'])
def test_a_header_that_is_none_is_refused_or_empty(header: str) -> None:
    head = header.encode()
    data = len(head).to_bytes(8, "little") + head
    try:
        assert from_bytes(data) == ({}, {})
    except InputError:
        assert header != json.dumps({"__metadata__": None})


def test_the_arrays_here_are_what_numpy_writes() -> None:
    """Were the tables above no arrays at all, refusing them would show nothing."""
    assert np.load(io.BytesIO(ONE)).shape == (2, 3)
    assert zipfile.is_zipfile(io.BytesIO(zipped()))
    with pytest.raises((MemoryError, ValueError, EOFError)):
        np.load(io.BytesIO(ARRAYS["a terabyte"]))
