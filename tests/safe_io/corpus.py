"""Hostile files, made by the tests themselves: each would run code, exhaust memory or lie under a naive loader.

``corpus(canary)`` names every file with the door it is meant for. Whatever runs code creates the file ``canary``.
"""

import collections
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from typing import NamedTuple

import numpy as np
import torch

from trade_agent import safe_io

PTH, PKL, CONFIG = "pth", "pkl", "config"
EMPTY = b"\x80\x02}."
IN_DICT = b"\x80\x02}q\x00(X\x01\x00\x00\x00a"  # {"a": ... then b"u."


class Case(NamedTuple):
    """A file for one door, and a part of the reason with which it must be refused."""

    name: str
    door: str
    data: bytes
    reason: str


class Touch:
    """A pickle of it creates the file ``path`` when an ordinary unpickler reads it."""

    def __init__(self, path, how):
        self.path, self.how = str(path), how

    def __reduce__(self):
        if self.how == "system":
            return os.system, (f"touch {self.path}",)
        if self.how == "open":
            return open, (self.path, "w")
        if self.how == "eval":
            return eval, (f"open({self.path!r}, 'w')",)
        return subprocess.call, (["touch", self.path],)


class Call:
    """A pickle of it calls ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def zipped(members, compression=zipfile.ZIP_STORED):
    """A zip of (name, content) pairs, which may repeat names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def with_program(program, *, storages=(), byteorder=b"little"):
    """A checkpoint with this program over these storages."""
    records = [(f"archive/data/{i}", record) for i, record in enumerate(storages)]
    rest = [("archive/version", b"3\n"), ("archive/byteorder", byteorder)]
    return zipped([("archive/data.pkl", program), *rest, *records])


def members_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


class _Storage:
    """Pickled as a reference to a storage."""

    def __init__(self, *pid):
        self.pid = pid


class _StoragePickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, _Storage) else None


def tensor_file(shape=(2, 2), stride=(2, 1), *, offset=0, kind=torch.FloatStorage, key="0", numel=4, size=16,
                word="storage", storage=None, rebuild=torch._utils._rebuild_tensor_v2, copies=1):  # fmt: skip
    """A checkpoint whose one tensor is described with these numbers over ``size`` bytes."""
    storage = _Storage(word, kind, key, "cpu", numel) if storage is None else storage
    tensor = Call(rebuild, storage, offset, shape, stride, False, collections.OrderedDict())
    return with_program(_dump({"x": [tensor] * copies}), storages=[b"\0" * size])


def _dump(obj):
    buffer = io.BytesIO()
    _StoragePickler(buffer, 2).dump(obj)
    return buffer.getvalue()


def _bytes_program(*sizes):
    """The program of a checkpoint of one uint8 tensor for each size."""
    return _dump({str(key): Call(torch._utils._rebuild_tensor_v2,
                                 _Storage("storage", torch.ByteStorage, str(key), "cpu", size), 0, (size,), (1,), False,
                                 collections.OrderedDict()) for key, size in enumerate(sizes)})  # fmt: skip


def array_file(*arguments):
    return pickle.dumps({"x": Call(np.ndarray, *arguments)}, 5)


def text_programs(canary):
    command = f"touch {canary}"
    return {
        "global": f"cposix\nsystem\n(S'{command}'\ntR.",
        "inst": f"(S'{command}'\niposix\nsystem\n.",
        "obj": f"(cposix\nsystem\nS'{command}'\no.",
        "build": f"cposix\nsystem\n(S'{command}'\ntRN}}b.",
    }


def code_programs(canary):
    """Pickles that create the canary under an ordinary unpickler."""
    programs = {f"{how} protocol {protocol}": pickle.dumps({"a": Touch(canary, how)}, protocol)
                for how in ("system", "open", "eval", "call") for protocol in (0, 2, 4, 5)}  # fmt: skip
    programs |= {f"{name} in text": text.encode() for name, text in text_programs(canary).items()}
    # The code runs before the reader comes to the damage ("nullifAI", found on a model hub in 2025).
    programs["broken off behind the code"] = pickle.dumps({"a": Touch(canary, "system")}, 5)[:-1] + b"\xff"
    return programs


