"""What transformers' common model tests ask of every model, asked of PVChat.

Their classes are not part of the installed package, so these are our own. `docs/conformance.md` lists each of their
checks with the test here (or in another file) that makes it, or the reason why it does not apply; the first test
compares that page with the tests.
"""

import ast
import copy
import functools
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.generation import GenerationMixin
from transformers.utils.output_capturing import OutputRecorder

from pvchat.modeling_pvchat import (
    PVChatConfig,
    PVChatForConditionalGeneration,
    PVChatModel,
    PVChatQFormerConfig,
    PVChatVisionConfig,
)
from pvchat.modeling_pvchat.modeling_internvideo2 import PVChatVisionModel, sincos_position_embedding
from pvchat.modeling_pvchat.modeling_qformer import PVChatQFormerModel
from tests.tiny import NUM_FRAMES, pixels, prompt, randomised, tiny_config, tiny_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "conformance.md"
CLASSES = (PVChatModel, PVChatForConditionalGeneration)
SLOTS = 9
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def video_inputs(rows: int = 1, text: int = 6) -> dict[str, torch.Tensor]:
    ids = prompt(rows, text=text)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels(rows)}


def without_dropout(**settings) -> PVChatConfig:
    config = tiny_config(**settings)
    config.qformer_config.hidden_dropout_prob = config.qformer_config.attention_probs_dropout_prob = 0.0
    return config


@pytest.fixture(scope="module")
def model():
    """All weights random, eager attention (which returns its weights)."""
    model = randomised(tiny_model(routing="remoh"))
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits_of(model, **inputs) -> torch.Tensor:
    return model(**(inputs or video_inputs())).logits


# -- the page ---------------------------------------------------------------------------------------------------------


