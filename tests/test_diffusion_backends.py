"""The diffusers backends run on tiny random weights of the real classes, repeat by seed, and say what is missing."""

import copy
import importlib
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pvchat.dataset_builder.backends.diffusion import (
    ConsisIDScenes,
    KleinPortraits,
    QwenEditPortraits,
    WanAnimator,
    WanVACEScenes,
    common,
    consisid,
)
from pvchat.dataset_builder.engine import Rejected
from pvchat.dataset_builder.protocols import Person, PortraitAnimator, PortraitGenerator, SceneVideoGenerator
from pvchat.dataset_builder.scenes import draw_scene
from pvchat.dataset_builder.video_io import write_video
from pvchat.errors import MissingBackendError, PVChatError

diffusers = pytest.importorskip("diffusers")
needs_full = pytest.mark.skipif(not os.environ.get("PVCHAT_FULL"), reason="compiles kernels; set PVCHAT_FULL=1")
SCENE = draw_scene(5).prompt


def a_person(frames=3, height=48, width=32, alpha=False):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return Person(pixels, 8.0, np.zeros(pixels.shape[:3], np.uint8) if alpha else None, best=1)


# -- tiny parts -------------------------------------------------------------------------------------------------------

SPECIAL = ("<pad>", "</s>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
VOCABULARY = 256 + len(SPECIAL)


def byte_tokenizer():
    """One token per byte; ends every text with </s>, as T5 does."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        chat_template="{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}",
    )


def t5_encoder(kind="T5"):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4,
        relative_attention_num_buckets=8,
    )  # fmt: skip
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def wan_vae():
    return diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1] * 4, num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()


@pytest.fixture(scope="module")
def consisid_pipeline():
    pytest.importorskip("cv2")
    torch.manual_seed(0)
    transformer = diffusers.ConsisIDTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=16, use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True, cross_attn_interval=1, is_kps=False, is_train_face=True,
        cross_attn_dim_head=1, cross_attn_num_heads=1, LFE_id_dim=2, LFE_vit_dim=2, LFE_depth=5, LFE_dim_head=8,
        LFE_num_heads=2, LFE_num_id_token=1, LFE_num_querie=1, LFE_output_dim=21, LFE_ff_mult=1, LFE_num_scale=1,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1,
        norm_num_groups=2, temporal_compression_ratio=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    pipe = diffusers.ConsisIDPipeline(
        tokenizer=byte_tokenizer(), text_encoder=t5_encoder(), vae=vae.eval(), transformer=transformer.eval(),
        scheduler=diffusers.CogVideoXDPMScheduler(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


class AnIdentity:
    """Stands in for ConsisID's face models; remembers what it saw."""

    def __init__(self):
        self.seen = []

    def encode(self, picture):
        self.seen.append(picture)
        level = float(picture.mean()) / 255
        return consisid.Identity(Image.fromarray(picture), level * torch.ones(1, 2), [level * torch.ones(1, 2, 2)])


def tiny_consisid(pipeline, identity=None):
    return ConsisIDScenes(
        width=16, height=16, num_frames=8, steps=2, pipeline=pipeline, identity_encoder=identity or AnIdentity(),
    )  # fmt: skip


# -- scene clips ------------------------------------------------------------------------------------------------------


def test_consisid_makes_a_clip_of_the_best_still_and_knows_the_truth(consisid_pipeline):
    identity = AnIdentity()
    scenes = tiny_consisid(consisid_pipeline, identity)
    assert isinstance(scenes, SceneVideoGenerator)
    person = a_person()
    made = scenes.generate(person, SCENE, seed=1)
    assert made.frames.dtype == np.uint8 and made.frames.shape[1:] == (16, 16, 3)
    assert made.fps == 8.0
    assert made.truth == draw_scene(5).truth
    assert np.array_equal(identity.seen[0], person.frames[person.best])


def test_consisid_repeats_a_clip_by_its_seed_and_no_other(consisid_pipeline):
    scenes = tiny_consisid(consisid_pipeline)
    first, again, other = (scenes.generate(a_person(), SCENE, seed).frames for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_consisid_draws_a_scene_when_there_is_no_prompt_and_knows_nothing_of_a_free_one(consisid_pipeline):
    scenes = tiny_consisid(consisid_pipeline)
    assert scenes.generate(a_person(), "", seed=5).truth == draw_scene(5).truth
    assert scenes.generate(a_person(), "somebody dancing", seed=5).truth is None


def test_the_constants_are_those_of_the_authors_script():
    scenes = ConsisIDScenes()
    assert (scenes.width, scenes.height, scenes.num_frames, scenes.steps, scenes.guidance) == (720, 480, 49, 50, 6.0)


def failing(error):
    def process(*_arguments, **_named):
        raise error

    return process


def test_a_still_without_a_face_is_rejected():
    encoder = object.__new__(consisid.ConsisIDFaces)
    encoder._process, encoder._models = failing(RuntimeError("facexlib align face fail")), (None,) * 6
    encoder._device, encoder._dtype = torch.device("cpu"), torch.float32
    with pytest.raises(Rejected, match="no face"):
        encoder.encode(np.zeros((8, 8, 3), np.uint8))


def test_other_errors_of_the_face_models_are_not_hidden():
    encoder = object.__new__(consisid.ConsisIDFaces)
    encoder._process, encoder._models = failing(RuntimeError("CUDA out of memory")), (None,) * 6
    encoder._device, encoder._dtype = torch.device("cpu"), torch.float32
    with pytest.raises(RuntimeError, match="out of memory"):
        encoder.encode(np.zeros((8, 8, 3), np.uint8))


@pytest.fixture(scope="module")
def vace_pipeline():
    pytest.importorskip("ftfy")
    torch.manual_seed(0)
    transformer = diffusers.WanVACETransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=256, ffn_dim=32, num_layers=3, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32, vace_layers=[0, 2], vace_in_channels=96,
    )  # fmt: skip
    pipe = diffusers.WanVACEPipeline(
        tokenizer=byte_tokenizer(), text_encoder=t5_encoder("UMT5"), vae=wan_vae(), transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_vace(pipeline):
    return WanVACEScenes(width=16, height=16, num_frames=17, steps=2, pipeline=pipeline)


def test_wan_vace_makes_a_clip_that_repeats_by_its_seed(vace_pipeline):
    scenes = tiny_vace(vace_pipeline)
    assert isinstance(scenes, SceneVideoGenerator)
    first, again, other = (scenes.generate(a_person(), SCENE, seed) for seed in (1, 1, 2))
    assert first.frames.shape == (17, 16, 16, 3) and first.frames.dtype == np.uint8
    assert (first.fps, first.truth) == (16.0, draw_scene(5).truth)
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, other.frames)


def test_wan_vace_shows_somebody_else_for_another_reference(vace_pipeline):
    """Random weights hardly heed the reference: encoder and reference branch are made louder."""
    pipeline = copy.deepcopy(vace_pipeline)
    with torch.no_grad():
        for name, weight in [*pipeline.vae.encoder.named_parameters(), *pipeline.transformer.named_parameters()]:
            if weight.ndim > 1 and ("vace" in name or "blocks" not in name or "down_blocks" in name):
                weight.mul_(3)
    scenes, person = tiny_vace(pipeline), a_person()
    made = scenes.generate(person, SCENE, seed=1).frames
    other = scenes.generate(Person(255 - person.frames, person.fps, best=person.best), SCENE, seed=1).frames
    unseen = person.frames.copy()
    unseen[np.arange(len(unseen)) != person.best] = 0
    same_still = scenes.generate(Person(unseen, person.fps, best=person.best), SCENE, seed=1).frames
    assert (made != other).mean() > 0.2 and np.array_equal(made, same_still)


def test_wan_vace_takes_the_best_still_as_the_reference_picture():
    class Recorder:
        def __call__(self, **arguments):
            self.arguments = arguments
            return SimpleNamespace(frames=np.zeros((1, 17, 16, 16, 3)))

    pipeline, person = Recorder(), a_person()
    tiny_vace(pipeline).generate(person, SCENE, seed=1)
    ((reference,),) = pipeline.arguments["reference_images"]
    assert np.array_equal(np.asarray(reference), person.frames[person.best])
    assert pipeline.arguments["prompt"] == SCENE


# -- portraits --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def klein_pipeline():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=28, head_dim=8,
            num_attention_heads=2, num_key_value_heads=2,
        )
    )  # fmt: skip
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=48, timestep_guidance_channels=256, axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        sample_size=32, in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), block_out_channels=(4,), layers_per_block=1, latent_channels=1,
        norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    pipe = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae.eval(), text_encoder=text_encoder.eval(),
        tokenizer=byte_tokenizer(), transformer=transformer.eval(), is_distilled=True,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