def _code(canary):
    for name, program in code_programs(canary).items():
        yield Case(f"{name}, bare", PKL, program, "")
        yield Case(f"{name}, zipped", PTH, with_program(program), "")
        yield Case(f"{name}, not zipped", PTH, program, "not a zip")
    for protocol in (2, 5):
        late = pickle.dumps({"a": 1}, protocol) + pickle.dumps(Touch(canary, "system"), protocol)
        yield Case(f"code after the end {protocol}", PKL if protocol == 5 else PTH,
                   late if protocol == 5 else with_program(late), "after its end")  # fmt: skip
    for is_zip in (True, False):
        buffer = io.BytesIO()
        torch.save({"a": Touch(canary, "system"), "w": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=is_zip)
        yield Case(
            f"torch.save of code, zip {is_zip}", PTH, buffer.getvalue(), "posix.system" if is_zip else "not a zip"
        )
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), buffer)
    yield Case("a whole module", PTH, buffer.getvalue(), "NEWOBJ")
    program = b"c__main__\nTouch\n"
    yield Case("a class", PTH, with_program(IN_DICT + program + b"u."), "asks for __main__.Touch")
    yield Case("a reference outside", PKL, b"\x80\x05}\x94(\x8c\x01a\x94K\x00Qu.", "BINPERSID")
    yield Case("an extension", PTH, with_program(IN_DICT + b"\x82\x01u."), "EXT1")
    exported = {"serialized_exported_program.json": json.dumps({"evil": str(canary)}).encode(), "version": b"1"}
    yield Case("an exported program", PTH, zipped([(f"archive/{k}", v) for k, v in exported.items()]), "unknown member")
    skops = zipped([("schema.json", b'{"__class__": "system", "__module__": "os"}')])
    yield Case("a skops file", PTH, skops, "unknown member")


def _advisories(canary):
    """What published advisories describe, about torch itself and about scanners that let code pass."""
    code = pickle.dumps({"a": Touch(canary, "system")}, 2)
    pairs = [("archive/data.pkl", code), ("archive/version", b"3\n"), ("archive/byteorder", b"little")]
    yield Case(
        "CVE-2025-32434, a tar of the first torch", PTH, tarred(storages=code, tensors=code, pickle=code), "not a zip"
    )
    program = dict(members_of(tensor_file()))["archive/data.pkl"]
    assert program.endswith(b"as.")
    yield Case("CVE-2026-24747, an item of a tensor", PTH,
               with_program(program[:-3] + b"K\x00K\x01sas.", storages=[b"\0" * 16]), "malformed")  # fmt: skip
    yield Case("CVE-2025-1716, pip", PTH,
               with_program(IN_DICT + b"cpip\nmain\n]X\x07\0\0\0installa\x85Ru."), "asks for pip.main")  # fmt: skip
    yield Case("CVE-2025-1889, code under another name", PTH,
               zipped([("archive/data.pkl", EMPTY), ("archive/config.p", code)]), "unknown member")  # fmt: skip
    renamed = zipped(pairs).replace(b"archive/data.pkl", b"archive/data.txt", 1)
    yield Case("CVE-2025-1944, two names of one member", PTH, renamed, "damaged zip")
    flagged = bytearray(zipped(pairs))
    flagged[flagged.index(b"PK\x01\x02") + 8] |= 1
    yield Case("CVE-2025-1945, said to be encrypted", PTH, bytes(flagged), "damaged zip")
    wrong = zipped(pairs)
    at = wrong.index(b"PK\x01\x02") + 16
    yield Case(
        "CVE-2025-10156, code with a wrong checksum", PTH, wrong[:at] + b"\0\0\0\0" + wrong[at + 4 :], "damaged zip"
    )
    below = b"casyncio.unix_events\n_UnixSubprocessTransport\nq\x01u."
    yield Case(
        "CVE-2025-10157, a name below a blocked one", PTH, with_program(IN_DICT + below), "asks for asyncio.unix"
    )
    buffer = io.BytesIO()
    np.save(buffer, np.array([Touch(canary, "system")], dtype=object), allow_pickle=True)
    yield Case("CVE-2019-6446, numpy's array of objects", PKL, buffer.getvalue(), "SHORT_BINSTRING")
    layer = {"class_name": "Lambda", "config": {"function": "import os"}}
    keras = zipped([("config.json", json.dumps(layer).encode()), ("model.weights.h5", b"\x89HDF")])
    yield Case("CVE-2025-1550, a Keras archive", PTH, keras, "unknown member")
    yield Case("a 7z archive", PTH, b"7z\xbc\xaf\x27\x1c" + code, "not a zip")