@functools.cache
def functions_of(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


def is_conditional(function: ast.FunctionDef) -> bool:
    """Whether the test may be skipped."""
    marks = " ".join(ast.unparse(decorator) for decorator in function.decorator_list)
    return "skip" in marks or "needs_" in marks or "importorskip" in ast.unparse(function)


def rows_of(section: str) -> list[list[str]]:
    text = re.search(rf"^## {section}\n(.+?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.S | re.M)[1]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_lists_every_check_once_and_says_of_each_what_became_of_it():
    folder = Path(__file__).parent
    here = functions_of(Path(__file__))
    listed = []
    for check, names, result in rows_of("Checked"):
        assert check and names, check
        conditional = False
        for name in re.findall(r"`(.+?)`", names):
            file, _, test = name.rpartition("::")
            functions = functions_of(folder / file) if file else here
            assert test in functions, f"{name} is listed, but there is no such test"
            conditional |= is_conditional(functions[test])
            listed += [test] if not file else []
        assert re.fullmatch(r"passed(; .+)?", result) if not conditional else "where" in result, check
    this = inspect.currentframe().f_code.co_name
    assert sorted(listed) == sorted(set(listed)), "a test is listed twice"
    assert set(listed) == set(here) - {this}, "the page and the tests differ"
    checks = [row[0] for row in rows_of("Checked") + rows_of("Not applicable")]
    assert len(set(checks)) == len(checks)
    assert all(len(reason.split()) > 3 for _, reason in rows_of("Not applicable"))


# -- configuration ----------------------------------------------------------------------------------------------------


def test_config_round_trips(tmp_path):
    config = tiny_config("remoh", (2, 1))
    expected = config.to_dict()
    assert PVChatConfig.from_dict(expected).to_dict() == expected
    assert PVChatConfig(**copy.deepcopy(expected)).to_dict() == expected
    config.save_pretrained(tmp_path / "sub")
    loaded = PVChatConfig.from_pretrained(tmp_path, subfolder="sub").to_dict()
    different = {key for key in loaded if loaded[key] != expected.get(key)}
    assert different <= {"_name_or_path", "tile_grid"} and list(loaded["tile_grid"]) == [2, 1]
    assert PVChatConfig.from_pretrained(tmp_path / "sub").to_diff_dict().keys() == config.to_diff_dict().keys()


def test_parts_of_the_config_load_from_the_whole(folder):
    whole = PVChatConfig.from_pretrained(folder)
    for part, key in ((PVChatVisionConfig, "vision_config"), (PVChatQFormerConfig, "qformer_config")):
        alone, inside = part.from_pretrained(folder), getattr(whole, key)
        assert alone.hidden_size == inside.hidden_size == 32
        assert alone.num_hidden_layers == inside.num_hidden_layers


def test_common_config_arguments_are_kept():
    config = PVChatConfig(num_labels=3, output_hidden_states=True, architectures=["X"], return_dict=False)
    assert (len(config.id2label), config.output_hidden_states, config.architectures) == (3, True, ["X"])
    assert PVChatConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert PVChatConfig().to_dict() == PVChatConfig().to_dict()


# -- initialisation ---------------------------------------------------------------------------------------------------


def test_every_parameter_starts_as_declared():
    config = tiny_config(routing="remoh")
    for part in (config, config.vision_config, config.qformer_config, config.text_config):
        part.initializer_range = 1e-10
    for name, parameter in PVChatForConditionalGeneration(config).named_parameters():
        if "position_embedding" in name:
            grid = (1 if "image" in name else NUM_FRAMES, 4, 4)
            assert torch.equal(parameter, sincos_position_embedding(32, grid)), name
        else:
            values = {round(value, 6) for value in parameter.flatten().tolist()}
            assert len(values) == 1 and values <= ({0.3} if "layer_scale" in name else {0.0, 1.0}), name


@pytest.mark.parametrize("cls", CLASSES)
def test_missing_weights_and_buffers_start_as_in_a_new_model(cls):
    """Nothing may stay as the memory was: loading builds on the meta device and allocates."""
    config = tiny_config(routing="remoh")
    config.qformer_config.routing_init = "reference"
    torch.manual_seed(0)
    new = cls(copy.deepcopy(config))
    torch.manual_seed(1)
    other = dict(cls(copy.deepcopy(config)).named_parameters())
    loaded = cls.from_pretrained(None, config=config, state_dict={})
    for name, parameter in new.named_parameters():
        found = dict(loaded.named_parameters())[name]
        if torch.equal(parameter, other[name]):  # a constant or a table
            assert torch.equal(found, parameter), name
        else:
            spread = 3 / found.numel() ** 0.5
            assert abs(float(found.detach().std() / parameter.detach().std()) - 1) < max(0.2, spread), name
    buffers = dict(loaded.named_buffers())
    assert buffers and buffers.keys() == dict(new.named_buffers()).keys()
    assert all(torch.equal(buffers[name], buffer) for name, buffer in new.named_buffers())


def test_all_tensors_are_parameters_or_buffers(model):
    for name, module in model.named_modules():
        assert not [key for key, value in vars(module).items() if isinstance(value, torch.Tensor)], name


@pytest.mark.parametrize("cls", CLASSES)
def test_builds_on_the_meta_device(cls):
    with torch.device("meta"):
        model = cls(tiny_config(routing="remoh"))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_loads_inside_a_device_context_but_not_inside_meta(folder, model):
    with torch.device("cpu"):
        loaded = PVChatForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta"):
        PVChatForConditionalGeneration.from_pretrained(folder)


# -- saving and loading -----------------------------------------------------------------------------------------------


def test_loads_from_a_state_dict_without_a_folder(model):
    loaded = PVChatForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_loads_from_shards_with_contiguous_weights(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = PVChatForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())


def test_a_state_dict_survives_torch_save(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    other = tiny_model(seed=3, routing="remoh")
    other.load_state_dict(torch.load(tmp_path / "weights.bin", weights_only=True), strict=True)
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)


def test_body_and_head_load_each_other_and_report_what_is_missing(folder, tmp_path):
    body, report = PVChatModel.from_pretrained(folder, output_loading_info=True)
    assert (set(report["unexpected_keys"]), set(report["missing_keys"])) == ({"lm_head.weight"}, set())
    body.save_pretrained(tmp_path)
    whole, report = PVChatForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert (set(report["unexpected_keys"]), set(report["missing_keys"])) == (set(), {"lm_head.weight"})
    assert torch.equal(whole.model.query_tokens.weight, body.query_tokens.weight)


def test_mismatched_shapes_are_refused_or_started_anew(folder):
    config = PVChatConfig.from_pretrained(folder)
    config.num_subject_tokens = 5
    with pytest.raises(RuntimeError, match="mismatch"):
        PVChatForConditionalGeneration.from_pretrained(folder, config=config)
    loaded, report = PVChatForConditionalGeneration.from_pretrained(
        folder, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert "model.subject_tokens.weight" in str(report["mismatched_keys"])
    assert torch.isfinite(loaded.model.subject_tokens.weight).all()


@pytest.mark.parametrize("asked", [None, "auto", torch.bfloat16, torch.float16, torch.float32])
def test_dtype_is_that_of_the_checkpoint_unless_asked(model, tmp_path, asked):
    saved = copy.deepcopy(model).to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    loaded = PVChatForConditionalGeneration.from_pretrained(tmp_path, **({} if asked is None else {"dtype": asked}))
    expected = torch.bfloat16 if asked in (None, "auto") else asked
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    assert loaded.dtype == loaded.model.vision_tower.dtype == expected


def test_tied_weights_are_one_tensor_and_stay_so(tmp_path):
    model = randomised(tiny_model(tie=True))
    model.resize_token_embeddings(400)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded, report = PVChatForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_untied_weights_stay_two(folder):
    loaded = PVChatForConditionalGeneration.from_pretrained(folder)
    assert not torch.equal(loaded.lm_head.weight, loaded.get_input_embeddings().weight)


def test_sub_models_hold_their_part_of_the_config(model, folder):
    for m in (model, PVChatForConditionalGeneration.from_pretrained(folder)):
        assert m.model.config is m.config
        assert m.model.vision_tower.config is m.config.vision_config
        assert m.model.qformer.config is m.config.qformer_config
        assert m.model.language_model.config is m.config.text_config


def test_attention_is_set_as_a_whole_or_part_by_part(folder):
    def found(m) -> tuple[str, ...]:
        parts = (m, m.model.vision_tower, m.model.qformer, m.model.language_model)
        return tuple(part.config._attn_implementation for part in parts)

    load = PVChatForConditionalGeneration.from_pretrained
    assert found(load(folder)) == ("sdpa",) * 4
    assert found(load(folder, attn_implementation="eager")) == ("eager",) * 4
    parts = {"": "sdpa", "vision_config": "eager", "qformer_config": "sdpa", "text_config": "eager"}
    mixed = load(folder, attn_implementation=parts)
    assert found(mixed) == ("sdpa", "eager", "sdpa", "eager")
    mixed.set_attn_implementation({"qformer_config": "eager", "text_config": "sdpa"})
    assert found(mixed)[1:] == ("eager", "eager", "sdpa")
    mixed.set_attn_implementation("flex_attention")
    assert found(mixed) == ("flex_attention",) * 4
    with pytest.raises(ValueError, match="attn_implementation"):
        mixed.set_attn_implementation("no_such_attention")


@needs_bitsandbytes
def test_four_bit_text_model_answers_much_like_the_whole(tmp_path):
    """Widths are multiples of 64, the size of a block that shares one scale."""
    from transformers import BitsAndBytesConfig

    config = tiny_config(routing="remoh")
    config.text_config.hidden_size, config.text_config.intermediate_size, config.text_config.head_dim = 64, 128, 16
    exact = randomised(PVChatForConditionalGeneration(config), std=0.1).eval()
    exact.save_pretrained(tmp_path)
    whole = ["model.vision_tower", "model.qformer", "model.multi_modal_projector", "lm_head"]
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=whole,
    )
    loaded = PVChatForConditionalGeneration.from_pretrained(tmp_path, quantization_config=settings, device_map="cpu")
    kinds = {name: type(module).__name__ for name, module in loaded.named_modules()}
    assert {kinds[n] for n in kinds if n.startswith("model.language_model") and n.endswith("_proj")} == {"Linear4bit"}
    assert not any(kind == "Linear4bit" for name, kind in kinds.items() if name.startswith(tuple(whole)))
    found, expected = logits_of(loaded).flatten(), logits_of(exact).flatten()
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.95


# -- placement --------------------------------------------------------------------------------------------------------


def test_layers_that_stay_whole_are_named_by_class(model):
    classes = {type(module).__name__ for module in model.modules()}
    expected = {"PVChatVisionEmbeddings", "PVChatVisionLayer", "PVChatQFormerLayer", "MistralDecoderLayer"}
    assert expected <= set(model._no_split_modules) and expected <= classes


def test_device_maps_keep_layers_whole(model):
    from accelerate import infer_auto_device_map

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    device_map = infer_auto_device_map(
        model, max_memory={"cpu": size // 2, "disk": size}, no_split_module_classes=list(model._no_split_modules)
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    for name, module in model.named_modules():
        if type(module).__name__ in model._no_split_modules:
            assert any(name == key or name.startswith(f"{key}.") for key in device_map), name


def test_offloading_to_disk_changes_no_output(folder, tmp_path):
    expected = logits_of(PVChatForConditionalGeneration.from_pretrained(folder))
    on_disk = ("vision_tower", "query_tokens", "subject_tokens", "qformer", "language_model.layers.1")
    in_memory = ("vision_layernorm", "extra_query_tokens", "multi_modal_projector", "language_model.embed_tokens")
    in_memory += ("language_model.layers.0", "language_model.norm", "language_model.rotary_emb")
    device_map = {f"model.{name}": "disk" for name in on_disk} | {f"model.{name}": "cpu" for name in in_memory}
    device_map["lm_head"] = "cpu"
    loaded = PVChatForConditionalGeneration.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    assert loaded.model.subject_tokens.weight.device.type == "meta"
    assert torch.equal(logits_of(loaded), expected)
    assert loaded.generate(**video_inputs(), max_new_tokens=2, do_sample=False).shape[1] > SLOTS + 7


def test_offloading_to_memory_changes_no_output(folder):
    from accelerate import cpu_offload

    loaded = PVChatForConditionalGeneration.from_pretrained(folder)
    expected = logits_of(loaded)
    cpu_offload(loaded, execution_device=torch.device("cpu"))
    assert {p.device.type for p in loaded.parameters()} == {"meta"}
    assert torch.equal(logits_of(loaded), expected)


def test_parallel_plans_match_parameters(model):
    names = [re.sub(r"\.\d+\.", ".*.", name) for name, _ in model.named_parameters()]
    for pattern in model.tp_plan:
        assert any(name.startswith(pattern) for name in names), pattern


# -- embeddings and signatures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [False, True])
def test_embeddings_resize_with_the_head(tie):
    model = randomised(tiny_model(routing="remoh", tie=tie))
    ids, before = prompt(), model.get_input_embeddings().weight.detach().clone()
    rows = before.shape[0]
    expected = logits_of(model, input_ids=ids, pixel_values_videos=pixels())
    for size, multiple in ((rows + 10, None), (rows + 3, 64), (rows, None)):
        model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
        size = -(-size // (multiple or 1)) * (multiple or 1)
        assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == size
        assert model.config.text_config.vocab_size == size
        assert torch.equal(model.get_input_embeddings().weight[:rows], before)
        found = logits_of(model, input_ids=ids, pixel_values_videos=pixels())
        assert found.shape[-1] == size
        close(found[..., :rows], expected)
    assert model(input_ids=ids, pixel_values_videos=pixels(), labels=ids).loss.isfinite()


@pytest.mark.parametrize("cls", CLASSES)
def test_embeddings_are_got_and_set(cls):
    model = cls(tiny_config())
    assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)
    table = torch.nn.Embedding(7, 32)
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table
    if cls is PVChatForConditionalGeneration:
        head = torch.nn.Linear(32, 7)
        model.set_output_embeddings(head)
        assert model.get_output_embeddings() is model.lm_head is head
    else:
        assert model.get_output_embeddings() is None


def test_main_inputs_come_first():
    for cls in (*CLASSES, PVChatVisionModel, PVChatQFormerModel):
        assert list(inspect.signature(cls.forward).parameters)[1] == cls.main_input_name


# -- outputs ----------------------------------------------------------------------------------------------------------


def test_attentions_are_returned_by_every_part(model):
    inputs = video_inputs(2)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
        features = model.get_video_features(inputs["pixel_values_videos"], output_attentions=True)
        qformer = model.model.qformer(torch.randn(2, 5, 32), torch.randn(2, 7, 32), output_attentions=True)
        silent = model(**inputs)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 4, length, length)] * 2
    tokens = 1 + NUM_FRAMES * 16
    assert [tuple(weights.shape) for weights in features.attentions] == [(2, 4, tokens, tokens)] * 3
    assert [tuple(weights.shape) for weights in qformer.attentions] == [(2, 4, 5, 5)] * 4
    assert [tuple(weights.shape) for weights in qformer.cross_attentions] == [(2, 4, 5, 7)] * 2
    for weights in (*outputs.attentions, *features.attentions, *qformer.attentions, *qformer.cross_attentions):
        close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert silent.attentions is None and torch.equal(silent.logits, outputs.logits)


def test_hidden_states_are_returned_by_every_part(model):
    inputs = video_inputs(2)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
        features = model.get_video_features(inputs["pixel_values_videos"], output_hidden_states=True)
        qformer = model.model.qformer(torch.randn(2, 5, 32), torch.randn(2, 7, 32), output_hidden_states=True)
        encoded = model.model.encode_video(inputs["pixel_values_videos"])
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(2, length, 32)] * 3
    assert [tuple(states.shape) for states in features.hidden_states] == [(2, 1 + NUM_FRAMES * 16, 32)] * 4
    assert [tuple(states.shape) for states in qformer.hidden_states] == [(2, 5, 32)] * 5
    assert torch.equal(features.hidden_states[-1], encoded[:, 0])
    assert torch.equal(qformer.hidden_states[-1], qformer.last_hidden_state)
    assert model(**inputs).hidden_states is None


def test_what_is_captured_is_declared_with_existing_classes():
    for cls in (PVChatVisionModel, PVChatQFormerModel):
        recorders = cls._can_record_outputs.values()
        assert all(isinstance(r, OutputRecorder) or issubclass(r, torch.nn.Module) for r in recorders)


def test_captured_outputs_keep_their_gradients(model):
    outputs = model(**video_inputs(), output_hidden_states=True, output_attentions=True)
    kept = (outputs.hidden_states[0], outputs.attentions[0], outputs.video_hidden_states, outputs.router_logits[0])
    for tensor in kept:
        tensor.retain_grad()
    outputs.logits.square().mean().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in kept)
    model.zero_grad()


