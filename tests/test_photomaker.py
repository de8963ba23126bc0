"""PhotoMaker computes what the original computed: encoders, trigger word, pictures, embeddings per denoising step."""

import os
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pvchat.dataset_builder.backends.photomaker import PhotoMakerPortraits
from pvchat.dataset_builder.backends.photomaker.encoder import (
    FuseModule,
    PhotoMakerIDEncoder,
    PhotoMakerIDEncoderV2,
    QFormerPerceiver,
    vision_config,
)
from pvchat.dataset_builder.backends.photomaker.pipeline import denoise, encode_prompt, remove_trigger
from pvchat.dataset_builder.backends.photomaker.portraits import add_trigger, load_adapter, read_weights, spread
from pvchat.dataset_builder.backends.photomaker.prompt import expand_class_word, normalise, prepare_pictures
from pvchat.dataset_builder.engine import Rejected
from pvchat.dataset_builder.protocols import Person, PortraitGenerator
from pvchat.dataset_builder.scenes import draw_scene
from pvchat.errors import MissingBackendError, PVChatError
from tests.golden_faces import FILES, Golden, draw, golden_cases, golden_listings, read_json, stored_part

needs_full = pytest.mark.skipif(not os.environ.get("PVCHAT_FULL"), reason="up to 5 GB; set PVCHAT_FULL=1")
ENCODERS = {"v1": PhotoMakerIDEncoder, "v2": PhotoMakerIDEncoderV2}


# -- golden cases -----------------------------------------------------------------------------------------------------


class PhotoMakerCase(Golden):
    """A case with the comparison with its outputs."""

    def check(self, name, ours):
        """Within the allowed error, on the stored part of the tensor and on its statistics."""
        info = self.meta["outputs"][name]
        assert list(ours.shape) == info["shape"], name
        stored = self.tensors[f"output.{name}"]
        ours = ours.detach()
        part = ours[stored_part(info["index"])] if "index" in info else ours
        if ours.dtype == torch.bool:
            assert torch.equal(part, stored), name
            return
        error = (part - stored).abs().max().item()
        print(f"{self.meta['case']} {name}: {error:.2e} of {info['atol']:.0e}")
        assert error <= info["atol"], f"{name}: {error} > {info['atol']}"
        if f"output.{name}#mean" in self.tensors:
            full = ours.double().flatten(2)
            torch.testing.assert_close(
                full.mean(2).float(), self.tensors[f"output.{name}#mean"].float(), atol=info["atol"], rtol=0
            )
            rms = full.square().mean(2).sqrt().float()
            torch.testing.assert_close(rms, self.tensors[f"output.{name}#rms"].float(), atol=info["atol"], rtol=0)


def build(make, weights):
    """A module made without memory, then given the weights; every name must fit."""
    with torch.device("meta"):
        module = make()
    module.load_state_dict(weights, strict=True, assign=True)
    for name, buffer in module.named_buffers():
        if buffer.is_meta:  # position_ids, which no state dict holds
            owner = module.get_submodule(name.rpartition(".")[0])
            owner.register_buffer(name.rpartition(".")[2], torch.arange(buffer.shape[-1])[None], persistent=False)
    return module.eval()


def record(module, names):
    """name -> output of that submodule at the next call"""
    seen = {}
    for name in names:

        def hook(_module, _inputs, output, name=name):
            seen[name] = output[0] if isinstance(output, tuple) else output

        module.get_submodule(name).register_forward_hook(hook)
    return seen


def small_encoder(version, case):
    sizes = {k: v for k, v in case.meta["config"]["vision"].items() if k not in ("hidden_act", "layer_norm_eps")}
    net = "net" if "net" in case.meta["weights"] else f"id_encoder_{version}"
    return build(lambda: ENCODERS[version](vision_config(**sizes)), case.weights(net))


