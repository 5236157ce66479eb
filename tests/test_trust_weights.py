"""Weights are read without running them, as torch and safetensors read them; everything else is refused."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trust_forging import files_of, pickled_call

from medunet.errors import UnsafeError
from medunet.trust.archive.slices import Slice
from medunet.trust.archive.torch_pickle import SIZES, read_state
from medunet.trust.archive.weights_file import differences, read_safetensors, read_torch, write_safetensors

TYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def view(data: bytes) -> Slice:
    return Slice(io.BytesIO(data), 0, len(data))


def packed(content: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    write_safetensors(file, read_torch(view(saved(content))))
    return file.getvalue()


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2), torch.nn.Linear(4, 3, bias=False))


@st.composite
def states(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    names = draw(st.lists(st.text("abcdef.0123_é", min_size=1, max_size=12), min_size=1, max_size=6, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    state = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        kind = draw(st.sampled_from(TYPES))
        state[name] = (torch.rand(shape, generator=generator) * 100).to(kind)
    return state


@settings(max_examples=60)
@given(states())
def test_both_formats_hold_what_torch_and_safetensors_read(state: dict[str, torch.Tensor]) -> None:
    data = saved(state)
    ours = read_torch(view(data))
    assert {name: (t.dtype, t.shape) for name, t in ours.items()} == {
        name: (NAMES[t.dtype], tuple(t.shape)) for name, t in state.items()
    }
    theirs = safetensors.torch.load(packed(state))
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    for name, tensor in state.items():
        assert theirs[name].dtype == loaded[name].dtype == tensor.dtype
        assert torch.equal(theirs[name], tensor)
    assert differences(ours, read_safetensors(view(packed(state)))) == []
    assert differences(ours, read_safetensors(view(safetensors.torch.save(state)))) == []


def test_what_was_packed_loads_with_torch_and_equals_safetensors(packed_bundle: Path, tmp_path: Path) -> None:
    files = files_of(packed_bundle)
    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(files[f"models/{name}"])
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    theirs = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert list(theirs.keys())
    assert state.keys() == theirs.keys()
    assert all(torch.equal(state[name], theirs[name]) for name in state)
    assert type(state) is dict
    assert files["models/model.safetensors"] == packed(state)


@pytest.mark.parametrize("order", ["as saved", "reversed"])
def test_the_safetensors_file_does_not_depend_on_the_order(order: str) -> None:
    state = network().state_dict()
    names = list(state) if order == "as saved" else list(reversed(state))
    assert packed({name: state[name].clone() for name in names}) == packed({n: state[n].clone() for n in state})


def test_state_dicts_of_networks_are_read_with_their_hidden_attribute() -> None:
    state = network().state_dict()
    assert hasattr(state, "_metadata")
    assert set(read_torch(view(saved(state)))) == set(state)
    parameters = OrderedDict((name, torch.nn.Parameter(torch.rand(2))) for name in "ab")
    assert set(read_torch(view(saved(parameters)))) == {"a", "b"}


def test_descriptions_of_views() -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    with zipfile.ZipFile(io.BytesIO(saved({"whole": base, "part": base[1:, :, ::2]}))) as archive:
        state = read_state(archive.read("archive/data.pkl"))
    part = state["part"]
    assert (part.shape, part.strides, part.offset) == ((1, 3, 2), (12, 4, 2), 12)
    assert part.storage == state["whole"].storage
    assert (part.storage.dtype, part.storage.count) == ("F32", 24)
    assert state["whole"].contiguous
    assert not part.contiguous


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("canary"),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": torch.zeros(2), "epoch": 3}, r"is a checkpoint, not a plain state dict \('epoch' is no tensor\)"),
        ({"model": {"a": torch.zeros(2)}}, r"is a checkpoint"),
        ({}, "holds no state dict"),
        ([torch.zeros(2)], "holds the instruction EMPTY_LIST at byte"),
        (torch.zeros(2), "holds no state dict"),
        ({"a": Evil()}, "would run pathlib.Path.touch|would run"),
        ({"a": torch.nn.Linear(1, 1)}, r"would run torch\.nn\.modules\.linear\.Linear"),
        ({"a": torch.zeros(2).to_sparse()}, "would run torch._utils._rebuild_sparse_tensor"),
        ({"a": torch.zeros(4)[1:]}, "a: is a part of its storage"),
        ({"a": torch.zeros(4, 3).T}, "a: is a part of its storage or not in order"),
        ({"a": torch.zeros(2), 3: torch.zeros(2)}, r"\(3 is no tensor\)"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "would run torch.ComplexFloatStorage"),
        ({"a": torch.zeros(2, device="meta")}, "would run"),
    ],
    ids=range(13),
)
def test_anything_but_a_plain_state_dict_is_refused(
    content: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeError, match=words):
        read_torch(view(saved(content)))
    assert not list(tmp_path.iterdir())


def test_shared_numbers_are_refused() -> None:
    shared = torch.zeros(3)
    with pytest.raises(UnsafeError, match="share their numbers"):
        read_torch(view(saved({"a": shared, "b": shared})))


def test_other_containers_are_refused() -> None:
    with pytest.raises(UnsafeError, match=r"not end as a zip|cut short"):
        read_torch(view(saved({"a": torch.zeros(2)}, _use_new_zipfile_serialization=False)))
    with pytest.raises(UnsafeError, match="is a pickle of protocol 4"):
        read_torch(view(saved({"a": torch.zeros(2)}, pickle_protocol=4)))
    with pytest.raises(UnsafeError, match="cut short"):
        read_torch(view(b""))
    with pytest.raises(UnsafeError):
        read_torch(view(pickle.dumps({"a": 1}) * 10))


def rewritten(data: bytes, changes: dict[str, bytes | None]) -> bytes:
    """A file of torch with other records, by Python's zipfile."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        contents = {entry.filename.partition("/")[2]: old.read(entry) for entry in old.infolist()}
        for name, content in {**contents, **changes}.items():
            if content is not None:
                new.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    return file.getvalue()


