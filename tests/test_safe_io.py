"""What is written comes back; what could run code or exhaust memory is refused, and no canary ever appears."""

import ast
import collections
import contextlib
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_agent import safe_io
from trade_agent.errors import RegistryError, UnsafeFileError

PACKAGE = Path(safe_io.__file__).parent


# ---------------------------------------------------------------- JSON and bytes


def test_canonical_json_sorts_keys_and_ends_with_a_newline():
    assert safe_io.canonical_json({"b": 1, "a": "é"}, indent=None) == '{"a": "é", "b": 1}\n'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: "a"}, {"a": {2: 3}}, {"a": object()}])
def test_canonical_json_refuses_what_json_cannot_say(value):
    with pytest.raises(ValueError, match=r"."):
        safe_io.canonical_json(value)


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, '"\xff', "1" * 10_000])
def test_read_json_names_the_damaged_file(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(RegistryError, match=r"x\.json"):
        safe_io.read_json(path)


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None, True], "b": {"c": "text"}}
    safe_io.write_json(tmp_path / "x.json", value)
    assert safe_io.read_json(tmp_path / "x.json") == value
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    safe_io.write_bytes(tmp_path / "x", b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        safe_io.write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_links_pipes_folders_and_large_files_are_not_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", ""):
        with pytest.raises(UnsafeFileError):
            safe_io.read_bytes(tmp_path / name)
    with pytest.raises(UnsafeFileError, match="limit of 4"):
        safe_io.read_bytes(tmp_path / "file", max_bytes=4)
    with pytest.raises(RegistryError, match="missing"):
        safe_io.read_bytes(tmp_path / "missing")


def test_sha256_is_the_published_one(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert safe_io.sha256_bytes(b"abc") == safe_io.sha256_file(tmp_path / "x") == expected


# ---------------------------------------------------------------- what is written comes back


def same(a, b):
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


def training_state():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2).state_dict(),
        "rng": {
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": np.random.default_rng(3).bit_generator.state,
        },
    }


def test_training_state_comes_back():
    state = training_state()
    loaded = safe_io.load_tensors(safe_io.dump_tensors(state), name="x.pth")
    assert same({**state, "model": dict(state["model"])}, loaded)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    model.load_state_dict(loaded["model"], strict=True)
    torch.optim.Adam(model.parameters()).load_state_dict(loaded["optimizer"])
    random.setstate(loaded["rng"]["python"])


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_every_dtype_and_shape_of_tensor_comes_back(dtype, shape):
    state = {"x": torch.ones(shape).to(getattr(torch, dtype))}
    assert same(state, safe_io.load_tensors(safe_io.dump_tensors(state), name="x.pth"))


def test_views_are_stored_without_the_storage_they_look_into():
    base = torch.arange(100_000.0)
    state = {"row": base[5:8], "transposed": base[:6].reshape(2, 3).t(), "expanded": base[:1].expand(4)}
    data = safe_io.dump_tensors(state)
    assert len(data) < 10_000
    assert same({key: value.clone() for key, value in state.items()}, safe_io.load_tensors(data, name="x.pth"))


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(-5, 5), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text(max_size=3), plain, max_size=4))
def test_plain_values_come_back_from_both_formats(state):
    assert same(state, safe_io.load_tensors(safe_io.dump_tensors(state), name="x.pth"))
    assert same(state, safe_io.load_arrays(safe_io.dump_arrays(state), name="x.pkl"))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u1", "u4", "?", ">f8"])
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
def test_arrays_come_back_writable(dtype, shape):
    array = np.ones(shape, dtype)
    loaded = safe_io.load_arrays(safe_io.dump_arrays({"x": array, "y": array[..., None]}), name="x.pkl")
    assert same(loaded["x"], array.astype(array.dtype.newbyteorder("<")))
    loaded["x"][...] = 0
    assert loaded["y"].all()


def test_an_array_file_can_be_read_without_this_program():
    assert pickle.loads(safe_io.dump_arrays({"x": np.arange(6.0).reshape(2, 3)}))["x"][1, 2] == 5.0


