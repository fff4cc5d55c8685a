"""quantize_: what it matches, all or nothing, tied weights, the report."""

import copy
import math
import sys

import pytest
import torch
from oracles import need
from torch import nn
from torch.nn.utils import prune

import lowbit
from lowbit import Scheme
from lowbit.model import match_module, quantize_
from lowbit.nn import Linear


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(64, 64)
        self.up_proj = nn.Linear(64, 128)
        self.down_proj = nn.Linear(128, 64)

    def forward(self, x):
        return x + self.down_proj(torch.relu(self.up_proj(self.q_proj(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, 64)
        self.layers = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(64, 32, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


TOKENS = torch.arange(8)[None]


def quantized_names(model):
    return {name for name, module in model.named_modules() if isinstance(module, Linear)}


def test_the_readme_call():
    model = Model()
    expected = model(TOKENS)
    report = lowbit.quantize_(model, "W8A16", targets="Linear", ignore=["lm_head", "re:.*down_proj"])
    assert quantized_names(model) == {f"layers.{i}.{name}" for i in (0, 1) for name in ("q_proj", "up_proj")}
    assert [row.layer for row in report] == sorted(quantized_names(model))
    assert (model(TOKENS) - expected).norm() / expected.norm() < 0.05
    row = report["layers.0.q_proj"]
    assert row.scheme == Scheme.preset("W8A16")
    assert row.shape == (64, 64)
    assert row.bits_per_weight == 8 + 32 / 64
    assert 0.003 < row.relative_error < 0.01
    assert (row.bytes_before, row.bytes_after) == (64 * 64 * 4, 64 * 64 + 64 * 4)
    assert (report.bytes_before, report.bytes_after) == (12288 * 2 * 4, 2 * (64 * 68 + 128 * 68))
    text = str(report)
    assert text.splitlines()[0].split() == ["layer", "scheme", "shape", "bits", "rel.", "error", "note"]
    assert "layers.1.up_proj  W8A16   128 x 64  8.50" in text
    assert text.endswith("4 of 4 layers quantized: 0.1 MB -> 0.0 MB (3.8 x less)\n")
    assert len(report) == 4
    with pytest.raises(KeyError):
        report["embed"]


def test_defaults_leave_the_head():
    model = Model()
    lowbit.quantize_(model, "W4A16")
    assert type(model.lm_head) is nn.Linear
    lowbit.quantize_(Model(), "W4A16", ignore=())


@pytest.mark.parametrize(
    ("target", "matches"),
    [
        ("Linear", True),
        ("Module", True),
        ("layers.0.q_proj", True),
        ("re:.*q_proj", True),
        ("re:layers", True),
        ("re:q_proj", False),
        ("q_proj", False),
        ("LinearBase", False),
        ("re:.*q_proj$", True),
    ],
)
def test_matching_is_that_of_compressed_tensors(target, matches):
    module = nn.Linear(4, 4)
    assert match_module("layers.0.q_proj", module, target) == matches
    is_match = need("compressed_tensors.utils").is_match
    assert is_match("layers.0.q_proj", module, target) == matches


def test_a_scheme_for_each_target():
    model = Model()
    report = lowbit.quantize_(model, {"re:.*down_proj": "W8A8", "layers.1.q_proj": "NF4", "Linear": "W4A16"})
    assert report["layers.0.down_proj"].scheme.name == "W8A8"
    assert report["layers.1.q_proj"].scheme.name == "NF4"
    assert report["layers.0.q_proj"].scheme.name == "W4A16"
    assert model.layers[0].down_proj.scheme.activation == "int8"


def test_choices():
    model = Model()
    report = lowbit.quantize_(model, "W4A16", group_size=32, scale_rule="mse")
    assert report["layers.0.q_proj"].scheme == Scheme("int4", 32, scale_rule="mse")
    plain = lowbit.quantize_(Model(), "W4A16", group_size=32)
    assert report["layers.0.up_proj"].relative_error < plain["layers.0.up_proj"].relative_error


def snapshot(model):
    modules = {name: id(module) for name, module in model.named_modules()}
    return modules, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before):
    modules, tensors = snapshot(model)
    assert modules == before[0]
    assert tensors.keys() == before[1].keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor.nan_to_num(), before[1][name].nan_to_num())


def test_a_failure_leaves_the_model_as_it_was():
    model = Model()
    with torch.no_grad():
        model.layers[1].down_proj.weight[3, 4] = float("nan")  # the last layer to be quantized
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"layers.1.down_proj: weight \(64 x 128\) has 1 NaN"):
        lowbit.quantize_(model, "W4A16")
    same(model, before)
    model.layers[1].down_proj.double()
    with pytest.raises(TypeError, match=r"layers.1.down_proj: weight is float64"):
        lowbit.quantize_(model, "W4A16")


STATIC = Scheme.preset("W8A8", activation_dynamic=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scheme": "W4A17"}, ValueError, "scheme is 'W4A17'"),
        ({"scheme": 4}, TypeError, "scheme is a int"),
        ({"scheme": {}}, ValueError, "there are no targets"),
        ({"scheme": "W4A16", "targets": "Conv2d"}, ValueError, "target 'Conv2d' matches no module of Model"),
        ({"scheme": "W4A16", "targets": ["Linear", "re:x"]}, ValueError, "target 're:x' matches no"),
        ({"scheme": "W4A16", "targets": "Embedding"}, ValueError, "no torch.nn.Linear of Model matches"),
        ({"scheme": "W4A16", "targets": [4]}, TypeError, "targets has 4: it must be a class name"),
        ({"scheme": {4: "W4A16"}}, TypeError, "targets has 4: it must be a class name"),
        ({"scheme": "W4A16", "targets": None}, TypeError, "targets is None: it must be a name or several"),
        ({"scheme": "W4A16", "targets": "re:("}, ValueError, r"targets has 're:\(', which is no regular expression"),
        ({"scheme": "W4A16", "ignore": ["re:["]}, ValueError, r"ignore has 're:\[', which is no regular expression"),
        ({"scheme": "W4A16", "ignore": [4]}, TypeError, "ignore has 4: it must be a class name"),
        (
            {"scheme": "W4A16", "input_scales": {"layers.0.q_proj": 1.0}},
            ValueError,
            "input_scales has 'layers.0.q_proj'",
        ),
        (
            {"scheme": STATIC, "input_scales": {"q_proj": 1.0}},
            ValueError,
            "input_scales has 'q_proj': no layer of that",
        ),
        ({"scheme": "W4A16", "ignore": "Linear"}, ValueError, "without matching"),
        ({"scheme": {"Linear": "W4A16"}, "targets": "re:.*"}, ValueError, "its keys are the targets"),
        ({"scheme": STATIC}, ValueError, "layers.0.q_proj: .* input_scales has no 'layers.0.q_proj'"),
    ],
)
def test_refusals(arguments, error, message):
    model = Model()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        quantize_(model, **arguments)
    same(model, before)