STATE = saved({"a": torch.arange(4.0), "b": torch.zeros(2)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.pkl": pickled_call("os.mkdir", "canary")}, "would run os.mkdir, which no state dict needs"),
        ({"data.pkl": pickled_call("builtins.eval", "1")}, "would run builtins.eval"),
        ({"data.pkl": b"\x80\x02}."}, "holds no state dict"),
        ({"data.pkl": b""}, "ends before|not what torch.save writes"),
        ({"data.pkl": b"\x80\x02" + b"(" * 100_000}, "not what torch.save writes"),
        ({"data.pkl": b"\x80\x02t."}, "not what torch.save writes"),
        ({"data.pkl": b"\x80\x02)\x81."}, "the instruction NEWOBJ"),
        ({"data.pkl": None}, "has no data.pkl"),
        ({"data/0": None}, "lacks the record data/0"),
        ({"data/0": b"123"}, "its storage has 3 bytes"),
        ({"data/7": b"hidden"}, "a record 'data/7' that belongs to no tensor"),
        ({"code/x.py": b"hidden"}, "belongs to no tensor"),
        ({"byteorder": b"big"}, "little endian"),
        ({"byteorder": None}, "little endian"),
        ({"version": b"x" * 1000}, "a record 'version' of 1,000 bytes"),
    ],
)
def test_changed_records_are_refused(
    changes: dict[str, bytes | None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_torch(view(rewritten(STATE, {})))
    with pytest.raises(UnsafeError, match=words):
        read_torch(view(rewritten(STATE, changes)))
    assert not list(tmp_path.iterdir())


def _between(data: bytes) -> bytes:
    """Bytes between the records and the directory, which the end still points to."""
    place = data.index(b"PK\x01\x02")
    end = data.rindex(b"PK\x05\x06")
    start = struct.unpack_from("<I", data, end + 16)[0]
    return data[:place] + b"hidden" + data[place:end] + data[end : end + 16] + struct.pack("<IH", start + 6, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"hidden" + data, "bytes before or after"),
        (lambda data: data + b"hidden", "does not end as"),
        (lambda data: data[:-2] + b"\x06\x00hidden", "does not end as"),
        (_between, "bytes between its last record"),
    ],
)
def test_nothing_hides_in_a_file_of_torch(change: Callable[[bytes], bytes], words: str) -> None:
    data = rewritten(STATE, {})
    with pytest.raises(UnsafeError, match=words):
        read_torch(view(change(data)))


