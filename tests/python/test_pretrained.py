"""Directories of whole models: compressed-tensors' configuration, its reading of what we write, and the way back."""

import copy
import json

import pytest
import torch
from oracles import need
from torch import nn

import lowbit
from lowbit.checkpoints.quantization_config import read_config, write_config

need("safetensors")

# Presets of compressed-tensors, and their names here.
PRESETS = {
    **{name: name for name in ("W4A16", "W4A16_ASYM", "W8A16", "W8A8", "W4A8", "W2A16", "W3A16", "W5A16", "W6A16")},
    **{name: name for name in ("W2A8", "W3A8", "W5A8", "W6A8", "FP8_BLOCK", "NVFP4A16", "MXFP4A16", "MXFP6A16")},
    "MXFP8A16": "MXFP8A16",
    "FP8_DYNAMIC": "FP8",
    "W4AFP8": lowbit.Scheme("int4", 128, activation="fp8"),
    "FP8": lowbit.Scheme("fp8_e4m3", "tensor", activation="fp8", activation_dynamic=False),
}


def config_of(preset: str, **changes) -> dict:
    """``quantization_config`` as compressed-tensors writes it for one of its presets."""
    quantization = need("compressed_tensors.quantization")
    scheme = quantization.preset_name_to_scheme(preset, ["Linear"])
    stored = write_config({"a": lowbit.Scheme.of(PRESETS[preset])}, [])["format"] if preset in PRESETS else "dense"
    config = quantization.QuantizationConfig(
        config_groups={"group_0": scheme}, format=stored, ignore=["lm_head"], quantization_status="compressed"
    )
    return {**json.loads(config.model_dump_json()), **changes}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_of_compressed_tensors_are_ours(preset):
    schemes, ignore = read_config(config_of(preset))
    assert schemes == {"Linear": lowbit.Scheme.of(PRESETS[preset])}
    assert ignore == ["lm_head"]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_is_what_compressed_tensors_means(preset):
    quantization = need("compressed_tensors.quantization")
    written = write_config({"a": lowbit.Scheme.of(PRESETS[preset])}, ["b"])
    theirs = quantization.QuantizationConfig(**written).config_groups["group_0"]  # refuses what it does not know
    wanted = quantization.preset_name_to_scheme(preset, ["a"])
    for mine, other in ((theirs.weights, wanted.weights), (theirs.input_activations, wanted.input_activations)):
        assert (mine is None) == (other is None)
        for name in ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "dynamic"):
            assert getattr(mine, name, None) == getattr(other, name, None), name


@pytest.mark.parametrize("preset", ["NVFP4", "MXFP4", "MXFP8", "MXFP4XFP8", "W7A16", "W4A4"])
def test_schemes_that_no_kernel_has_are_refused(preset):
    with pytest.raises(ValueError, match="config_groups, group_0: "):
        read_config(config_of(preset))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "gptq"}, "quant_method is 'gptq': it must be 'compressed-tensors'"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme is .*: it must be absent"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "transform_config is .*: it must be absent"),
        ({"config_groups": {}}, "config_groups is {}: it must be an object"),
        ({"config_groups": {"group_0": [1]}}, "config_groups, group_0: it has no weights"),
        ({"config_groups": {"group_0": {"weights": {"num_bits": 4}, "targets": "Linear"}}}, "targets is 'Linear'"),
        ({"config_groups": {"g": {"weights": {"num_bits": 4, "strategy": "token"}}}}, "strategy is 'token'"),
        ({"config_groups": {"g": {"weights": {"num_bits": [4]}}}}, r"int of \[4\] bits"),
        ({"ignore": "lm_head"}, "ignore is 'lm_head': it must be a list"),
    ],
)
def test_configurations_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        read_config(config_of("W4A16", **changes))


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("NF4", "no format nf4"),
        ("BITNET", "no format ternary"),
        (lowbit.Scheme("int4", scale_rule="signed_max"), "neg"),
    ],
)
def test_schemes_that_compressed_tensors_does_not_know_are_not_written(scheme, message):
    with pytest.raises(ValueError, match=message):
        write_config({"a": lowbit.Scheme.of(scheme)}, [])


# ---- whole models ----


def float_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(50, 128),
            "up": nn.Linear(128, 256),
            "down": nn.Linear(256, 128, bias=False),
            "lm_head": nn.Linear(128, 50, bias=False),
        }
    )


def run(model: nn.Module) -> torch.Tensor:
    x = model["embed"](torch.arange(7))
    return model["lm_head"](model["down"](model["up"](x).relu()))


