"""safetensors files of quantized models: round trips, tied weights, files that lie."""

import copy
import math
import random
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import need
from test_nn import STATIC_ASYM
from test_state_dict import make
from torch import nn

from lowbit import checkpoints

need("safetensors")


@pytest.fixture
def model():
    return nn.Sequential(make("W4A16", 48), nn.LayerNorm(48), make("NVFP4A16", 16, 48), make(STATIC_ASYM, 8, 16))


def test_safetensors_round_trip(model, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoints.save_model(model, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
    other = nn.Sequential(make("W4A16", 48), nn.LayerNorm(48), make("NVFP4A16", 16, 48), make(STATIC_ASYM, 8, 16))
    checkpoints.load_model(other, path)
    x = torch.randn(3, 96)
    assert torch.equal(other(x), model(x))
    from safetensors.torch import load_model, save_model  # safetensors' own helpers work as well

    save_model(model, str(path))
    nn.init.zeros_(other[1].weight)
    other[0].packed.copy_(make("W4A16", 48).packed)
    load_model(other, str(path))
    assert torch.equal(other(x), model(x))


def test_safetensors_into_a_meta_model(model, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoints.save_model(model, path)
    skeleton = copy.deepcopy(model).to("meta")
    checkpoints.load_model(skeleton, path, assign=True)
    assert torch.equal(skeleton(torch.ones(1, 96)), model(torch.ones(1, 96)))


def test_tied_weights_are_written_once(tmp_path):
    model = nn.ModuleDict({"embed": nn.Embedding(50, 32), "proj": make("W8A16", 32, 32), "head": nn.Linear(32, 50)})
    model["head"].weight = model["embed"].weight
    path = tmp_path / "model.safetensors"
    checkpoints.save_model(model, path)
    assert "head.weight" not in checkpoints.load_file(path)
    other = copy.deepcopy(model)
    nn.init.zeros_(other["embed"].weight)
    checkpoints.load_model(other, path)
    assert torch.equal(other["head"].weight, model["embed"].weight)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_files(model, tmp_path, keep):
    path = tmp_path / "model.safetensors"
    checkpoints.save_model(model, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    other = copy.deepcopy(model)
    before = [tensor.clone() for tensor in (*other.parameters(), *other.buffers())]
    with pytest.raises(ValueError, match=r"model.safetensors \(\d+ bytes\) is truncated or no safetensors file"):
        checkpoints.load_model(other, path)
    for tensor, old in zip((*other.parameters(), *other.buffers()), before, strict=True):
        assert torch.equal(tensor, old)


def test_a_file_that_does_not_fit_changes_nothing(model, tmp_path):
    path = tmp_path / "model.safetensors"
    state = dict(model.state_dict())
    others = {
        "3.weight_scale": (torch.full_like(state["3.weight_scale"], float("nan")), "3.weight: 8 of 8 scales"),
        "1.bias": (torch.zeros(41), "1.bias is .41.: .48. is needed"),
        "nothing": (torch.zeros(1), "nothing is unexpected"),
        "2.weight_packed": (None, "2.weight_packed: missing, NVFP4A16 needs this"),
        "1.weight": (None, "1.weight is missing"),
    }
    for name, (value, message) in others.items():
        broken = {**state, name: value}
        checkpoints.save_file({key: tensor for key, tensor in broken.items() if tensor is not None}, path)
        fresh = nn.Sequential(make("W4A16", 48), nn.LayerNorm(48), make("NVFP4A16", 16, 48), make(STATIC_ASYM, 8, 16))
        before = [tensor.clone() for tensor in (*fresh.parameters(), *fresh.buffers())]
        with pytest.raises(ValueError, match=message):
            checkpoints.load_model(fresh, path)
        for tensor, old in zip((*fresh.parameters(), *fresh.buffers()), before, strict=True):
            assert torch.equal(tensor, old)
    with pytest.raises(FileNotFoundError):
        checkpoints.load_model(model, tmp_path / "none.safetensors")


SCHEMES = ["W4A16_ASYM", "W8A8", "NVFP4A16", "MXFP4A16", "NF4_DQ", "BITNET"]


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A model of small layers, its file, the bytes of that, and how many of them are the header."""
    model = nn.Sequential(*(make(scheme, 32, 32) for scheme in SCHEMES), nn.LayerNorm(32))
    path = tmp_path_factory.mktemp("lies") / "model.safetensors"
    checkpoints.save_model(model, path)
    data = path.read_bytes()
    return model, path, data, 8 + struct.unpack("<Q", data[:8])[0]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 4), strict=st.booleans())
def test_changed_bytes_are_loaded_or_refused(small_file, seed, changes, strict):
    model, path, data, header = small_file
    chance = random.Random(seed)
    changed = bytearray(data)
    for _ in range(changes):
        at = chance.randrange(header if chance.random() < 0.7 else len(data))
        changed[at] = chance.randrange(256)
    path.write_bytes(changed)
    before = [(tensor, tensor.clone()) for tensor in (*model.parameters(), *model.buffers())]
    try:
        checkpoints.load_model(model, path, strict=strict)
    except (ValueError, TypeError):
        assert all(torch.equal(tensor, old) for tensor, old in before), "changed by what was refused"
    else:
        assert model(torch.ones(2, 32)).shape == (2, 32)
        for tensor, old in before:  # what was loaded may be any number: back to those that can be compared
            with torch.no_grad():
                tensor.copy_(old)


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    for shape in ([2**40], [2**62, 4], [1 << 20, 1 << 20]):
        text = f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{4 * math.prod(shape)}]}}}}'.encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
        with pytest.raises(ValueError, match="is truncated or no safetensors file"):
            checkpoints.load_file(path)