def tarred(**members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _programs():
    def case(name, program, reason):
        return Case(name, PTH, with_program(program), reason)

    yield case("memo with a hole", b"\x80\x02}q\x05.", "memo")
    yield case("memo of 2**31", b"\x80\x02}r\xff\xff\xff\x7f.", "memo")
    yield case("a list", b"\x80\x02].", "instead of a dict")
    yield case("contains itself", IN_DICT + b"q\x01h\x00u.", "deep")
    doubling = b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(1, 21))  # each list holds the last one twice
    yield case("unfolds without end", IN_DICT + b"](]q\x01" + doubling + b"eu.", "unfolds")
    yield case("an unknown function", IN_DICT + b"c_codecs\nencode\nq\x01u.", "_codecs")
    yield case("a name as value", IN_DICT + b"ctorch\nFloatStorage\nq\x01u.", "Name")
    yield case("calls a storage type", IN_DICT + b"ctorch\nFloatStorage\nq\x01K\x05\x85q\x02Ru.", "no function")
    yield case(
        "sets attributes of a name", IN_DICT + b"ctorch\nFloatStorage\n}X\x04\x00\x00\x00callK\x01sbu.", "malformed"
    )
    yield case("deep", IN_DICT + b"]" * 200 + b"a" * 199 + b"u.", "deep")
    yield case("a key that is a tuple", b"\x80\x02}(K\x01K\x02\x86K\x03u.", "neither text nor")
    yield case("a number of 16 MB", IN_DICT + b"\x8b\x00\x00\x00\x01" + b"\xff" * 2**24 + b"u.", "LONG4")
    yield case("pops", b"\x80\x02}" + b"N0" * 10 + b".", "POP")
    yield case("many operations", IN_DICT + b"]" + b"(e" * 300_000 + b"u.", "operations")
    yield case("no end", b"\x80\x02}", "whole pickle")
    yield case("appends to nothing", b"\x80\x02a.", "malformed")
    yield case("protocol 4", b"\x80\x04}.", "protocol")
    yield case("a size of text", IN_DICT + b"ctorch\nSize\nK\x05\x85Ru.", "size")
    yield case(
        "a parameter of a number", IN_DICT + b"ctorch._utils\n_rebuild_parameter\nK\x05\x89N\x87Ru.", "parameter"
    )
    yield Case("a persistent reference in arrays", PKL, b"\x80\x05}\x94(\x8c\x01aN\x51u.", "BINPERSID")
    yield Case("arrays of protocol 2", PKL, b"\x80\x02}.", "protocol")
    yield Case("arrays without end", PKL, b"\x80\x05}", "whole pickle")


