"""What is written comes back, and equal states give equal bytes and digests."""

import io
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_agent import safe_io


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


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_what_torch_saved_comes_back_as_plain_tensors():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    loaded = safe_io.load_tensors(saved({"model": model.state_dict(), "weight": model[0].weight}), name="x.pth")
    assert same(loaded, {"model": dict(model.state_dict()), "weight": model[0].weight.detach()})
    assert type(loaded["model"]) is dict
    assert not loaded["weight"].requires_grad


def test_tensors_that_shared_memory_share_it_again():
    flat = torch.arange(12.0)
    loaded = safe_io.load_tensors(saved({"flat": flat, "part": flat[4:8].view(2, 2)}), name="x.pth")
    loaded["flat"][4] = -1.0
    assert loaded["part"].tolist() == [[-1.0, 5.0], [6.0, 7.0]]


def test_torch_reads_what_is_written():
    state = {"w": torch.ones(2, 3), "n": [1, "a", None]}
    assert same(torch.load(io.BytesIO(safe_io.dump_tensors(state)), weights_only=True), state)


def test_loaded_tensors_are_aligned_like_any_other():
    """Kernels may round differently for memory of another alignment."""
    loaded = safe_io.load_tensors(safe_io.dump_tensors({str(n): torch.ones(n) for n in range(1, 9)}), name="x.pth")
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.values())
