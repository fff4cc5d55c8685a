"""state_dict in compressed-tensors' form: round trips, what it reads of ours, what is refused."""

import copy

import pytest
import torch
from oracles import FLOATS, code_numbers, ct_quantize, ct_scheme, need
from test_nn import ALL, STATIC_ASYM, static_options
from torch import nn

import lowbit
from lowbit import Scheme, formats
from lowbit.nn import Linear


def make(scheme, n=40, k=96, **options):
    """A layer of about n x k: k is rounded up to whole blocks where the format has blocks."""
    block = formats.get(Scheme.of(scheme).format).block_k
    k = -(-k // block) * block if block else k
    return Linear.from_float(nn.Linear(k, n, **options), scheme, **static_options(scheme))


@pytest.mark.parametrize("scheme", ALL, ids=str)
@pytest.mark.parametrize("shape", [(40, 96), (37, 131), (1, 1), (130, 260)])
def test_round_trip(scheme, shape):
    source, target = make(scheme, *shape), make(scheme, *shape)
    state = source.state_dict()
    result = target.load_state_dict(state)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert target.quantized.equal(source.quantized)
    x = torch.randn(3, source.in_features)
    assert torch.equal(target(x), source(x))
    again = target.state_dict()
    assert list(again) == list(state)
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(bits(again[name]), bits(tensor)), name


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


def describe(layer):
    return {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in layer.state_dict().items()}


def test_names_and_layouts():
    f = {"bias": ("bfloat16", (40,))}
    expected = {
        "W4A16": {
            "weight_packed": ("int32", (40, 32)),
            "weight_scale": ("bfloat16", (40, 2)),
            "weight_shape": ("int64", (2,)),
        },
        "W4A8": {
            "weight_packed": ("int32", (40, 32)),
            "weight_scale": ("bfloat16", (40, 2)),
            "weight_shape": ("int64", (2,)),
        },
        "W4A16_ASYM": {
            "weight_packed": ("int32", (40, 32)),
            "weight_scale": ("bfloat16", (40, 2)),
            "weight_shape": ("int64", (2,)),
            "weight_zero_point": ("int32", (5, 2)),
        },
        "W8A16": {
            "weight_packed": ("int32", (40, 64)),
            "weight_scale": ("bfloat16", (40, 2)),
            "weight_shape": ("int64", (2,)),
        },
        "W8A8": {"weight": ("int8", (40, 256)), "weight_scale": ("bfloat16", (40, 1))},
        "FP8": {"weight": ("float8_e4m3fn", (40, 256)), "weight_scale": ("bfloat16", (40, 1))},
        "FP8_BLOCK": {"weight": ("float8_e4m3fn", (40, 256)), "weight_scale": ("bfloat16", (1, 2))},
        "FP8_E5M2": {"weight": ("float8_e5m2", (40, 256)), "weight_scale": ("bfloat16", (40, 1))},
        "FP4A16": {"weight_packed": ("uint8", (40, 128)), "weight_scale": ("bfloat16", (40, 8))},
        "MXFP4A16": {"weight_packed": ("uint8", (40, 128)), "weight_scale": ("uint8", (40, 8))},
        "MXFP8A16": {"weight": ("float8_e4m3fn", (40, 256)), "weight_scale": ("uint8", (40, 8))},
        "NVFP4A16": {
            "weight_packed": ("uint8", (40, 128)),
            "weight_scale": ("float8_e4m3fn", (40, 16)),
            "weight_global_scale": ("float32", (1,)),
        },
        "W3A16": {
            "weight_packed": ("int32", (40, 24)),
            "weight_scale": ("bfloat16", (40, 2)),
            "weight_shape": ("int64", (2,)),
        },
        "FP6_E3M2": {"weight_packed": ("uint8", (40, 192)), "weight_scale": ("bfloat16", (40, 1))},
        "MXFP6A16": {"weight_packed": ("uint8", (40, 192)), "weight_scale": ("uint8", (40, 8))},
        "BITNET": {"weight_packed": ("uint8", (40, 64)), "weight_scale": ("float32", (1,))},
        "NF4": {"weight_packed": ("uint8", (40, 128)), "weight_scale": ("float32", (40, 4))},
    }
    for scheme, tensors in expected.items():
        assert describe(make(scheme, 40, 256, dtype=torch.bfloat16)) == tensors | f, scheme
    assert describe(make(Scheme("int8", "tensor", activation="int8"), 40, 256, bias=False)) == {
        "weight": ("int8", (40, 256)),
        "weight_scale": ("float32", (1,)),
    }
    static = describe(make(STATIC_ASYM, 40, 256, bias=False))
    assert static["input_scale"] == ("float32", (1,))
    assert static["input_zero_point"] == ("int8", (1,))


CT = {
    "W4A16": None,
    "W4A16_ASYM": None,
    "W8A16": None,
    "W2A16": None,
    "W3A16": None,
    "W5A16": None,
    "W6A16": None,
    "W4A8": "pack-quantized",
    "W3A8": "pack-quantized",
    "W8A8": None,
    "FP8": None,
    "FP8_BLOCK": None,
    "MXFP4A16": None,
    "MXFP6A16": None,
    "MXFP8A16": None,
    "NVFP4A16": None,
}


@pytest.mark.parametrize("preset", CT)
@pytest.mark.parametrize("dtype", FLOATS)
def test_compressed_tensors_reads_ours(preset, dtype):
    """Its decompressor gives the weight that we multiply with, up to the rounding of its own arithmetic."""
    base = need("compressed_tensors.compressors.base")
    formats = need("compressed_tensors.compressors.format")
    layer = make(preset, 48, 256, dtype=dtype)
    scheme = ct_scheme(preset, CT[preset])
    name = scheme.format or formats.infer_module_format(nn.Linear, scheme)
    compressor = base.BaseCompressor.get_value_from_registry(getattr(name, "value", name))
    state = {name: tensor for name, tensor in layer.state_dict().items() if name != "bias"}
    theirs = compressor.decompress(state, scheme)["weight"]
    ours = layer.weight.float()
    eps = 2.0**-7 if "FP4" in preset or preset in ("MXFP6A16", "MXFP8A16") or dtype == torch.bfloat16 else 2.0**-10
    torch.testing.assert_close(theirs.float(), ours, rtol=eps, atol=1e-7)


@pytest.mark.parametrize("preset", CT)
def test_we_read_what_compressed_tensors_writes(preset):
    """Compress a layer with its own code; load that; the codes and scales are the same as ours."""
    quantization = need("compressed_tensors.quantization")
    base = need("compressed_tensors.compressors.base")
    linear = nn.Linear(256, 48)
    scheme = ct_scheme(preset, CT[preset])
    _, scale, zero, global_scale = ct_quantize(linear.weight.detach(), preset)
    holder = copy.deepcopy(linear)
    quantization.initialize_module_for_quantization(holder, scheme, force_zero_point=False)
    holder.weight_scale.data = scale.clone()
    if zero is not None:
        holder.weight_zero_point.data = zero
    if global_scale is not None:
        holder.weight_global_scale.data = global_scale
    base.compress_module(holder)
    state = holder.state_dict()
    layer = make(preset, 48, 256)
    layer.load_state_dict(state)
    assert layer.quantized.equal(lowbit.quantize(linear.weight, preset))


def test_a_whole_model_through_compressed_tensors():
    """ModelCompressor decompresses a model that holds our state dict."""
    quantization = need("compressed_tensors.quantization")
    model_compressor = need("compressed_tensors.compressors").ModelCompressor
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64))
    theirs = copy.deepcopy(model)
    lowbit.quantize_(model, "W4A16", ignore=())
    config = quantization.QuantizationConfig(
        config_groups={"group_0": quantization.preset_name_to_scheme("W4A16", ["Linear"])},
        quantization_status="compressed",
        format="pack-quantized",
    )
    quantization.apply_quantization_config(theirs, config)
    for name, parameter in model.state_dict().items():
        owner = theirs.get_submodule(name.rpartition(".")[0])
        short = name.rpartition(".")[2]
        owner._parameters.pop(short, None)
        owner._buffers.pop(short, None)
        owner._parameters.pop("weight", None)
        owner.register_parameter(short, nn.Parameter(parameter, requires_grad=False))
    model_compressor(quantization_config=config).decompress_model(theirs)
    x = torch.randn(4, 256)
    torch.testing.assert_close(theirs(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_packed_zero_points_are_compressed_tensors(bits):
    helpers = need("compressed_tensors.compressors.pack_quantized.helpers")
    scheme = Scheme(f"int{bits}", group_size=32, symmetric=False)
    layer, other = make(scheme, 43, 96), make(scheme, 43, 96)
    zeros = layer.quantized.zero_points
    state = layer.state_dict()
    assert torch.equal(state["weight_zero_point"], helpers.pack_to_int32(zeros, bits, packed_dim=0))
    other.load_state_dict(state)
    assert torch.equal(other.quantized.zero_points, zeros)


def test_ternary_codes_that_stand_for_nothing_are_refused():
    layer = make("BITNET")
    state = layer.state_dict()
    state["weight_packed"][3, 7] |= 3 << 2
    with pytest.raises(ValueError, match=r"1 of 3840 codes are no finite number, the first is nan at \[3, 29\]"):
        make("BITNET").load_state_dict(state)


def test_int4_may_be_stored_as_int8():
    """compressed-tensors writes W4A8 as int-quantized: a byte for every code."""
    layer, other = make("W4A8", 40, 97), make("W4A8", 40, 97)
    state = layer.state_dict()
    codes = (code_numbers(layer.quantized) - 8).to(torch.int8)
    other.load_state_dict({"weight": codes, "weight_scale": state["weight_scale"], "bias": state["bias"]})
    assert other.quantized.equal(layer.quantized)
    codes[3, 3] = 9
    with pytest.raises(ValueError, match=r"weight has 1 codes out of range, 9 among them: int4 allows -8 to 7"):
        other.load_state_dict({"weight": codes, "weight_scale": state["weight_scale"], "bias": state["bias"]})


def test_scales_keep_the_dtype_of_the_checkpoint():
    source = make("W4A16", dtype=torch.bfloat16)
    target = make("W4A16")
    target.load_state_dict(source.state_dict())
    assert target.quantized.equal(source.quantized)
    assert target.quantized.scales.dtype == torch.bfloat16
    assert target.bias.dtype == torch.float32


# ---- meta, assign, nesting ----


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_meta_then_assign(scheme):
    source = nn.Sequential(make(scheme, 64), nn.LayerNorm(64), make(scheme, 8, 64, bias=False))
    with torch.device("meta"):
        skeleton = nn.Sequential(Linear(96, 64, scheme=scheme), nn.LayerNorm(64), Linear(64, 8, False, scheme=scheme))
    assert all(tensor.is_meta for tensor in (*skeleton.parameters(), *skeleton.buffers()))
    assert skeleton[0].packed.shape == source[0].packed.shape
    meta = skeleton.state_dict()
    for name, tensor in source.state_dict().items():
        assert meta[name].shape == tensor.shape, name
        assert meta[name].dtype == tensor.dtype, name
    skeleton.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(3, 96)
    assert torch.equal(skeleton(x), source(x))
    assert not any(tensor.is_meta for tensor in (*skeleton.parameters(), *skeleton.buffers()))


def test_meta_without_assign_warns_as_torch_does():
    layer = Linear(96, 40, device="meta")
    with pytest.warns(UserWarning, match="no-op"):
        layer.load_state_dict(make("W4A16").state_dict())
    assert layer.packed.is_meta


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "FP8", "NF4"])
def test_a_floating_point_checkpoint_is_told(scheme):
    with pytest.raises(
        TypeError, match=r"weight(_packed)? is float32: this is a floating-point checkpoint; load it into"
    ):
        make(scheme).load_state_dict(nn.Linear(96, 40).state_dict(), strict=False)