def _tensors():
    def case(name, reason, **changes):
        return Case(name, PTH, tensor_file(**changes), reason)

    yield case("16 bytes as 40 GB", "contiguous", shape=(10**5, 10**5), stride=(0, 0))
    yield case("more elements than stored", "at 0 of 4", shape=(5,), stride=(1,))
    yield case("offset beyond the end", "at 3 of 4", shape=(2,), stride=(1,), offset=3)
    yield case("negative offset", "at -1 of 4", shape=(2,), stride=(1,), offset=-1)
    yield case("offset of half an element", "sizes", offset=0.5, shape=(1,), stride=(1,))
    yield case("sizes in a list", "sizes", shape=[2, 2])
    yield case("not a storage", "malformed", storage=(1, 2))
    yield case("transposed", "contiguous", stride=(1, 2))
    yield case("negative size", "sizes", shape=(2, -2), stride=(1, 1))
    yield case("sizes that overflow", "sizes", shape=(2**62, 8, 0), stride=(8, 1, 1))
    yield case("100 dimensions", "sizes", shape=(1,) * 100, stride=(1,) * 100)
    yield case("a stride too few", "malformed", stride=(2,))
    yield case("strides of text", "contiguous", stride="21")
    yield case("reads past its record", "claims", numel=10**9, shape=(10**9,), stride=(1,))
    yield case("hides the rest of its record", "claims", numel=2, shape=(2,), stride=(1,))
    yield case("a wider type", "claims", kind=torch.DoubleStorage)
    yield case("a number of elements that is text", "claims", numel="4")
    yield case("an unknown storage", "asks for", kind=torch.storage.UntypedStorage)
    yield case("a storage that is a function", "malformed", kind=collections.OrderedDict)
    yield case("another word", "'module'", word="module")
    yield case("a path as key", "KeyError", key="../0")
    yield case("a missing key", "KeyError", key="7")
    yield case("a key that is a number", "KeyError", key=0)
    yield case("a sparse tensor", "asks for", rebuild=torch._utils._rebuild_sparse_tensor)
    yield case("one storage a thousand times", "over and over", copies=1000, size=4 * 10**4, numel=10**4,
               shape=(10**4,), stride=(1,))  # fmt: skip


def _arrays():
    shared = bytearray(8)
    for name, arguments, reason in (
        ("8 bytes as 8 GB", ((10**9,), "<f8", bytearray(8)), "over 8 bytes"),
        ("an array that hides bytes", ((1,), "<f8", bytearray(16)), "over 16 bytes"),
        ("an array of objects", ((1,), "O", bytearray(8)), "unknown way"),
        ("an array with strides", ((1,), "<f8", bytearray(8), 0, (0,)), "malformed"),
        ("a negative array", ((-1,), "<f8", bytearray(8)), "over 8 bytes"),
        ("an array without a buffer", ((10**12,),), "malformed"),
        ("an array over a list", ((1,), "<f8", [1]), "unknown way"),
        ("an array over an array", ((1,), "<f8", Call(np.ndarray, (8,), "|u1", bytearray(8))), "unknown way"),
        ("sizes of an array that overflow", ((2**40, 2**40, 0), "<f8", bytearray()), "malformed"),
    ):
        yield Case(name, PKL, array_file(*arguments), reason)
    twice = {"x": Call(np.ndarray, (1,), "<f8", shared), "y": Call(np.ndarray, (1,), "<f8", shared)}
    yield Case("two arrays over one buffer", PKL, pickle.dumps(twice, 5), "one buffer")
    yield Case("numpy's own array", PKL, pickle.dumps({"x": np.zeros(3)[::2]}, 5), "SHORT_BINBYTES")
    yield Case("a dtype", PKL, pickle.dumps({"x": np.dtype("f8")}, 5), "BUILD")
    yield Case("a scaler of scikit-learn", PKL, pickle.dumps({"x": _scaler()}, 5), "NEWOBJ")


def _scaler():
    from sklearn.preprocessing import StandardScaler

    return StandardScaler().fit(np.zeros((3, 1)))


