"""The authors' checkpoints become ours name by name, with nothing left over on either side."""

import json
from pathlib import Path

import pytest
import torch

from pvchat.modeling_pvchat import PVChatConfig, PVChatForConditionalGeneration, convert_state_dict
from pvchat.modeling_pvchat.convert_pvchat import (
    config_from_reference,
    dead_names,
    split_lora,
    to_reference_names,
)
from tests.authors import add_lora, authors_name, authors_state_dict, modern_peft
from tests.tiny import tiny_model

LISTINGS = Path(__file__).resolve().parents[2] / "shared" / "golden" / "reference_state_dict.json"
needs_listings = pytest.mark.skipif(not LISTINGS.exists(), reason="the listings are not at ../shared/golden")
FULL_SIZE = (
    "pvchat_as_loaded",
    "pvchat_checkpoint_after_training_script",
    "internvideo2_chat_8b_hd",
    "pvchat_without_lora",
)
VOCABULARY = {"model.language_model.embed_tokens.weight", "lm_head.weight"}
HEADS = {
    "llm": {"num_attention_heads": 4, "vocab_size": 64},
    "qformer": {"num_attention_heads": 4, "top_k": 1},
    "vit": {"num_heads": 4},
}


def listing(name: str) -> dict[str, torch.Tensor]:
    """One listing of the full-size parameters, on the meta device."""
    entries = json.loads(LISTINGS.read_text(encoding="utf-8"))[name]
    return {
        key: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
        for key, entry in entries.items()
    }


def shapes(state_dict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return shapes(PVChatForConditionalGeneration(PVChatConfig()).state_dict())


@pytest.fixture(scope="module")
def routed():
    return tiny_model(routing="remoh")


@pytest.fixture
def authors(routed):
    """A tiny routed model under the authors' names."""
    return authors_state_dict(routed.state_dict())


@needs_listings
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_listing_covers_the_default_model_name_by_name(name, full_size):
    ours = shapes(convert_state_dict(listing(name)))
    absent = {key for key in full_size if "subject_tokens" in key or ".head_router." in key}
    absent = absent if name == "internvideo2_chat_8b_hd" else set()
    assert set(ours) == set(full_size) - absent
    assert {key for key in ours if ours[key] != full_size[key]} == VOCABULARY
    rows = 32769 if name == "pvchat_checkpoint_after_training_script" else 32768
    assert {ours[key] for key in VOCABULARY} == {(rows, 4096)}
    assert {full_size[key] for key in VOCABULARY} == {(32770, 4096)}  # and <video> and <sks>
    assert len(absent) in (0, 28)


@needs_listings
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_listing_has_only_known_dead_parameters(name):
    dead = set(dead_names(listing(name)))
    alias = {"lm.lm_head.weight"} if name == "pvchat_checkpoint_after_training_script" else set()
    assert dead == {"project_down.weight", "project_down.bias", "qformer.bert.embeddings.position_ids"} | alias


@needs_listings
@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_full_size_parameter_is_renamed_merged_or_dead(name):
    reference = listing(name)
    renamed = set(to_reference_names(reference).values())
    factors = {key for key in reference if ".lora_" in key}
    assert len(split_lora(reference)[1]) == len(factors)
    assert renamed | factors | set(dead_names(reference)) == set(reference)
    assert len(renamed) + len(factors) + len(dead_names(reference)) == len(reference)


@needs_listings
@pytest.mark.parametrize("name", FULL_SIZE)
def test_config_of_a_full_size_listing_is_the_default_config_with_the_authors_routing(name):
    config, default = config_from_reference({}, listing(name)), PVChatConfig()
    assert config.vision_config.to_dict() == default.vision_config.to_dict()
    differs = {k for k, v in config.qformer_config.to_dict().items() if default.qformer_config.to_dict().get(k) != v}
    assert differs == {"alpha_scale", "routing_init"} | ({"routing"} if name == "internvideo2_chat_8b_hd" else set())
    text, default_text = config.text_config.to_dict(), default.text_config.to_dict()
    assert {key for key in text if text[key] != default_text[key]} == {"vocab_size"}
    trained = name == "pvchat_checkpoint_after_training_script"
    assert (config.subject_token_id, config.video_token_id) == ((32768, 32769) if trained else (32769, 32768))
    assert (config.num_query_tokens, config.num_extra_query_tokens, config.num_subject_tokens) == (32, 64, 16)


def test_renaming_there_and_back_gives_the_same_weights(routed, authors):
    back = convert_state_dict(authors)
    assert set(back) == set(routed.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in routed.state_dict().items())


def test_names_lead_back_to_the_authors(routed, authors):
    assert to_reference_names(authors) == {name: authors_name(name) for name in routed.state_dict()}


def test_converted_weights_load_strictly_into_the_config_of_the_checkpoint(authors):
    config = config_from_reference(HEADS, authors)
    assert (config.qformer_config.routing, config.qformer_config.routing_start_layer) == ("remoh", 2)
    assert (config.qformer_config.alpha_scale, config.qformer_config.routing_init) == (1.0, "reference")
    PVChatForConditionalGeneration(config).load_state_dict(convert_state_dict(authors), strict=True)


def test_a_base_checkpoint_without_routers_and_subject_gives_a_plain_model():
    reference = authors_state_dict(tiny_model().state_dict())
    del reference["personal_query_tokens"]
    config = config_from_reference({**HEADS, "model_config": {"bridge": {"num_personal_token": 5}}}, reference)
    assert (config.qformer_config.routing, config.num_subject_tokens) == ("none", 5)
    missing, left_over = PVChatForConditionalGeneration(config).load_state_dict(
        convert_state_dict(reference), strict=False
    )
    assert (missing, left_over) == (["model.subject_tokens.weight"], [])


def test_both_peft_layouts_and_no_peft_give_the_same_base(authors):
    with_lora = add_lora(authors)
    old, new = split_lora(with_lora), split_lora(modern_peft(with_lora))
    plain = {name.replace("lm.base_model.model.", "lm."): tensor for name, tensor in authors.items()}
    assert set(old[0]) == set(new[0]) == set(convert_state_dict(plain))
    assert set(old[1]) == set(new[1])
    assert any(name.endswith(".base_layer.weight") for name in modern_peft(with_lora))
    merged = convert_state_dict(with_lora), convert_state_dict(modern_peft(with_lora))
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])
    assert all(torch.equal(old[0][name], tensor) for name, tensor in convert_state_dict(plain).items())