@pytest.fixture
def saved(tmp_path):
    model = float_model()
    lowbit.quantize_(model, {"up": "W4A16_ASYM", "down": "W8A8"})
    lowbit.save_pretrained(model, tmp_path)
    return model, tmp_path


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_round_trip(saved, device):
    model, directory = saved
    other = float_model().to(device)
    report = lowbit.load_pretrained(other, directory)
    assert [(row.layer, row.scheme.name) for row in report] == [("up", "W4A16_ASYM"), ("down", "W8A8")]
    assert torch.equal(run(other), run(model))
    assert type(other["lm_head"]) is nn.Linear


def test_several_files_and_a_directory_that_is_there(saved):
    model, directory = saved
    whole = directory / "model.safetensors"
    tensors = lowbit.checkpoints.load_file(whole)
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2])):
        lowbit.checkpoints.save_file({name: tensors[name] for name in part}, directory / f"part{i}.safetensors")
    weight_map = {name: f"part{i % 2}.safetensors" for i, name in enumerate(names)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole.unlink()
    other = float_model()
    lowbit.load_pretrained(other, directory)
    assert torch.equal(run(other), run(model))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../part0.safetensors"}}))
    with pytest.raises(ValueError, match="weight_map must name files beside it"):
        lowbit.load_pretrained(float_model(), directory)


DAMAGE = {
    "missing": "down.weight_scale: missing",
    "shape": r"embed.weight is \[49, 128\]: \[50, 128\] is needed",
    "values": r"up.weight: .*nan",
    "unexpected": "up.weight_g_idx is unexpected",
    "no config": "config.json: quantization_config is None",
    "truncated": "is truncated",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_failed_load_changes_nothing(saved, damage):
    _, directory = saved
    path = directory / "model.safetensors"
    tensors = lowbit.checkpoints.load_file(path)
    if damage == "missing":
        del tensors["down.weight_scale"]
    elif damage == "shape":
        tensors["embed.weight"] = tensors["embed.weight"][:-1]
    elif damage == "values":
        tensors["up.weight_scale"][0, 0] = float("nan")
    elif damage == "unexpected":
        tensors["up.weight_g_idx"] = torch.zeros(128, dtype=torch.int32)
    lowbit.checkpoints.save_file(tensors, path)
    if damage == "no config":
        (directory / "config.json").write_text("{}")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    model = float_model()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=DAMAGE[damage]):
        lowbit.load_pretrained(model, directory)
    assert [type(module) for module in model.modules()] == [type(module) for module in before.modules()]
    assert torch.equal(run(model), run(before))


def test_tied_weights_stay_tied(tmp_path):
    def tied() -> nn.Module:
        model = float_model()
        model["lm_head"].weight = model["embed"].weight
        return model

    model = tied()
    lowbit.quantize_(model, "W4A16")
    lowbit.save_pretrained(model, tmp_path)
    other = tied()
    nn.init.zeros_(other["embed"].weight)
    lowbit.load_pretrained(other, tmp_path)
    assert other["lm_head"].weight is other["embed"].weight
    assert torch.equal(run(other), run(model))


def test_models_without_quantized_layers(tmp_path):
    with pytest.raises(ValueError, match=r"ModuleDict has no lowbit\.nn\.Linear"):
        lowbit.save_pretrained(float_model(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- transformers reads what we write, and we read it back ----


@pytest.fixture
def llama():
    transformers = need("transformers")
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


def both(llama, scheme, directory, dtype):
    """Logits of our model, read back, and of transformers' reading of what we wrote."""
    transformers = need("transformers")
    need("compressed_tensors")
    llama = llama.to(dtype)
    lowbit.quantize_(llama, scheme)
    lowbit.save_pretrained(llama, directory)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        config = transformers.AutoConfig.from_pretrained(directory)
        ours = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        lowbit.load_pretrained(ours, directory)
        mine, back = llama.state_dict(), ours.state_dict()
        assert mine.keys() == back.keys()
        assert [name for name in mine if not mine[name].float().equal(back[name].float())] == []
        theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        return ours(tokens).logits, theirs(tokens).logits


# (Not W4A16_ASYM: compressed-tensors 0.20 expects other shapes of zero points than it writes.)
@pytest.mark.parametrize("scheme", ["W3A16", "W4A16", "W8A16"])
def test_transformers_reads_what_we_write(llama, scheme, tmp_path):
    ours, theirs = both(llama, scheme, tmp_path, torch.float32)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4 * float(ours.std()))


@pytest.mark.parametrize("scheme", ["W8A8", "FP8", "FP8_BLOCK", "NVFP4A16", "MXFP4A16"])
def test_transformers_reads_what_it_rounds_otherwise(llama, scheme, tmp_path):
    """Activations by its own rules, MXFP4 and NVFP4 in bfloat16 alone."""
    ours, theirs = both(llama, scheme, tmp_path, torch.bfloat16)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0.2 * float(ours.float().std()))
