"""Subject tokens that start from what the base says about the reference clip."""

import pytest
import torch

from pvchat.dataset_builder.video_io import write_video
from pvchat.errors import PVChatError
from pvchat.trainers.adapter import AdapterSettings, build_subject_model, start_from_clips
from tests.tiny import SUBJECT, tiny_clip, tiny_model, tiny_processor


def write_clip(path, frames):
    write_video(path, frames, 8.0)
    return path


def pixels_of(*clips):
    return tiny_processor().video_processor(videos=list(clips), return_tensors="pt")["pixel_values_videos"]


def test_proposed_tokens_have_the_shape_of_the_subject_tokens_and_depend_on_the_clip():
    model = tiny_model()
    tokens = model.model.propose_subject_tokens(pixels_of(tiny_clip(True), tiny_clip(False)))
    assert tokens.shape == (2, 3, 32)
    assert not torch.allclose(tokens[0], tokens[1])


def test_six_general_queries_are_averaged_in_pairs_onto_three_subject_tokens():
    model = tiny_model()
    queries = torch.randn(2, 9, 32)  # 4 + 2 general queries, 3 subject tokens
    expected = queries[:, :6].unflatten(1, (3, 2)).mean(2)
    torch.testing.assert_close(model.model.pool_to_subject_tokens(queries), expected)


def test_cached_encoder_states_propose_the_same_tokens_as_pixels():
    model = tiny_model().model
    pixels = pixels_of(tiny_clip(True))
    with torch.no_grad():
        states = model.encode_video(pixels)
        torch.testing.assert_close(
            model.propose_subject_tokens(vision_hidden_states=states), model.propose_subject_tokens(pixels)
        )


def test_starting_from_clips_moves_the_adapter_s_subject_tokens_and_nothing_else(tmp_path):
    model = build_subject_model(tiny_model(), AdapterSettings())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clips = [write_clip(tmp_path / "a.mp4", tiny_clip(True)), write_clip(tmp_path / "b.mp4", tiny_clip(False))]
    start_from_clips(model, tiny_processor(), clips)
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == ["base_model.model.model.subject_tokens.modules_to_save.default.weight"]
    each = tiny_model().model.propose_subject_tokens(
        tiny_processor().video_processor(videos=[str(c) for c in clips], return_tensors="pt")["pixel_values_videos"]
    )
    torch.testing.assert_close(model.state_dict()[moved[0]], each.mean(0))


def test_the_base_is_untouched_by_the_start(tmp_path):
    processor = tiny_processor()
    ids = torch.tensor([processor.encode_prefix() + processor.encode_question("Is <Nz> here?", SUBJECT)])
    inputs = {"input_ids": ids, "pixel_values_videos": pixels_of(tiny_clip(True))}
    with torch.no_grad():
        expected = tiny_model()(**inputs).logits
        model = build_subject_model(tiny_model(), AdapterSettings())
        start_from_clips(model, processor, [write_clip(tmp_path / "a.mp4", tiny_clip(False))])
        assert not torch.equal(model.eval()(**inputs).logits, expected)
        with model.disable_adapter():
            assert torch.equal(model(**inputs).logits, expected)


def test_an_unknown_start_is_refused_with_the_allowed_ones():
    with pytest.raises(PVChatError, match="base, reference"):
        AdapterSettings(subject_init="random")
