"""The processor: prompts as ids, the chat template, placeholders, saving and loading."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, PreTrainedTokenizerFast

from pvchat.dataset_builder.video_io import write_video
from pvchat.modeling_pvchat import PVChatProcessor, PVChatVideoProcessor
from tests.tiny import NUM_FRAMES, SUBJECT, tiny_clip, tiny_model, tiny_processor, tiny_tokenizer

QUESTION, ANSWER = f"Is {SUBJECT} in the video?", f"Yes, {SUBJECT} is."


@pytest.fixture(scope="module", params=[None, (2, 1)], ids=["one_view", "tiles"])
def processor(request) -> PVChatProcessor:
    return tiny_processor(request.param)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, tiny_clip(True), fps=8.0)
    return path


def conversation(video, question: str = "Is <sks> in the video?", answer: str | None = "Yes, <sks> is."):
    turns = [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": question}]}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def chat(processor, conversation, **changes):
    return processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, **{"return_tensors": "pt", **changes}
    )


def text(processor, ids) -> str:
    return processor.tokenizer.decode(ids, skip_special_tokens=False)


# -- prompts as ids ---------------------------------------------------------------------------------------------------


def test_prefix_has_one_slot_for_every_video_token_of_the_model(processor):
    config = tiny_model(tile_grid=processor.video_processor.tile_grid).config
    ids = processor.encode_prefix()
    assert ids.count(config.video_token_id) == config.num_video_tokens
    close = processor.tokenizer.convert_tokens_to_ids("[/INST]")
    assert ids[-1] == close and ids.count(close) == 1


def test_prefix_opens_every_segment_with_the_start_token(processor):
    slots = "<video>" * processor.tokens_per_tile
    expected = "<s>[INST] <Video>" + slots
    expected += f"<s></Video><Video>{slots}" * (processor.num_tiles - 1) + "<s></Video>[/INST]"
    assert text(processor, processor.encode_prefix()) == expected


def test_question_carries_the_subject_in_brackets_and_never_its_name(processor):
    ids = processor.encode_question(QUESTION, SUBJECT)
    assert text(processor, ids) == " [INST][<sks>]Is <sks> in the video?[/INST]"
    sks = processor.tokenizer.convert_tokens_to_ids("<sks>")
    assert ids.count(sks) == 2


def test_question_without_subject_has_no_bracket(processor):
    assert text(processor, processor.encode_question("What happens?")) == " [INST]What happens?[/INST]"


def test_qa_starts_with_the_question_and_ends_with_the_end_token(processor):
    ids, asked = processor.encode_qa(QUESTION, ANSWER, SUBJECT)
    assert ids[:asked] == processor.encode_question(QUESTION, SUBJECT)
    assert text(processor, ids[asked:]) == "Yes, <sks> is.</s>"


def test_decoding_gives_the_name_back(processor):
    ids, asked = processor.encode_qa(QUESTION, ANSWER, SUBJECT)
    assert processor.decode_answer(ids[asked:], SUBJECT) == ANSWER
    assert processor.decode_answer(torch.tensor(ids[asked:]), "<Ann>") == ANSWER.replace(SUBJECT, "<Ann>")
    assert processor.decode_answer(ids[asked:]) == "Yes, <sks> is."


def test_decoding_stops_at_the_end_token_and_drops_padding(processor):
    ids, asked = processor.encode_qa(QUESTION, ANSWER, SUBJECT)
    padding = [processor.tokenizer.pad_token_id] * 3
    assert processor.decode_answer(padding + ids[asked:] + ids[:5], SUBJECT) == ANSWER


@settings(max_examples=60, deadline=None)
@given(answer=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_answer_survives_encoding_and_decoding(answer):
    processor = ONE_VIEW
    ids, asked = processor.encode_qa(QUESTION, answer, SUBJECT)
    assert processor.decode_answer(ids[asked:], SUBJECT) == answer.strip()


ONE_VIEW = tiny_processor()


@pytest.mark.parametrize("token", ["<video>", "[INST]", "[/INST]", "<s>", "</s>"])
def test_control_tokens_in_a_question_or_an_answer_are_refused(processor, token):
    with pytest.raises(ValueError, match="is a control token"):
        processor.encode_question(f"Hello {token}?")
    with pytest.raises(ValueError, match="is a control token"):
        processor.encode_qa("Hello?", f"Well {token}")


# -- the chat template ------------------------------------------------------------------------------------------------


def test_chat_template_gives_the_ids_of_the_prompt_functions(processor):
    ids, _ = processor.encode_qa(QUESTION, ANSWER, SUBJECT)
    out = chat(processor, conversation(tiny_clip(True)), subject=True)
    assert out["input_ids"].tolist() == [processor.encode_prefix() + ids]
    question_only = chat(processor, conversation(tiny_clip(True), answer=None), subject=True)
    expected = processor.encode_prefix() + processor.encode_question(QUESTION, SUBJECT)
    assert question_only["input_ids"].tolist() == [expected]


def test_chat_template_without_video_is_a_plain_turn(processor):
    turns = [{"role": "user", "content": "Hello."}]
    assert text(processor, chat(processor, turns)["input_ids"][0]) == "<s>[INST]Hello.[/INST]"


def test_assistant_mask_covers_the_answer_and_the_end_token(processor):
    turns = conversation(tiny_clip(True)) + [
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    out = chat(processor, turns, return_assistant_tokens_mask=True, subject=True)
    masked = out["input_ids"][0][out["assistant_masks"][0].bool()]
    assert text(processor, masked) == "Yes, <sks> is.</s>Yes.</s>"


@pytest.mark.parametrize("key", ["video", "path", "url"])
def test_chat_template_takes_a_path_under_every_usual_key(processor, path, key):
    turns = conversation(None, answer=None)
    turns[0]["content"][0] = {"type": "video", key: str(path)}
    expected = processor.video_processor(path)["pixel_values_videos"]
    assert torch.equal(chat(processor, turns)["pixel_values_videos"], expected)


def test_chat_template_batches_conversations_with_and_without_video(processor, path):
    batch = [
        conversation(path),  # a pathlib.Path
        [{"role": "user", "content": "Hello."}],
        conversation(tiny_clip(False)),
    ]
    out = chat(processor, batch, processor_kwargs={"padding": True})
    alone = [processor.video_processor(v)["pixel_values_videos"] for v in (path, tiny_clip(False))]
    assert torch.equal(out["pixel_values_videos"], torch.cat(alone))
    slots = (out["input_ids"] == processor.video_token_id).sum(dim=1).tolist()
    assert slots == [
        processor.num_tiles * processor.tokens_per_tile,
        0,
        processor.num_tiles * processor.tokens_per_tile,
    ]


def test_servers_cannot_change_the_number_of_frames(processor):
    out = chat(processor, conversation(tiny_clip(True)), processor_kwargs={"num_frames": 32})
    assert out["pixel_values_videos"].shape[2] == NUM_FRAMES


def test_a_placeholder_that_a_user_types_stays_text(processor):
    turns = conversation(tiny_clip(True), question="Is this a <video> or a film?[/INST]", answer=None)
    ids = chat(processor, turns, sanitize_control_tokens=True)["input_ids"][0].tolist()
    assert ids.count(processor.video_token_id) == processor.num_tiles * processor.tokens_per_tile
    assert text(processor, ids).endswith("Is this a <video> or a film?[/INST][/INST]")


# -- calling ----------------------------------------------------------------------------------------------------------


def test_placeholders_and_videos_must_match(processor):
    with pytest.raises(ValueError, match="number of videos"):
        processor(text="<video><video>", videos=[tiny_clip(True)])
    with pytest.raises(ValueError, match="no videos were passed"):
        processor(text="<video>")


def test_still_reaches_the_video_processor(processor):
    out = processor(text="<video>", videos=tiny_clip(True), still=True, return_tensors="pt")
    expected = processor.video_processor(tiny_clip(True), still=True)["pixel_values_videos"]
    assert torch.equal(out["pixel_values_videos"], expected)


def test_prompt_and_pixels_fit_the_model(processor):
    model = tiny_model(tile_grid=processor.video_processor.tile_grid, routing="remoh")
    inputs = chat(processor, conversation(tiny_clip(True)), subject=True)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape[:2] == inputs["input_ids"].shape and torch.isfinite(logits).all()


# -- making and saving ------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_the_prompt_tokens_is_refused():
    tokenizer = tiny_tokenizer()
    bare = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(
            tokenizer.backend_tokenizer.to_str().replace("<sks>", "<other>")
        ),
        bos_token="<s>",
        eos_token="</s>",
    )
    with pytest.raises(ValueError, match="tokenizer lacks <sks>"):
        PVChatProcessor(PVChatVideoProcessor(), bare)


def test_a_video_processor_with_another_number_of_tiles_is_refused():
    with pytest.raises(ValueError, match="num_tiles is 1, but the video processor makes 3"):
        PVChatProcessor(PVChatVideoProcessor(tile_grid=(2, 1)), tiny_tokenizer(), num_tiles=1)


def test_something_that_is_no_video_processor_is_refused():
    with pytest.raises(TypeError, match="must be a video processor"):
        PVChatProcessor(tiny_tokenizer(), tiny_tokenizer())


@pytest.mark.parametrize("load", [PVChatProcessor.from_pretrained, AutoProcessor.from_pretrained])
def test_a_saved_processor_does_the_same(processor, tmp_path, load):
    processor.save_pretrained(tmp_path / "one")
    loaded = load(tmp_path / "one")
    assert type(loaded) is PVChatProcessor
    loaded.save_pretrained(tmp_path / "two")
    again = load(tmp_path / "two")
    expected = chat(processor, conversation(tiny_clip(True)), subject=True)
    for copy in (loaded, again):
        out = chat(copy, conversation(tiny_clip(True)), subject=True)
        assert out.keys() == expected.keys()
        assert all(torch.equal(out[key], expected[key]) for key in expected)
        assert copy.encode_prefix() == processor.encode_prefix()
        ids, asked = processor.encode_qa(QUESTION, ANSWER, SUBJECT)
        assert copy.encode_qa(QUESTION, ANSWER, SUBJECT) == (ids, asked)


def test_numpy_output_is_numpy(processor):
    out = chat(processor, conversation(tiny_clip(True)), return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in out.values())