def test_lora_is_merged_with_the_authors_scale_of_two(authors):
    with_lora = add_lora(authors)
    head = "lm.base_model.model.lm_head"
    factors = (with_lora[f"{head}.lora_B.default.weight"], with_lora[f"{head}.lora_A.default.weight"])
    expected = authors[f"{head}.weight"].double() + 2.0 * factors[0].double() @ factors[1].double()
    torch.testing.assert_close(convert_state_dict(with_lora)["lm_head.weight"].double(), expected, atol=1e-6, rtol=0)
    other = convert_state_dict(with_lora, lora_alpha=8, lora_rank=4)["lm_head.weight"]
    assert torch.equal(other, convert_state_dict(with_lora)["lm_head.weight"])
    unscaled = convert_state_dict(with_lora, lora_alpha=1, lora_rank=1)["lm_head.weight"]
    assert not torch.allclose(unscaled, other)


def test_low_precision_weights_are_merged_in_float32_and_keep_their_dtype(authors):
    exact = add_lora(authors)
    low = {name: tensor.bfloat16() for name, tensor in exact.items()}
    merged = convert_state_dict(low)
    again = convert_state_dict({name: tensor.float() for name, tensor in low.items()})
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor, again[name].bfloat16()) for name, tensor in merged.items())


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_peft_runs_the_split_lora_like_the_merged_weights(routed, authors):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    reference = add_lora(authors)
    ids = torch.arange(5, 15)[None]
    merged = tiny_model(routing="remoh")
    merged.load_state_dict(convert_state_dict(reference, lora_alpha=8, lora_rank=4))
    base, lora = split_lora(reference)
    model = tiny_model(routing="remoh")
    model.load_state_dict(base)
    modules = sorted({name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in lora})
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=modules)).eval()
    assert {name for name in peft.get_peft_model_state_dict(model) if ".lora_" in name} == set(lora)
    before = model(input_ids=ids).logits
    peft.set_peft_model_state_dict(model, lora)
    after, expected = model(input_ids=ids).logits, merged(input_ids=ids).logits
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)


