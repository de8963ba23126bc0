"""Question writers, attributes and refiners: tiny random models of the real classes, and a scripted endpoint."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import make_batched_metadata

from pvchat.dataset_builder.backends.vlm import (
    ChatWriter,
    InternVideo2Writer,
    LLMRefiner,
    LocalLLM,
    OpenAIEndpoint,
    VLMAttributes,
    refine,
)
from pvchat.dataset_builder.backends.vlm.attributes import parse_json, parse_words
from pvchat.dataset_builder.backends.vlm.refine import PLACEHOLDER as P
from pvchat.dataset_builder.backends.vlm.refine import find_fault
from pvchat.dataset_builder.protocols import AttributeClassifier, Attributes, Person, QARefiner, QAWriter
from pvchat.dataset_builder.records import QA, SubjectSpec
from pvchat.dataset_builder.video_io import read_video, write_video
from pvchat.errors import MissingBackendError, PVChatError
from tests.tiny import tiny_clip

QUESTIONS = ["What is the person doing in this video, in a few words?", "Where?", "What does the person wear?"]
TOKENS = 12
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>",
    "<|image_pad|>",
]  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'image' %}<|image_pad|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer():
    """Bytes, and the special tokens of Qwen as ids 0 to 6."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(QUESTIONS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=SPECIAL[0], eos_token=SPECIAL[2], chat_template=TEMPLATE,
        additional_special_tokens=SPECIAL[1:],
    )  # fmt: skip


def louder(model, factor: float = 8.0):
    """Larger weights, so that answers differ between questions and clips."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return model.eval()


class VideoPatches(VideoProcessorMixin):
    """What Qwen3VLVideoProcessor makes of frames of fitting size, without torchvision: patches in its own order."""

    model_input_names = ["pixel_values_videos", "video_grid_thw"]
    patch_size, temporal_patch_size, merge_size = 8, 2, 2

    def preprocess(self, videos, video_metadata=None, return_tensors=None, **kwargs):
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

        patches, grids = [], []
        for frames in videos:
            pixels = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
            flat, *grid = Qwen3VLVideoProcessor.patchify(
                self, pixels, self.patch_size, self.merge_size, self.temporal_patch_size
            )
            patches.append(flat[0])
            grids.append(grid)
        data = {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(grids)}
        made = BatchFeature(data, tensor_type=return_tensors)
        made["video_metadata"] = make_batched_metadata(videos, video_metadata=video_metadata)
        return made


def qwen_processor():
    from transformers import Qwen3VLProcessor

    class Processor(Qwen3VLProcessor):
        def check_argument_for_proper_class(self, name, argument):
            if name == "video_processor":  # looked up in a table that needs torchvision
                return VideoProcessorMixin
            return super().check_argument_for_proper_class(name, argument)

    from transformers import Qwen2VLImageProcessorPil

    return Processor(Qwen2VLImageProcessorPil(), tokenizer(), VideoPatches(), chat_template=TEMPLATE)


IDS = {
    "vision_start_token_id": 3, "vision_end_token_id": 4, "video_token_id": 5, "image_token_id": 6,
}  # fmt: skip
TEXT = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True,
    },
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 8, "temporal_patch_size": 2,
    "spatial_merge_size": 2, "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
}  # fmt: skip


def tiny_qwen3_vl():
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(0)
    return louder(Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=TEXT, vision_config=VISION, **IDS)), 4.0)


def tiny_qwen3_5():
    """Has layers with a recurrent state, which cannot be shared."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    torch.manual_seed(0)
    text = TEXT | {
        "layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "rope_parameters": TEXT["rope_parameters"] | {"partial_rotary_factor": 1.0},
    }  # fmt: skip
    vision = {key: value for key, value in VISION.items() if key != "deepstack_visual_indexes"}
    return louder(Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision, **IDS)))