def test_a_second_time_there_is_nothing_to_do():
    model = nn.Sequential(nn.Linear(32, 16))
    quantize_(model, "W4A16")
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear .* \(1 layers are quantized already\)"):
        quantize_(model, "W4A16")


def test_what_is_no_model():
    with pytest.raises(TypeError, match="model is a str"):
        quantize_("model", "W4A16")
    with pytest.raises(ValueError, match="from_float"):
        quantize_(nn.Linear(4, 4), "W4A16")


def test_static_schemes():
    model = Model()
    names = [f"layers.{i}.{name}" for i in (0, 1) for name in ("q_proj", "up_proj", "down_proj")]
    lowbit.quantize_(model, STATIC, input_scales=dict.fromkeys(names, 0.02))
    assert model.layers[0].q_proj.input_scale == torch.tensor([0.02])
    asymmetric = Scheme.preset("W8A8", activation_dynamic=False, activation_symmetric=False)
    model = Model()
    lowbit.quantize_(model, asymmetric, "layers.0.q_proj", input_scales={"layers.0.q_proj": (0.02, -5)})
    assert model.layers[0].q_proj.input_zero_point == -5
    model(TOKENS)


def test_tied_linears_share_one_copy():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    model[2].weight = model[0].weight
    report = lowbit.quantize_(model, "W4A16")
    assert model[0].packed.data_ptr() == model[2].packed.data_ptr()
    assert report["2"].note == "tied with 0"
    assert report["2"].bytes_after == 0
    assert model[0].bias is not model[2].bias


