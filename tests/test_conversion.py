"""The authors' checkpoints become ours name by name, with nothing left over on either side."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from pvchat import convert
from pvchat.checkpoint_files import Checkpoint
from pvchat.convert import convert_checkpoint, guess_tiles
from pvchat.errors import PVChatError
from pvchat.hub import refuse_private
from pvchat.model_card import base_card
from pvchat.modeling_pvchat import (
    PVChatConfig,
    PVChatForConditionalGeneration,
    PVChatProcessor,
    convert_state_dict,
)
from pvchat.modeling_pvchat.convert_back_pvchat import authors_name as authors_name_without_peft
from pvchat.modeling_pvchat.convert_back_pvchat import to_authors_state_dict, unused_authors_tensors
from pvchat.modeling_pvchat.convert_pvchat import (
    config_from_reference,
    convert_name,
    dead_names,
    split_lora,
    to_reference_names,
)
from pvchat.push import push_model
from pvchat.trainers.config import Stage2Config
from pvchat.trainers.run import base_settings, check_settings, merged_settings
from tests.authors import add_lora, authors_name, authors_state_dict, modern_peft
from tests.tiny import randomised, tiny_clip, tiny_config, tiny_model, tiny_tokenizer

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


# -- the way back -----------------------------------------------------------------------------------------------------


def test_the_way_back_ends_at_the_authors_names_and_values(routed, authors):
    words = routed.config.text_config.vocab_size
    config = config_from_reference(HEADS | {"llm": {"num_attention_heads": 4, "vocab_size": words}}, authors)
    back = to_authors_state_dict(routed.state_dict(), config)
    plain = {name.replace("lm.base_model.model.", "lm."): tensor for name, tensor in authors.items()}
    assert set(back) == set(plain)
    assert all(torch.equal(back[name], tensor) for name, tensor in plain.items())
    again = convert_state_dict(back)
    assert all(torch.equal(again[name], tensor) for name, tensor in routed.state_dict().items())


@pytest.mark.parametrize(("video", "subject", "rows"), [(8, 9, 8), (9, 8, 9), (3, 9, None), (8, 3, None)])
def test_the_way_back_keeps_the_rows_that_the_authors_have(video, subject, rows):
    """Neither new word in their base, `<sks>` alone in a checkpoint they trained; `<video>` elsewhere cannot be."""
    config = tiny_config()
    config.text_config.vocab_size, config.video_token_id, config.subject_token_id = 10, video, subject
    head = {"lm_head.weight": torch.arange(10.0)[:, None]}
    if rows is None:
        with pytest.raises(ValueError, match="only <video> and <sks> may stand at the end"):
            to_authors_state_dict(head, config)
    else:
        assert torch.equal(to_authors_state_dict(head, config)["lm.lm_head.weight"], head["lm_head.weight"][:rows])


def test_every_name_goes_there_and_back(routed):
    assert all(convert_name(authors_name_without_peft(name)) == name for name in routed.state_dict())
    with pytest.raises(ValueError, match="no parameter of PVChat"):
        authors_name_without_peft("model.nothing.weight")


@needs_listings
def test_the_full_size_model_goes_back_to_the_listing_name_by_name(full_size):
    config = PVChatConfig()
    ours = {name: torch.empty(shape, device="meta") for name, shape in full_size.items()}
    back = shapes(to_authors_state_dict(ours, config) | unused_authors_tensors(config, torch.bfloat16, "meta"))
    assert back == shapes(listing("pvchat_without_lora"))


# -- checkpoint folders -----------------------------------------------------------------------------------------------

LAYOUTS = ("pytorch_model.bin", "sharded bin", "model.safetensors", "sharded safetensors", "a file of its own")
WORDS = len(tiny_tokenizer(("<unk>", "<s>", "</s>", "[INST]", "[/INST]")))


@pytest.fixture(scope="module")
def theirs():
    """The authors' names and values of a routed model that was not trained on a subject, with LoRA."""
    torch.manual_seed(0)
    config = tiny_config(routing="remoh", tile_grid=(2, 1))
    config.text_config.vocab_size = WORDS
    model = randomised(PVChatForConditionalGeneration(config))
    dead = {"project_down.weight": torch.zeros(32, 32), "project_down.bias": torch.zeros(32)}
    return add_lora(authors_state_dict(model.state_dict())) | dead


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(("<unk>", "<s>", "</s>", "[INST]", "[/INST]")).save_pretrained(folder)
    return folder