def tiny_llava():
    """Sees pictures only, and counts positions plainly."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(1)
    text = LlamaConfig(**{k: v for k, v in TEXT.items() if k != "rope_parameters"})
    part = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**part, image_size=32, patch_size=16, projection_dim=32)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=6, vision_feature_layer=-1)
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer(),
        patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<|image_pad|>", chat_template=TEMPLATE,
    )  # fmt: skip
    return louder(model), processor


def make_writer(kind: str) -> ChatWriter:
    if kind == "llava":
        model, processor = tiny_llava()
    else:
        model, processor = {"qwen3_vl": tiny_qwen3_vl, "qwen3_5": tiny_qwen3_5}[kind](), qwen_processor()
    return ChatWriter(model, processor, f"tiny-{kind}@0", max_new_tokens=TOKENS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, paths = tmp_path_factory.mktemp("clips"), []
    for index in range(2):
        paths.append(folder / f"{index}.mp4")
        write_video(paths[-1], tiny_clip(index == 0, seed=index, frames=5, size=32), 5.0)
    return paths


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen3_5", "llava"])
def writer(request):
    return make_writer(request.param)


def tower(writer):
    model = writer.model.model
    return model.visual if hasattr(model, "visual") else model.vision_tower


# -- writers ----------------------------------------------------------------------------------------------------------


def test_answers_to_many_questions_equal_those_to_each_alone_and_those_of_generate(writer, clips):
    assert isinstance(writer, QAWriter)
    seen = set()
    for clip in clips:
        together = writer.write(clip, QUESTIONS)
        assert together == [writer.write(clip, [question])[0] for question in QUESTIONS]
        assert together == [generated(writer, clip, question) for question in QUESTIONS]
        seen.update(together)
    assert len(seen) > 3  # of 6: questions and clips matter


def generated(writer, clip, question):
    """`model.generate` on the processor's own inputs, as anybody would call it."""
    frames, fps = read_video(clip)
    videos = hasattr(writer.processor, "video_processor")
    content = [{"type": "video"}] if videos else [{"type": "image"}] * len(frames)
    content = [*content, {"type": "text", "text": f"{question} {chat_instruction()}"}]
    text = writer.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    facts = {"fps": fps, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
    media = {"videos": [frames], "video_metadata": [facts], "do_sample_frames": False} if videos else {
        "images": list(frames)
    }  # fmt: skip
    inputs = writer.processor(text=[text], return_tensors="pt", **media)
    output = writer.model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS, eos_token_id=2, pad_token_id=0)
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    ended = 2 in ids
    return writer._text(ids[: ids.index(2)] if ended else ids, ended)


def chat_instruction():
    from pvchat.dataset_builder.backends.vlm.writer import INSTRUCTION

    return INSTRUCTION


def test_a_clip_is_encoded_once_for_all_questions_where_the_cache_can_be_shared(writer, clips, monkeypatch):
    writer.write(clips[0], QUESTIONS[:1])  # a model whose cache cannot be shared is found out here
    shapes = []
    original = tower(writer).forward

    def counted(pixels, *args, **kwargs):
        shapes.append(len(pixels))
        return original(pixels, *args, **kwargs)

    monkeypatch.setattr(tower(writer), "forward", counted)
    writer.write(clips[0], QUESTIONS[:1])
    alone = sum(shapes)
    shapes.clear()
    writer.write(clips[0], QUESTIONS)
    assert len(shapes) == 1
    assert sum(shapes) == (alone if writer._shares_prefix else 3 * alone)
    assert writer._shares_prefix == ("qwen3_5" not in writer.id)


def test_answers_that_end_early_leave_the_batch_and_the_others_go_on(writer, clips, monkeypatch):
    answers = []
    monkeypatch.setattr(writer, "_text", lambda ids, ended: answers.append(ids) or str(ids))
    writer.write(clips[0], QUESTIONS)
    free, stop = list(answers), None
    for row, ids in enumerate(free):
        elsewhere = {token for other in free[:row] + free[row + 1 :] for token in other}
        stop = next((token for token in ids[1:] if token not in elsewhere), stop)
    assert stop is not None  # a token that only one of the answers has
    monkeypatch.setattr(writer, "_ends", {stop})
    stopped = writer.write(clips[0], QUESTIONS)
    assert stopped == [writer.write(clips[0], [question])[0] for question in QUESTIONS]
    assert stopped == [str(ids[: ids.index(stop)] if stop in ids else ids) for ids in free]


def test_many_questions_go_in_batches_with_the_same_answers(clips, monkeypatch):
    from pvchat.dataset_builder.backends.vlm import writer as module

    writer = make_writer("qwen3_vl")
    expected = writer.write(clips[0], QUESTIONS)
    monkeypatch.setattr(module, "QUESTIONS_AT_ONCE", 2)
    assert writer.write(clips[0], QUESTIONS) == expected
    assert writer.write(clips[0], []) == []


