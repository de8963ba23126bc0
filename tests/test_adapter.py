"""Subject adapters: what they hold, that they load back exactly, and that without them the base is what it was."""

import json
import re

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from pvchat.errors import PVChatError
from pvchat.model_card import base_card
from pvchat.modeling_pvchat import PVChatConfig, PVChatForConditionalGeneration
from pvchat.modeling_pvchat.modeling_qformer import insert_routers
from pvchat.session import VideoChat
from pvchat.trainers.adapter import (
    AdapterSettings,
    SubjectRecord,
    base_hash,
    build_subject_model,
    load_subject_adapter,
    save_subject_adapter,
    subject_record,
)
from pvchat.trainers.freezing import FREEZE_TABLES, apply_freeze_table, kind_of, trained_counts
from pvchat.trainers.mixed import mixed_subjects
from pvchat.trainers.run import train_subject
from tests.tiny import (
    SUBJECT,
    randomised,
    tiny_base,
    tiny_clip,
    tiny_config,
    tiny_dataset,
    tiny_model,
    tiny_processor,
)

PROFILES = ("light", "paper")
LAYER = "base_model.model.model.language_model.layers.0.self_attn"


@pytest.fixture(scope="module")
def inputs():
    processor = tiny_processor()
    ids = processor.encode_prefix() + processor.encode_question("Is <Nz> in this video?", SUBJECT)
    pixels = processor.video_processor(videos=[tiny_clip(True)], return_tensors="pt")["pixel_values_videos"]
    return {"input_ids": torch.tensor([ids]), "pixel_values_videos": pixels}


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


