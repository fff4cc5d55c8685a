"""Schemes: presets, choices, names, and what does not go together."""

import dataclasses
import pickle

import pytest
import torch
from oracles import ct_args, need

from lowbit import Scheme
from lowbit.quantizers import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_own_names(name):
    scheme = Scheme.preset(name)
    assert scheme.name == ("W8A8" if name == "INT8" else name)
    assert Scheme.preset(name.lower()) == scheme
    assert Scheme.of(scheme) is scheme
    assert pickle.loads(pickle.dumps(scheme)) == scheme
    assert hash(scheme) == hash(dataclasses.replace(scheme))


@pytest.mark.parametrize(
    "name",
    sorted(set(PRESETS) - {"FP8_E5M2", "FP4A16", "NF4", "NF4_DQ", "FP6_E3M2", "FP6_E2M3", "MXFP6_E3M2", "BITNET"}),
)
def test_presets_agree_with_compressed_tensors(name):
    scheme, args = Scheme.preset(name), ct_args(name)
    assert scheme.symmetric == args.symmetric
    strategy = str(getattr(args.strategy, "value", args.strategy))
    group = scheme.group(4096, 8192)
    expected = {"channel": (1, 8192), "tensor": (4096, 8192), "block": tuple(args.block_structure or ())}
    assert group == expected.get(strategy, (1, args.group_size))
    theirs = {"FP8": "FP8_DYNAMIC"}.get(name, name)
    activations = need("compressed_tensors.quantization").preset_name_to_scheme(theirs, []).input_activations
    if activations is not None and str(getattr(activations.type, "value", activations.type)) == "int":
        assert scheme.activation == "int8"
        assert scheme.activation_dynamic == activations.dynamic
        assert scheme.activation_symmetric == activations.symmetric
    elif name in ("FP8", "FP8_BLOCK"):  # on CUDA devices
        assert str(getattr(activations.type, "value", activations.type)) == "float"
        assert scheme.activation == "fp8"
        assert scheme.activation_dynamic == activations.dynamic
        assert scheme.activation_group == activations.group_size
    else:
        assert scheme.activation is None


@pytest.mark.parametrize(
    ("given", "group"),
    [
        (-1, (1, 70)),
        ("channel", (1, 70)),
        (None, (1, 70)),
        ("tensor", (30, 70)),
        (7, (1, 7)),
        ((1, 7), (1, 7)),
        ([4, 7], (4, 7)),
        ((128, 128), (128, 128)),
    ],
)
def test_group_sizes(given, group):
    assert Scheme("int4", group_size=given).group(30, 70) == group


@pytest.mark.parametrize("given", [None, "block", 32, (1, 32)])
def test_block_formats_take_their_own_block(given):
    assert Scheme("mxfp4", group_size=given) == Scheme("mxfp4")
    assert Scheme("mxfp4", group_size=given).group(30, 70) == (1, 32)


