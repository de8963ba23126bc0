"""A video is read once: what that saves, counted, and that answers are those of the slow way."""

import json
import threading

import numpy as np
import pytest
import torch

from benchmarks import inference
from pvchat.dataset_builder.video_io import write_video
from pvchat.errors import PVChatError
from pvchat.session import VideoChat, _one_ahead
from tests.tiny import SUBJECT, tiny_clip, tiny_model, tiny_processor

QUESTION = "Is <Nz> in this video?"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def chat():
    """Of the benchmark's tiny size, whose parts cost what they cost at full size, in proportion."""
    return inference.make_chat("tiny")


def test_the_tiny_size_has_the_proportions_of_the_full_one():
    shares = {}
    for size in ("tiny", "full"):
        parts = inference.flops_of_parts(size, question_tokens=30)
        shares[size] = {name: parts[name] / sum(parts.values()) for name in inference.PARTS}
    for name in inference.PARTS:
        assert shares["tiny"][name] == pytest.approx(shares["full"][name], rel=0.25), name
    assert 0.65 < shares["full"]["vision"] < 0.8  # the reference counts 14.87 TFLOP of 20.3 for encoder and prefix


def test_the_second_question_costs_less_than_a_fifth_of_the_first(chat):
    first, second = inference.flops_of_questions(chat, tiny_clip(True), QUESTION)
    assert 0 < second < first / 5
    expected = inference.flops_of_parts("tiny", len(chat.processor.encode_question(QUESTION, chat.subject)))
    assert second / 1e9 == pytest.approx(expected["question"], rel=0.01)
    assert first / 1e9 == pytest.approx(sum(expected.values()), rel=0.01)


def test_questions_about_one_video_encode_it_once(chat):
    questions = [QUESTION, "Where?", "What is <Nz> doing?"]
    video = tiny_clip(True)
    once = inference.count_flops(lambda: chat.ask_many([video], [questions[:1]], 1))
    together = inference.count_flops(lambda: chat.ask_many([video], [questions], 1))
    apart = inference.count_flops(lambda: [chat.ask(video, question, 1) for question in questions])
    assert together < 1.1 * once and apart > 2.9 * once


def test_both_ways_of_asking_give_the_same_answers(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # so that answers differ
    chat = VideoChat(model, tiny_processor(), SUBJECT)
    videos = [tmp_path / f"{seed}.mp4" for seed in range(3)]
    for seed, video in enumerate(videos):
        write_video(video, tiny_clip(seed == 0, seed), 8.0)
    questions = [QUESTION, "Where is <Nz>?"]
    found = {}
    for name, (slow, fast) in inference.comparisons(chat, videos, questions, 6).items():
        found[name] = slow(), fast()
        assert found[name][0] == found[name][1], name
    assert len(set(found["re_encoding"][0] + found["video_batch"][0])) > 1


def test_the_full_size_is_refused_without_a_gpu_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert inference.main(["--size", "full"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "GPU with 20 GB, and there is none" in said


def test_the_benchmark_writes_ratios_with_their_passport(tmp_path, monkeypatch, capsys):
    few = ["--videos", "2", "--questions", "2", "--tokens", "2", "--repeats", "1"]
    monkeypatch.setattr(inference, "flops_of_parts", lambda size, tokens: dict.fromkeys(inference.PARTS, 1.0))
    assert inference.main([*few, "--write", str(tmp_path), "--json"]) == 0
    result = json.loads((tmp_path / "inference.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert result["ratios"].keys() == inference.TITLES.keys()
    for row in result["ratios"].values():
        assert row["ratio"] == row["slow_seconds"] / row["fast_seconds"] and row["same_answers"] in (None, 1.0)
    config = result["passport"]["config"]
    assert (config["size"], config["videos"], config["questions"], config["dtype"]) == ("tiny", 2, 2, "float32")
    page = (tmp_path / "inference.md").read_text()
    assert "| questions together against one by one |" in page and "python -m benchmarks.inference" in page


def test_files_decoded_at_the_same_time_stay_in_order_and_a_broken_one_is_refused(chat, tmp_path):
    clips = [tiny_clip(False, seed) for seed in range(4)]
    expected = torch.cat([chat._pixels([clip]) for clip in clips])
    assert torch.equal(chat._pixels(clips), expected)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(PVChatError, match="broken.mp4"):
        chat.ask_many([clips[0], tmp_path / "broken.mp4"], [[QUESTION], [QUESTION]], 1)
    assert chat.ask_many([clips[0], tmp_path / "broken.mp4"], [[QUESTION], []], 1)[1] == []


def test_the_next_one_is_made_ahead_and_no_more():
    made, two = [], threading.Event()

    def make(item):
        made.append(item)
        if len(made) == 2:
            two.set()
        return item * 10

    results = _one_ahead(make, range(4))
    assert next(results) == 0
    assert two.wait(60) and made == [0, 1]
    assert list(results) == [10, 20, 30] and made == [0, 1, 2, 3]
    assert list(_one_ahead(np.negative, [])) == []