def test_a_module_in_two_places_is_replaced_in_both():
    shared = nn.Linear(64, 64)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Linear(64, 64))})
    report = lowbit.quantize_(model, "W4A16")
    assert model["a"] is model["b"][0]
    assert isinstance(model["a"], Linear)
    assert [row.layer for row in report] == ["a", "b.1"]


def test_a_weight_tied_with_an_embedding_gets_a_copy():
    model = Model()
    model.lm_head.weight = model.embed.weight
    report = lowbit.quantize_(model, "W8A16", ignore=())
    assert report["lm_head"].note == "was tied with embed.weight, which stays as it is"
    assert type(model.embed) is nn.Embedding
    assert isinstance(model.lm_head, Linear)


class Odd(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def test_layers_that_cannot_be_replaced_are_left_and_reported():
    model = nn.ModuleDict(
        {
            "odd": Odd(64, 64),
            "normed": torch.nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)),
            "pruned": prune.identity(nn.Linear(64, 64), "weight"),
            "attention": nn.MultiheadAttention(64, 2),
            "plain": nn.Linear(64, 64),
        }
    )
    report = lowbit.quantize_(model, "W4A16")
    assert quantized_names(model) == {"plain"}
    notes = {row.layer: row.note for row in report}
    assert notes["odd"] == "left as it is: Odd has a forward of its own"
    assert notes["normed"] == "left as it is: its weight is parametrized"
    assert notes["pruned"] == "left as it is: a hook computes its weight"
    assert notes["attention.out_proj"] == "left as it is: nn.MultiheadAttention reads its weight"
    assert notes["plain"] == ""
    assert math.isnan(report["odd"].relative_error)
    assert "1 of 5 layers quantized" in str(report)


def test_hooks_and_mode_go_over():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval()
    calls = []
    handle = model[0].register_forward_hook(lambda module, args, output: calls.append(type(module)))
    model[0].register_forward_pre_hook(lambda module, args: calls.append("pre"))
    lowbit.quantize_(model, "W4A16")
    assert not model[0].training
    model(torch.randn(1, 64))
    assert calls == ["pre", Linear]
    handle.remove()
    model(torch.randn(1, 64))
    assert calls == ["pre", Linear, "pre"]


def test_meta_models_become_skeletons():
    source = Model()
    with torch.device("meta"):
        skeleton = Model()
    report = lowbit.quantize_(skeleton, "NVFP4A16")
    assert report["layers.0.q_proj"].note == "on the meta device"
    lowbit.quantize_(source, "NVFP4A16")
    skeleton.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(skeleton(TOKENS), source(TOKENS))


def test_quantized_models_are_not_quantized_again():
    model = Model()
    lowbit.quantize_(model, "W4A16", ignore=())
    with pytest.raises(ValueError, match=r"no torch.nn.Linear of Model matches"):
        lowbit.quantize_(model, "W8A16", ignore=())


def test_progress(capsys, monkeypatch):
    need("tqdm")
    lowbit.quantize_(Model(), "W4A16")
    lowbit.quantize_(Model(), "W4A16", progress=False)
    assert capsys.readouterr().err == "", "short work, and stderr is no terminal"
    lowbit.quantize_(Model(), "W4A16", progress=True)
    assert "quantizing" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    lowbit.quantize_(Model(), "W4A16")
    model = Model()
    with pytest.raises(ImportError, match="progress=True needs tqdm"):
        lowbit.quantize_(model, "W4A16", progress=True)
    assert not quantized_names(model)


def test_deepcopy_and_compile_of_a_model():
    model = Model().eval()
    lowbit.quantize_(model, "W4A16")
    other = copy.deepcopy(model)
    assert torch.equal(other(TOKENS), model(TOKENS))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(TOKENS), model(TOKENS))


def test_a_transformers_model():
    transformers = need("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.randint(128, (1, 12))
    with torch.no_grad():
        expected = model(tokens).logits
        report = lowbit.quantize_(model, "W8A8", ignore=["lm_head", "re:.*down_proj"])
        assert len(report) == 12
        actual = model(tokens).logits
        assert torch.nn.functional.cosine_similarity(actual.flatten(), expected.flatten(), 0) > 0.99
        model.generate(tokens, max_new_tokens=4, do_sample=False)