def nested_member():
    """A member inside the bytes of another one: a small file would unpack to a large one."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data/1", b"\0" * 8000)
        info = archive.infolist()[0]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", _bytes_program(len(inner.getvalue()), 8000))
        archive.writestr("archive/data/0", inner.getvalue())
        info.header_offset = buffer.getvalue().index(inner.getvalue())
        archive.filelist.append(info)
    return buffer.getvalue()


def _zips():
    whole = safe_io.dump_tensors({"w": torch.ones(3)})
    pairs = members_of(whole)
    program = dict(pairs)["archive/data.pkl"]
    rest = [pair for pair in pairs if pair[0] != "archive/data.pkl"]
    for name, data, reason in (
        ("compressed", zipped(pairs, zipfile.ZIP_DEFLATED), "compressed"),
        ("zip bomb", zipped([*pairs, ("archive/data/1", b"\0" * 10**8)], zipfile.ZIP_DEFLATED), "compressed"),
        ("no program", zipped(rest), "no data.pkl"),
        ("two checkpoints", zipped([*pairs, ("other/data.pkl", program)]), "two checkpoints"),
        ("the same name twice", zipped([("archive/data.pkl", EMPTY), *pairs]), "one name"),
        ("source code", zipped([*pairs, ("archive/code/x.py", b"print(1)")]), "unknown member"),
        ("outside path", zipped([*pairs, ("../../evil", b"x")]), "unknown member"),
        ("absolute path", zipped([*pairs, ("/etc/evil", b"x")]), "unknown member"),
        ("data nobody uses", zipped([*pairs, ("archive/data/9", b"x")]), "no tensor uses"),
        ("missing storage", zipped([pair for pair in pairs if pair[0] != "archive/data/0"]), "KeyError"),
        ("big endian", zipped([(k, b"big" if k == "archive/byteorder" else v) for k, v in pairs]), "little-endian"),
        ("wrong checksum", whole.replace(dict(pairs)["archive/data/0"], b"\0" * 12), "CRC"),
        ("truncated", whole[: len(whole) // 2], "damaged zip"),
        ("prefixed", b"#!/bin/sh\n" + whole, "not a zip"),
        ("empty", b"", "not a zip"),
        ("overlapping members", nested_member(), "overlap"),
        ("60,000 members", b"PK\x03\x04" + b"PK\x01\x02" * 60_000, "members"),
    ):
        yield Case(name, PTH, data, reason)


def _configs():
    for name, value, reason in (
        ("code in a config", {"model": {"_target_": "os.system", "command": "touch x"}}, "_target_"),
        ("the environment in a config", {"model": {"name": "${oc.env:HOME}"}}, "oc.env"),
        ("an interpolated key", {"${oc.env:HOME}": 1}, "oc.env"),
    ):
        yield Case(name, CONFIG, json.dumps(value).encode(), reason)
    yield Case("a config of lists", CONFIG, b"[" * 10**5, "not valid JSON")
    yield Case("a number without end", CONFIG, b"1" * 10**5, "not valid JSON")
    yield Case("a key twice", CONFIG, b'{"a": 1, "a": 2}', "occurs twice")


def corpus(canary):
    """Every hostile file."""
    cases = [*_code(canary), *_advisories(canary), *_programs(), *_tensors(), *_arrays(), *_zips(), *_configs()]
    assert len({case.name for case in cases}) == len(cases)
    return cases


def benign():
    """Files that must load: (name, door, bytes)."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    flat = torch.arange(12.0)
    foreign = {
        "a state dict": model.state_dict(),
        "parameters": dict(model.named_parameters()),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2).state_dict(),
        "generator": {"rng": torch.get_rng_state()},
        "tied and flat weights": {"a": flat, "b": flat, "c": flat[4:8].view(2, 2)},
        "a trainer's checkpoint": {"epoch": 3, "loss": 0.5, "config": {"layers": [1, 2], "name": "x"},
                                   "model_state_dict": model.state_dict(), "size": torch.Size([2, 3])},
    }  # fmt: skip
    for name, state in foreign.items():
        buffer = io.BytesIO()
        torch.save(state, buffer)
        yield f"{name}, of torch.save", PTH, buffer.getvalue()
        yield f"{name}, of ours", PTH, safe_io.dump_tensors(state)
    generator = {"numpy": np.random.default_rng(3).bit_generator.state}
    yield "numpy's generator", PTH, safe_io.dump_tensors(generator)
    yield "preprocessor", PKL, safe_io.dump_arrays({"schema": 1, "steps": [{"name": "scale", "center": np.ones(3)}]})
    yield "config", CONFIG, safe_io.canonical_json({"model": {"name": "sac", "gamma": 0.99}, "python": sys.version})