@pytest.mark.parametrize("dump", [safe_io.dump_tensors, safe_io.dump_arrays])
def test_equal_states_give_equal_bytes(dump):
    name = "".join(["sca", "le"])  # equal to the literal, another object
    pair = (1.0, 2.0)
    shared = dump({"scale": "scale", "a": pair, "b": pair, "c": np.float64(3)})
    assert shared == dump({name: "scale", "a": (1.0, 2.0), "b": (1.0, 2.0), "c": 3.0})


def test_weights_hash_follows_content_only():
    state = {"b": torch.ones(2), "a": {"w": torch.zeros(2, 2)}, "step": 3}
    expected = safe_io.weights_sha256(state)
    assert expected == safe_io.weights_sha256({"a": {"w": torch.zeros(2, 2).t()}, "b": torch.ones(2), "step": 4})
    assert expected == safe_io.weights_sha256(safe_io.load_tensors(safe_io.dump_tensors(state), name="x"))
    for other in (
        {"b": torch.ones(2), "a": {"v": torch.zeros(2, 2)}},
        {"b": torch.ones(2), "a": {"w": torch.zeros(4)}},
        {"b": torch.ones(2), "a": {"w": torch.zeros(2, 2, dtype=torch.float64)}},
        {"b": torch.ones(2), "a": {"w": torch.tensor([[0.0, 0.0], [0.0, -0.0]])}},
    ):
        assert safe_io.weights_sha256(other) != expected


@pytest.mark.parametrize("bad", [object(), {1, 2}, b"bytes", 1j, torch.float32, Path("x"), np.array(["a"]), {(1,): 2}])
def test_dumping_names_the_place_of_what_cannot_be_stored(bad):
    for dump in (safe_io.dump_tensors, safe_io.dump_arrays):
        with pytest.raises(ValueError, match=r"state\['outer'\]\[1\]"):
            dump({"outer": [0, bad]})


def test_deep_nesting_is_refused():
    deep = 1.0
    for _ in range(100):
        deep = [deep]
    for dump in (safe_io.dump_tensors, safe_io.dump_arrays):
        with pytest.raises(ValueError, match="deep"):
            dump({"x": deep})


# ---------------------------------------------------------------- hostile files


class Touch:
    """A pickle of it creates the file ``path`` when an ordinary unpickler reads it."""

    def __init__(self, path, how="system"):
        self.path, self.how = str(path), how

    def __reduce__(self):
        if self.how == "system":
            return os.system, (f"touch {self.path}",)
        if self.how == "open":
            return open, (self.path, "w")
        if self.how == "eval":
            return eval, (f"open({self.path!r}, 'w')",)
        return subprocess.call, (["touch", self.path],)


def legacy_opcodes(path):
    command = f"touch {path}"
    return {
        "global": f"cposix\nsystem\n(S'{command}'\ntR.",
        "inst": f"(S'{command}'\niposix\nsystem\n.",
        "obj": f"(cposix\nsystem\nS'{command}'\no.",
        "build": f"cposix\nsystem\n(S'{command}'\ntRN}}b.",
    }


def hostile_pickles(path):
    corpus = {f"{how} {protocol}": pickle.dumps({"a": Touch(path, how)}, protocol)
              for how in ("system", "open", "eval", "call") for protocol in (0, 1, 2, 3, 4, 5)}  # fmt: skip
    corpus |= {name: text.encode() for name, text in legacy_opcodes(path).items()}
    corpus |= {f"after the end {p}": pickle.dumps({"a": 1}, p) + pickle.dumps(Touch(path), p) for p in (2, 5)}
    return corpus


def checkpoint(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def parts(state):
    with zipfile.ZipFile(io.BytesIO(safe_io.dump_tensors(state))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_program(program):
    return checkpoint([("archive/data.pkl", program), ("archive/version", b"3\n"), ("archive/byteorder", b"little")])


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code from a file was run"


def test_the_corpus_runs_code_under_an_ordinary_unpickler(tmp_path):
    path = tmp_path / "canary"
    for name, program in hostile_pickles(path).items():
        if name.startswith("after"):
            continue
        with contextlib.suppress(Exception):  # some fail after the damage is done
            pickle.loads(program)
        assert path.exists(), name
        path.unlink()


def test_pickles_with_code_are_refused(canary):
    for program in hostile_pickles(canary).values():
        for load, data in ((safe_io.load_arrays, program), (safe_io.load_tensors, with_program(program)),
                           (safe_io.load_tensors, program)):  # fmt: skip
            with pytest.raises(UnsafeFileError, match=r"bad\.file"):
                load(data, name="bad.file")


def test_torch_files_with_code_are_refused(canary):
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"a": Touch(canary), "w": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UnsafeFileError):
            safe_io.load_tensors(buffer.getvalue(), name="x.pth")
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), buffer)
    with pytest.raises(UnsafeFileError):
        safe_io.load_tensors(buffer.getvalue(), name="x.pth")