class TinyQwenProcessor:
    """Qwen2-VL's processor without its video part: an image mark stands there once per merged patch."""

    def __init__(self, tokenizer):
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.tokenizer, self.pictures = tokenizer, Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56)

    def __call__(self, text, images, padding, return_tensors):
        pixels = self.pictures(images=images, return_tensors=return_tensors)
        marks = [int(grid.prod()) // 4 for grid in pixels["image_grid_thw"]]
        (text,) = text
        for count in marks:
            text = text.replace("<|image_pad|>", "<mark>" * count, 1)
        text = text.replace("<mark>", "<|image_pad|>")
        return self.tokenizer([text], padding=padding, return_tensors=return_tensors) | pixels


@pytest.fixture(scope="module")
def qwen_pipeline():
    from transformers import BatchEncoding, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    mark = tokenizer.convert_tokens_to_ids
    text_encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": mark("<pad>"),
                "rope_parameters": {
                    "mrope_section": [1, 1, 2], "rope_type": "default", "type": "default", "rope_theta": 1e6
                },
            },
            vision_config={
                "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
            },
            image_token_id=mark("<|image_pad|>"),
            vision_start_token_id=mark("<|vision_start|>"),
            vision_end_token_id=mark("<|vision_end|>"),
        )
    )  # fmt: skip
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip

    class Processor(TinyQwenProcessor):
        def __call__(self, **arguments):
            return BatchEncoding(dict(super().__call__(**arguments)))

    pipe = diffusers.QwenImageEditPlusPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae.eval(), text_encoder=text_encoder.eval(),
        tokenizer=tokenizer, processor=Processor(tokenizer), transformer=transformer.eval(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def portraits(request, monkeypatch):
    """The backend on its tiny pipeline."""
    pipeline = request.getfixturevalue(f"{request.param}_pipeline")
    if request.param == "klein":
        return KleinPortraits(size=16, steps=2, pipeline=pipeline)
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

    monkeypatch.setattr(module, "VAE_IMAGE_SIZE", 32 * 32)  # 1024 x 1024 takes seconds on a CPU
    monkeypatch.setattr(module, "CONDITION_IMAGE_SIZE", 56 * 56)
    return QwenEditPortraits(size=16, steps=2, pipeline=pipeline)


@pytest.mark.parametrize("portraits", ["klein", "qwen"], indirect=True)
def test_an_edited_portrait_repeats_by_its_seed_and_sees_the_person(portraits):
    assert isinstance(portraits, PortraitGenerator)
    person = a_person(height=64, width=64)  # FLUX.2 takes no smaller picture
    first, again, other = (portraits.generate(person, SCENE, seed) for seed in (1, 1, 2))
    assert first.frames.shape == (1, 16, 16, 3) and first.frames.dtype == np.uint8
    assert (first.fps, first.alpha, first.best) == (person.fps, None, 0)
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, other.frames)
    another = portraits.generate(Person(255 - person.frames, person.fps, best=person.best), SCENE, 1)
    assert not np.array_equal(first.frames, another.frames)