@torch.no_grad()
def test_tuples_hold_what_outputs_hold(model):
    def leaves(value) -> list:
        if isinstance(value, torch.Tensor):
            return [value]
        return [leaf for item in value for leaf in leaves(item)] if isinstance(value, (tuple, list)) else []

    queries, states = torch.randn(1, 5, 32), torch.randn(1, 7, 32)
    calls = (
        (model, video_inputs() | {"output_hidden_states": True}),
        (model.model, video_inputs()),
        (model.model.vision_tower, {"pixel_values_videos": pixels()[:, 0].transpose(1, 2)}),
        (model.model.qformer, {"query_embeds": queries, "encoder_hidden_states": states}),
        (model.get_video_features, {"pixel_values_videos": pixels()}),
    )
    for call, inputs in calls:
        as_tuple, as_output = call(**inputs, return_dict=False), call(**inputs, return_dict=True)
        assert isinstance(as_tuple, tuple) and not isinstance(as_output, tuple)
        pairs = list(zip(leaves(as_tuple), leaves(as_output.to_tuple()), strict=True))
        assert pairs and all(torch.equal(a, b) for a, b in pairs)


def test_embeddings_in_place_of_ids_give_the_same_logits(model):
    """With a video as well: the embedding of `<video>` marks the places."""
    for inputs in (video_inputs(2), {"input_ids": torch.arange(5, 12)[None]}):
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        others = {key: value for key, value in inputs.items() if key != "input_ids"}
        assert torch.equal(logits_of(model, inputs_embeds=embeds, **others), logits_of(model, **inputs))