@torch.no_grad()
def check_encoder(version, name):
    case = PhotoMakerCase(name)
    encoder = small_encoder(version, case)
    hooks = [output.removeprefix("hook.") for output in case.meta["outputs"] if output.startswith("hook.")]
    seen = record(encoder, hooks)
    pictures = torch.stack([normalise(picture) for picture in case.input("image_u8").numpy()])[None]
    prompt, mask = case.input("prompt_embeds"), case.input("class_tokens_mask")
    extra = [case.input("id_embeds")] if version == "v2" else []
    before = prompt.clone()
    updated = encoder(pictures, prompt, mask, *extra)
    for hook in hooks:
        case.check(f"hook.{hook}", seen[hook])
    case.check("updated", updated)
    case.check("updated_rows", updated[mask])
    assert torch.equal(prompt, before)  # the given embeddings are left alone
    assert torch.equal(updated[~mask], prompt[~mask])
    if version == "v1":
        short = case.input("class_tokens_mask_short")
        case.check("updated_rows_short", encoder(pictures, prompt, short)[short])


@golden_cases("photomaker_v1")
def test_the_v1_encoder_equals_the_original(golden):
    check_encoder("v1", golden)


@golden_cases("photomaker_v2")
@pytest.mark.slow
def test_the_v2_encoder_equals_the_original(golden):
    check_encoder("v2", golden)


@golden_cases("photomaker_v1_full", "photomaker_v2_full")
@needs_full
@pytest.mark.slow
def test_the_encoder_at_full_size_equals_the_original(golden):
    check_encoder("v1" if FILES[golden] == "photomaker_v1_full" else "v2", golden)


@golden_listings("photomaker_v1", "photomaker_v2")
def test_the_names_and_shapes_are_those_of_the_published_files(golden):
    listing = read_json(f"state_dicts/{golden}.json")
    with torch.device("meta"):
        encoder = ENCODERS[golden.removeprefix("photomaker_")]()
    ours = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert ours == {name: shape for name, shape, *_ in listing["tensors"]}
    assert sum(p.numel() for p in encoder.parameters()) == listing["parameters"]


@golden_cases("photomaker_parts")
def test_the_fuse_module_and_the_perceiver_equal_the_original(golden):
    case = PhotoMakerCase(golden)
    sizes = case.meta["config"]["qformer"]
    fuse = build(lambda: FuseModule(case.meta["config"]["fuse_embed_dim"]), case.weights("fuse"))
    case.check("fused", fuse(case.input("prompt_embeds"), case.input("id_embeds"), case.input("mask")))
    perceiver = build(
        lambda: QFormerPerceiver(
            sizes["id_embeddings_dim"], sizes["cross_attention_dim"], sizes["num_tokens"], sizes["embedding_dim"]
        ),
        case.weights("qformer"),
    )
    case.check("id_tokens", perceiver(case.input("face_embedding"), case.input("patch_tokens")))


@golden_cases("photomaker_parts")
def test_a_result_that_is_off_by_one_percent_is_noticed(golden):
    case = PhotoMakerCase(golden)
    fuse = build(lambda: FuseModule(case.meta["config"]["fuse_embed_dim"]), case.weights("fuse"))
    fused = fuse(case.input("prompt_embeds"), case.input("id_embeds"), case.input("mask"))
    with pytest.raises(AssertionError, match="fused"):
        case.check("fused", 1.01 * fused)


@golden_cases("photomaker_tokens")
def test_the_trigger_word_is_handled_exactly_as_by_the_original(golden):
    rows = read_json(f"{golden}.json")["rows"]
    assert rows
    for row in rows:
        arguments = (row["input_ids_77"], row["trigger_id"], row["pad_id"], row["num_tokens"] * row["num_id_images"])
        if "error" in row:
            with pytest.raises(PVChatError, match="exactly once"):
                expand_class_word(*arguments)
        else:
            ids, mask = expand_class_word(*arguments)
            assert ids == row["output_ids"]
            assert [index for index, inside in enumerate(mask) if inside] == row["mask_true"]


