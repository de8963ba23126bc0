"""The authors' JSON format, read and written; their real file where it is at hand."""

import json
from pathlib import Path

import pytest

from pvchat.dataset_builder import read_authors_json, write_authors_json
from pvchat.errors import PVChatError

AUTHORS = Path(__file__).resolve().parents[2] / "shared" / "data" / "authors_train_all_video.json"

TEMPLATE = {
    "data": [
        {
            "video_name": "a.mp4",
            "video_path": "/clips/a.mp4",
            "sks_present": "",
            "gender": "male",
            "age": "adult",
            "is_positive": True,
            "qa_pairs": [
                {"question": "Is <sks> here?", "answer": "Yes, <sks> is.", "is_special": True},
                {"question": "What is <sks> wearing in this video?", "answer": "A hat.", "is_special": False},
                {"question": "Where is <sks> located?", "answer": "At home.", "is_special": False},
                {"question": "What is <sks> doing?", "answer": "Singing.", "is_special": False},
            ],
        },
        {
            "video_name": "b.mp4",
            "video_path": "/clips/b.mp4",
            "sks_present": "",
            "gender": "",
            "age": "",
            "is_positive": False,
            "ori_video_name": "a.mp4",
            "qa_pairs": [{"question": "Is <sks> here?", "answer": "No.", "is_special": True}],
        },
    ]
}


def save(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_template_file_becomes_rows_with_categories(tmp_path):
    dataset = read_authors_json(save(tmp_path / "train.json", TEMPLATE))
    assert dataset.subject == "<sks>" and [v.subject_present for v in dataset.videos] == [True, False]
    assert [q.category for q in dataset.videos[0].qa] == ["existence", "appearance", "location", "action"]
    assert [v.synthetic for v in dataset.videos] == [False, True]


def test_a_template_file_comes_back_as_it_was(tmp_path):
    dataset = read_authors_json(save(tmp_path / "train.json", TEMPLATE))
    written = write_authors_json(dataset, tmp_path / "back.json")
    assert json.loads(written.read_text(encoding="utf-8")) == TEMPLATE


def test_a_file_of_one_person_comes_back_as_it_was(tmp_path):
    text = json.dumps(TEMPLATE).replace("<sks>", "<Nz>").replace('"sks_present": ""', '"sks_present": "<Nz>"')
    named = {"videos": json.loads(text)["data"]}
    dataset = read_authors_json(save(tmp_path / "Nztest.json", named))
    assert dataset.subject == "<Nz>" and {v.split for v in dataset.videos} == {"test"}
    written = write_authors_json(dataset, tmp_path / "back.json", split="test")
    assert json.loads(written.read_text(encoding="utf-8")) == named


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"data": [{}]}', '{"data": [1]}', '"data"'])
def test_another_file_is_one_line(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(PVChatError) as caught:
        read_authors_json(path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not AUTHORS.is_file(), reason="the authors' file is not at hand")
def test_the_authors_own_file_is_read_whole_and_comes_back_as_it_was(tmp_path):
    dataset = read_authors_json(AUTHORS)
    assert len(dataset.videos) == 656 and sum(len(v.qa) for v in dataset.videos) == 9840
    assert sum(not v.subject_present for v in dataset.videos) == 30
    assert len({v.video_id for v in dataset.videos}) == 656
    written = write_authors_json(dataset, tmp_path / "back.json")
    original = json.loads(AUTHORS.read_text(encoding="utf-8"))
    assert json.loads(written.read_text(encoding="utf-8")) == original