def test_the_loss_takes_the_number_of_items_of_the_whole_batch(model):
    ids = prompt(2)
    inputs = video_inputs(2) | {"labels": ids}
    mean, shared = model(**inputs).loss, model(**inputs, num_items_in_batch=torch.tensor(100)).loss
    close(shared, mean * (ids.numel() - 2) / 100)


# -- training ---------------------------------------------------------------------------------------------------------


def test_a_small_batch_is_learned_by_heart():
    torch.manual_seed(0)
    model = PVChatForConditionalGeneration(without_dropout(routing="remoh")).train()
    inputs = video_inputs(2, text=4)
    labels = inputs["input_ids"].clone()
    labels[:, : 1 + SLOTS] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_checkpointing_switches_on_and_off_everywhere():
    model = tiny_model()
    layers = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    assert len(layers) >= 3 + 4 + 2 and not any(layer.gradient_checkpointing for layer in layers)
    model.gradient_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in layers)
    model.gradient_checkpointing_disable()
    assert not any(layer.gradient_checkpointing for layer in layers)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_lora_in_every_part_trains_under_checkpointing(use_reentrant):
    from peft import LoraConfig, get_peft_model

    base = randomised(PVChatForConditionalGeneration(without_dropout(routing="remoh")))
    model = get_peft_model(
        base, LoraConfig(r=2, target_modules=r".*\.(qkv|query|q_proj)", task_type="CAUSAL_LM")
    ).train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    inputs = video_inputs()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    factors = {name: p.grad for name, p in model.named_parameters() if "lora_B" in name}
    assert len(factors) == 3 + 6 + 2
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in factors.values())