@golden_cases("photomaker_preprocess")
def test_the_pictures_are_prepared_as_by_the_original(golden):
    case = PhotoMakerCase(golden)
    for name in case.meta["outputs"]:
        ours = prepare_pictures([case.input(name).numpy()])
        case.check(name, ours)
        stored = case.tensors[f"output.{name}"]
        assert (ours[:, :, ::8, ::8] - stored).abs().mean() < 0.002


def test_the_pictures_are_prepared_as_by_the_library():
    from transformers import CLIPImageProcessorPil

    rng = np.random.default_rng(0)
    for shape in ((224, 224), (300, 231), (57, 211)):
        picture = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        theirs = CLIPImageProcessorPil()(picture, return_tensors="pt").pixel_values
        torch.testing.assert_close(prepare_pictures([picture]), theirs, atol=1e-5, rtol=0)


# -- the pipeline on tiny SDXL parts ----------------------------------------------------------------------------------


def word_tokenizer(pad_id):
    """A word-level tokenizer with the ids of the golden prompts: 62 starts, 63 ends, the trigger word becomes 64."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {"a": 1, "photo": 2, "of": 3, "man": 4, "woman": 5, ",": 6, "wearing": 7, "hat": 8}
    known |= {"best": 17, "quality": 18, "bad": 19, "low": 20, "<start>": 62, "<end>": 63}
    spare = iter(number for number in range(64) if number not in known.values())
    known |= {f"<{number}>": number for number in spare}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 62), ("<end>", 63)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<0>",
        pad_token={63: "<end>", 0: "<0>"}[pad_id],
        model_max_length=77,
    )


def text_config(hidden, heads, act, pad_id):
    return CLIPTextConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=64, projection_dim=hidden, num_hidden_layers=2,
        num_attention_heads=heads, max_position_embeddings=77, hidden_act=act, pad_token_id=pad_id, bos_token_id=62,
        eos_token_id=63,
    )  # fmt: skip


def tiny_sdxl(weights=None):
    """StableDiffusionXLPipeline of tiny parts; weights: net -> state dict, else random."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(text_config(768, 12, "quick_gelu", 63))
    text_encoder_2 = CLIPTextModelWithProjection(text_config(1280, 20, "gelu", 0))
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=1328,
        cross_attention_dim=2048, norm_num_groups=8,
    )  # fmt: skip
    for net, module in (("text_encoder", text_encoder), ("text_encoder_2", text_encoder_2), ("unet", unet)):
        if weights is not None:
            load_text_weights(module, weights[net])
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=2, sample_size=16,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae.eval(), text_encoder=text_encoder.eval(), text_encoder_2=text_encoder_2.eval(),
        tokenizer=word_tokenizer(63), tokenizer_2=word_tokenizer(0), unet=unet.eval(), scheduler=scheduler,
        add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_text_weights(module, weights):
    """The text encoders' names begin with "text_model." in some versions of transformers and not in others."""
    ours = module.state_dict()
    missing, unexpected = module.load_state_dict(
        {name if name in ours else name.removeprefix("text_model."): t for name, t in weights.items()}, strict=False
    )
    assert missing == [] and unexpected == []