def test_neither_environment_nor_other_libraries_weaken_the_gate(canary):
    code = f"""
import io, os, sys, torch
from trade_agent import safe_io
from trade_agent.errors import UnsafeFileError
torch.serialization.add_safe_globals([os.system, (os.system, "posix.system"), getattr, eval])
class Touch:
    def __reduce__(self): return os.system, ({f"touch {canary}"!r},)
buffer = io.BytesIO(); torch.save({{"a": Touch()}}, buffer)
try:
    safe_io.load_tensors(buffer.getvalue(), name="x.pth")
except UnsafeFileError as error:
    assert "posix.system" in str(error), error
else:
    sys.exit("loaded")
state = safe_io.load_tensors(safe_io.dump_tensors({{"w": torch.ones(2)}}), name="x.pth")
assert state["w"].sum() == 2
"""
    environment = os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "PYTHONPATH": str(PACKAGE.parent)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def rebuild_tensor(numel, shape, stride, *, offset=0, size=16, kind=torch.FloatStorage, key="0"):
    """A checkpoint whose one tensor is described with these numbers over ``size`` bytes."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (
                Storage(), offset, shape, stride, False, collections.OrderedDict())  # fmt: skip

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", kind, key, "cpu", numel) if isinstance(obj, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"x": Tensor()})
    members = [("archive/data.pkl", buffer.getvalue()), ("archive/byteorder", b"little"), ("archive/version", b"3\n")]
    return checkpoint([*members, ("archive/data/0", b"\0" * size)])


def test_the_forged_tensor_is_sound_when_its_numbers_are():
    loaded = safe_io.load_tensors(rebuild_tensor(4, (2, 2), (2, 1)), name="x")
    assert same(loaded, {"x": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (10**5, 10**5), "stride": (0, 0)},  # 16 bytes that look like 40 GB
        {"shape": (5,), "stride": (1,)},
        {"shape": (2,), "stride": (1,), "offset": 3},
        {"shape": (2, 2), "stride": (1, 2)},
        {"shape": (2,), "stride": (1,)},
        {"shape": (2, -2), "stride": (2, 1)},
        {"shape": (2**62, 8), "stride": (8, 1)},
        {"numel": 10**9, "shape": (10**9,), "stride": (1,)},  # beyond the record: read past its end
        {"numel": 2, "shape": (2,), "stride": (1,), "size": 16},
        {"kind": torch.DoubleStorage},
        {"kind": torch.storage.UntypedStorage},
        {"key": "../0"},
        {"key": "7"},
    ],
)
def test_tensors_that_do_not_fit_their_storage_are_refused(changes):
    with pytest.raises(UnsafeFileError, match=r"x\.pth"):
        safe_io.load_tensors(
            rebuild_tensor(**({"numel": 4, "shape": (2, 2), "stride": (2, 1)} | changes)), name="x.pth"
        )


@pytest.mark.parametrize(
    ("changes", "reason"), [({"offset": 1}, "contiguous"), ({"numel": 10**9}, "claims"), ({"numel": 1}, "claims")]
)
def test_lies_that_torch_would_notice_too_are_refused_before_it_sees_them(changes, reason):
    with pytest.raises(UnsafeFileError, match=reason):
        safe_io.load_tensors(
            rebuild_tensor(**({"numel": 4, "shape": (2, 2), "stride": (2, 1)} | changes)), name="x.pth"
        )


def test_a_member_inside_another_one_is_refused():
    """Nested members would let a small file unpack to a large one."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data/1", b"\0" * 8000)
        info = archive.infolist()[0]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", inner.getvalue())
        info.header_offset = buffer.getvalue().index(inner.getvalue())
        archive.filelist.append(info)
    with zipfile.ZipFile(buffer) as archive:
        assert archive.read("archive/data/1") == b"\0" * 8000
    with pytest.raises(UnsafeFileError, match="overlap"):
        safe_io.load_tensors(buffer.getvalue(), name="x.pth")