# -- attention and precision ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", ["left", "right"])
def test_eager_equals_sdpa_under_padding(folder, dtype, side):
    ids, padding = prompt(2), torch.zeros(2, 3, dtype=torch.long)
    rows = (padding, ids) if side == "left" else (ids, padding)
    ids, mask = torch.cat(rows, dim=1), torch.cat([(row != 0).long() for row in rows], dim=1)
    found = []
    for name in ("eager", "sdpa"):
        model = PVChatForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation=name)
        found.append(logits_of(model, input_ids=ids, attention_mask=mask, pixel_values_videos=pixels(2))[mask.bool()])
    scale = float(found[0].float().abs().max())
    allowed = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    assert float((found[0] - found[1]).float().abs().max()) < allowed * scale


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_stays_close_to_full(folder, dtype, allowed):
    exact = logits_of(PVChatForConditionalGeneration.from_pretrained(folder))
    rough = logits_of(PVChatForConditionalGeneration.from_pretrained(folder, dtype=dtype))
    assert rough.dtype == dtype
    assert float((rough.float() - exact).abs().max() / exact.abs().max()) < allowed


def test_generation_is_the_same_with_eager_and_sdpa(folder):
    load = PVChatForConditionalGeneration.from_pretrained
    texts = [
        load(folder, attn_implementation=name).generate(**video_inputs(2), max_new_tokens=5, do_sample=False)
        for name in ("eager", "sdpa")
    ]
    assert torch.equal(*texts)