@golden_cases("photomaker_pipeline")
@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_denoising_step_sees_the_embeddings_of_the_original(golden, version):
    case = PhotoMakerCase(golden)
    config = case.meta["config"]
    pipe = tiny_sdxl({net: case.weights(net) for net in ("text_encoder", "text_encoder_2", "unet")})
    encoder = small_encoder(version, case)
    pictures = torch.stack([normalise(picture) for picture in case.input("image_u8").numpy()])
    id_embeds = case.input("id_embeds") if version == "v2" else None
    e = encode_prompt(pipe, encoder, config["prompt"], config["negative_prompt"], pictures, id_embeds)
    ours = {
        "mask": e.mask,
        "prompt_embeds_expanded": e.expanded,
        "prompt_embeds_id": e.identity,
        "prompt_embeds_text_only": e.text,
        "negative_prompt_embeds": e.negative,
        "pooled_id": e.identity_pooled,
        "pooled_text_only": e.text_pooled,
        "negative_pooled": e.negative_pooled,
    }
    for name, tensor in ours.items():
        case.check(f"{version}.{name}", tensor)

    steps = []
    pipe.unet.register_forward_pre_hook(
        lambda _module, args, kwargs: steps.append(
            (args[1], kwargs["encoder_hidden_states"], kwargs["added_cond_kwargs"])
        ),
        with_kwargs=True,
    )
    made = denoise(
        pipe, e, start_merge_step=config["start_merge_step"], num_inference_steps=config["num_inference_steps"],
        guidance_scale=config["guidance_scale"], height=config["height"], width=config["width"],
        latents=case.input("latents"), output_type="latent",
    )  # fmt: skip
    case.check(f"{version}.latents", made.images)
    kinds = {"text": (e.text, e.text_pooled), "id": (e.identity, e.identity_pooled)}
    assert [float(step[0]) for step in steps] == config["timesteps"]
    for (_, seen, added), kind, pooled in zip(
        steps, config[f"{version}.embeddings_of_step"], config[f"{version}.pooled_of_step"], strict=True
    ):
        assert torch.equal(seen, torch.cat([e.negative, kinds[kind][0]]))
        assert torch.equal(added["text_embeds"], torch.cat([e.negative_pooled, kinds[pooled][1]]))
        assert added["time_ids"].tolist() == config["time_ids"]


@golden_cases("photomaker_pipeline")
def test_the_text_only_prompt_is_that_of_the_original(golden):
    config = PhotoMakerCase(golden).meta["config"]
    text = remove_trigger(config["prompt"])
    assert text == config["prompt_text_only"]
    for pad_id, ids in zip((63, 0), config["text_only_ids"], strict=True):
        tokenizer = word_tokenizer(pad_id)
        assert tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids == ids


# -- the backend ------------------------------------------------------------------------------------------------------


def tiny_encoder(version):
    torch.manual_seed(1)
    config = vision_config(hidden_size=64, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                           patch_size=56)  # fmt: skip
    encoder = ENCODERS[version](config)
    if version == "v2":
        encoder.qformer_perceiver = TinyPerceiver()
    return encoder.eval()


class TinyPerceiver(nn.Module):
    """In place of the 210 M parameters of the full-width one."""

    def __init__(self):
        super().__init__()
        self.face = nn.Linear(512, 2 * 2048)

    def forward(self, face, patches):
        return self.face(face).view(len(face), 2, 2048)


