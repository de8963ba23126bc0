"""Other video models as baselines: tiny random models of the real classes, and a package that is only imitated."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from pvchat.dataset_builder.video_io import read_video
from pvchat.errors import MissingBackendError, PVChatError
from pvchat.evaluation import baselines, evaluate
from pvchat.evaluation.baselines import ChatModel, OneVideoModel, joined, load_baseline
from pvchat.evaluation.controls import blank_video
from tests.tiny import SUBJECT, tiny_dataset
from tests.vlm_models import qwen_processor, tiny_llava, tiny_qwen3_vl

TOKENS = 6
QUESTIONS = [f"Is {SUBJECT} in this video?", f"What is {SUBJECT} doing?"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data"), positives=2, negatives=2, test=2)


@pytest.fixture(scope="module")
def clips(dataset):
    """(reference, clip of the subject, clip of somebody else)"""
    return [dataset.split("train")[0].path, dataset.split("test")[0].path, dataset.split("test")[2].path]


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_NEW_TOKENS", TOKENS)


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def chat(request, clips):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "MAX_NEW_TOKENS", TOKENS)
        model, processor = tiny_llava() if request.param == "llava" else (tiny_qwen3_vl(), qwen_processor())
        return ChatModel(model, processor, f"tiny-{request.param}", SUBJECT, clips[0])


def whole_prompt(chat, clip, question):
    """Logits of the first answer token when everything is given in one forward pass, as anybody would call it."""
    shown = [] if chat._reference is None else [read_video(chat._reference)[0]]
    frames = [*shown, read_video(clip)[0]]
    processor = chat._writer.processor
    takes_videos = hasattr(processor, "video_processor")

    def media(video):
        return [{"type": "video"}] if takes_videos else [{"type": "image"}] * len(video)

    content = [*media(frames[-1]), {"type": "text", "text": f"{question} {baselines.INSTRUCTION}"}]
    if shown:
        said = f"This video shows {SUBJECT}. Now look at this second video."
        content = [*media(shown[0]), {"type": "text", "text": said}, *content]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    facts = [{"fps": 8.0, "total_num_frames": len(v), "frames_indices": list(range(len(v)))} for v in frames]
    given = (
        {"videos": frames, "video_metadata": facts, "do_sample_frames": False}
        if takes_videos
        else {"images": [frame for video in frames for frame in video]}
    )
    inputs = processor(text=[text], return_tensors="pt", **given)
    with torch.no_grad():
        return chat._writer.model(**inputs).logits[0, -1].float()


@pytest.mark.parametrize("with_reference", [True, False])
def test_margins_are_those_of_the_whole_prompt_with_both_clips(chat, clips, with_reference):
    """The clip is encoded once for all questions, and the reference clip stands before it."""

    def compare():
        for clip in clips[1:]:
            for question, reply in zip(QUESTIONS, chat.replies([clip], [QUESTIONS])[0], strict=True):
                scores = whole_prompt(chat, clip, question).log_softmax(-1)
                yes, no = chat._words
                assert reply.margin == pytest.approx(float(scores[yes] - scores[no]), abs=1e-3)
                assert isinstance(reply.text, str)

    if with_reference:
        compare()
    else:
        with chat.answering_with(None):
            compare()


def test_the_reference_clip_changes_the_answer_and_can_be_left_out(chat, clips):
    with_it = chat.replies([clips[1]], [QUESTIONS])[0]
    with chat.answering_with(None):
        without = chat.replies([clips[1]], [QUESTIONS])[0]
    assert [r.margin for r in with_it] != pytest.approx([r.margin for r in without], abs=1e-4)
    assert chat.replies([clips[1]], [QUESTIONS])[0] == with_it


def test_a_clip_is_encoded_once_for_all_its_questions(chat, clips, monkeypatch):
    model = chat._writer.model.model
    tower = model.visual if hasattr(model, "visual") else model.vision_tower
    calls = []
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    chat.replies([clips[1]], [QUESTIONS * 3])
    assert len(calls) <= 2  # both clips in one call, or one each


def test_a_baseline_answers_about_frames_and_no_questions(chat):
    assert chat.replies([blank_video(), blank_video()], [[], QUESTIONS[:1]])[0] == []


def test_a_baseline_has_no_adapter(chat):
    with pytest.raises(PVChatError, match="no adapter"), chat.answering_with("runs/Lena/adapter"):
        pass


def test_a_baseline_is_evaluated_with_its_controls_and_resumed(chat, dataset, tmp_path, monkeypatch):
    scores = evaluate(chat, dataset, tmp_path, seed=1)
    for name in ("text_only", "no_adapter", "name_swapped", "embedding_gate"):
        assert scores["controls"][name]["n"] > 0
    for name in ("wrong_adapter", "reference_in_prompt", "reference_as_tokens"):
        assert scores["controls"][name] is None
        assert "shown the reference clip" in scores["details"]["missing"][f"controls.{name}"]
    assert scores["passport"]["config"]["weights"] == chat.id
    monkeypatch.setattr(ChatModel, "_answer", lambda *_: pytest.fail("asked again"))
    assert evaluate(chat, dataset, tmp_path, seed=1)["existence"] == scores["existence"]


def test_any_chat_model_loads_from_a_folder(tmp_path, clips, monkeypatch):
    model, processor = tiny_llava()
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    loaded = load_baseline(str(tmp_path / "llava"), SUBJECT, clips[0])
    assert isinstance(loaded, ChatModel) and loaded.id.startswith("llava@")
    if not torch.cuda.is_available():  # there the loaded model is bfloat16
        made = ChatModel(model, processor, "x", SUBJECT, clips[0])
        assert loaded.replies([clips[1]], [QUESTIONS]) == made.replies([clips[1]], [QUESTIONS])


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path, clips):
    with pytest.raises(MissingBackendError, match="nothing cannot be loaded as a chat model") as error:
        load_baseline(str(tmp_path / "nothing"), SUBJECT, clips[0])
    assert "\n" not in str(error.value)


def test_a_processor_that_needs_torchvision_is_one_line_with_the_pip_line(clips, monkeypatch):
    from transformers import AutoProcessor

    def needs(name, **options):
        raise ImportError("\nQwen3VLVideoProcessor requires the Torchvision library but it was not found.\nVisit ...")

    monkeypatch.setattr(AutoProcessor, "from_pretrained", needs)
    with pytest.raises(MissingBackendError, match="Torchvision.*pip install torchvision") as error:
        load_baseline("Qwen/Qwen3-VL-8B-Instruct", SUBJECT, clips[0])
    assert "\n" not in str(error.value)


def test_a_model_without_a_chat_template_is_refused(tmp_path, clips):
    model, processor = tiny_llava()
    processor.chat_template = None
    processor.tokenizer.chat_template = None
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    with pytest.raises(PVChatError, match="no chat template"):
        load_baseline(str(tmp_path / "plain"), SUBJECT, clips[0])


# -- one video per prompt ---------------------------------------------------------------------------------------------


def test_a_model_of_one_video_sees_both_clips_joined_in_time(clips):
    seen = []

    def write(path, questions):
        seen.append((read_video(path)[0], list(questions)))
        return ["Yes."] * len(questions)

    model = OneVideoModel(write, "one", SUBJECT, clips[0])
    replies = model.replies([clips[1]], [QUESTIONS])[0]
    assert [reply.text for reply in replies] == ["Yes."] * 2 and replies[0].margin is None
    frames, asked = seen[0]
    reference, clip = (read_video(path)[0] for path in clips[:2])
    assert len(frames) == 2 * len(clip)
    half = len(frames) // 2
    assert np.abs(frames[:half].astype(int) - reference).mean() < 12  # h264
    assert np.abs(frames[half:].astype(int) - clip).mean() < 12
    assert all(f"first half of this video shows {SUBJECT}" in question for question in asked)
    with model.answering_with(None):
        model.replies([clips[1]], [QUESTIONS])
    assert len(seen[1][0]) == len(clip) and "first half" not in seen[1][1][0]


def test_a_grey_picture_can_be_asked_about_by_a_model_that_reads_files(clips):
    model = OneVideoModel(
        lambda path, questions: [str(len(read_video(path)[0]))] * len(questions), "one", SUBJECT, clips[0]
    )
    with model.answering_with(None):
        assert model.replies([blank_video()], [QUESTIONS[:1]])[0][0].text == "2"


def test_joined_clips_have_the_size_of_the_second_and_equal_halves():
    first, second = np.full((3, 10, 20, 3), 200, np.uint8), np.full((5, 8, 6, 3), 10, np.uint8)
    both = joined(first, second)
    assert both.shape == (10, 8, 6, 3)
    assert (both[:5] == 200).all() and (both[5:] == 10).all()


def test_scores_without_margins_have_no_auroc(dataset, clips, tmp_path):
    model = OneVideoModel(lambda path, questions: ["Yes."] * len(questions), "one", SUBJECT, clips[0])
    scores = evaluate(model, dataset, tmp_path)
    assert scores["existence"]["auroc"] is None and scores["existence"]["balanced_accuracy"] == 0.5
    assert any("constant" in line for line in scores["details"]["findings"])


def test_internvideo2_goes_by_its_remote_code(monkeypatch, clips):
    calls = []

    class Writer:
        id = "internvideo2@1:tiny"

        def write(self, path, questions):
            calls.append(path)
            return ["No."] * len(questions)

    monkeypatch.setattr(baselines.InternVideo2Writer, "from_pretrained", lambda name: Writer())
    model = load_baseline("OpenGVLab/InternVideo2_chat_8B_HD", SUBJECT, clips[0])
    assert model.id == "internvideo2@1:tiny"
    assert model.replies([clips[1]], [QUESTIONS])[0][0].text == "No." and len(calls) == 1


def test_videollama2_is_called_as_its_readme_says(monkeypatch, clips):
    package = types.ModuleType("videollama2")
    package.model_init = lambda name: ("model", {"video": lambda path: ("pixels", path)}, "tokenizer")

    def mm_infer(pixels, question, model, tokenizer, do_sample, modal):
        assert (pixels[0], model, tokenizer, do_sample, modal) == ("pixels", "model", "tokenizer", False, "video")
        return f" {question} "

    package.mm_infer = mm_infer
    monkeypatch.setitem(sys.modules, "videollama2", package)
    model = load_baseline("DAMO-NLP-SG/VideoLLaMA2-7B", SUBJECT, clips[0])
    assert QUESTIONS[0] in model.replies([clips[1]], [QUESTIONS])[0][0].text


def test_videollama2_without_its_package_says_how_to_get_it(monkeypatch, clips):
    monkeypatch.setitem(sys.modules, "videollama2", None)
    with pytest.raises(MissingBackendError, match=r"pip install git\+https://github.com/DAMO-NLP-SG/VideoLLaMA2"):
        load_baseline("DAMO-NLP-SG/VideoLLaMA2-7B", SUBJECT, clips[0])