def write_theirs(folder: Path, tensors: dict[str, torch.Tensor], layout: str = "pytorch_model.bin") -> Path:
    """A checkpoint folder (or file) of the authors."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = HEADS | {"llm": {"num_attention_heads": 4, "vocab_size": WORDS}}
    lora = {"llm": {"lora_alpha": 8, "lora_r": 4}}
    (folder / "config.json").write_text(json.dumps(settings | {"model_config": lora}))
    suffix = "bin" if "bin" in layout or "file" in layout else "safetensors"
    save = torch.save if suffix == "bin" else save_file
    if "sharded" not in layout:
        path = folder / ("epoch_7.pt" if "file" in layout else layout)
        save(tensors, path)
        return path if "file" in layout else folder
    names, stem = list(tensors), {"bin": "pytorch_model", "safetensors": "model"}[suffix]
    weight_map = {}
    for number in range(3):  # a weight and its LoRA fall into different files
        file = f"{stem}-{number + 1:05d}-of-00003.{suffix}"
        part = {name: tensors[name] for name in names[number::3]}
        save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_folder_converts_to_the_same_model(theirs, tokenizer, layout, tmp_path):
    source = write_theirs(tmp_path / "theirs", theirs, layout)
    report = convert_checkpoint(source, tmp_path / "ours", tokenizer=tokenizer, max_shard_size="60KB")
    assert len(report["files"]) > 3 and report["merged"] == sum(".lora_A." in name for name in theirs)
    assert set(report["dropped"]) == {"project_down.weight", "project_down.bias"}
    assert sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors")) == report["files"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    model, loading = PVChatForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = convert_state_dict(theirs, lora_alpha=8, lora_rank=4)
    assert set(model.state_dict()) == set(expected)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor[: len(expected[name])], expected[name]), name
        if name in VOCABULARY:
            assert len(tensor) == WORDS + 2
            torch.testing.assert_close(tensor[-1], expected[name].mean(0))
    assert model.config.num_tiles == 3 and model.config.qformer_config.alpha_scale == 1.0


def test_a_converted_folder_answers(theirs, tokenizer, tmp_path):
    convert_checkpoint(write_theirs(tmp_path / "theirs", theirs), tmp_path / "ours", tokenizer=tokenizer)
    assert (tmp_path / "ours" / "modeling_pvchat.py").exists()  # remote code travels along
    processor = PVChatProcessor.from_pretrained(tmp_path / "ours")
    model = PVChatForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert processor.video_token_id == model.config.video_token_id == WORDS
    clip = torch.from_numpy(tiny_clip(True))
    content = [{"type": "video", "video": clip}, {"type": "text", "text": "Is <sks> here?"}]
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt", subject=True
    )
    assert (batch["input_ids"] == model.config.subject_token_id).sum() == 2
    assert model.generate(**batch, max_new_tokens=2).shape[1] > batch["input_ids"].shape[1]


def test_a_converted_folder_names_the_licences_of_what_was_converted(theirs, tokenizer, tmp_path):
    source, ours = write_theirs(tmp_path / "theirs", theirs), tmp_path / "ours"
    report = convert_checkpoint(source, ours, tokenizer=tokenizer)
    card = ModelCard.load(ours / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "mit-and-apache-2.0")
    assert card.data.base_model is None and "from `theirs`" in card.text and "# ours\n" in card.text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.text.splitlines() if "|" in line]
    licences = {row[1]: row[2] for row in rows if len(row) == 3}
    assert licences["InternVideo2-Chat-8B"] == "MIT" and licences["Mistral-7B-Instruct-v0.3"] == "Apache-2.0"
    assert f"{report['merged']} pairs of LoRA factors" in card.text and "perhaps on a real person" in card.text
    assert all(f"`{name}`: {how}" in card.text for name, how in report["made"].items())
    assert all(name in card.text for name in report["dropped"])
    refuse_private(ours)
    assert "README.md" in {file["path"] for file in push_model(ours, "ada/base", dry_run=True)["files"]}
    convert_checkpoint(ours, tmp_path / "back", to="authors")
    assert not (tmp_path / "back" / "README.md").exists()


def test_the_card_of_a_converted_folder_is_made_anew_with_its_own_part_kept_once(theirs, tokenizer, tmp_path):
    plain = {name: tensor for name, tensor in theirs.items() if ".lora_" not in name and "router_alpha" not in name}
    convert_checkpoint(write_theirs(tmp_path / "theirs", plain), tmp_path / "ours", tokenizer=tokenizer)
    first = (tmp_path / "ours" / "README.md").read_text(encoding="utf-8")
    assert "0 pairs of LoRA" in first and "perhaps on a real person" not in first
    assert str(base_card(tmp_path / "ours")) == first
    pushed = base_card(tmp_path / "ours", repo="ada/base", licence="mit")
    assert pushed.data.license == "mit" and pushed.data.license_name is None
    assert str(pushed).count("## About") == str(pushed).count("## How to use") == 1


def test_there_and_back_changes_no_value(theirs, tokenizer, tmp_path):
    plain = {name: tensor for name, tensor in theirs.items() if ".lora_" not in name}
    source = write_theirs(tmp_path / "theirs", plain)
    convert_checkpoint(source, tmp_path / "ours", tokenizer=tokenizer, max_shard_size="60KB")
    report = convert_checkpoint(tmp_path / "ours", tmp_path / "back", to="authors", max_shard_size="60KB")
    back = Checkpoint(tmp_path / "back")
    values = back.read(back.meta)
    expected = {name.replace("lm.base_model.model.", "lm."): tensor for name, tensor in plain.items()}
    assert set(values) - set(expected) <= set(report["made"]) and set(expected) <= set(values)
    assert all(torch.equal(values[name], tensor) for name, tensor in expected.items())
    convert_checkpoint(tmp_path / "back", tmp_path / "again", tokenizer=tokenizer, max_shard_size="60KB")
    first, again = (Checkpoint(tmp_path / name) for name in ("ours", "again"))
    assert first.meta.keys() == again.meta.keys()
    values = again.read(again.meta)
    assert all(torch.equal(tensor, values[name]) for name, tensor in first.read(first.meta).items())
    configs = [PVChatConfig.from_pretrained(tmp_path / name).to_dict() for name in ("ours", "again")]
    assert configs[0] == configs[1]


def test_a_base_without_subject_tokens_gets_the_same_ones_every_time(theirs, tokenizer, tmp_path):
    base = {n: t for n, t in theirs.items() if n != "personal_query_tokens" and "router_alpha" not in n}
    source = write_theirs(tmp_path / "InternVideo2-Chat-8B", base)
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        report = convert_checkpoint(source, tmp_path / name, tokenizer=tokenizer, seed=seed, dtype="bfloat16")
        assert report["tiles"] == "none" and "model.subject_tokens.weight" in report["made"]
        model = PVChatForConditionalGeneration.from_pretrained(tmp_path / name)
        assert model.dtype == torch.bfloat16 and model.config.qformer_config.routing == "none"
        found.append(model.model.subject_tokens.weight)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_training_on_a_converted_base_takes_small_steps_and_recomputes(theirs, tokenizer, tmp_path):
    convert_checkpoint(write_theirs(tmp_path / "theirs", theirs), tmp_path / "ours", tokenizer=tokenizer)
    settings = merged_settings(base_settings(tmp_path / "ours"))
    check_settings(settings, ("1", "2"))
    args = Stage2Config(str(tmp_path / "out"), use_cpu=True, **settings["train"])
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 1
    assert args.activation_checkpointing


def test_a_checkpoint_of_the_training_script_keeps_its_row_of_the_subject(theirs, tokenizer, tmp_path):
    """One row more than words, no LoRA on the head, and a dead second head in float32."""
    trained = {name: tensor for name, tensor in theirs.items() if "lm_head.lora" not in name}
    for name in ("lm.base_model.model.model.embed_tokens.weight", "lm.base_model.model.lm_head.weight"):
        trained[name] = torch.cat([trained[name], torch.full((1, 32), 0.5)])
    trained["lm.lm_head.weight"] = torch.zeros(WORDS + 1, 32)
    source = write_theirs(tmp_path / "theirs", trained)
    report = convert_checkpoint(source, tmp_path / "ours", tokenizer=tokenizer)
    assert "lm.lm_head.weight" in report["dropped"]
    model = PVChatForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert (model.config.subject_token_id, model.config.video_token_id) == (WORDS, WORDS + 1)
    assert (model.get_input_embeddings().weight[WORDS] == 0.5).all()
    assert PVChatProcessor.from_pretrained(tmp_path / "ours").tokenizer.convert_tokens_to_ids("<sks>") == WORDS


@pytest.mark.slow
@needs_listings
@pytest.mark.parametrize("name", ["internvideo2_chat_8b_hd", "pvchat_checkpoint_after_training_script"])
def test_a_full_size_checkpoint_is_planned_without_reading_it(name, tmp_path):
    """17 GB of hole behind a real header: names, shapes and the sum of bytes are those of the default model."""
    kinds = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}
    header, end = {}, 0
    for key, tensor in listing(name).items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    report = convert_checkpoint(tmp_path, tmp_path / "out", tokenizer="none", dry_run=True)
    with torch.device("meta"):
        routing = {"routing": "remoh" if "script" in name else "none"}
        expected = PVChatForConditionalGeneration(PVChatConfig(qformer_config=routing)).state_dict()
    assert report["tensors"] == len(expected)
    assert report["bytes"] == 2 * sum(tensor.numel() for tensor in expected.values())
    assert report["merged"] == 7 * 32 + ("script" not in name)  # the script lost the LoRA of the head
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(theirs, tokenizer, tmp_path):
    source = write_theirs(tmp_path / "theirs", theirs)
    report = convert_checkpoint(source, tmp_path / "ours", tokenizer=tokenizer, dry_run=True)
    assert report["dry_run"] and report["files"] == [] and report["tensors"] > 100
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_an_interrupted_conversion_goes_on_where_it_stopped(theirs, tokenizer, tmp_path, monkeypatch):
    source, out = write_theirs(tmp_path / "theirs", theirs), tmp_path / "ours"
    asked, values = [], convert.ToPVChat.values

    def stop_at_the_third(self, names):
        asked.append(names)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return values(self, names)

    monkeypatch.setattr(convert.ToPVChat, "values", stop_at_the_third)
    options = {"tokenizer": tokenizer, "max_shard_size": "60KB"}
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, out, **options)
    assert not out.exists() and len(list((tmp_path / ".ours.partial").glob("*.safetensors"))) == 2
    report = convert_checkpoint(source, out, **options)
    assert len(asked) == len(report["files"]) + 1 and asked[2] == asked[3]
    assert not (tmp_path / ".ours.partial").exists() and not (out / ".plan.json").exists()
    convert_checkpoint(source, tmp_path / "at once", **options)
    for file in report["files"]:
        assert (out / file).read_bytes() == (tmp_path / "at once" / file).read_bytes()


def test_what_is_left_of_another_conversion_is_not_used(theirs, tokenizer, tmp_path, monkeypatch):
    def stop(self, names):
        raise KeyboardInterrupt

    source, out = write_theirs(tmp_path / "theirs", theirs), tmp_path / "ours"
    with monkeypatch.context() as patch:
        patch.setattr(convert.ToPVChat, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(source, out, tokenizer=tokenizer)
    changed = theirs | {"project_up.bias": torch.full((32,), 7.0)}
    convert_checkpoint(write_theirs(tmp_path / "theirs", changed), out, tokenizer=tokenizer)
    bias = PVChatForConditionalGeneration.from_pretrained(out).model.multi_modal_projector.bias
    assert (bias == 7).all()


MEASURE = """
import resource, sys, torch
from pvchat.convert import convert_checkpoint
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
convert_checkpoint(sys.argv[1], sys.argv[2], tokenizer="none", max_shard_size="16MB")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pytorch_model.bin", "model.safetensors"])
def test_memory_is_that_of_two_shards_not_of_the_checkpoint(layout, tmp_path):
    """340 MB in, files of 16 MB out. The largest tensor has 8 MB, and its merging needs a few copies."""
    config = tiny_config()
    config.text_config.vocab_size = WORDS
    config.text_config.hidden_size, config.text_config.intermediate_size = 256, 8192
    config.text_config.head_dim, config.text_config.num_hidden_layers = 64, 14
    with torch.device("meta"):
        names = shapes(PVChatForConditionalGeneration(config).state_dict())
    tensors = authors_state_dict({name: torch.ones(shape) for name, shape in names.items()})
    size = sum(tensor.numel() * 4 for tensor in tensors.values()) / 2**20
    assert size > 330
    source = write_theirs(tmp_path / "theirs", add_lora(tensors), layout)
    command = [sys.executable, "-c", MEASURE, source, tmp_path / "ours"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 130


# -- what is refused --------------------------------------------------------------------------------------------------


def refused(source, out, message: str, **options):
    with pytest.raises(PVChatError, match=message) as error:
        convert_checkpoint(source, out, **options)
    assert "\n" not in str(error.value)
    assert not out.exists() and not list(out.parent.glob(f".{out.name}*"))


def test_a_reason_without_words_is_named_by_its_kind(theirs, tmp_path, monkeypatch):
    def fail(*words, **options):
        raise OSError

    source, out = write_theirs(tmp_path / "theirs", theirs), tmp_path / "out"
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.from_pretrained", fail)
    refused(source, out, r"There is no tokenizer in theirs \(OSError\)", tokenizer="theirs")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    refused("ada/theirs", out, r"could not be fetched from the Hub \(OSError\)")
    monkeypatch.setattr("torch.load", fail)
    refused(source, out, r"pytorch_model.bin cannot be read \(OSError\)")


def test_sources_that_cannot_be_read_are_refused_in_one_line(theirs, tokenizer, tmp_path):
    out = tmp_path / "out"
    refused(tmp_path / "no such", out, "There is no")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", out, "has no weights: looked for model.safetensors.index.json")
    (tmp_path / "notes.txt").write_text("notes")
    refused(tmp_path / "notes.txt", out, "must end in .safetensors, .bin")
    sharded = write_theirs(tmp_path / "sharded", theirs, "sharded safetensors")
    (sharded / "model-00002-of-00003.safetensors").rename(tmp_path / "gone")
    refused(sharded, out, "lacks 1 of 3 weight files .* model-00002-of-00003.safetensors", tokenizer=tokenizer)
    (tmp_path / "gone").rename(sharded / "model-00002-of-00003.safetensors")
    (sharded / "model-00001-of-00003.safetensors").rename(sharded / "model-00002-of-00003.safetensors")
    save_file({"other": torch.zeros(1)}, sharded / "model-00001-of-00003.safetensors")
    refused(sharded, out, "model-00001-of-00003.safetensors lacks .* of its index", tokenizer=tokenizer)
    cut = write_theirs(tmp_path / "cut", theirs, "model.safetensors") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    refused(tmp_path / "cut", out, "cannot be read as safetensors", tokenizer=tokenizer)
    cut = write_theirs(tmp_path / "cut bin", theirs) / "pytorch_model.bin"
    cut.write_bytes(cut.read_bytes()[:-1000])
    refused(tmp_path / "cut bin", out, "cannot be read", tokenizer=tokenizer)


class Intruder:
    def __reduce__(self):
        return (os.system, ("echo ran > intruded",))


def test_code_in_a_pickle_is_refused_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Intruder()}, tmp_path / "pytorch_model.bin")
    refused(tmp_path, tmp_path / "out", "holds more than tensors")
    assert not (tmp_path / "intruded").exists()
    torch.save({"weights": {"a": torch.zeros(1)}}, tmp_path / "pytorch_model.bin")
    refused(tmp_path, tmp_path / "out", "is no state dict")


