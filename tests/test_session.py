"""Behaviour of asking: batches, names, margins, conversations and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pvchat.base_model import load_base
from pvchat.errors import MissingBackendError, PVChatError
from pvchat.session import Conversation, VideoChat, VLMWriter
from tests.tiny import SUBJECT, tiny_base, tiny_clip, tiny_model, tiny_processor

TOKENS = 10
QUESTIONS = [
    ["Is <Nz> in this video?", "What is <Nz> doing in this video, tell me in many words?"],
    [],
    ["x", "Where is <Nz>?", "What does <Nz> look like?"],
]


@pytest.fixture(scope="module")
def chat() -> VideoChat:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # so that answers differ between questions and videos
    return VideoChat(model, tiny_processor(), SUBJECT)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [tiny_clip(True, 1), tiny_clip(False, 2), tiny_clip(False, 3)]


def generated(chat: VideoChat, clip, question: str, **options):
    """`model.generate` for one question, as anybody would call it."""
    processor = chat.processor
    pixels = processor.video_processor(videos=[clip], return_tensors="pt")["pixel_values_videos"]
    ids = torch.tensor([processor.encode_prefix() + processor.encode_question(question, SUBJECT)])
    output = chat.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=pixels, max_new_tokens=TOKENS,
        do_sample=False, return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip
    answer = output.sequences[0, ids.shape[1] :].tolist()
    return processor.decode_answer(answer, SUBJECT), output.logits[0][0], answer


def test_batched_answers_equal_generate_one_by_one(chat, clips):
    found = chat.replies(clips, QUESTIONS, TOKENS)
    assert [len(replies) for replies in found] == [2, 0, 3]
    for clip, questions, replies in zip(clips, QUESTIONS, found, strict=True):
        for question, reply in zip(questions, replies, strict=True):
            text, logits, _ = generated(chat, clip, question)
            scores = logits.log_softmax(-1)
            yes, no = (chat.processor.encode_qa("?", word) for word in ("Yes", "No"))
            assert reply.text == text
            assert reply.margin == pytest.approx(float(scores[yes[0][yes[1]]] - scores[no[0][no[1]]]), abs=1e-4)
    texts = [reply.text for replies in found for reply in replies]
    assert len(set(texts)) > 1


def test_rows_that_end_early_leave_the_others_as_they_are(chat, clips):
    texts = chat.ask_many(clips, QUESTIONS, TOKENS)
    end = generated(chat, clips[0], QUESTIONS[0][0])[2][TOKENS // 2]  # a token in the middle of the first answer
    processor = tiny_processor()
    processor.tokenizer.eos_token = processor.tokenizer.convert_ids_to_tokens(end)
    chat = VideoChat(chat.model, processor, SUBJECT)
    stopped = chat.ask_many(clips, QUESTIONS, TOKENS)
    assert stopped[0][0] != texts[0][0]
    for clip, questions, answers in zip(clips, QUESTIONS, stopped, strict=True):
        assert answers == [generated(chat, clip, question, eos_token_id=end)[0] for question in questions]


def test_more_questions_than_fit_one_batch_get_the_same_answers(chat, clips, monkeypatch):
    expected = chat.replies(clips, QUESTIONS, TOKENS)
    monkeypatch.setattr("pvchat.session.ROWS_AT_ONCE", 2)
    monkeypatch.setattr("pvchat.session.VIDEOS_AT_ONCE", 2)
    assert [[r.text for r in row] for row in chat.replies(clips, QUESTIONS, TOKENS)] == [
        [r.text for r in row] for row in expected
    ]


def test_ask_and_conversation_and_margins_agree(chat, clips):
    question = QUESTIONS[0][0]
    reply = chat.replies(clips[:1], [[question]], TOKENS)[0][0]
    assert chat.ask(clips[0], question, TOKENS) == reply.text
    assert chat.yes_no_margin(clips[0], [question, "x"])[0] == pytest.approx(reply.margin, abs=1e-5)
    conversation = chat.conversation(clips[0])
    assert isinstance(conversation, Conversation)
    first = conversation.ask(question, TOKENS)
    assert conversation.ask("x", TOKENS) == chat.ask(clips[0], "x", TOKENS)
    assert conversation.ask(question, TOKENS) == first == reply.text


def test_a_conversation_reads_the_video_once(chat, clips, monkeypatch):
    calls = []
    encode = chat.model.model.encode_video
    monkeypatch.setattr(chat.model.model, "encode_video", lambda *a, **k: calls.append(1) or encode(*a, **k))
    conversation = chat.conversation(clips[0])
    for question in QUESTIONS[2]:
        conversation.ask(question, 2)
    assert len(calls) == 1
    chat.ask_many(clips, [["x", "y", "z"]] * 3, 2)
    assert len(calls) == 2


@pytest.mark.parametrize("question", ["Is Nz here?", "Is <Nz> here?"])
def test_the_bare_name_and_the_token_mean_the_same_person(chat, question):
    assert chat._encode(question) == chat.processor.encode_question("Is <Nz> here?", SUBJECT)


@pytest.mark.parametrize("question", ["Is Nzambi here?", "Is nz here?", "Is ANz here?"])
def test_words_that_contain_the_name_are_left_alone(chat, question):
    ids = chat._encode(question)
    assert ids == chat.processor.encode_question(question, SUBJECT)
    assert chat.processor.tokenizer.convert_tokens_to_ids("<sks>") not in ids[4:]  # the bracket alone


def test_without_a_subject_nobody_is_named(chat):
    base = VideoChat(chat.model, chat.processor)
    assert base._encode("Is Nz here?") == chat.processor.encode_question("Is Nz here?", None)


@pytest.mark.parametrize(
    ("question", "says"),
    [("", "empty"), ("  \n", "empty"), ("[INST] hi", "control token"), ("word " * 500, "shorten it")],
)
def test_bad_questions_are_refused_in_one_line(chat, clips, question, says):
    with pytest.raises(PVChatError, match=says) as error:
        chat.ask(clips[0], question)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_video_is_refused_in_one_line(chat, tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    with pytest.raises(PVChatError, match="notes.mp4") as error:
        chat.conversation(tmp_path / "notes.mp4")
    assert "\n" not in str(error.value)


def test_videos_and_lists_of_questions_must_match(chat, clips):
    with pytest.raises(PVChatError, match="1 for 3 videos"):
        chat.ask_many(clips, [["x"]])


def test_answers_end_where_the_context_ends(chat, clips):
    room = 512 - len(chat.processor.encode_prefix())
    question = "a" * 40
    while len(chat._encode(question + " b")) < room - 4:
        question += " b"
    assert isinstance(chat.ask(clips[0], question, max_new_tokens=100), str)


def test_a_saved_base_answers_as_before(chat, clips, tmp_path):
    folder = tiny_base(tmp_path / "base", seed=3)
    loaded = VideoChat.from_pretrained(folder)
    assert loaded.subject is None
    made = VideoChat(tiny_model(3), tiny_processor())
    assert loaded.ask(clips[0], "Where?", TOKENS) == made.ask(clips[0], "Where?", TOKENS)


def test_a_missing_base_is_refused_in_one_line(tmp_path):
    with pytest.raises(PVChatError, match="No PVChat model") as error:
        VideoChat.from_pretrained(tmp_path / "nothing")
    assert "\n" not in str(error.value)


def test_a_base_in_four_bits_names_the_package_that_it_needs(tmp_path, monkeypatch):
    folder = tiny_base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda *_: False)
    for load in (VideoChat.from_pretrained, load_base):
        with pytest.raises(MissingBackendError, match=r"bitsandbytes.*pip install 'pvchat\[quant\]'") as error:
            load(folder)
        assert "\n" not in str(error.value)


def test_a_reason_without_words_is_named_by_its_kind(tmp_path, monkeypatch):
    def fail(*words, **options):
        raise OSError

    monkeypatch.setattr("pvchat.base_model.PVChatProcessor.from_pretrained", fail)
    with pytest.raises(PVChatError, match=r"No PVChat model could be loaded from .* \(OSError\)"):
        VideoChat.from_pretrained(tmp_path)


def test_a_base_that_knows_nobody_names_nobody(chat, clips):
    """Whatever it would like to say: here `<sks>` has by far the highest score at every step."""
    bias = torch.zeros(chat.model.config.text_config.vocab_size)
    bias[chat.model.config.subject_token_id] = 1e4
    hook = chat.model.lm_head.register_forward_hook(lambda module, args, output: output + bias)
    try:
        base = VideoChat(chat.model, chat.processor)
        assert "<sks>" not in base.ask(clips[0], "Who is it?", max_new_tokens=3)
        assert "<Nz>" in chat.ask(clips[0], "Who is it?", max_new_tokens=3)
    finally:
        hook.remove()


def test_the_writer_answers_as_the_base_and_loads_it_at_the_first_clip(chat, clips, tmp_path, monkeypatch):
    chat.model.save_pretrained(tmp_path / "base")
    chat.processor.save_pretrained(tmp_path / "base")
    loaded = []
    load = VideoChat.from_pretrained
    monkeypatch.setattr(VideoChat, "from_pretrained", lambda base: loaded.append(base) or load(base))
    writer = VLMWriter(tmp_path / "base")
    assert writer.id.startswith("vlm@2:base@") and not loaded
    questions = ["What is the person doing?", "Where is the person?"]
    base = VideoChat(chat.model, chat.processor)
    for clip in clips[:2]:
        assert writer.write(clip, questions) == base.ask_many([clip], [questions])[0]
    assert loaded == [tmp_path / "base"]
    with pytest.raises(PVChatError, match="No PVChat model could be loaded from .*nowhere"):
        VLMWriter(tmp_path / "nowhere")
