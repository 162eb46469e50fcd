"""What could run code or exhaust memory is refused with a reason, through every door, and no canary ever appears."""

import contextlib
import os
import pickle
import pickletools
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.safe_io.corpus import CONFIG, PKL, PTH, benign, code_programs, members_of, tensor_file, with_program
from trade_agent import safe_io
from trade_agent.errors import RegistryError, UnsafeFileError
from trade_agent.preprocessing.cache import FeatureCache
from trade_agent.registry.metadata import check_config
from trade_agent.safe_io import arrays, checkpoints

DOORS = {
    PTH: lambda data: safe_io.load_tensors(data, name="bad.file"),
    PKL: lambda data: safe_io.load_arrays(data, name="bad.file"),
    CONFIG: lambda data: check_config(safe_io.parse_json(data, name="bad.file"), name="bad.file"),
}


def test_the_corpus_runs_code_under_an_ordinary_unpickler(tmp_path):
    path = tmp_path / "canary"
    for name, program in code_programs(path).items():
        with contextlib.suppress(Exception):  # some fail after the damage is done
            pickle.loads(program)
        assert path.exists(), name
        path.unlink()


def refuse_all(hostile):
    for case in hostile:
        with pytest.raises(RegistryError) as caught:
            DOORS[case.door](case.data)
        assert "bad.file" in str(caught.value), case.name
        assert case.reason in str(caught.value), (case.name, str(caught.value))


def test_every_hostile_file_is_refused_for_its_own_reason(hostile):
    assert len(hostile) >= 46
    refuse_all(hostile)