def test_an_answer_that_is_cut_off_ends_with_its_last_whole_sentence():
    writer = make_writer("llava")
    ids = writer.processor.tokenizer("A man waves. He is in a kit")["input_ids"]
    assert writer._text(ids, ended=False) == "A man waves."
    assert writer._text(ids, ended=True) == "A man waves. He is in a kit"


def test_writer_loads_from_a_folder_and_says_what_is_missing(tmp_path, clips):
    model, processor = tiny_llava()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = ChatWriter.from_pretrained(str(tmp_path / "model"), licence="MIT")
    loaded.max_new_tokens = TOKENS
    made = ChatWriter(model, processor, "x", max_new_tokens=TOKENS)
    if not torch.cuda.is_available():  # there the loaded model is bfloat16
        assert loaded.write(clips[0], QUESTIONS) == made.write(clips[0], QUESTIONS)
    assert loaded.id.startswith("chat@1:model@") and loaded.licences == ("MIT",)
    with pytest.raises(MissingBackendError, match="licence: Apache-2.0") as error:
        ChatWriter.from_pretrained(str(tmp_path / "nothing"))
    assert "\n" not in str(error.value)


def test_an_unreadable_clip_is_one_clear_line(writer, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(PVChatError, match="cut.mp4"):
        writer.write(tmp_path / "cut.mp4", QUESTIONS)


REMOTE_CODE = '''
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class TinyChatConfig(PretrainedConfig):
    model_type = "tiny_videochat"


class TinyVideoChat(PreTrainedModel):
    """Has the call of InternVideo2_VideoChat2, and repeats what reached it."""

    config_class = TinyChatConfig

    def __init__(self, config):
        super().__init__(config)
        self.vision = nn.Linear(3, 1)
        self.encoded = 0
        self.post_init()

    def encode_vision(self, image, instruction=None):
        self.encoded += 1
        return self.vision(image.float().mean(dim=(-1, -2)).transpose(1, 2).to(self.vision.weight.dtype))

    def chat(self, tokenizer, msg, user_prompt, media_type, media_tensor, instruction=None, chat_history=[],
             return_history=False, generation_config={}, answer_prompt=None, debug_conv=False):
        assert media_type == "video" and msg == "" and not chat_history and not generation_config["do_sample"]
        shape = list(media_tensor.shape)
        video = media_tensor.reshape(-1, *shape[2:]).transpose(1, 2)
        seen = self.encode_vision(video, instruction)
        length = len(tokenizer(user_prompt)["input_ids"])
        return f" {shape} {tuple(seen.shape)} {length} {float(media_tensor.float().mean()):.2f} "
'''


def test_internvideo2_runs_remote_code_encodes_a_clip_once_and_gives_its_tiles(tmp_path, clips, monkeypatch):
    from transformers import dynamic_module_utils

    folder = tmp_path / "remote"
    tokenizer().save_pretrained(folder)
    (folder / "modeling_videochat.py").write_text(REMOTE_CODE)
    config = {
        "model_type": "tiny_videochat", "architectures": ["TinyVideoChat"],
        "auto_map": {
            "AutoConfig": "modeling_videochat.TinyChatConfig", "AutoModel": "modeling_videochat.TinyVideoChat",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    from safetensors.torch import save_file

    weights = {"vision.weight": torch.ones(1, 3), "vision.bias": torch.zeros(1)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))

    writer = InternVideo2Writer.from_pretrained(str(folder))
    assert isinstance(writer, QAWriter)
    first, second = writer.write(clips[0], QUESTIONS[:2])
    assert first.startswith("[1, 3, 8, 3, 224, 224] (3, 8, 1)") and first != second
    assert writer.model.encoded == 1
    assert writer.write(clips[1], QUESTIONS[:1])[0] != first
    assert writer.model.encoded == 2 and "encode_vision" not in vars(writer.model)


def test_internvideo2_that_cannot_be_loaded_is_one_clear_line(tmp_path):
    with pytest.raises(MissingBackendError, match="licence: MIT.*cannot be loaded") as error:
        InternVideo2Writer.from_pretrained(str(tmp_path))
    assert "\n" not in str(error.value)


# -- attributes -------------------------------------------------------------------------------------------------------


class Scripted:
    """A writer that gives fixed replies."""

    id, licences = "scripted@1", ("MIT",)

    def __init__(self, *replies):
        self.replies = replies

    def write(self, video, questions):
        assert len(read_video(video)[0]) >= 2
        return list(self.replies[: len(questions)])


PERSON = Person(np.full((3, 33, 40, 3), 90, np.uint8), 5.0)


@pytest.mark.parametrize(
    "reply, expected",
    [
        ('{"gender": "female", "age": "young"}', ("female", "young")),
        ('```json\n{"gender": "male", "age": "middle-aged"}\n```', ("male", "middle-aged")),
        ('{"gender": null, "age": null}', (None, None)),
        ('{"gender": "unknown", "age": "elderly"}', (None, "elderly")),
        ('{"gender": "woman", "age": 41}', ("female", "middle-aged")),
        ('{"gender": "man", "age": "72"}', ("male", "elderly")),
        ('{"age": 34.5}', (None, "young")),
        ('{"gender": "male"}', ("male", None)),
        ("I cannot tell.", (None, None)),
        ("{broken} a young woman", ("female", "young")),
        ('{"gender": "something", "age": "ageless"}', (None, None)),
    ],
)
def test_json_replies_are_read_with_the_freedom_to_abstain(reply, expected):
    assert parse_json(reply) == expected
    classifier = VLMAttributes(Scripted(reply))
    assert isinstance(classifier, AttributeClassifier)
    assert classifier.classify(PERSON) == Attributes(*expected, "scripted@1")


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("Female, young.", ("female", "young")),  # "female" holds "male"
        ("Male, middle aged", ("male", "middle-aged")),
        ("The woman is elderly", ("female", "elderly")),  # "woman" holds "man"
        ("male elderly", ("male", "elderly")),
        ("unknown, young", (None, "young")),
        ("unknown", (None, None)),
        ("A man and a woman, young", (None, "young")),  # two people: not told which
        ("young or middle-aged", (None, None)),
        ("A gentleman of 65 years old", ("male", "elderly")),
        ("Human.", (None, None)),
        ("female, 41", ("female", "middle-aged")),
        ("male; young (18 to 35)", ("male", "young")),
    ],
)
def test_two_word_replies_are_read_by_whole_words(reply, expected):
    assert parse_words(reply) == expected


