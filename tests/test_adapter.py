"""Subject adapters: what they hold, that they load back exactly, and that without them the base is what it was."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from pvchat.errors import PVChatError
from pvchat.modeling_pvchat.modeling_qformer import insert_routers
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
from tests.tiny import SUBJECT, tiny_clip, tiny_model, tiny_processor

PROFILES = ("light", "paper")


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


def test_plain_peft_reads_the_folder_once_the_base_has_routers(inputs, tmp_path):
    model = trained_model()
    folder = save(model, tmp_path / "adapter")
    base = tiny_model()
    insert_routers(base.model.qformer, routing="remoh")
    loaded = PeftModel.from_pretrained(base, folder)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


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