def test_neither_environment_nor_other_libraries_weaken_the_gate(hostile, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with torch.serialization.safe_globals([(os.system, "posix.system"), eval, open, getattr, torch.nn.Linear]):
        refuse_all(hostile)


def test_no_door_opens_a_file_of_another(hostile):
    for case in hostile:
        for load in (DOORS[PTH], DOORS[PKL]):
            with pytest.raises(UnsafeFileError):
                load(case.data)


def test_the_cache_takes_a_hostile_file_for_a_miss(hostile, tmp_path):
    cache = FeatureCache(tmp_path)
    for case in hostile:
        for name in ("key.f4", "key.pkl"):
            (tmp_path / name).write_bytes(case.data + bytes.fromhex(safe_io.sha256_bytes(case.data)))
        assert cache.load_state("key") is None
        assert cache.load_values("key", (10**12,)) is None


@pytest.mark.parametrize(("name", "door", "data"), list(benign()))
def test_no_benign_file_is_refused(name, door, data):
    DOORS[door](data)


# ---------------------------------------------------------------- resources


def test_limits_of_size(monkeypatch):
    """A file over each limit is refused; here the limits are lowered instead."""
    tensors, numbers = safe_io.dump_tensors({"w": torch.ones(3)}), safe_io.dump_arrays({"w": np.ones(3)})
    for owner, name, value, data, load in (
        (checkpoints, "MAX_TENSOR_BYTES", 100, tensors, safe_io.load_tensors),
        (checkpoints, "MAX_MEMBERS", 2, tensors, safe_io.load_tensors),
        (arrays, "MAX_ARRAY_BYTES", 10, numbers, safe_io.load_arrays),
    ):
        load(data, name="x")
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            with pytest.raises(UnsafeFileError, match=rf"x has (more than 2 members|\d+ bytes, more than .* {value})"):
                load(data, name="x")


def bombs():
    """Files below 10 MB that ask for more memory or time than they look like."""
    size = 9_900_000
    head = b"\x80\x05}(\x8c\x01a]("
    yield CONFIG, b"[" + b"[]," * (size // 3) + b"0]"
    yield CONFIG, b"[" + b"{}," * (size // 3) + b"0]"
    yield CONFIG, b"[" + b'{"a":1},' * (size // 8) + b"0]"
    yield CONFIG, b"[" + b'"ab",' * (size // 5) + b"0]"
    yield CONFIG, b"[" * size
    yield CONFIG, ("{" + ",".join(f'"{i:x}":1' for i in range(size // 10)) + "}").encode()
    yield PKL, head + b"}" * 499_000 + b"eu."
    yield PKL, head + (b"X\x10\0\0\0" + b"a" * 16) * 450_000 + b"eu."
    yield PKL, head + b"X" + (9_000_000).to_bytes(4, "little") + "\U0001f600".encode() + b"a" * 8_999_996 + b"eu."
    yield PKL, head + (b"\x8a\xff" + b"\x7f" * 255) * 38_000 + b"eu."
    yield PKL, b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"."
    yield PTH, with_program(b"\x80\x02}" + b"(e" * 4_000_000 + b".")
    yield PTH, b"PK\x03\x04" + b"PK\x01\x02" * 2_400_000
    yield PTH, a_million_tensors()


def a_million_tensors():
    """One tensor of one element is described once, and made again by five bytes a million times."""
    program = bytearray(dict(members_of(tensor_file((1,), (1,), numel=1, size=4)))["archive/data.pkl"])
    names = [(op.name, argument, at) for op, argument, at in pickletools.genops(bytes(program))]
    end = next(at for name, _, at in reversed(names) if name == "SETITEM")
    call = next(at for name, _, at in reversed(names) if name == "REDUCE")
    arguments = [argument for name, argument, at in names if name == "BINPUT" and at < call][-1]
    function = next(
        names[i + 1][1] for i, (name, text, _) in enumerate(names) if name == "GLOBAL" and "rebuild" in text
    )
    again = bytes([ord("h"), function, ord("h"), arguments, ord("R")])
    return with_program(
        bytes(program[:end]) + b"s(X\x01\x00\x00\x00y](" + again * 1_000_000 + b"eu.", storages=[b"\0" * 4]
    )


def in_child(function):
    """Run in a forked process; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_no_small_file_takes_much_memory_or_time(hostile):
    """The system ends a process that takes 200 MB of memory or 2 seconds of a processor for one file."""
    files = [*bombs(), *((case.door, case.data) for case in hostile if len(case.data) < 10**7)]

    def load_all():
        for door, data in files:
            assert len(data) < 10**7
            used = resource.getrusage(resource.RUSAGE_SELF)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 3, resource.RLIM_INFINITY))
            limit = pages * resource.getpagesize() + 200 * 10**6
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            try:
                DOORS[door](data)
            except RegistryError as error:
                if "MemoryError" in str(error):  # caught by the gate
                    raise

    assert in_child(load_all) == 0


# ---------------------------------------------------------------- damage


def mutated(data, rng):
    """A copy with flipped bits, replaced, inserted or missing bytes, sometimes a part of itself elsewhere."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, how = rng.randrange(len(data)), rng.random()
        if how < 0.4:
            data[at] ^= 1 << rng.randrange(8)
        elif how < 0.7:
            data[at] = rng.randrange(256)
        elif how < 0.8:
            data[at:at] = rng.randbytes(rng.randint(1, 4))
        elif how < 0.9:
            start = rng.randrange(len(data))
            data[at : at + 8] = data[start : start + 8]
        elif len(data) > 20:
            del data[at : at + rng.randint(1, 8)]
    return bytes(data)


def fuzz(count, seed, hostile):
    """Load ``count`` mutated files: an error of ours or plain data, never another exception."""
    rng = random.Random(seed)
    state = {"w": torch.ones(3), "n": [1, "a", None, 2.5], "o": {0: (1, True)}}
    seeds = [(PTH, safe_io.dump_tensors(state)), (PKL, safe_io.dump_arrays({"w": np.ones(3), "n": [1, "a"]}))]
    seeds += [(case.door, case.data) for case in hostile if case.door != CONFIG and 0 < len(case.data) < 4000]
    programs = [(data, checkpoints._read_members(data, "x")) for door, data in seeds[:1]]
    for number in range(count):
        if number % 3:
            door, data = rng.choice(seeds) if number % 2 else seeds[number % 2]
            data = mutated(data, rng)
        else:  # a sound zip around a mutated program: the checksum of the zip would catch it before
            members = programs[0][1]
            door, data = PTH, with_program(mutated(members["data.pkl"], rng), storages=[members["data/0"]])
        try:
            loaded = DOORS[door](data)
        except UnsafeFileError:
            continue
        assert type(loaded) is dict


def test_mutated_files_bring_neither_code_nor_other_errors(hostile):
    assert in_child(lambda: fuzz(2_000, 0, hostile)) == 0


@pytest.mark.slow
def test_a_hundred_thousand_mutated_files(hostile):
    assert in_child(lambda: fuzz(100_000, 1, hostile)) == 0