def a_person(frames=6, size=40):
    noise = np.random.default_rng(2).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
    return Person(noise, 8.0, best=frames // 2)


def portraits(version="v1", **changes):
    arguments = {"steps": 4, "start_merge_step": 1, "size": 16, "max_pictures": 3}
    return PhotoMakerPortraits(
        version, pipeline=tiny_sdxl(), id_encoder=tiny_encoder(version), **(arguments | changes)
    )


PROMPT = "a photo of a man img wearing a hat"


def test_a_portrait_is_one_frame_that_depends_on_the_seed_the_prompt_and_the_person():
    backend, person = portraits(), a_person()
    assert isinstance(backend, PortraitGenerator)
    first = backend.generate(person, PROMPT, 7)
    assert (first.frames.shape, first.frames.dtype, first.fps) == ((1, 16, 16, 3), np.uint8, 8.0)
    assert first.alpha is None and first.frames.std() > 1
    assert np.array_equal(first.frames, backend.generate(person, PROMPT, 7).frames)
    other = Person(255 - person.frames, 8.0, best=3)
    for changed in ((person, PROMPT, 8), (person, "a photo of a woman img", 7), (other, PROMPT, 7)):
        assert not np.array_equal(first.frames, backend.generate(*changed).frames)


def test_without_identity_steps_the_person_makes_no_difference():
    backend = portraits(start_merge_step=4)
    person = a_person()
    other = Person(255 - person.frames, 8.0, best=3)
    assert np.array_equal(backend.generate(person, PROMPT, 1).frames, backend.generate(other, PROMPT, 1).frames)


def test_v2_uses_the_pictures_with_a_face_and_rejects_a_person_without_one():
    person = a_person()
    dark = np.zeros_like(person.frames[0])
    person.frames[0] = dark

    def arcface(picture):
        return None if picture.max() == 0 else np.resize(picture, 512).astype(np.float32) / 255

    backend = portraits("v2", arcface=arcface)
    seen = []
    backend._id_encoder.register_forward_pre_hook(lambda _module, args: seen.append((args[0].shape, args[3].shape)))
    backend.generate(person, PROMPT, 0)
    assert seen == [((1, 2, 3, 224, 224), (1, 2, 512))]
    with pytest.raises(Rejected, match="no face"):
        backend.generate(Person(np.stack([dark, dark]), 8.0), PROMPT, 0)


def test_a_prompt_of_the_bank_gets_its_trigger_word():
    scene = draw_scene(3, "elder")
    assert add_trigger(scene.prompt) == scene.prompt.replace("An elder wearing", "An elder img wearing")
    assert add_trigger("a woman in a garden") == "a woman img in a garden"
    assert add_trigger("a pilot img in a garden") == "a pilot img in a garden"
    with pytest.raises(PVChatError, match="names nobody"):
        add_trigger("a garden")


def test_an_empty_prompt_is_drawn_from_the_bank_by_the_seed():
    backend, person = portraits(steps=1, start_merge_step=0), a_person(2)
    drawn = backend.generate(person, "", 5).frames
    assert np.array_equal(drawn, backend.generate(person, draw_scene(5).prompt, 5).frames)


def test_the_best_picture_comes_first_and_the_others_are_spread():
    assert spread(30, 11, 4) == [11, 0, 10, 19]
    assert spread(2, 1, 4) == [1, 0]
    assert spread(1, 0, 4) == [0]


def lora_weights(unet, legacy):
    """A LoRA of rank 2 for the first cross-attention, under the old or the new names."""
    block = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    shapes = {"to_q": (64, 64), "to_k": (64, 2048), "to_v": (64, 2048), "to_out.0": (64, 64)}
    weights = {}
    for layer, (rows, columns) in shapes.items():
        old = f"unet.{block}.processor.{layer.removesuffix('.0')}_lora"
        down, up = (f"{old}.down", f"{old}.up") if legacy else (f"unet.{block}.{layer}.lora_A",
                                                                f"unet.{block}.{layer}.lora_B")  # fmt: skip
        weights[f"{down}.weight"] = draw(f"{layer} down", (2, columns))
        weights[f"{up}.weight"] = draw(f"{layer} up", (rows, 2))
    return weights


@pytest.mark.parametrize("legacy", [True, False], ids=["old names", "new names"])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_an_official_file_gives_the_encoder_and_is_merged_into_the_unet(tmp_path, suffix, legacy, monkeypatch):
    pytest.importorskip("peft")
    pipe, encoder = tiny_sdxl(), tiny_encoder("v1")
    weights = {"id_encoder": encoder.state_dict(), "lora_weights": lora_weights(pipe.unet, legacy)}
    path = tmp_path / f"photomaker-v1{suffix}"
    if suffix == ".bin":
        torch.save(weights, path)
    else:
        save_file({f"{part}.{name}": t for part in weights for name, t in weights[part].items()}, path)
    monkeypatch.setattr(
        "pvchat.dataset_builder.backends.photomaker.portraits.PhotoMakerIDEncoder",
        lambda: PhotoMakerIDEncoder(encoder.config),
    )
    layer = pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2
    before = {name: getattr(layer, name).weight.clone() for name in ("to_q", "to_v")}
    loaded = load_adapter(pipe, path, "v1")
    for name, weight in before.items():
        merged = weight + draw(f"{name} up", (64, 2)) @ draw(f"{name} down", (2, weight.shape[1]))
        torch.testing.assert_close(getattr(layer, name).weight, merged, atol=1e-5, rtol=1e-4)
    pictures, prompt, mask = torch.randn(1, 1, 3, 224, 224), torch.randn(1, 77, 2048), torch.arange(77)[None] == 4
    torch.testing.assert_close(loaded(pictures, prompt, mask), encoder(pictures, prompt, mask), atol=1e-5, rtol=1e-5)


def test_base_and_adapter_are_loaded_at_the_first_call_and_give_what_ready_objects_give(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    pipe, encoder = tiny_sdxl(), tiny_encoder("v1")
    pipe.save_pretrained(tmp_path / "base")
    weights = {"id_encoder": encoder.state_dict(), "lora_weights": lora_weights(pipe.unet, legacy=True)}
    torch.save(weights, tmp_path / "photomaker-v1.bin")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file, revision: tmp_path / file)
    module = "pvchat.dataset_builder.backends.photomaker.portraits.PhotoMakerIDEncoder"
    monkeypatch.setattr(module, lambda: PhotoMakerIDEncoder(encoder.config))
    settings = {"steps": 3, "start_merge_step": 0, "size": 16}
    loaded = PhotoMakerPortraits("v1", base=str(tmp_path / "base"), **settings)
    made = loaded.generate(a_person(), PROMPT, 1).frames
    load_adapter(pipe, tmp_path / "photomaker-v1.bin", "v1")
    ready = PhotoMakerPortraits("v1", pipeline=pipe, id_encoder=encoder, **settings)
    assert np.abs(made.astype(int) - ready.generate(a_person(), PROMPT, 1).frames).max() <= 1


def test_a_file_that_is_not_photomaker_is_refused(tmp_path):
    torch.save({"id_encoder": {}}, tmp_path / "other.bin")
    with pytest.raises(PVChatError, match="not a PhotoMaker file"):
        read_weights(tmp_path / "other.bin")
    torch.save({"id_encoder": {"x": torch.ones(1)}, "lora_weights": {"y": torch.ones(1)}}, tmp_path / "v1.bin")
    with pytest.raises(PVChatError, match="not a PhotoMaker v1 file.*photomaker-v1.bin"):
        load_adapter(None, tmp_path / "v1.bin", "v1")


def test_a_file_with_code_in_it_is_not_run(tmp_path):
    import pickle

    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"id_encoder": os.system}))
    with pytest.raises(pickle.UnpicklingError):
        read_weights(tmp_path / "evil.bin")