# -- compilation ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch.compiler.reset()


@pytest.mark.slow
def test_forward_and_backward_compile_into_one_graph():
    """Traced and run by AOT autograd; that code is generated from the same graph is PyTorch's business."""
    config = without_dropout(routing="remoh")
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 1
    config.qformer_config.num_hidden_layers = 3
    model = randomised(PVChatForConditionalGeneration(config)).train()
    inputs = video_inputs(2)
    found = []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        outputs = call(**inputs, labels=inputs["input_ids"])
        (outputs.loss + sum(logits.square().mean() for logits in outputs.router_logits)).backward()
        found.append((outputs.logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    close(found[1][0], found[0][0])
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        close(found[1][1][name], gradient)


def test_decoding_steps_with_a_static_cache_compile_into_one_graph(folder):
    model = PVChatForConditionalGeneration.from_pretrained(folder)
    inputs = video_inputs()
    steps = []
    for compiling in (False, True):
        cache = StaticCache(config=model.config.text_config, max_cache_len=24)
        with torch.no_grad():
            model(**inputs, past_key_values=cache, use_cache=True)
            call = torch.compile(model, fullgraph=True, backend="aot_eager") if compiling else model
            position = torch.tensor([[inputs["input_ids"].shape[1]]])
            steps.append(
                call(torch.tensor([[7]]), past_key_values=cache, position_ids=position, use_cache=True).logits
            )
    close(*steps)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_video_encoder_exports_with_any_number_of_videos(folder, implementation):
    encoder = PVChatModel.from_pretrained(folder, attn_implementation=implementation).vision_tower.eval()
    videos = torch.export.Dim("videos", min=1, max=64)
    example = pixels(3)[:, 0].transpose(1, 2)
    exported = torch.export.export(
        encoder, (), {"pixel_values_videos": example}, dynamic_shapes={"pixel_values_videos": {0: videos}}
    )
    other = pixels(5, seed=4)[:, 0].transpose(1, 2)
    with torch.no_grad():
        found = exported.module()(pixel_values_videos=other).last_hidden_state
        close(found, encoder(other).last_hidden_state)


def test_qformer_exports_with_any_number_of_clips(folder):
    qformer = PVChatModel.from_pretrained(folder).qformer.eval()
    clips = torch.export.Dim("clips", min=1, max=64)
    inputs = {"query_embeds": torch.randn(3, 9, 32), "encoder_hidden_states": torch.randn(3, 65, 32)}
    exported = torch.export.export(qformer, (), inputs, dynamic_shapes={name: {0: clips} for name in inputs})
    other = {"query_embeds": torch.randn(4, 9, 32), "encoder_hidden_states": torch.randn(4, 65, 32)}
    with torch.no_grad():
        found, expected = exported.module()(**other), qformer(**other)
    close(found.last_hidden_state, expected.last_hidden_state)
    for a, b in zip(found.router_logits, expected.router_logits, strict=True):
        close(a, b)


# -- generation -------------------------------------------------------------------------------------------------------

MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled beams": {"do_sample": True, "num_beams": 2},
    "several answers": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}


@torch.no_grad()
def generate(model, seed: int = 0, new: int = 5, **options):
    """`new` tokens, whatever they are."""
    torch.manual_seed(seed)
    options = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0} | options
    return model.generate(**options)