def trained_model(profile="light", seed=0, **settings):
    """A subject model whose trained values have been moved, as training would."""
    model = build_subject_model(tiny_model(), AdapterSettings(profile=profile, num_vision_layers=1, **settings), seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save(model, folder, profile="light", subject=SUBJECT):
    return save_subject_adapter(model, folder, subject_record(model, subject, profile, "d" * 8, ["1", "2"], 0))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_new_subject_model_equals_its_base(profile, inputs):
    expected = logits(tiny_model(), inputs)
    model = build_subject_model(tiny_model(), AdapterSettings(profile=profile, num_vision_layers=1))
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize("profile", PROFILES)
def test_disable_adapter_restores_the_base_exactly(profile, inputs):
    expected = logits(tiny_model(), inputs)
    model = trained_model(profile)
    assert not torch.allclose(logits(model, inputs), expected, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_a_saved_adapter_loads_back_bit_equal(profile, tie, inputs, tmp_path):
    model = build_subject_model(tiny_model(tie=tie), AdapterSettings(profile=profile, num_vision_layers=1))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    folder = save(model, tmp_path / "adapter", profile)
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "subject.json",
    }
    loaded = load_subject_adapter(tiny_model(tie=tie), folder)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


# -- without this package's loader ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(base folder, folders of two adapters, the models that were saved)."""
    folder = tmp_path_factory.mktemp("two")
    models = [trained_model(seed=seed) for seed in (0, 1)]
    return tiny_base(folder / "base"), [save(m, folder / n) for m, n in zip(models, "ab", strict=True)], models


def open_base(folder):
    """As the card of an adapter says it."""
    return AutoModelForImageTextToText.from_pretrained(folder, qformer_config={"routing": "remoh"}).eval()


def test_one_argument_opens_the_routers_and_changes_no_answer(two, inputs):
    assert torch.equal(logits(open_base(two[0]), inputs), logits(tiny_model(), inputs))


def test_plain_peft_loads_switches_and_switches_off_subjects(two, inputs):
    base, (first, second), models = two
    model = PeftModel.from_pretrained(open_base(base), first, adapter_name="a")
    model.load_adapter(second, "b")
    for name, expected in zip("abab", models * 2, strict=True):
        model.set_adapter(name)
        assert torch.equal(logits(model, inputs), logits(expected, inputs))
        with model.disable_adapter():
            assert torch.equal(logits(model, inputs), logits(tiny_model(), inputs))
    model.delete_adapter("a")
    model.set_adapter("b")
    assert torch.equal(logits(model, inputs), logits(models[1], inputs))


def test_transformers_loads_switches_and_switches_off_subjects(two, inputs):
    base, folders, models = two
    model = open_base(base)
    for name, folder in zip("ab", folders, strict=True):
        model.load_adapter(str(folder), adapter_name=name)
    for name, expected in zip("aba", (*models, models[0]), strict=True):
        model.set_adapter(name)
        assert torch.equal(logits(model, inputs), logits(expected, inputs))
    model.disable_adapters()
    assert torch.equal(logits(model, inputs), logits(tiny_model(), inputs))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_a_merged_subject_is_a_plain_model_that_saves_and_loads(profile, tie, inputs, tmp_path):
    model = build_subject_model(tiny_model(tie=tie), AdapterSettings(profile=profile, num_vision_layers=1, rank=4))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    expected = logits(model, inputs)
    merged = model.merge_and_unload()
    assert type(merged) is PVChatForConditionalGeneration
    assert not any("lora" in name or "modules_to_save" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged, inputs), expected, atol=1e-5, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    again = PVChatForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(logits(again, inputs), logits(merged, inputs))
    assert torch.equal(again.lm_head.weight, again.get_input_embeddings().weight) == tie


# -- several subjects in one batch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("tile_grid", [None, (2, 1)], ids=["one tile", "three tiles"])
def test_each_row_of_a_batch_is_answered_by_its_own_subject(tile_grid, tie, tmp_path):
    options = {"tile_grid": tile_grid, "tie": tie}
    model = None
    for seed, name in enumerate("ab"):
        subject = build_subject_model(tiny_model(**options), AdapterSettings(rank=4), seed)
        for parameter in subject.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        model = load_subject_adapter(model or tiny_model(**options), save(subject, tmp_path / name), name).eval()
    processor = tiny_processor(tile_grid)
    ids = processor.encode_prefix() + processor.encode_question("Is <Nz> in this video?", SUBJECT)
    names = ["a", "b", None, "a"]
    clips = [tiny_clip(True, seed) for seed in range(len(names))]
    pixels = processor.video_processor(videos=clips, return_tensors="pt")["pixel_values_videos"]
    batch = {"input_ids": torch.tensor([ids] * len(names)), "pixel_values_videos": pixels}
    with mixed_subjects(model, names):
        mixed = logits(model, batch)
        written = [model.generate(**batch, max_new_tokens=4, do_sample=False, num_beams=n) for n in (1, 2)]
    for row, name in enumerate(names):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        model.set_adapter(name or "a")
        alone = tiny_model(**options) if name is None else model
        torch.testing.assert_close(mixed[row], logits(alone, one)[0], atol=1e-5, rtol=1e-5)
        for beams, found in zip((1, 2), written, strict=True):
            answer = alone.generate(**one, max_new_tokens=4, do_sample=False, num_beams=beams)
            assert torch.equal(found[row, : answer.shape[1]], answer[0])
    model.set_adapter("b")
    one = {key: value[:1] for key, value in batch.items()}
    assert not torch.allclose(logits(model, one)[0], mixed[0], atol=1e-3)  # outside, the active adapter answers


def test_what_cannot_be_mixed_is_one_line(inputs):
    with pytest.raises(PVChatError, match="No adapter is called zoe; loaded are default"):
        with mixed_subjects(trained_model(), ["zoe", None]):
            pass
    with pytest.raises(PVChatError, match="profile 'light'"):
        with mixed_subjects(trained_model("paper"), ["default"]):
            pass
    model = trained_model()
    with pytest.raises(PVChatError, match="1 rows, but 2 subjects"), mixed_subjects(model, ["default", None]):
        logits(model, inputs)
    assert torch.isfinite(logits(model, inputs)).all()  # the hooks are gone


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_what_stage_1_saved_is_what_stage_2_starts_from_to_the_bit(profile, tmp_path):
    """Also on a bfloat16 base, whose copies of modules are trained in float32."""
    base = tiny_model().to(torch.bfloat16)
    before = build_subject_model(base, AdapterSettings(profile=profile, num_vision_layers=1))
    for parameter in before.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    folder = save(before, tmp_path / "stage1", profile)
    after = build_subject_model(tiny_model().to(torch.bfloat16), AdapterSettings(profile=profile, num_vision_layers=1))
    set_peft_model_state_dict(after, load_peft_weights(str(folder), device="cpu"))
    trained = {name: p for name, p in before.named_parameters() if p.requires_grad}
    for name, parameter in after.named_parameters():
        if name in trained:
            assert parameter.dtype == torch.float32 and torch.equal(parameter, trained.pop(name)), name
    assert not trained


def test_a_finished_adapter_is_saved_in_the_type_it_runs_in(inputs, tmp_path):
    model = trained_model()
    record = subject_record(model, SUBJECT, "light", "d" * 8, ["1", "2"], 0)
    exact = save_subject_adapter(model, tmp_path / "exact", record)
    small = save_subject_adapter(model, tmp_path / "small", record, torch.bfloat16)
    values = {folder: load_file(folder / "adapter_model.safetensors") for folder in (exact, small)}
    assert {v.dtype for v in values[small].values()} == {torch.bfloat16}
    assert all(torch.equal(v.to(torch.bfloat16), values[small][name]) for name, v in values[exact].items())
    loaded = load_subject_adapter(tiny_model(), small)
    torch.testing.assert_close(logits(loaded, inputs), logits(model, inputs), atol=0.1, rtol=0.1)


def test_no_value_of_a_trained_light_adapter_is_the_base_s(inputs):
    base = {name: p.detach().clone() for name, p in tiny_model().named_parameters()}
    model = build_subject_model(tiny_model(), AdapterSettings(rank=4)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name, value in state.items():
        same = [other for other, p in base.items() if p.shape == value.shape and torch.equal(p, value)]
        assert not same, (name, same)
    assert sum(v.numel() for v in state.values()) < sum(p.numel() for p in base.values())


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "megabytes"), [("light", 45.4), ("paper", 395.3)])
def test_at_full_size_an_adapter_holds_what_its_profile_says(profile, megabytes):
    """On the meta device: 8.4 billion parameters in the base, none of them in the light adapter."""
    with torch.device("meta"):
        base = PVChatForConditionalGeneration(PVChatConfig()).to(torch.bfloat16)
    shapes = {name: p.shape for name, p in base.named_parameters()}
    model = build_subject_model(base, AdapterSettings(profile=profile))
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert sum(v.numel() for v in state.values()) * 2 / 1e6 == pytest.approx(megabytes, abs=0.1)  # bfloat16
    if profile == "paper":
        return
    assert megabytes <= 50
    copies = {name.removeprefix("base_model.model."): v for name, v in state.items() if "lora_" not in name}
    kinds = {re.sub(r"\.\d+\.", ".N.", name) for name in copies}
    assert kinds == {
        "lm_head.token_adapter.trainable_tokens_delta",
        "model.language_model.embed_tokens.token_adapter.trainable_tokens_delta",
        "model.subject_tokens.weight",
        *(f"model.qformer.encoder.layer.N.{part}.attention.head_router.{weight}"
          for part in ("attention", "crossattention") for weight in ("router.weight", "router.bias", "alpha.weight")),
    }  # fmt: skip
    assert {name for name in copies if name in shapes} == {"model.subject_tokens.weight", *(
        name for name in shapes if ".head_router." in name
    )}  # fmt: skip