@pytest.mark.parametrize("package", ["diffusers", "peft"])
def test_an_absent_package_gives_the_pip_line(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingBackendError, match=rf'{package}.*pip install "pvchat\[generate\]"'):
        PhotoMakerPortraits("v1").generate(a_person(1), PROMPT, 0)


def test_absent_face_models_give_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(MissingBackendError, match=r'insightface.*pip install "pvchat\[generate\]" insightface'):
        portraits("v2").generate(a_person(1), PROMPT, 0)


def test_absent_weights_name_the_repository_and_its_licence(monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingBackendError, match="TencentARC/PhotoMaker-V2 .licence: Apache-2.0.*Hub") as caught:
        PhotoMakerPortraits().generate(a_person(1), PROMPT, 0)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_and_revision_are_part_of_the_id_and_licences_follow_the_version():
    ids = {PhotoMakerPortraits(**changes).id for changes in ({}, {"version": "v1"}, {"steps": 30}, {"revision": "a1"})}
    assert len(ids) == 4 and all(name.startswith("photomaker-v") for name in ids)
    assert PhotoMakerPortraits(offload="model").id == PhotoMakerPortraits().id
    assert PhotoMakerPortraits("v1").licences == ("Apache-2.0", "OpenRAIL++-M")
    assert "InsightFace-NC" in PhotoMakerPortraits("v2").licences
    with pytest.raises(PVChatError, match="v1, v2"):
        PhotoMakerPortraits("v3")
    with pytest.raises(PVChatError, match="offload"):
        PhotoMakerPortraits(offload="disk")