def test_compressed_records_are_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(STATE)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(UnsafeError, match="compressed, encrypted or not a record"):
        read_torch(view(file.getvalue()))


def test_damaged_files_are_refused_or_read_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the bytes: an UnsafeError or tensors inside the file, no other error and no side effect."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(1)
    tensors = packed({"a": torch.arange(4.0), "b": torch.zeros(2)})
    for _ in range(3000):
        for data, read in ((bytearray(STATE), read_torch), (bytearray(tensors), read_safetensors)):
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            if rng.random() < 0.2:
                del data[rng.randrange(len(data)) :]
            try:
                found = read(view(bytes(data)))
            except UnsafeError:
                continue
            for tensor in found.values():
                assert 0 <= tensor.data.start <= tensor.data.start + tensor.data.size <= len(data)
    assert not list(tmp_path.iterdir())


def header(entries: object, body: bytes = b"\0" * 16) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"1234", "cut short"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "says that its header has"),
        (header(b"{"), "its header: is not plain JSON"),
        (header(b"[]"), "no list of tensors"),
        (header(b'{"a":1,"a":2}'), "key 'a' stands twice"),
        (header({"a": entry(0, 8), "b": entry(4, 12)}), "b: overlaps another tensor"),
        (header({"a": entry(0, 8), "b": entry(0, 8), "c": entry(8, 16)}), "overlaps another tensor"),
        (header({"a": entry(0, 4), "b": entry(8, 16)}), "b: leaves a gap"),
        (header({"a": entry(4, 16)}), "a: leaves a gap"),
        (header({"a": entry(0, 8)}), "holds 16 bytes of numbers, its header describes 8"),
        (header({"a": entry(0, 24)}), "holds 16 bytes of numbers, its header describes 24"),
        (header({"a": entry(0, 16, [3])}), "a: has 16 bytes, its shape asks for 12"),
        (header({"a": entry(0, 16, [-4])}), "a: is not described as a tensor"),
        (header({"a": entry(0, 16, [4.0])}), "a: is not described as a tensor"),
        (header({"a": entry(0, 16, [True, 4])}), "a: is not described as a tensor"),
        (header({"a": entry(0, 16, [2**61, 2**61])}), "its shape asks for"),
        (header({"a": entry(0, 16, dtype="F31")}), "a: is not described as a tensor"),
        (header({"a": {**entry(0, 16), "more": 1}}), "a: is not described as a tensor"),
        (header({"a": entry(0, 16), "__metadata__": {"x": "hidden"}}), "__metadata__: is not described"),
        (header({"a": entry(16, 0, [-4])}), "not described"),
        (header({"a": None}), "not described"),
        (header(b'{"a":NaN}'), "NaN is not a number"),
        (header(b'{"a":' + b"[" * 50_000), "not plain JSON"),
    ],
)
def test_hostile_safetensors_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(UnsafeError, match=words):
        read_safetensors(view(data))


def test_differences_are_named() -> None:
    first = read_torch(view(saved({"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(2)})))
    second = read_torch(view(saved({"a": torch.zeros(3), "b": torch.zeros(2, 1), "d": torch.zeros(2)})))
    assert differences(first, second) == [
        "c: is in only one of the two files", "d: is in only one of the two files",
        "b: is F32 [2] in one, F32 [2, 1] in the other",
    ]  # fmt: skip
    nothing, minus = torch.zeros(3), -torch.zeros(3)
    third, fourth = (read_torch(view(saved({"a": value}))) for value in (nothing, minus))
    assert differences(third, fourth) == ["a: has other numbers in the two files"]
    assert set(SIZES) == set(NAMES.values())