def test_parameters_that_do_not_fit_are_all_named(theirs, tokenizer, tmp_path):
    out = tmp_path / "out"
    more = theirs | {"vision_encoder.clip_projector.weight": torch.zeros(1), "lm.extra": torch.zeros(1)}
    source = write_theirs(tmp_path / "more", more)
    refused(source, out, "2 unknown parameters.* lm.extra, vision_encoder.clip_projector.weight", tokenizer=tokenizer)
    less = {
        name: tensor for name, tensor in theirs.items() if name not in ("project_up.bias", "vision_layernorm.bias")
    }
    source = write_theirs(tmp_path / "less", less)
    refused(source, out, "vision_layernorm.bias is missing; .*projector.bias is missing", tokenizer=tokenizer)
    wrong = theirs | {"project_up.bias": torch.zeros(31), "vision_layernorm.bias": torch.zeros(5)}
    source = write_theirs(tmp_path / "wrong", wrong)
    refused(
        source, out, r"vision_layernorm.bias is \[5\], not \[32\]; .*bias is \[31\], not \[32\]", tokenizer=tokenizer
    )


def test_tokenizers_that_do_not_fit_are_refused(theirs, tmp_path):
    source, out = write_theirs(tmp_path / "theirs", theirs), tmp_path / "out"
    refused(source, out, "There is no tokenizer in .*pass --tokenizer")
    tiny_tokenizer(("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<Yo>")).save_pretrained(tmp_path / "trained")
    refused(source, out, f"has .* words, the model {WORDS}", tokenizer=tmp_path / "trained")
    tiny_tokenizer(("<unk>", "<s>", "</s>", "[", "]")).save_pretrained(tmp_path / "other")
    if len(tiny_tokenizer(("<unk>", "<s>", "</s>", "[", "]"))) == WORDS:
        refused(source, out, r"does not fit .*\[INST\]", tokenizer=tmp_path / "other")