@pytest.mark.parametrize(
    "reply",
    ['{"gender": "male", "age": "child"}', '{"gender": "girl", "age": null}', '{"age": 17}', '{"age": "9"}',
     "male, child", "a teenager", "She is 12 years old", "A 16-year-old", "male, 17", "A man aged 17"],
)  # fmt: skip
def test_a_child_is_refused_in_every_style(reply):
    for classifier in (VLMAttributes(Scripted(reply)), VLMAttributes(Scripted(reply, "young"), style="words")):
        with pytest.raises(PVChatError, match="minors are refused"):
            classifier.classify(PERSON)


def test_the_age_is_taken_from_the_second_question_when_the_first_names_none():
    classify = VLMAttributes(Scripted("male", "middle-aged"), style="words").classify
    assert classify(PERSON) == Attributes("male", "middle-aged", "scripted@1")
    still = Person(PERSON.frames[:1], 1.0)
    assert VLMAttributes(Scripted("male, young", "elderly"), style="words").classify(still).age == "young"
    with pytest.raises(PVChatError, match="minors are refused"):
        VLMAttributes(Scripted("male, young", "child (under 18)"), style="words").classify(PERSON)
    with pytest.raises(PVChatError, match="got 'xml'"):
        VLMAttributes(Scripted(), style="xml")


def test_attributes_run_on_a_random_model_and_abstain():
    assert VLMAttributes(make_writer("qwen3_vl")).classify(
        Person(np.full((4, 32, 32, 3), 90, np.uint8), 5.0)
    ) == Attributes(None, None, "chat@1:tiny-qwen3_vl@0")  # fmt: skip


