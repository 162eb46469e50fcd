"""Bytes and JSON: strict on reading, atomic on writing."""

import json
import os
import re
import subprocess

import pytest

from trade_agent import safe_io
from trade_agent.errors import RegistryError, UnsafeFileError


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


DOCUMENT = safe_io.checked_json({"a": 1, "z": "2"})


def summed(template):
    """A document whose checksum fits, as somebody on purpose would make it."""
    line = re.compile(rb'\n  "checksum": "%s",?\n')
    return template % safe_io.sha256_bytes(line.sub(b"\n", template)).encode()


@pytest.mark.parametrize(
    "fields", [{}, {"a": 1}, {"z": 1}, {"a": {"checksum": "x"}, "z": ["\n", '\n  "checksum": "0"']}]
)
def test_the_checksum_is_that_of_the_other_lines(tmp_path, fields):
    path = tmp_path / "x.json"
    path.write_bytes(safe_io.checked_json(fields))
    others = subprocess.run(["grep", "-v", '^  "checksum"', path], capture_output=True, check=True).stdout
    assert json.loads(path.read_bytes()) == fields | {"checksum": safe_io.sha256_bytes(others)}
    assert safe_io.read_checked_json(path) == fields


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b'{"a": 1}\n', "checksum is .*, recorded none"),
        (b'{"a": 1, "checksum": "0"}\n', "checksum is .*, recorded none"),
        (b"[]", "was altered"),
        (DOCUMENT[:-1], "was altered"),
        (DOCUMENT.replace(b"1", b"1 ", 1), "was altered"),
        (DOCUMENT.replace(b",", b"", 1), "was altered"),
        (summed(b'[{\n  "checksum": "%s",\n  "a": 1}]'), "not an object with a checksum"),
        (summed(b'{"a": {\n  "checksum": "%s"\n}}'), "not an object with a checksum"),
        (summed(b'{\n  "checksum": "%s",\n  "a": 1,\n  "a": 2}'), "a key occurs twice"),
        (summed(b'{\n  "checksum": "%s",\n  "a": NaN}'), "NaN is not JSON"),
    ],
)
def test_a_document_with_a_checksum_must_be_what_was_written(tmp_path, document, reason):
    (tmp_path / "x.json").write_bytes(DOCUMENT)
    assert safe_io.read_checked_json(tmp_path / "x.json") == {"a": 1, "z": "2"}
    (tmp_path / "x.json").write_bytes(document)
    with pytest.raises(RegistryError, match=rf"x\.json .*{reason}"):
        safe_io.read_checked_json(tmp_path / "x.json")