def test_the_model_inherits_generation():
    assert issubclass(PVChatForConditionalGeneration, GenerationMixin)
    assert PVChatForConditionalGeneration.can_generate() and not PVChatModel.can_generate()


@pytest.mark.parametrize("mode", MODES)
def test_generation_with_and_without_cache_gives_the_same_tokens(model, mode):
    inputs = video_inputs(2)
    with_cache, without = (generate(model, **inputs, **MODES[mode], use_cache=use) for use in (True, False))
    answers = MODES[mode].get("num_return_sequences", 1)
    assert with_cache.shape == (2 * answers, inputs["input_ids"].shape[1] + 5)
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beams", "sampled beams"])
def test_generation_returns_scores_attentions_and_hidden_states(model, mode):
    inputs = video_inputs(2)
    beams = MODES[mode].get("num_beams", 1)
    wanted = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states")
    outputs = generate(model, **inputs, **MODES[mode], **dict.fromkeys(wanted, True))
    length, words = inputs["input_ids"].shape[1], model.config.text_config.vocab_size
    assert [tuple(scores.shape) for scores in outputs.scores] == [(2 * beams, words)] * 5
    assert [len(step) for step in outputs.attentions] == [2] * 5
    assert [len(step) for step in outputs.hidden_states] == [3] * 5
    assert outputs.attentions[0][0].shape == (2 * beams, 4, length, length)
    assert outputs.attentions[1][0].shape == (2 * beams, 4, 1, length + 1)
    assert outputs.hidden_states[0][0].shape == (2 * beams, length, 32)
    assert outputs.past_key_values.get_seq_length() == length + 4
    assert outputs.past_key_values.layers[0].keys.shape == (2 * beams, 2, length + 4, 8)


def test_generation_starts_from_nothing(model):
    assert generate(model, new=3).shape == (1, 4)