# -- the check of refined answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "original, refined",
    [
        ("A man is waving. He wears a red shirt.", f"{P} is waving. {P} wears a red shirt."),
        ("There is a young woman who is reading. Her hair is long.", f"{P} is reading. {P}'s hair is long."),
        ("A man is talking to a woman. He smiles at her.", f"{P} is talking to a woman. {P} smiles at her."),
        ("They wave and carry a bag.", f"{P} waves and carries a bag."),
        ("They go home.", f"{P} goes home."),
        ("A man walks with another man. He wears a hat.", f"{P} walks with another man. He wears a hat."),
        ("Someone is standing in a kitchen.", f"{P} is standing in a kitchen."),
        ("The man in the red shirt is dancing.", f"{P} in the red shirt is dancing."),
        ("A woman stands beside a man in a crowd.", f"{P} stands beside a man in a crowd."),
        ("He dresses in glasses.", f"{P} dresses in glasses."),
    ],
)
def test_a_faithful_edit_passes_the_check(original, refined):
    assert find_fault(original, refined) is None


@pytest.mark.parametrize(
    "original, refined, reason",
    [
        ("A man is waving.", "The man is waving.", "the name is missing"),
        ("A man is waving.", f"{P} is waving happily.", "facts"),
        ("A man in a hat is waving.", f"{P} is waving.", "facts"),
        ("A man is not waving.", f"{P} is waving.", "facts"),
        ("A man is waving at Bob.", f"{P} is waving at Tom.", "facts"),
        ("A man is waving.", f"Sure! Here it is: {P} is waving.", "facts"),
        ("A man sits, then stands.", f"{P} stands, then sits.", "facts"),
        ("A man is talking to a woman.", f"{P} is talking to {P}.", "bystander"),
        ("A man is talking to a man.", f"{P} is talking to {P}.", "bystander"),
        ("A man is talking to a woman. She smiles.", f"{P} is talking to a woman. {P} smiles.", "other people"),
        ("A man is with another man. He smiles.", f"{P} is with another man. {P} smiles.", "unclear"),
        ("A man stands among people. He smiles.", f"{P} stands among people. {P} smiles.", "unclear"),
        ("A person is with a man. He smiles.", f"{P} is with a man. {P} smiles.", "unclear"),
        ("A man is with another man.", f"{P} is with another {P}.", "somebody else"),
        ("A man hugs a woman.", f"A woman hugs {P}.", "somebody else"),
        ("A man hugs a man.", f"A man hugs {P}.", "somebody else"),
        ("Two men are talking.", f"Two {P} are talking.", "somebody else"),
    ],
)
def test_a_planted_fault_is_found(original, refined, reason):
    assert reason in find_fault(original, refined)


# -- refiners ---------------------------------------------------------------------------------------------------------


def qa(answer: str) -> QA:
    return QA("What is <Nz> doing?", answer, "action", "vlm")


@pytest.fixture
def subject(tmp_path) -> SubjectSpec:
    return SubjectSpec("<Nz>", tmp_path / "clip.mp4", noun="man")


class Model:
    id = "model@1"

    def __init__(self, reply):
        self.reply, self.asked = reply, []

    def complete(self, system, user):
        self.asked.append(user)
        return self.reply


def test_a_checked_reply_is_taken_and_names_the_model(subject):
    refiner = LLMRefiner(Model(f'"{P} is waving to another man."\n'))
    assert isinstance(refiner, QARefiner)
    found = refiner.refine(qa("A man is waving to another man."), subject)
    assert (found.answer, found.refined_by) == ("<Nz> is waving to another man.", "llm:model@1")
    assert "<Nz>" not in refiner.model.asked[0] and not refiner.failed


def test_a_reply_that_fails_the_check_leaves_the_rules_answer_and_is_counted(subject):
    refiner = LLMRefiner(Model("I cannot help with people."))
    found = refiner.refine(qa("A man is waving."), subject)
    assert (found.answer, found.refined_by) == ("<Nz> is waving.", "rules")
    hopeless = refiner.refine(qa("It is raining."), subject)
    assert (hopeless.answer, hopeless.refined_by) == ("It is raining.", "none")
    assert refiner.failed == {"the name is missing": 2}


def test_an_answer_with_the_name_is_not_sent_anywhere(subject):
    refiner = LLMRefiner(Model("x"))
    assert refiner.refine(qa("<Nz> is waving."), subject).answer == "<Nz> is waving."
    assert refiner.model.asked == []


class Endpoint(ThreadingHTTPServer):
    """Loopback server. script: one (status, body) per request; the last one repeats."""

    def __init__(self, *script):
        self.script, self.requests = list(script), []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        script = self.server.script
        status, reply = script.pop(0) if len(script) > 1 else script[0]
        self.send_response(status)
        if status == 302:
            self.send_header("Location", reply)
            reply = ""
        data = reply.encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def completion(text: str) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture(autouse=True)