def test_the_commit_of_a_base_from_the_hub_is_recorded(tmp_path):
    base = tiny_model()
    base.config._name_or_path, base.config._commit_hash = "ada/tiny", "c0ffee" * 6
    folder = save(build_subject_model(base, AdapterSettings(rank=4)), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("ada/tiny", "c0ffee" * 6)
    assert SubjectRecord.read(folder).base["revision"] == "c0ffee" * 6
    with pytest.raises(
        PVChatError, match=r"made for the base ada/tiny at c0ffeec0 .*this base is \(unnamed\)"
    ) as error:
        load_subject_adapter(tiny_model(seed=1), folder)
    assert "\n" not in str(error.value)


def test_pickled_weights_are_not_read(tmp_path):
    folder = save(trained_model(), tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    with pytest.raises(PVChatError, match="has no adapter_model.safetensors"):
        load_subject_adapter(tiny_model(), folder)


@pytest.mark.parametrize(("profile", "rank", "alpha"), [("light", 8, 16), ("paper", 16, 32)])
def test_the_rank_follows_the_profile_unless_given(profile, rank, alpha):
    assert (AdapterSettings(profile).rank, AdapterSettings(profile).alpha) == (rank, alpha)
    assert AdapterSettings(profile, rank=4).alpha == 8 and AdapterSettings(profile, rank=4, alpha=5).alpha == 5


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_only_the_name_rows_of_embedding_and_head_change(tie, inputs):
    base = tiny_model(tie=tie)
    row = base.config.subject_token_id
    model = build_subject_model(base, AdapterSettings())
    groups = apply_freeze_table(model, "light", 1)
    for name, parameter in model.named_parameters():
        if name in groups and kind_of(name) == "rows":
            parameter.data += 1.0
    with torch.no_grad():
        every = torch.arange(base.config.text_config.vocab_size)
        moved = (model.get_input_embeddings()(every) - tiny_model(tie=tie).get_input_embeddings()(every)).abs().sum(-1)
        hidden = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
        heads = model.get_base_model().lm_head, tiny_model(tie=tie).lm_head
        scores = (heads[0](hidden) - heads[1](hidden)).abs()[0]
    assert moved.nonzero().flatten().tolist() == [row]
    assert scores.nonzero().flatten().tolist() == [row]


def test_two_subjects_share_one_base(inputs, tmp_path):
    models = [trained_model(seed=seed) for seed in (0, 1)]
    folders = [save(model, tmp_path / name) for model, name in zip(models, "ab", strict=True)]
    base = load_subject_adapter(tiny_model(), folders[0], "a")
    base = load_subject_adapter(base, folders[1], "b")
    for name, model in zip("bab", (models[1], models[0], models[1]), strict=True):
        base.set_adapter(name)
        assert torch.equal(logits(base, inputs), logits(model, inputs))
    with base.disable_adapter():
        assert torch.equal(logits(base, inputs), logits(tiny_model(), inputs))
    with pytest.raises(PVChatError, match="'b' is taken"):
        load_subject_adapter(base, folders[1], "b")


@pytest.mark.parametrize("order", [PROFILES, PROFILES[::-1]], ids=["light first", "paper first"])
def test_the_two_profiles_do_not_share_a_base(order, inputs, tmp_path):
    folders = [save(trained_model(profile), tmp_path / profile, profile) for profile in order]
    base = load_subject_adapter(tiny_model(), folders[0], "a")
    before = logits(base, inputs)
    with pytest.raises(PVChatError, match="do not fit into one base") as error:
        load_subject_adapter(base, folders[1], "b")
    assert "\n" not in str(error.value) and torch.equal(logits(base, inputs), before)
    other = load_subject_adapter(base, folders[0], "b")
    assert torch.equal(logits(other, inputs), before)


@pytest.mark.slow
def test_a_base_in_four_bits_is_learned_on_in_float32_and_shares_its_adapters(tmp_path):
    """Saved as docs/hub.md says. What was trained on it fits the whole base, and the other way round."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    config = tiny_config()
    config.text_config.hidden_size, config.text_config.intermediate_size, config.text_config.head_dim = 64, 128, 16
    whole, small = tmp_path / "base", tmp_path / "base-4bit"
    randomised(PVChatForConditionalGeneration(config), std=0.1).save_pretrained(whole)
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["model.vision_tower", "model.qformer", "model.multi_modal_projector", "lm_head"],
    )  # fmt: skip
    PVChatForConditionalGeneration.from_pretrained(whole, quantization_config=settings).save_pretrained(small)
    for folder in (whole, small):
        tiny_processor().save_pretrained(folder)
    count = re.compile("model of ([0-9,]+) parameters")
    cards = [str(base_card(folder, licence="mit")) for folder in (whole, small)]
    assert count.search(cards[0])[1] == count.search(cards[1])[1] and "(F32, U8)" in cards[1]
    dataset = tiny_dataset(tmp_path / "data", positives=2, negatives=2)
    adapter = train_subject(small, dataset, tmp_path / "run", settings={"train": {"num_train_epochs": 1}})
    values = load_file(adapter / "adapter_model.safetensors")
    assert {value.dtype for value in values.values()} == {torch.float32}
    rounded = [name for name, value in values.items() if torch.equal(value, value.bfloat16().float())]
    assert not [name for name in rounded if values[name].any()]
    chats = [VideoChat.from_pretrained(base, adapter) for base in (small, whole)]
    linears = [type(chat.model.get_submodule(f"{LAYER}.q_proj.base_layer")).__name__ for chat in chats]
    assert linears == ["Linear4bit", "Linear"]
    assert all(isinstance(chat.ask(tiny_clip(True), "Is Nz here?", 3), str) for chat in chats)


def test_trained_values_are_float32_on_a_bfloat16_base():
    model = build_subject_model(tiny_model().to(torch.bfloat16), AdapterSettings(profile="paper", num_vision_layers=1))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_the_base_hash_survives_adapters_and_dtype_and_tells_bases_apart():
    base = tiny_model()
    expected = base_hash(base)
    assert base_hash(tiny_model().to(torch.bfloat16)) == expected
    assert base_hash(tiny_model(seed=1)) != expected
    for profile in PROFILES:
        assert base_hash(trained_model(profile)) == expected


def test_another_base_is_refused(tmp_path):
    folder = save(trained_model(), tmp_path / "adapter")
    with pytest.raises(PVChatError, match="made for the base"):
        load_subject_adapter(tiny_model(seed=1), folder)


def test_another_routing_is_refused(tmp_path):
    folder = save(trained_model(), tmp_path / "adapter")
    base = tiny_model()
    insert_routers(base.model.qformer, routing="moh")
    with pytest.raises(PVChatError, match="is routed as"):
        load_subject_adapter(base, folder)


def test_an_adapter_without_routers_loads_beside_one_with_routers(inputs, tmp_path):
    plain, routed = trained_model(routing="none"), trained_model(routing="remoh")
    expected = logits(plain, inputs)
    folders = [save(plain, tmp_path / "plain"), save(routed, tmp_path / "routed")]
    base = load_subject_adapter(tiny_model(), folders[1], "routed")
    base = load_subject_adapter(base, folders[0], "plain")
    assert torch.equal(logits(base, inputs), expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "subject.json").unlink(), "not a subject's adapter"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda folder: (folder / "subject.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "subject.json").write_text("[]"), "cannot be read"),
        (lambda folder: (folder / "subject.json").write_text('{"subject": "<Nz>"}'), "cannot be read"),
    ],
)
def test_a_damaged_folder_gives_one_line(damage, message, tmp_path):
    folder = save(trained_model(), tmp_path / "adapter")
    damage(folder)
    with pytest.raises(PVChatError, match=message) as error:
        load_subject_adapter(tiny_model(), folder)
    assert "\n" not in str(error.value)


def test_a_newer_format_is_refused(tmp_path):
    folder = save(trained_model(), tmp_path / "adapter")
    record = json.loads((folder / "subject.json").read_text())
    (folder / "subject.json").write_text(json.dumps(record | {"format_version": 99}))
    with pytest.raises(PVChatError, match="update pvchat"):
        SubjectRecord.read(folder)


def test_saved_files_name_no_local_path(tmp_path):
    base = tiny_model()
    base.config._name_or_path = str(tmp_path / "my-base")
    (tmp_path / "my-base").mkdir()
    model = build_subject_model(base, AdapterSettings())
    folder = save(model, tmp_path / "adapter")
    text = (folder / "adapter_config.json").read_text() + (folder / "subject.json").read_text()
    assert str(tmp_path) not in text and '"my-base"' in text
    assert SubjectRecord.read(folder).subject == SUBJECT


def test_saving_again_replaces_the_folder_whole(tmp_path):
    save(trained_model(seed=0), tmp_path / "adapter", subject="<A>")
    first = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save(trained_model(seed=1), tmp_path / "adapter", subject="<B>")
    second = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert SubjectRecord.read(tmp_path / "adapter").subject == "<B>"
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_light_is_smaller_than_paper_where_the_qformer_is_large():
    sizes = {}
    for profile in PROFILES:
        model = build_subject_model(tiny_model(), AdapterSettings(profile=profile, rank=1, num_vision_layers=1))
        sizes[profile] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes["light"] < sizes["paper"] / 5


def test_the_adapter_leaves_out_the_text_branch_that_queries_never_touch():
    from pvchat.modeling_pvchat.configuration_pvchat import PVChatQFormerConfig
    from pvchat.modeling_pvchat.modeling_qformer import PVChatQFormerModel

    base = tiny_model()
    config = PVChatQFormerConfig(**base.config.qformer_config.to_dict() | {"has_text_branch": True, "vocab_size": 50})
    base.model.qformer = PVChatQFormerModel(config)
    base.config.qformer_config = config
    model = build_subject_model(base, AdapterSettings(profile="paper", num_vision_layers=1))
    trained = [name for name in apply_freeze_table(model, "paper", 2) if ".qformer." in name]
    assert trained
    assert not any("embeddings.word" in n or ".intermediate." in n or "layer.0.output." in n for n in trained)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("routing", ["remoh", "moh", "none"])
def test_the_freeze_table_covers_every_parameter(profile, routing):
    model = build_subject_model(tiny_model(), AdapterSettings(profile=profile, routing=routing, num_vision_layers=1))
    groups = apply_freeze_table(model, profile, 2)
    assert set(groups) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert ("router" in groups.values()) == (routing != "none")
    assert sum(trained_counts(model, groups).values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_an_uncovered_parameter_is_named(monkeypatch):
    model = build_subject_model(tiny_model(), AdapterSettings())
    model.get_base_model().model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"model\.extra\.weight \(0 rows\)"):
        apply_freeze_table(model, "light", 1)
    monkeypatch.setitem(FREEZE_TABLES, "light", (*FREEZE_TABLES["light"], FREEZE_TABLES["light"][0]))
    with pytest.raises(ValueError, match=r"cls_token \(2 rows\)"):
        apply_freeze_table(model, "light", 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profile": "heavy"}, "profile must be one of light, paper"),
        ({"routing": "all"}, "attention must be one of remoh, moh, none"),
        ({"dropout": 1.0}, "dropout"),
        ({"rank": 0}, "rank"),
    ],
)
def test_bad_settings_say_what_is_allowed(settings, message):
    with pytest.raises(PVChatError, match=message):
        AdapterSettings(**settings)


def test_more_trained_blocks_than_the_encoder_has_are_refused():
    with pytest.raises(PVChatError, match="3 encoder blocks"):
        build_subject_model(tiny_model(), AdapterSettings(profile="paper", num_vision_layers=4))
