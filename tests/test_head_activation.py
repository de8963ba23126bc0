"""Maps of head activation: which gates are counted, over which tokens and clips, and what is said about them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pvchat.evaluation.head_activation import (
    FILE,
    active_shares,
    difference,
    head_activation,
    in_words,
    read_head_activation,
    routed_attentions,
    write_head_activation,
)
from pvchat.session import VideoChat
from tests.tiny import SUBJECT, tiny_config, tiny_dataset, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("dataset"), positives=1, negatives=1, test=2)


def routed_model(routing="remoh", seed=0):
    """A tiny model whose routers are random, so that gates open and close."""
    model = tiny_model(seed, routing=routing)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".head_router.router." in name:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


def clips_of(dataset):
    return [video.path for video in dataset.split("test")]


def test_every_routed_attention_has_its_layer_and_kind():
    config = tiny_config("remoh").qformer_config  # 4 layers, routed from the third, cross-attention in every second
    assert routed_attentions(config) == [
        {"layer": 2, "attention": "self"},
        {"layer": 2, "attention": "cross"},
        {"layer": 3, "attention": "self"},
    ]


def test_the_rows_of_the_maps_are_the_router_outputs_of_the_model(dataset):
    model = routed_model()
    pixels = tiny_processor().video_processor(videos=[str(c) for c in clips_of(dataset)], return_tensors="pt")
    with torch.no_grad():
        logits = model.get_video_features(pixels["pixel_values_videos"]).router_logits
    active, rate = active_shares(model, tiny_processor(), clips_of(dataset))
    assert len(logits) == len(routed_attentions(model.config.qformer_config)) == active.shape[1]
    for row, router_logits in enumerate(logits):
        expected = (router_logits[:, -3:] > 0).float().mean(dim=1)  # the three subject tokens come last
        np.testing.assert_allclose(active[:, row], expected, atol=1e-6)
    assert rate == pytest.approx(float(torch.stack(logits).gt(0).float().mean()))
    assert 0.0 < active.mean() < 1.0


def test_top_k_routing_has_k_open_heads_at_every_token(dataset):
    active, rate = active_shares(routed_model("moh"), tiny_processor(), clips_of(dataset))
    np.testing.assert_allclose(active.sum(axis=-1), 1.0, atol=1e-6)
    assert rate == pytest.approx(0.5)


def test_tiles_of_a_clip_are_averaged(dataset):
    model = tiny_model(routing="remoh", tile_grid=(2, 1))
    active, _ = active_shares(model, tiny_processor((2, 1)), clips_of(dataset))
    assert active.shape == (4, 3, 2)
    np.testing.assert_array_equal(active, 1.0)  # identity routers are open everywhere


def test_maps_are_means_over_clips_with_and_without_the_subject(tmp_path, dataset):
    chat = VideoChat(routed_model(), tiny_processor(), SUBJECT)
    found = write_head_activation(chat, dataset, tmp_path)
    active, rate = active_shares(chat.model, chat.processor, clips_of(dataset))
    present = [video.subject_present for video in dataset.split("test")]
    assert found["present"]["clips"] == found["absent"]["clips"] == 2
    np.testing.assert_allclose(found["present"]["active"], active[present].mean(axis=0))
    shift = np.array(found["present"]["active"]) - found["absent"]["active"]
    np.testing.assert_allclose(found["difference"]["active"], shift)
    assert found["heads"] == [2, 3] and found["target"] == 0.5 and found["rate"] == rate
    assert read_head_activation(tmp_path) == json.loads((tmp_path / FILE).read_text()) == found


@pytest.mark.parametrize("planted", [True, False])
def test_a_difference_between_clips_is_told_from_chance(planted):
    rng = np.random.default_rng(0)
    active = rng.uniform(0.4, 0.6, (30, 3, 4))
    present = np.arange(30) < 15
    active[present, 1, 2] += 0.3 if planted else 0.0
    found = difference(active, present)
    assert (found["p"] < 0.01) == planted
    assert (found["mean_size"] > 1.3 * found["by_chance"]) == planted


def test_words_name_the_head_that_differs_most_and_whether_it_may_be_chance():
    active = np.full((20, 2, 2), 0.5)
    present = np.arange(20) < 10
    active[present, 1, 0] = 0.9
    maps = {
        "rows": [{"layer": 2, "attention": "self"}, {"layer": 3, "attention": "cross"}],
        "heads": [8, 9],
        "present": {"clips": 10, "active": active[present].mean(0).tolist()},
        "absent": {"clips": 10, "active": active[~present].mean(0).tolist()},
        "difference": difference(active, present),
    }
    words = in_words(maps, SUBJECT)
    assert "head 8 of layer 3 (cross-attention), 90% against 50%" in words and "the routing depends" in words
    maps["difference"]["p"] = 0.4
    assert "no sign that the routing depends" in in_words(maps, SUBJECT)


def test_a_split_of_one_kind_has_no_difference(dataset):
    chat = VideoChat(routed_model(), tiny_processor(), SUBJECT)
    alone = type(dataset)(SUBJECT, dataset.manifest, [v for v in dataset.videos if v.subject_present], dataset.root)
    found = head_activation(chat, alone)
    assert found["difference"] is None and found["absent"] is None
    assert "all with, or all without" in in_words(found, SUBJECT)


def test_a_model_without_routers_and_a_folder_without_maps_say_so(tmp_path, dataset):
    found = write_head_activation(VideoChat(tiny_model(), tiny_processor()), dataset, tmp_path)
    assert found["rate"] is None and "no routed heads" in in_words(read_head_activation(tmp_path), SUBJECT)
    assert "not computed" in in_words(read_head_activation(tmp_path / "elsewhere"), SUBJECT)