def zip_cases():
    good = parts({"w": torch.ones(3)})
    pairs = list(good.items())
    whole = checkpoint(pairs)
    return {
        "compressed": checkpoint(pairs, zipfile.ZIP_DEFLATED),
        "zip bomb": checkpoint([*pairs[:-1], ("archive/data/1", b"\0" * 10**6)], zipfile.ZIP_DEFLATED),
        "no program": checkpoint([pair for pair in pairs if pair[0] != "archive/data.pkl"]),
        "two programs": checkpoint([*pairs, ("other/data.pkl", good["archive/data.pkl"])]),
        "unknown member": checkpoint([*pairs, ("archive/code/x.py", b"print(1)")]),
        "outside path": checkpoint([*pairs, ("../../evil", b"x")]),
        "data nobody uses": checkpoint([*pairs, ("archive/data/9", b"x")]),
        "missing storage": checkpoint([pair for pair in pairs if pair[0] != "archive/data/0"]),
        "big endian": checkpoint([(k, b"big" if k == "archive/byteorder" else v) for k, v in pairs]),
        "wrong crc": whole.replace(good["archive/data/0"], struct.pack("<3f", 7, 7, 7)),
        "truncated": whole[: len(whole) // 2],
        "prefixed": b"#!/bin/sh\n" + whole,
        "empty": b"",
        "not a zip": b"\x80\x02}.",
    }


@pytest.mark.parametrize("case", zip_cases())
def test_odd_archives_are_refused(case):
    with pytest.raises(UnsafeFileError, match=r"x\.pth"):
        safe_io.load_tensors(zip_cases()[case], name="x.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(canary):
    good = parts({"w": torch.ones(3)})
    evil = pickle.dumps(Touch(canary), 2)
    for pairs in (["evil", "good"], ["good", "evil"]):
        programs = [("archive/data.pkl", {"good": good["archive/data.pkl"], "evil": evil}[which]) for which in pairs]
        rest = [pair for pair in good.items() if pair[0] != "archive/data.pkl"]
        with pytest.raises(UnsafeFileError, match="two members"):
            safe_io.load_tensors(checkpoint([*programs, *rest]), name="x.pth")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"\x80\x02}q\x05.", "memo"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "memo"),
        (b"\x80\x02].", "instead of a dict"),
        (b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01h\x00u.", "several places"),  # contains itself
        (b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01c_codecs\nencode\nq\x02u.", "_codecs"),
        (b"\x80\x02}q\x00(X\x01\x00\x00\x00actorch\nFloatStorage\nq\x01u.", "_Name"),
        (b"\x80\x02}q\x00(X\x01\x00\x00\x00actorch\nFloatStorage\nq\x01K\x05\x85q\x02Ru.", "FloatStorage"),
        (b"\x80\x02}q\x00(X\x01\x00\x00\x00a" + b"]" * 200 + b"a" * 199 + b"u.", "deep"),
        (b"\x80\x02}q\x00(X\x01\x00\x00\x00a\x8b\x00\x00\x00\x01" + b"\xff" * 2**24 + b"u.", "LONG4"),
        (b"\x80\x02}" + b"N0" * 10 + b".", "POP"),
        (b"\x80\x02}" + b"N" * 600_000 + b".", "operations"),
        (b"\x80\x02}", "whole pickle"),
        (b"\x80\x02a.", "malformed"),
        (b"\x80\x04}.", "protocol"),
    ],
)
def test_crafted_programs_are_refused_for_their_own_reason(program, reason):
    with pytest.raises(UnsafeFileError, match=reason):
        safe_io.load_tensors(with_program(program), name="x.pth")


def array_program(*arguments):
    class Array:
        def __reduce__(self):
            return np.ndarray, arguments

    return pickle.dumps({"x": Array()}, 5)


@pytest.mark.parametrize(
    "arguments",
    [
        ((10**9,), "<f8", bytearray(8)),
        ((1,), "O", bytearray(8)),
        ((1,), "<f8", bytearray(8), 0, (0,)),
        ((-1,), "<f8", bytearray(8)),
        ((10**12,),),
        ((1,), "<f8", [1]),
        ((2**40, 2**40, 0), "<f8"),
    ],
)
def test_array_descriptions_that_do_not_fit_are_refused(arguments):
    with pytest.raises(UnsafeFileError, match=r"x\.pkl"):
        safe_io.load_arrays(array_program(*arguments), name="x.pkl")


def test_two_arrays_over_one_buffer_are_refused():
    buffer = bytearray(8)

    class Array:
        def __reduce__(self):
            return np.ndarray, ((1,), "<f8", buffer)

    with pytest.raises(UnsafeFileError, match="over 8 bytes"):
        safe_io.load_arrays(pickle.dumps({"x": Array(), "y": Array()}, 5), name="x.pkl")


def test_numpy_objects_of_an_ordinary_pickle_are_refused():
    for value in (np.array([object()]), np.dtype("f8"), np.zeros(3)[::2]):
        with pytest.raises(UnsafeFileError):
            safe_io.load_arrays(pickle.dumps({"x": value}, 5), name="x.pkl")


@pytest.mark.parametrize("load", ["tensors", "arrays"])
def test_damage_raises_only_the_registry_error(load, canary):
    """Flipped bits and cuts: an error of ours or the same kind of plain data, never another exception."""
    good = safe_io.dump_tensors({"w": torch.ones(3), "n": [1, "a"]}) if load == "tensors" else safe_io.dump_arrays(
        {"w": np.ones(3), "n": [1, "a"]})  # fmt: skip
    rng = random.Random(0)
    for _ in range(400):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        try:
            state = getattr(safe_io, f"load_{load}")(bytes(data), name="x")
        except UnsafeFileError:
            continue
        assert type(state) is dict


# ---------------------------------------------------------------- nobody else opens such files

BANNED_CALLS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "cloudpickle.load", "joblib.load",
    "torch.load", "torch.jit.load", "torch.export.load", "torch.serialization.add_safe_globals", "np.load",
    "numpy.load", "hydra.utils.instantiate", "hydra.utils.call", "shelve.open", "yaml.load", "yaml.unsafe_load",
    "pd.read_pickle", "pandas.read_pickle", "marshal.loads", "marshal.load",
}  # fmt: skip
BANNED_NAMES = {"add_safe_globals", "safe_globals", "instantiate", "read_pickle"}