def test_a_still_that_is_too_small_for_flux2_is_one_clear_line(klein_pipeline):
    with pytest.raises(Rejected, match="40 x 63 pixels, and flux2-klein needs at least 64") as error:
        KleinPortraits(size=16, steps=2, pipeline=klein_pipeline).generate(a_person(height=63, width=40), SCENE, 1)
    assert "\n" not in str(error.value)


# -- animation --------------------------------------------------------------------------------------------------------


@pytest.fixture
def drivers(tmp_path):
    rng = np.random.default_rng(1)
    clips = {}
    for driver in ("yes", "smile"):
        clips[driver] = tmp_path / f"{driver}.mp4"
        write_video(clips[driver], rng.integers(0, 256, (17, 64, 64, 3), dtype=np.uint8), 16.0)
    return clips


class ARecorder:
    """Stands in for the modular pipeline: remembers the arguments and gives back the driving frames."""

    def __call__(self, **arguments):
        self.arguments = arguments
        noise = torch.rand(1, generator=arguments["generator"]).item()
        frames = np.stack([np.asarray(frame) for frame in arguments["driving_video"]]) / 255
        return [frames * noise]


def test_the_animator_gives_the_pipeline_the_still_and_the_raw_driving_clip(drivers):
    pipeline = ARecorder()
    animator = WanAnimator(drivers, pipeline=pipeline)
    assert isinstance(animator, PortraitAnimator)
    still = a_person().still()
    made = animator.animate(still, "smile", seed=3)
    given = pipeline.arguments
    assert np.array_equal(np.asarray(given["image"]), still.frames[0])
    assert len(given["driving_video"]) == 17 and isinstance(given["driving_video"][0], Image.Image)
    assert given["driving_video_fps"] == 16.0
    assert made.frames.shape == (17, 64, 64, 3) and made.frames.dtype == np.uint8
    assert made.fps == 24.0
    assert made.truth == {"action": "{name} is smiling."}
    assert np.array_equal(made.frames, animator.animate(still, "smile", seed=3).frames)
    assert not np.array_equal(made.frames, animator.animate(still, "smile", seed=4).frames)