def test_wrong_directions_and_full_folders_are_refused(theirs, tokenizer, tmp_path, monkeypatch):
    source, out = write_theirs(tmp_path / "theirs", theirs), tmp_path / "out"
    refused(source, out, "is not one of pvchat", to="authors")
    refused(source, out, "one of pvchat, authors", to="llama")
    refused(source, out, "tiles must be one of 2x1, none", tiles="3x3")
    refused(source, out, "dtype must be one of float32", dtype="int8")
    with pytest.raises(PVChatError, match="not an empty folder"):
        convert_checkpoint(source, source, tokenizer=tokenizer)
    convert_checkpoint(source, tmp_path / "ours", tokenizer=tokenizer)
    refused(tmp_path / "ours", out, "already is a checkpoint of pvchat", tokenizer=tokenizer)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(0))
    with pytest.raises(PVChatError, match="0.0 GB free"):
        convert_checkpoint(source, out, tokenizer=tokenizer)
    assert not out.exists()


# -- command and Hub --------------------------------------------------------------------------------------------------


def test_the_command_converts_and_reports_as_json(theirs, tokenizer, tmp_path, capsys):
    from pvchat.cli import main

    source = write_theirs(tmp_path / "theirs", theirs)
    words = ["convert", str(source), str(tmp_path / "ours"), "--tokenizer", str(tokenizer)]
    assert main([*words, "--dry-run"]) == 0
    assert "nothing written" in capsys.readouterr().out
    assert main([*words, "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"] == ["model.safetensors"] and (tmp_path / "ours" / "model.safetensors").exists()
    assert main(words) == 1
    assert "not an empty folder" in capsys.readouterr().err


def test_a_hub_name_is_taken_from_the_cache(theirs, tokenizer, tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "0123456789" * 4
    repository = tmp_path / "hub" / "models--ada--theirs"
    write_theirs(repository / "snapshots" / commit, theirs)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    report = convert_checkpoint("ada/theirs", tmp_path / "ours", tokenizer=tokenizer, dry_run=True)
    assert report["source"] == "ada/theirs" and report["tensors"] > 100
    convert_checkpoint("ada/theirs", tmp_path / "ours", tokenizer=tokenizer)
    card = ModelCard.load(tmp_path / "ours" / "README.md")
    assert card.data.base_model == ["ada/theirs"] and "(https://huggingface.co/ada/theirs)" in card.text
    refused("ada/nothing", tmp_path / "out", "could not be fetched from the Hub")


@pytest.mark.parametrize(
    ("name", "tiles"),
    [
        ("OpenGVLab/InternVideo2-Chat-8B", "none"),
        ("OpenGVLab/InternVideo2_chat_8B_HD", "2x1"),
        ("/data/InternVideo2-Chat-8B-HD/", "2x1"),
        ("checkpoint_epoch_7/pytorch_model.bin", "2x1"),
    ],
)
def test_the_number_of_views_follows_the_name(name, tiles):
    assert guess_tiles(name) == tiles