def test_to_empty_then_load():
    source = make("W4A16")
    layer = Linear(96, 40, device="meta").to_empty(device="cpu")
    layer.load_state_dict(source.state_dict())
    assert layer.quantized.equal(source.quantized)


def test_from_float_on_meta():
    with torch.device("meta"):
        layer = Linear.from_float(nn.Linear(96, 40), "NVFP4A16")
    assert layer.packed.is_meta
    source = make("NVFP4A16")
    layer.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(layer(torch.ones(1, 96)), source(torch.ones(1, 96)))


def test_loading_in_place_keeps_shared_memory():
    source, layer = make("W4A16"), make("W4A16")
    packed = layer.packed
    layer.load_state_dict(source.state_dict())
    assert layer.packed is packed
    assert torch.equal(packed, source.packed)


# ---- refusals: nothing is changed ----

GOOD = {"scheme": "W4A16_ASYM"}


def changed(name, value):
    def change(state):
        state[name] = value(state[name]) if callable(value) else value

    return change


def with_entry(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


REFUSALS = [
    ("W4A16", changed("weight_packed", lambda t: t[:, :-1]), ValueError, "weight_packed is 40 x 11: 40 x 12 is needed"),
    ("W4A16", changed("weight_packed", lambda t: t.long()), TypeError, "weight_packed is int64: int32 is needed"),
    ("W4A16", changed("weight_scale", lambda t: t[:-1]), ValueError, "weight_scale is 39 x 1: 40 x 1 is needed"),
    ("W4A16", changed("weight_scale", lambda t: t.double()), TypeError, "weight: scales are float64"),
    ("W4A16", changed("weight_scale", with_entry(float("nan"))), ValueError, r"the first is nan at \[3, 0\]"),
    ("W4A16", changed("weight_scale", with_entry(-1.0)), ValueError, r"the first is -1 at \[3, 0\]"),
    ("W4A16", changed("weight_shape", torch.tensor([40, 95])), ValueError, r"weight_shape is \[40, 95\]: \[40, 96\]"),
    ("W4A16", changed("weight", torch.zeros(40, 96)), ValueError, "weight_packed: one of them"),
    ("W4A16", changed("weight_zero_point", torch.ones(5, 1).int()), ValueError, "not all 0: the layer's scheme is sym"),
    ("W4A16", changed("bias", torch.zeros(39)), ValueError, r"bias is \[39\]: \[40\] is needed"),
    ("W4A16", changed("bias", torch.zeros(40).int()), TypeError, "bias is int32"),
    ("W4A16", changed("bias", [0.0] * 40), TypeError, "bias is a list: a torch.Tensor is needed"),
    ("W4A16", changed("weight_packed", "x"), TypeError, "weight_packed is a str: a torch.Tensor is needed"),
    ("W4A16", changed("weight_zero_point", 0), TypeError, "weight_zero_point is a int"),
    ("W4A16_ASYM", changed("weight_zero_point", lambda t: t[:-1]), ValueError, "weight_zero_point is 4 x 1: 5 x 1"),
    ("W4A16_ASYM", changed("weight_zero_point", torch.full((40, 1), 9, dtype=torch.int8)), ValueError, "first is 9"),
    (
        "FP8",
        changed("weight", lambda t: t.float()),
        TypeError,
        "weight is float32: this is a floating-point checkpoint",
    ),
    ("FP8", changed("weight", lambda t: t.view(torch.int8)), TypeError, "weight is int8: float8_e4m3fn is needed"),
    ("FP8", changed("weight", lambda t: torch.full_like(t, float("nan"))), ValueError, "3840 of 3840 codes are no"),
    (
        "NVFP4A16",
        changed("weight_global_scale", torch.tensor([float("nan")])),
        ValueError,
        "weight_global_scale is nan",
    ),
    ("NVFP4A16", changed("weight_global_scale", torch.tensor([0.0])), ValueError, "weight_global_scale is 0"),
    ("NVFP4A16", changed("weight_scale", lambda t: t.float()), TypeError, "nvfp4 takes float8_e4m3fn"),
    ("MXFP4A16", changed("weight_scale", with_entry(255)), ValueError, "the first is nan"),
    ("W8A8", changed("weight", lambda t: t[:, :5]), ValueError, "weight is 40 x 5: 40 x 96 is needed"),
    (STATIC_ASYM, changed("input_scale", torch.tensor([-1.0])), ValueError, "input_scale: x_scale holds -1"),
    (STATIC_ASYM, changed("input_scale", torch.ones(2)), ValueError, "x_scale has 2 numbers: it must have 1"),
]


@pytest.mark.parametrize(("scheme", "change", "error", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusals_change_nothing(scheme, change, error, message):
    layer, source = make(scheme), make(scheme)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state = dict(source.state_dict())
    change(state)
    with pytest.raises(error, match=message):
        layer.load_state_dict(state)
    with pytest.raises(error, match="layer.*" + message):
        nn.ModuleDict({"layer": layer}).load_state_dict({"layer." + name: t for name, t in state.items()})
    for name, tensor in layer.state_dict().items():
        assert torch.equal(bits(tensor), bits(before[name]))


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_missing_and_unexpected_names(scheme):
    layer, source = make(scheme), make(scheme)
    before = layer.packed.clone()
    state = source.state_dict()
    for name in state:
        partial = {other: tensor for other, tensor in state.items() if other != name}
        with pytest.raises(RuntimeError, match=name):
            layer.load_state_dict(partial)
        if name != "bias":  # as torch does, the rest is loaded
            assert torch.equal(layer.packed, before)
    layer = make(scheme)
    before = layer.packed.clone()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*extra"):
        make(scheme).load_state_dict({**state, "extra": torch.zeros(1)})
    result = layer.load_state_dict({"bias": state["bias"]}, strict=False)
    assert result.missing_keys
    assert torch.equal(layer.packed, before)
    assert torch.equal(layer.bias, source.bias)


def test_older_checkpoints_have_zero_points_of_zero():
    layer = make("W8A8")
    state = {**layer.state_dict(), "weight_zero_point": torch.zeros(40, 1, dtype=torch.int8)}
    make("W8A8").load_state_dict(state)