def dangerous_calls(source):
    """(line, name) of every call or import of a loader that can run code, import aliases resolved."""
    tree = ast.parse(source)
    aliases = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                aliases[name.asname or name.name.split(".")[0]] = name.name if name.asname else name.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"

    def dotted(node):
        if isinstance(node, ast.Attribute):
            return f"{dotted(node.value)}.{node.attr}"
        return aliases.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    plain_loads = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and any(keyword.arg == "allow_pickle" and ast.unparse(keyword.value) == "False" for keyword in node.keywords)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = dotted(node)
            if name == "numpy.load" and id(node) in plain_loads:
                continue
            if name in BANNED_CALLS or name.split(".")[-1] in BANNED_NAMES:
                found.append((node.lineno, name))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "from pickle import loads as x\nx(b'')",
        "import torch as t\nt.load('x', weights_only=False)",
        "import torch\ntorch.load('x', weights_only=True)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "from hydra.utils import instantiate\ninstantiate(c)",
        "import hydra\nhydra.utils.instantiate(c)",
        "import yaml\nyaml.load(f)",
        "import torch\nwith torch.serialization.safe_globals([x]): pass",
        "import torch\ntorch.export.load('x.pt2')",
        "import shelve\nshelve.open('x')",
        "f = __import__\nfrom joblib import load\nload('x')",
    ],
)
def test_the_search_for_dangerous_calls_finds_them(source):
    assert dangerous_calls(source)


def test_only_safe_io_reads_pickles_and_checkpoints():
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "safe_io.py"]
    assert len(files) > 20
    found = {str(path.relative_to(PACKAGE)): dangerous_calls(path.read_text()) for path in files}
    assert {path: calls for path, calls in found.items() if calls} == {}


def test_torch_load_names_weights_only():
    tree = ast.parse(Path(safe_io.__file__).read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func) == "torch.load"
    ]
    assert len(calls) == 1
    assert [keyword.value.value for keyword in calls[0].keywords if keyword.arg == "weights_only"] == [True]