def test_a_driver_without_a_clip_is_named(drivers, tmp_path):
    with pytest.raises(PVChatError, match="'angry'.*yes, smile"):
        WanAnimator(drivers, pipeline=ARecorder()).animate(a_person().still(), "angry", 0)
    with pytest.raises(PVChatError, match="absent.mp4"):
        WanAnimator({"yes": tmp_path / "absent.mp4"})


def test_another_driving_clip_gives_another_id(drivers):
    swapped = {"yes": drivers["smile"], "smile": drivers["yes"]}
    assert WanAnimator(drivers).id != WanAnimator(swapped).id


@needs_full
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_wan_animate_runs_on_the_real_classes(drivers):
    from diffusers.modular_pipelines.wan_animate_2.modular_blocks_wan_animate_2 import WanAnimate2Blocks
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    pipe = WanAnimate2Blocks().init_pipeline()
    vision = CLIPVisionConfig(
        hidden_size=1280, intermediate_size=64, num_hidden_layers=2, num_attention_heads=16, patch_size=112,
        image_size=224, projection_dim=32,
    )  # fmt: skip
    transformer = diffusers.WanAnimate2Transformer3DModel(
        dim=128, ffn_dim=256, freq_dim=64, text_dim=32, text_len=512, in_dim=36, out_dim=16, num_heads=4, num_layers=2
    )
    pipe.update_components(
        text_encoder=t5_encoder("UMT5"), tokenizer=byte_tokenizer(), image_encoder=CLIPVisionModel(vision).eval(),
        vae=wan_vae(), transformer=transformer.eval(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    animator = WanAnimator(drivers, height=64, width=64, segment=17, steps=2, pipeline=pipe)
    made = animator.animate(a_person(height=64, width=64).still(), "yes", seed=1)
    assert made.frames.shape[1:] == (64, 64, 3) and made.frames.dtype == np.uint8
    assert np.array_equal(made.frames, animator.animate(a_person(height=64, width=64).still(), "yes", seed=1).frames)


# -- what is missing, and the cache key -------------------------------------------------------------------------------

BACKENDS = {
    "consisid": lambda drivers: ConsisIDScenes(identity_encoder=AnIdentity()),
    "wan-vace": lambda drivers: WanVACEScenes(),
    "qwen-edit": lambda drivers: QwenEditPortraits(),
    "flux2-klein": lambda drivers: KleinPortraits(),
    "wan-animate-2": WanAnimator,
}


def use(backend, drivers):
    made = BACKENDS[backend](drivers)
    if backend == "wan-animate-2":
        return made.animate(a_person().still(), "yes", 0)
    return made.generate(a_person(), SCENE, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_diffusers_the_error_has_the_pip_line(backend, drivers, monkeypatch):
    present = importlib.import_module

    def absent(name):
        if name.startswith("diffusers"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return present(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingBackendError) as caught:
        use(backend, drivers)
    message = str(caught.value)
    assert backend in message and 'pip install "pvchat[generate]"' in message and "\n" not in message


def test_without_the_face_packages_consisid_names_the_first_missing_one(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingBackendError, match="needs the package cv2.*pip install"):
        consisid.ConsisIDFaces()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_the_hub_the_error_names_the_weights_and_the_licence(backend, drivers, monkeypatch):
    import huggingface_hub.constants

    for package in {"consisid": ["cv2"], "wan-vace": ["ftfy"]}.get(backend, []):
        pytest.importorskip(package)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingBackendError) as caught:
        use(backend, drivers)
    message = str(caught.value)
    assert backend in message and "needs the weights" in message and "licence" in message and "\n" not in message


@pytest.mark.parametrize("make", [ConsisIDScenes, WanVACEScenes, QwenEditPortraits, KleinPortraits])
def test_the_id_changes_with_the_revision_and_the_settings_and_with_nothing_else(make):
    assert make().id == make(pipeline=object(), offload="sequential").id
    assert len({make().id, make(revision="abc").id, make(steps=7).id}) == 3
    assert make().licences


def test_an_unknown_offload_is_refused():
    with pytest.raises(PVChatError, match="offload must be one of"):
        WanVACEScenes(offload="disk")


def test_the_still_is_put_in_front_of_white_where_the_matte_is_known():
    assert np.array_equal(np.asarray(common.best_picture(a_person())), a_person().frames[1])
    assert np.asarray(common.best_picture(a_person(alpha=True))).min() == 255


def test_frames_outside_the_range_are_clipped_and_not_wrapped():
    assert common.to_uint8(np.array([-0.5, 0.0, 0.5, 1.0, 1.5])).tolist() == [0, 0, 128, 255, 255]


# -- weights from a folder, as from the Hub --------------------------------------------------------------------------


def test_consisid_loads_saved_weights_and_makes_the_same_clip(consisid_pipeline, tmp_path, monkeypatch):
    consisid_pipeline.save_pretrained(tmp_path)
    monkeypatch.setattr(consisid, "REPO", str(tmp_path))
    loaded = tiny_consisid(None).generate(a_person(), SCENE, 1)
    assert np.array_equal(loaded.frames, tiny_consisid(consisid_pipeline).generate(a_person(), SCENE, 1).frames)


def test_wan_vace_loads_saved_weights_with_the_scheduler_for_480_lines(vace_pipeline, tmp_path):
    vace_pipeline.save_pretrained(tmp_path)
    scenes = WanVACEScenes(str(tmp_path), width=16, height=16, num_frames=5, steps=2)
    assert scenes.generate(a_person(), SCENE, 1).frames.shape == (5, 16, 16, 3)
    scheduler = scenes._pipeline.scheduler
    assert type(scheduler).__name__ == "UniPCMultistepScheduler" and scheduler.config.flow_shift == 3.0


def test_klein_loads_saved_weights_and_makes_the_same_portrait(klein_pipeline, tmp_path):
    klein_pipeline.save_pretrained(tmp_path)
    person = a_person(height=64, width=64)
    loaded = KleinPortraits(str(tmp_path), size=16, steps=2).generate(person, SCENE, 1)
    given = KleinPortraits(size=16, steps=2, pipeline=klein_pipeline).generate(person, SCENE, 1)
    assert np.array_equal(loaded.frames, given.frames)