def test_the_copy_of_the_head_is_dead_only_where_peft_has_its_own(authors):
    alias = {**authors, "lm.lm_head.weight": torch.zeros(1)}
    assert torch.equal(convert_state_dict(alias)["lm_head.weight"], authors["lm.base_model.model.lm_head.weight"])
    assert set(dead_names(alias)) == {"lm.lm_head.weight"}
    plain = {name.replace("lm.base_model.model.", "lm."): tensor for name, tensor in authors.items()}
    assert dead_names(plain) == {}


def test_dead_parameters_are_dropped_with_a_reason(authors):
    extra = {
        "project_down.weight": torch.zeros(1),
        "qformer.bert.embeddings.position_ids": torch.arange(3)[None],
        "qformer.cls.predictions.bias": torch.zeros(1),
        "lm.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(1),
    }
    assert set(convert_state_dict({**authors, **extra})) == set(convert_state_dict(authors))
    reasons = dead_names({**authors, **extra})
    assert set(reasons) == set(extra) and all(reasons.values())


def test_unknown_parameters_are_all_named(authors):
    unknown = ("vision_encoder.clip_projector.weight", "qformer.bert.encoder.layer.0.attention.self.query.weightt")
    with pytest.raises(ValueError, match="2 unknown parameters") as error:
        convert_state_dict({**authors, **dict.fromkeys(unknown, torch.zeros(1))})
    assert all(name in str(error.value) for name in unknown)


def test_incomplete_or_foreign_lora_is_refused(authors):
    complete = add_lora(authors, pattern="layers.1.self_attn.q_proj")
    partner = next(name for name in complete if name.endswith("lora_B.default.weight"))
    with pytest.raises(ValueError, match="lora_A.default.weight has no .*lora_B.default.weight"):
        convert_state_dict({name: tensor for name, tensor in complete.items() if name != partner})
    foreign = {name.replace("layers.1", "layers.9"): complete[name] for name in complete if ".lora_" in name}
    with pytest.raises(ValueError, match="layers.9.* belongs to no weight"):
        convert_state_dict({**authors, **foreign})
    with pytest.raises(ValueError, match="does not fit"):
        convert_state_dict({**complete, partner: complete[partner][:, :2]})


def test_a_mix_of_two_layouts_is_refused(authors):
    name = "lm.base_model.model.model.layers.0.self_attn.q_proj"
    with pytest.raises(ValueError, match="mixes two layouts"):
        convert_state_dict({**authors, f"{name}.base_layer.weight": authors[f"{name}.weight"]})


BERT_LAYER = "qformer.bert.encoder.layer."


@pytest.mark.parametrize(
    ("missing", "extra", "message"),
    [
        ("vision_encoder.patch_embed.", "", "no vision_encoder.patch_embed.proj.weight"),
        ("vision_encoder.blocks.1.", "", "without gaps"),
        ("lm.base_model.model.model.embed_tokens.", "", "no model.embed_tokens"),
        ("", f"{BERT_LAYER}3.crossattention.self.query.bias", "in every n-th layer"),
        (f"{BERT_LAYER}3.attention.self.router_alpha.", "", "Routers must be in all layers from one on"),
    ],
)
def test_a_checkpoint_with_holes_is_refused(authors, missing, extra, message):
    names = [name for name in authors if not missing or not name.startswith(missing)]
    reference = {name: authors[name] for name in names}
    if extra:
        reference[extra] = torch.zeros(1)
    with pytest.raises(ValueError, match=message):
        config_from_reference(HEADS, reference)