def _no_waiting_and_no_key(monkeypatch):
    monkeypatch.setattr(refine, "WAITS", (0.0, 0.0))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # what goes to this computer must not take it
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


def test_openai_compatible_endpoint_refines_without_seeing_the_name(subject, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Endpoint(completion(f"{P} is waving.")) as server:
        model = OpenAIEndpoint(server.url + "/", "gpt-4o")
        found = LLMRefiner(model).refine(qa("A man is waving."), subject)
        (path, headers, body), *more = server.requests
    assert (found.answer, found.refined_by) == ("<Nz> is waving.", f"llm:gpt-4o@127.0.0.1:{server.server_port}")
    assert not more and path == "/v1/chat/completions" and headers["Authorization"] == "Bearer sk-secret"
    assert body["model"] == "gpt-4o" and body["temperature"] == 0
    assert "A man is waving." in body["messages"][-1]["content"] and "Nz" not in json.dumps(body)


def test_a_busy_endpoint_is_asked_again(subject):
    with Endpoint((429, "slow down"), (503, ""), completion(f"{P} waves.")) as server:
        found = LLMRefiner(OpenAIEndpoint(server.url, "m")).refine(qa("A man waves."), subject)
        assert found.answer == "<Nz> waves." and len(server.requests) == 3


@pytest.mark.parametrize(
    "reply, tries, message",
    [
        ((401, "Incorrect API key sk-secret"), 1, "answered 401"),
        ((500, ""), 3, "answered 500"),
        ((200, "not json"), 1, "not answer in the form"),
        ((200, '{"choices": []}'), 1, "not answer in the form"),
        ((302, "http://127.0.0.1:9/elsewhere"), 1, "answered 302"),
    ],
)
def test_an_endpoint_that_fails_is_one_clear_line_without_the_key(subject, monkeypatch, reply, tries, message):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Endpoint(reply) as server:
        with pytest.raises(PVChatError, match=message) as error:
            LLMRefiner(OpenAIEndpoint(server.url, "m")).refine(qa("A man waves."), subject)
        assert len(server.requests) == tries
    assert "\n" not in str(error.value) and "sk-secret" not in str(error.value)


def test_an_unreachable_endpoint_is_one_clear_line(subject):
    with Endpoint((200, "")) as server:
        url = server.url
    with pytest.raises(PVChatError, match="cannot be reached"):
        LLMRefiner(OpenAIEndpoint(url, "m")).refine(qa("A man waves."), subject)


def test_a_third_party_needs_permission_and_encryption():
    with pytest.raises(PVChatError, match="third party"):
        OpenAIEndpoint("https://api.example.com/v1", "gpt-4o")
    with pytest.raises(PVChatError, match="third party"):
        OpenAIEndpoint("http://localhost.example.com/v1", "gpt-4o")
    with pytest.raises(PVChatError, match="use https"):
        OpenAIEndpoint("http://api.example.com/v1", "gpt-4o", allow_third_party=True)
    allowed = OpenAIEndpoint("https://user:word@api.example.com/v1", "gpt-4o", allow_third_party=True)
    assert allowed.id == "gpt-4o@api.example.com"
    assert OpenAIEndpoint("http://localhost:8000/v1", "m").id == "m@localhost:8000"
    for url in ("localhost:8000", "ftp://localhost/v1", ""):
        with pytest.raises(PVChatError, match="not an address"):
            OpenAIEndpoint(url, "m")


def test_a_local_model_completes_as_its_generate_does_and_its_nonsense_is_not_accepted(subject, tmp_path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    text = {key: value for key, value in TEXT.items() if key != "rope_parameters"}
    louder(Qwen3ForCausalLM(Qwen3Config(**text))).save_pretrained(tmp_path / "llm")
    tokenizer().save_pretrained(tmp_path / "llm")
    model = LocalLLM.from_pretrained(tmp_path / "llm")
    first = model.complete("Be brief.", "A man waves.")
    assert first == model.complete("Be brief.", "A man waves.") != model.complete("Be brief.", "A dog runs.")
    refiner = LLMRefiner(model)
    found = refiner.refine(qa("A man waves."), subject)
    assert (found.answer, found.refined_by) == ("<Nz> waves.", "rules") and sum(refiner.failed.values()) == 1
    assert refiner.id.startswith("llm:llm@")