def test_left_padded_batches_of_unequal_prompts_generate_as_if_alone(model):
    """A question with a video, a shorter one, and one without any video."""
    rows = [prompt(text=7, seed=1)[0], prompt(text=3, seed=2)[0], torch.tensor([1, 20, 21, 22])]
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
    mask = (ids != 0).long()
    videos = pixels(2)
    together = generate(model, input_ids=ids, attention_mask=mask, pixel_values_videos=videos)[:, longest:]
    for i, row in enumerate(rows):
        video = {"pixel_values_videos": videos[i : i + 1]} if i < 2 else {}
        alone = generate(model, input_ids=row[None], attention_mask=torch.ones_like(row)[None], **video)
        assert torch.equal(alone[0, len(row) :], together[i]), i


@pytest.mark.parametrize("mode", ["greedy", "beams"])
@pytest.mark.parametrize("given", ["ready", "with pixels"])
def test_generation_from_embeddings_equals_that_from_ids(model, mode, given):
    inputs = video_inputs(2)
    expected = generate(model, **inputs, **MODES[mode])[:, inputs["input_ids"].shape[1] :]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    rest = {"attention_mask": inputs["attention_mask"]}
    if given == "ready":
        features = model.get_video_features(inputs["pixel_values_videos"]).pooler_output
        mask = model.model.get_placeholder_mask(inputs["input_ids"], embeds, features)
        embeds = embeds.masked_scatter(mask, features)
    else:
        rest["pixel_values_videos"] = inputs["pixel_values_videos"]
    assert torch.equal(generate(model, inputs_embeds=embeds.detach(), **rest, **MODES[mode]), expected)


@pytest.mark.parametrize("given", ["ids", "embeddings"])
def test_generation_with_a_static_cache_equals_that_with_a_growing_one(model, given):
    inputs = video_inputs(2)
    if given == "embeddings":
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    expected = generate(model, **inputs)
    assert torch.equal(generate(model, **inputs, cache_implementation="static"), expected)


def test_generation_goes_on_from_a_cache(model):
    """Eight tokens at once, or five and then three: the video is not needed a second time."""
    inputs = video_inputs()
    whole = generate(model, **inputs, new=8)
    first = generate(model, **inputs, return_dict_in_generate=True)
    mask = torch.ones_like(first.sequences)
    second = generate(
        model, input_ids=first.sequences, attention_mask=mask, past_key_values=first.past_key_values, new=3
    )
    assert torch.equal(second, whole)


def test_generation_goes_on_from_a_cache_with_embeddings(model):
    inputs = video_inputs()
    whole = generate(model, **inputs, new=8)
    first = generate(model, **inputs, return_dict_in_generate=True)
    embeds = model.get_input_embeddings()(first.sequences).detach()
    second = generate(
        model,
        inputs_embeds=embeds,
        attention_mask=torch.ones_like(first.sequences),
        past_key_values=first.past_key_values,
        new=3,
    )
    assert torch.equal(second, whole[:, -3:])


def test_generation_reads_a_long_prompt_in_chunks(model):
    inputs = video_inputs(2)
    assert torch.equal(generate(model, **inputs, prefill_chunk_size=4), generate(model, **inputs))


def test_prompt_lookup_changes_no_token(model):
    """Speculative decoding: several tokens are checked at once, and the cache is cut back."""
    inputs = video_inputs()
    assert torch.equal(generate(model, **inputs, prompt_lookup_num_tokens=2), generate(model, **inputs))


def test_generation_streams_its_tokens(model):
    class Collector:
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, tokens):
            self.tokens += tokens.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Collector()
    sequence = generate(model, **video_inputs(), streamer=streamer)
    assert streamer.ended and streamer.tokens == sequence[0].tolist()


def test_a_cache_grows_by_what_is_read(model):
    cache = DynamicCache(config=model.config.text_config)
    inputs = video_inputs(2)
    with torch.no_grad():
        outputs = model(**inputs, past_key_values=cache, use_cache=True)
    assert outputs.past_key_values is cache and cache.get_seq_length() == inputs["input_ids"].shape[1]
    assert len(cache.layers) == 2
    assert {layer.keys.shape for layer in cache.layers} == {(2, 2, inputs["input_ids"].shape[1], 8)}
    with torch.no_grad():
        assert model(**inputs, use_cache=False).past_key_values is None