def test_choices_change_a_preset():
    scheme = Scheme.preset("W4A16", group_size=64, scale_rule="mse", scale_dtype=torch.float16)
    assert scheme == Scheme("int4", group_size=64, scale_rule="mse", scale_dtype="float16")
    assert scheme.name == "int4-g64-float16-mse"
    assert Scheme.preset("W4A16", scale_rule="mse").name == "W4A16:mse"
    assert Scheme("int8", (16, 32), activation="int8", activation_dynamic=False, activation_symmetric=False).name == (
        "int8-16x32-a_int8-static-asym"
    )
    assert Scheme("int8", "tensor", symmetric=False).name == "int8-tensor-asym"
    assert Scheme.of("W8A8").family == "integer"
    assert Scheme.of("W8A16").family == "weight_only"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"format": "int7"}, ValueError, "'int7': it must be one of int4"),
        ({"format": 4}, ValueError, "format is 4"),
        ({"format": "int4", "group_size": 0}, ValueError, "group_size is 0"),
        ({"format": "int4", "group_size": -2}, ValueError, "group_size is -2"),
        ({"format": "int4", "group_size": (0, 3)}, ValueError, r"group_size is \(0, 3\)"),
        ({"format": "int4", "group_size": 2**31}, ValueError, "group_size is 2147483648"),
        ({"format": "int4", "group_size": 2**70}, ValueError, "group_size is 1180591620717411303424"),
        ({"format": "int4", "group_size": (1, 2, 3)}, ValueError, r"group_size is \(1, 2, 3\)"),
        ({"format": "int4", "group_size": 1.5}, TypeError, "group_size is 1.5"),
        ({"format": "int4", "group_size": True}, TypeError, "group_size is True"),
        ({"format": "int4", "group_size": "row"}, ValueError, "'row': a word must be"),
        ({"format": "mxfp4", "group_size": 64}, ValueError, "64: mxfp4 has blocks of 1 x 32"),
        ({"format": "mxfp4", "scale_dtype": "float16"}, ValueError, "mxfp4 has float8_e8m0fnu scales"),
        ({"format": "int4", "scale_dtype": "float8_e4m3fn"}, ValueError, "int4 takes float32"),
        ({"format": "int4", "scale_dtype": 32}, TypeError, "scale_dtype is 32"),
        ({"format": "fp8_e4m3", "symmetric": False}, ValueError, "fp8_e4m3 has no zero points"),
        ({"format": "int4", "symmetric": 1}, TypeError, "symmetric is 1"),
        ({"format": "int4", "scale_rule": "max"}, ValueError, "'max': it must be one of absmax"),
        ({"format": "fp8_e4m3", "scale_rule": "signed_max"}, ValueError, "fp8_e4m3 gains nothing"),
        ({"format": "int4", "symmetric": False, "scale_rule": "signed_max"}, ValueError, "asymmetric int4 gains"),
        (
            {"format": "int8", "activation": "fp8"},
            ValueError,
            "'fp8': it needs a weight whose values e4m3 has, not int8",
        ),
        ({"format": "int4", "scale_rule": "absmean"}, ValueError, "'absmean': it is the rule of ternary weights"),
        ({"format": "ternary", "scale_rule": "signed_max"}, ValueError, "ternary gains nothing"),
        ({"format": "ternary", "symmetric": False}, ValueError, "ternary has no zero points"),
        ({"format": "fp6_e3m2", "activation": "int8"}, ValueError, "integer weight, not fp6_e3m2"),
        ({"format": "nf4", "activation": "int8"}, ValueError, "integer weight, not nf4"),
        ({"format": "int4", "activation_dynamic": False}, ValueError, "activation is None"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        Scheme(**arguments)


def test_the_rule_of_a_preset_is_part_of_its_name():
    scheme = Scheme.preset("BITNET")
    assert scheme.scale_rule == "absmean"
    assert Scheme.preset("BITNET", scale_rule="absmax").name == "BITNET:absmax"
    assert Scheme.preset("W2A16", scale_rule="mse").name == "W2A16:mse"


def test_unknown_presets_suggest():
    with pytest.raises(ValueError, match=r"'NVFP4' \(perhaps NVFP4A16"):
        Scheme.preset("NVFP4")
    with pytest.raises(ValueError, match="W4A16, W4A16_ASYM"):
        Scheme.preset("zzzz")
    with pytest.raises(ValueError, match=r"'int4', which is a format \(lowbit\.Scheme\('int4'\) is a scheme of it\)"):
        Scheme.preset("int4")
    with pytest.raises(TypeError, match="scheme is a int"):
        Scheme.of(4)


@pytest.mark.parametrize("scheme", ["W4A16", Scheme("int4")])
def test_unknown_choices_suggest(scheme):
    with pytest.raises(TypeError, match=r"no choice 'groupsize' \(perhaps group_size\?\): it has format, group_size"):
        Scheme.of(scheme, groupsize=64)
