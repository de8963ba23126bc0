"""Question writers on tiny random models of the real classes."""

from __future__ import annotations

import json

import pytest
import torch

from pvchat.dataset_builder.backends.vlm import (
    ChatWriter,
    InternVideo2Writer,
)
from pvchat.dataset_builder.protocols import QAWriter
from pvchat.dataset_builder.video_io import read_video, write_video
from pvchat.errors import MissingBackendError, PVChatError
from tests.tiny import tiny_clip
from tests.vlm_models import QUESTIONS, TOKENS, make_writer, tiny_llava, tokenizer


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
    made = ChatWriter(lambda: (model, processor), "x", max_new_tokens=TOKENS)
    if not torch.cuda.is_available():  # there the loaded model is bfloat16
        assert loaded.write(clips[0], QUESTIONS) == made.write(clips[0], QUESTIONS)
    assert loaded.id.startswith("chat@1:model@") and loaded.licences == ("MIT",)
    with pytest.raises(MissingBackendError, match="licence: Apache-2.0") as error:
        ChatWriter.from_pretrained(str(tmp_path / "nothing"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("load", [ChatWriter.from_pretrained, InternVideo2Writer.from_pretrained])
def test_the_id_of_a_writer_follows_its_files_and_loads_none_of_the_weights(tmp_path, clips, load):
    """Whatever lies there as weights is read when the first clip comes, and not before."""
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    ids = [load(str(tmp_path)).id]
    (tmp_path / "model.safetensors").write_bytes(b"no weights, either")
    ids.append(load(str(tmp_path)).id)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    ids.append(load(str(tmp_path)).id)
    (tmp_path / "README.md").write_text("says nothing to a model")
    writer = load(str(tmp_path))
    assert len(set(ids)) == 3 and writer.id == ids[-1] and f":{tmp_path.name}@" in writer.id
    with pytest.raises(MissingBackendError, match="cannot be loaded") as error:
        writer.write(clips[0], QUESTIONS)
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
