"""Galleries: whom they offer as somebody else, and above all whom they never offer."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pvchat.dataset_builder import cartoon
from pvchat.dataset_builder.backends import light
from pvchat.dataset_builder.backends.galleries import ClipEncoder, ClipTopK, FaceTopK, RandomClips
from pvchat.dataset_builder.backends.galleries.clip import ClipIndex
from pvchat.dataset_builder.backends.galleries.source import open_source
from pvchat.dataset_builder.backends.others import are_subject, choose_others
from pvchat.dataset_builder.engine import Rejected, hash_file
from pvchat.dataset_builder.protocols import FaceGallery, NegativeRetriever, Person
from pvchat.dataset_builder.video_io import read_video, write_video
from pvchat.errors import MissingBackendError, PVChatError

SAME, DIFFERENT = 0.6, 0.2


class PixelEmbedder:
    """The embedding is drawn in the picture's first pixels; see `save_face`."""

    id, licences, same, different = "pixels@1", ("Apache-2.0",), SAME, DIFFERENT

    def embed(self, person):
        raise NotImplementedError


def direction(cosine: float, axis: int, size: int = 16) -> np.ndarray:
    """A vector of length 1 with this cosine to the first axis, leaning to another one."""
    vector = np.zeros(size)
    vector[0], vector[axis] = cosine, np.sqrt(1 - cosine**2)
    return vector


def save_face(path: Path, vector: np.ndarray, shade: int = 0) -> Path:
    """A 32 x 32 png that carries an embedding."""
    pixels = np.full((32, 32, 3), shade, np.uint8)
    pixels[0, : len(vector), 0] = np.round(vector * 100 + 128)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def read_face(path: Path, sha256: str) -> np.ndarray:
    assert hash_file(path) == sha256
    pixels = np.asarray(Image.open(path).convert("RGB"))
    vector = (pixels[0, :16, 0].astype(float) - 128) / 100
    if not vector.any() or abs(np.linalg.norm(vector) - 1) > 0.1:
        raise Rejected("no face")
    return vector / np.linalg.norm(vector)


SUBJECT = direction(1.0, 1)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The subject twice, the subject in another light, two people alike, one unlike, one without a face."""
    lit_again = direction(0.5, 3)  # below `same` with the reference ...
    bridge = direction(0.9, 3)  # ... but the same person as another picture of the subject
    save_face(tmp_path / "subject.png", SUBJECT, 1)
    save_face(tmp_path / "subject_bridge.png", bridge, 2)
    save_face(tmp_path / "subject_lit.png", lit_again, 3)
    save_face(tmp_path / "alike.png", direction(0.55, 4), 4)
    save_face(tmp_path / "alike_again.png", direction(0.54, 4), 5)
    save_face(tmp_path / "near.png", direction(0.4, 5), 6)
    save_face(tmp_path / "unlike.png", direction(0.1, 6), 7)
    Image.new("RGB", (32, 32), (128, 128, 128)).save(tmp_path / "wall.png")
    return tmp_path


def names(matches) -> list[str]:
    return [match.path.stem for match in matches]


# -- who is never offered ---------------------------------------------------------------------------------------------


def unit(rng, size=8):
    vector = rng.normal(size=size)
    return vector / np.linalg.norm(vector)


def near(rng, centre, cosine):
    """A random vector of length 1 with this cosine to `centre`."""
    other = rng.normal(size=len(centre))
    other -= (other @ centre) * centre
    other /= np.linalg.norm(other)
    return cosine * centre + np.sqrt(1 - cosine**2) * other


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    others=st.integers(0, 12),
    planted=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6),
    low=st.floats(-1.0, SAME - 0.01),
    high_share=st.floats(0.01, 1.0),
    k=st.integers(1, 8),
)
def test_planted_duplicates_of_the_subject_are_never_chosen_whatever_the_band_and_order(
    seed, others, planted, low, high_share, k
):
    rng = np.random.default_rng(seed)
    subject = unit(rng)
    band = (low, low + (SAME - low) * high_share)
    copies = [near(rng, subject, SAME + 1e-9 + (1 - SAME - 2e-9) * share) for share in planted]
    relit = [near(rng, copy, SAME + 1e-6) for copy in copies]  # the same person as a copy, maybe not as the reference
    faces = np.array([*copies, *relit, *(unit(rng) for _ in range(others))])
    is_subject = np.array([True] * (2 * len(planted)) + [False] * others)
    similarity = faces @ subject

    def choose(order):
        ranking = sorted(range(len(order)), key=lambda i: -similarity[order[i]])
        persons = [str(i) for i in order]
        return [order[i] for i in choose_others(subject, faces[order], persons, ranking, same=SAME, band=band, k=k)]

    order = rng.permutation(len(faces))
    chosen = choose(order)
    assert not is_subject[chosen].any()
    assert all(band[0] <= similarity[i] < band[1] for i in chosen)
    assert list(similarity[chosen]) == sorted(similarity[chosen], reverse=True)
    assert len(chosen) <= k
    assert all(faces[a] @ faces[b] < SAME for a in chosen for b in chosen if a != b)
    assert chosen == choose(np.arange(len(faces)))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_person_who_is_known_to_be_the_subject_is_left_out_with_all_their_pictures(seed):
    rng = np.random.default_rng(seed)
    subject = unit(rng)
    faces = np.array([near(rng, subject, 0.9), near(rng, subject, 0.1), near(rng, subject, 0.3)])
    options = {"same": SAME, "band": (-1, SAME), "k": 3}
    assert 1 not in choose_others(subject, faces, ["star", "star", "other"], [0, 1, 2], **options)


def test_face_topk_offers_people_in_the_band_once_and_most_alike_first(folder, tmp_path):
    gallery = FaceTopK(folder, PixelEmbedder(), read_face, tmp_path / "unpacked")
    assert isinstance(gallery, FaceGallery)
    matches = gallery.search(SUBJECT, 10)
    assert names(matches) == ["alike", "near"]
    assert [match.similarity for match in matches] == pytest.approx([0.55, 0.4], abs=0.02)
    assert names(gallery.search(SUBJECT, 1)) == ["alike"]
    assert [path.stem for path in gallery.skipped] == ["wall"] and "no face" in gallery.skipped[folder / "wall.png"]


def test_face_topk_takes_the_most_alike_when_the_band_has_no_lower_end(folder, tmp_path):
    gallery = FaceTopK(folder, PixelEmbedder(), read_face, tmp_path, band=(-1, SAME))
    assert names(gallery.search(SUBJECT, 10)) == ["alike", "near", "unlike"]


def test_a_band_that_reaches_the_subject_is_refused(folder, tmp_path):
    with pytest.raises(PVChatError, match="at most 0.6 .*got 0.2 to 0.7"):
        FaceTopK(folder, PixelEmbedder(), read_face, tmp_path, band=(0.2, 0.7))


def test_a_gallery_of_only_the_subject_offers_nobody(tmp_path):
    for number, cosine in enumerate((1.0, 0.95, 0.9, 0.8)):
        save_face(tmp_path / f"{number}.png", direction(cosine, 2), number)
    assert FaceTopK(tmp_path, PixelEmbedder(), read_face, tmp_path, band=(-1, SAME)).search(SUBJECT, 5) == []


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), planted=st.integers(1, 4), others=st.integers(0, 6))
def test_a_light_gallery_offers_nobody_who_is_the_subject_by_any_of_their_pictures(seed, planted, others):
    """Copies of the subject, and relit pictures that match only a copy."""
    rng = np.random.default_rng(seed)
    subject = unit(rng)
    copies = [near(rng, subject, rng.uniform(SAME + 1e-9, 1)) for _ in range(planted)]
    relit = [near(rng, copy, rng.uniform(SAME + 1e-9, 1)) for copy in copies]
    vectors = {f"{i:02d}": v for i, v in enumerate([*copies, *relit, *(unit(rng) for _ in range(others))])}
    gallery = object.__new__(light.FolderGallery)
    gallery.embedder = PixelEmbedder()
    gallery._vectors = {name: (Path(f"{name}.png"), vector) for name, vector in vectors.items()}
    found = gallery.search(subject, 20)
    assert all(int(match.sha256) >= 2 * planted and match.similarity < SAME for match in found)
    strangers = are_subject(subject[None], np.array(list(vectors.values())), SAME)
    assert {match.sha256 for match in found} <= {name for name, own in zip(vectors, strangers, strict=True) if not own}


def test_drawn_people_are_told_from_the_drawn_subject(tmp_path):
    """The light embedder on cartoon clips: three clips of the subject hidden among six other people."""
    rng = np.random.default_rng(1)
    members = cartoon.cast(7, seed=11)
    embedder, clips = light.HeadEmbedder(), {}
    for index, member in enumerate([members[0]] * 4 + list(members[1:])):
        path = tmp_path / "reference.mp4" if index == 0 else tmp_path / "gallery" / f"{index:02d}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, cartoon.render_clip(member.identity, cartoon.Scene.random(rng), 4, 128), 4)
        clips[path] = embedder.embed(Person(*read_video(path)))
    reference = clips.pop(tmp_path / "reference.mp4")
    own = [path for path in clips if int(path.stem) < 4]
    assert all(clips[path] @ reference > embedder.different for path in own)
    gallery = FaceTopK(
        tmp_path / "gallery", embedder, lambda path, _: clips[path], tmp_path, band=(-1, embedder.same)
    )  # fmt: skip
    found = gallery.search(reference, 10)
    assert all(match.similarity < embedder.same for match in found)
    assert {match.path for match in found} & {p for p in own if clips[p] @ reference >= embedder.same} == set()
    assert len(found) >= 4


# -- CLIP -------------------------------------------------------------------------------------------------------------


def tiny_clip_encoder(seed: int = 0) -> ClipEncoder:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(seed)
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config=part | {"image_size": 32, "patch_size": 8}, text_config=part | {"vocab_size": 20},
        projection_dim=8,
    )  # fmt: skip
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model = CLIPModel(config)
    return ClipEncoder(lambda: (model, processor), f"tiny-{seed}")


class CountingEncoder:
    """Counts the pictures that reach the encoder."""

    def __init__(self, encoder):
        self.encoder, self.id, self.pictures = encoder, encoder.id, 0

    def encode(self, pictures):
        self.pictures += len(pictures)
        return self.encoder.encode(pictures)


@pytest.fixture
def encoder():
    return CountingEncoder(tiny_clip_encoder())


@pytest.fixture
def query(folder, encoder) -> np.ndarray:
    """The embedding of a picture of the subject."""
    (vector,) = encoder.encode([np.asarray(Image.open(folder / "subject.png").convert("RGB"))])
    encoder.pictures = 0
    return vector


def test_clip_embeddings_have_length_one_and_equal_the_models_own_features(folder):
    encoder = tiny_clip_encoder()
    picture = np.asarray(Image.open(folder / "near.png").convert("RGB"))
    tall = np.random.default_rng(0).integers(0, 255, (64, 40, 3), dtype=np.uint8)
    found = encoder.encode([picture, tall])
    assert found.shape == (2, 8) and found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1], abs=1e-5)
    model, processor = encoder._load()
    pixels = processor(images=[picture], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        vision = model.vision_model(pixel_values=pixels).pooler_output
        expected = model.visual_projection(vision)[0].numpy()
    assert found[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)


def test_clip_topk_ranks_by_clip_and_never_offers_the_subject(folder, tmp_path, encoder, query):
    gallery = ClipTopK(folder, tmp_path / "index", encoder, query, PixelEmbedder(), read_face)
    assert isinstance(gallery, FaceGallery)
    matches = gallery.search(SUBJECT, 10)
    assert set(names(matches)) == {"near", "unlike", "alike"} or set(names(matches)) == {
        "near", "unlike", "alike_again",
    }  # fmt: skip
    assert [m.similarity for m in matches] == sorted((m.similarity for m in matches), reverse=True)
    for match in matches:
        picture = np.asarray(Image.open(match.path).convert("RGB"))
        assert match.similarity == pytest.approx(float(encoder.encode([picture])[0] @ query), abs=1e-5)
    assert names(gallery.search(SUBJECT, 1)) == names(matches)[:1]


def test_clip_topk_looks_further_down_the_ranking_when_the_top_is_the_subject(tmp_path, encoder):
    for number in range(70):  # more than are screened at first
        save_face(tmp_path / "g" / f"copy{number:02d}.png", SUBJECT, number)
    save_face(tmp_path / "g" / "other.png", direction(0.1, 7), 255)
    (query,) = encoder.encode([np.asarray(Image.open(tmp_path / "g" / "copy00.png").convert("RGB"))])
    gallery = ClipTopK(tmp_path / "g", tmp_path / "index", encoder, query, PixelEmbedder(), read_face)
    assert names(gallery.search(SUBJECT, 1)) == ["other"]


def test_clip_index_is_reused_and_only_what_is_new_is_encoded(folder, tmp_path, encoder):
    first = ClipIndex(open_source(folder, tmp_path), tmp_path / "index", encoder)
    assert encoder.pictures == len(first.entries) == 8
    written = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "index").iterdir()}
    assert set(written) == {"clip-index.json", "clip-index.safetensors"}

    again = ClipIndex(open_source(folder, tmp_path), tmp_path / "index", encoder)
    assert encoder.pictures == 8 and np.array_equal(first.vectors, again.vectors)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "index").iterdir()} == written

    save_face(folder / "aaa_new.png", direction(0.3, 8), 9)
    (folder / "near.png").rename(folder / "zzz_near.png")
    (folder / "alike.png").unlink()
    changed = ClipIndex(open_source(folder, tmp_path), tmp_path / "index", encoder)
    assert encoder.pictures == 9 and len(changed.entries) == 8
    fresh = ClipIndex(open_source(folder, tmp_path), tmp_path / "fresh", encoder)
    assert np.allclose(changed.vectors, fresh.vectors, atol=1e-6)
    assert [e["sha256"] for e in changed.entries] == [e["sha256"] for e in fresh.entries]


def test_clip_index_is_made_anew_for_another_model_and_after_damage(folder, tmp_path, encoder):
    source, place = open_source(folder, tmp_path), tmp_path / "index"
    vectors = ClipIndex(source, place, encoder).vectors
    other = CountingEncoder(tiny_clip_encoder(seed=1))
    assert not np.allclose(ClipIndex(source, place, other).vectors, vectors) and other.pictures == 8
    assert np.allclose(ClipIndex(source, place, encoder).vectors, vectors, atol=1e-6) and encoder.pictures == 16
    data = (place / "clip-index.safetensors").read_bytes()
    (place / "clip-index.safetensors").write_bytes(data[:-4] + b"\0\0\0\1")
    assert np.allclose(ClipIndex(source, place, encoder).vectors, vectors, atol=1e-6) and encoder.pictures == 24
    (place / "clip-index.json").write_text("{")
    assert np.allclose(ClipIndex(source, place, encoder).vectors, vectors, atol=1e-6) and encoder.pictures == 32


def test_a_large_index_is_saved_on_the_way_so_that_a_kill_loses_at_most_half(folder, tmp_path, encoder, monkeypatch):
    from pvchat.dataset_builder.backends.galleries import clip

    monkeypatch.setattr(clip, "BATCH", 2)
    monkeypatch.setattr(clip, "FIRST_SAVE", 4)
    broken = CountingEncoder(encoder)
    broken.encode = lambda pictures: 1 / 0 if encoder.pictures >= 6 else encoder.encode(pictures)
    with pytest.raises(ZeroDivisionError):
        ClipIndex(open_source(folder, tmp_path), tmp_path / "index", broken)
    assert encoder.pictures == 6
    ClipIndex(open_source(folder, tmp_path), tmp_path / "index", encoder)
    assert encoder.pictures == 6 + 4


def test_unreadable_pictures_are_left_out_of_the_index_with_a_reason(folder, tmp_path, encoder):
    (folder / "broken.png").write_bytes(b"not a picture")
    index = ClipIndex(open_source(folder, tmp_path), tmp_path / "index", encoder)
    assert len(index.entries) == 8
    assert list(index.skipped) == [str(folder / "broken.png")] and "cannot be read" in index.skipped.popitem()[1]


def test_videos_are_indexed_by_their_middle_frame(tmp_path, encoder):
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    frames[2] = 200
    write_video(tmp_path / "clip.mp4", frames, 5)
    assert open_source(tmp_path, tmp_path).still(0).mean() > 150
    assert len(ClipIndex(open_source(tmp_path, tmp_path), tmp_path / "index", encoder).entries) == 1


def test_clip_loads_from_a_folder_with_an_id_that_follows_the_weights(tmp_path):
    ids = []
    for seed in (0, 1):
        made = tiny_clip_encoder(seed)
        for part in made._load():
            part.save_pretrained(tmp_path)
        loaded = ClipEncoder.from_pretrained(str(tmp_path))
        picture = np.full((40, 40, 3), 90, np.uint8)
        assert np.allclose(loaded.encode([picture]), made.encode([picture]), atol=1e-5)
        ids.append(loaded.id)
    assert ids[0] != ids[1] and tmp_path.name in ids[0]


def test_clip_that_cannot_be_loaded_is_one_clear_line(tmp_path):
    with pytest.raises(MissingBackendError, match="licence: MIT.*cannot be loaded") as error:
        ClipEncoder.from_pretrained(str(tmp_path))
    assert "\n" not in str(error.value)


# -- sources ----------------------------------------------------------------------------------------------------------


def test_csv_table_with_local_paths_and_people_is_read(folder, tmp_path):
    with open(folder / "people.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["image_path", "person"], ["near.png", "A"], ["unlike.png", "A"], ["gone.png", "B"]])
    source = open_source(folder / "people.csv", tmp_path)
    assert [source.path(i).name for i in range(len(source))] == ["near.png", "unlike.png"]
    assert source.persons == ["A", "A"]
    gallery = FaceTopK(folder / "people.csv", PixelEmbedder(), read_face, tmp_path, band=(-1, SAME))
    assert names(gallery.search(SUBJECT, 5)) == ["near"]


def test_img2dataset_parquet_of_laion_face_is_read_with_its_local_pictures(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    save_face(tmp_path / "00000" / "000000001.png", direction(0.4, 4))
    save_face(tmp_path / "00000" / "000000002.png", direction(0.4, 5))
    table = {
        "SAMPLE_ID": [11, 12, 13], "URL": ["http://a", "http://b", "http://c"],
        "key": ["000000001", "000000002", "000000003"], "status": ["success", "failed_to_resize", "success"],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "00000.parquet")
    source = open_source(tmp_path / "00000.parquet", tmp_path)
    assert [source.path(i) for i in range(len(source))] == [tmp_path / "00000" / "000000001.png"]


def test_a_table_of_addresses_is_refused_without_downloading(tmp_path):
    (tmp_path / "urls.csv").write_text("SAMPLE_ID,URL\n1,http://example.invalid/a.jpg\n")
    with pytest.raises(PVChatError, match="no column with local paths.*not downloaded"):
        open_source(tmp_path / "urls.csv", tmp_path)
    (tmp_path / "gone.csv").write_text("path\na.jpg\n")
    with pytest.raises(PVChatError, match="None of the 1 files"):
        open_source(tmp_path / "gone.csv", tmp_path)


def test_datasets_gallery_gives_the_same_people_as_the_folder_it_was_made_from(folder, tmp_path, encoder, query):
    datasets = pytest.importorskip("datasets")
    files = sorted(str(p) for p in folder.glob("*.png"))
    made = datasets.Dataset.from_dict({"face": files, "identity": [Path(f).stem for f in files]})
    made = made.cast_column("face", datasets.Image())
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "faces.parquet")
    by_folder = FaceTopK(folder, PixelEmbedder(), read_face, tmp_path / "u").search(SUBJECT, 5)
    for number, source in enumerate((made, tmp_path / "saved", tmp_path / "faces.parquet")):
        unpacked = tmp_path / f"unpacked{number}"
        found = FaceTopK(source, PixelEmbedder(), read_face, unpacked).search(SUBJECT, 5)
        assert [(m.sha256, m.similarity) for m in found] == [(m.sha256, m.similarity) for m in by_folder]
        assert all(m.path.parent == unpacked and m.path.stem == m.sha256 == hash_file(m.path) for m in found)
    clip = ClipTopK(tmp_path / "saved", tmp_path / "index", encoder, query, PixelEmbedder(), read_face)
    encoded = encoder.pictures
    again = ClipTopK(tmp_path / "saved", tmp_path / "index", encoder, query, PixelEmbedder(), read_face)
    assert encoder.pictures == encoded > 0
    assert [m.sha256 for m in clip.search(SUBJECT, 3)] == [m.sha256 for m in again.search(SUBJECT, 3)]


def test_what_is_no_gallery_is_one_clear_line(tmp_path):
    datasets = pytest.importorskip("datasets")
    with pytest.raises(PVChatError, match="does not exist or is of another kind"):
        open_source(tmp_path / "nowhere", tmp_path)
    with pytest.raises(PVChatError, match="no pictures or videos"):
        open_source(tmp_path, tmp_path)
    with pytest.raises(PVChatError, match="no column of pictures"):
        open_source(datasets.Dataset.from_dict({"text": ["a"]}), tmp_path)
    with pytest.raises(PVChatError, match="splits train"):
        open_source(datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}), tmp_path)
    with pytest.raises(PVChatError, match="got int"):
        open_source(3, tmp_path)


# -- random people ----------------------------------------------------------------------------------------------------


def celebv(folder: Path, people: dict[str, list[str]], grouped: bool) -> Path:
    """A folder in CelebV-HQ layout; every clip's file has its own content."""
    (folder / "35666").mkdir(parents=True)
    for clips in people.values():
        for clip in clips:
            (folder / "35666" / f"{clip}.mp4").write_bytes(clip.encode())
    facts = {"bbox": {"top": 0.1}, "attributes": {"action": [0, 1]}}
    if grouped:  # booleans as the authors' file spells them
        groups = {person: {"clips": {clip: facts for clip in clips}} for person, clips in people.items()}
        text = json.dumps({"groups": groups, "checked": 1}).replace('"checked": 1', '"checked": True')
    else:
        clips = {clip: facts | {"ytb_id": person} for person, clips in people.items() for clip in clips}
        text = json.dumps({"meta_info": {}, "clips": clips})
    (folder / "celebvhq_info.json").write_text(text)
    return folder


PEOPLE = {f"id{n}": [f"video{n}_{c}" for c in range(1 + n % 3)] for n in range(12)}


@pytest.mark.parametrize("grouped", [True, False])
def test_celebv_layout_gives_one_clip_of_each_person(tmp_path, grouped):
    retriever = RandomClips(celebv(tmp_path, PEOPLE, grouped), tmp_path / "u", licences=("research-only",))
    assert isinstance(retriever, NegativeRetriever)
    person_of = {clip: person for person, clips in PEOPLE.items() for clip in clips}
    matches = retriever.sample(30, seed=5)
    assert sorted(person_of[m.path.stem] for m in matches) == sorted(PEOPLE)
    assert all(m.sha256 == hash_file(m.path) and m.similarity is None for m in matches)
    assert len(retriever.sample(4, seed=5)) == 4
    assert retriever.sample(4, seed=5) == matches[:4] != retriever.sample(4, seed=6)


def test_a_person_with_an_excluded_clip_is_not_drawn_with_another_clip(tmp_path):
    retriever = RandomClips(celebv(tmp_path, PEOPLE, True), tmp_path / "u")
    taken = hash_file(tmp_path / "35666" / "video5_2.mp4")
    for seed in range(10):
        assert not any(m.path.stem.startswith("video5_") for m in retriever.sample(12, seed, exclude=[taken]))


def test_copies_of_a_clip_are_drawn_once(tmp_path):
    celebv(tmp_path, PEOPLE, True)
    (tmp_path / "35666" / "video3_0.mp4").write_bytes(b"video6_0")
    found = RandomClips(tmp_path, tmp_path / "u").sample(12, seed=0)
    assert len(found) == 11 and len({m.sha256 for m in found}) == 11


def test_people_without_a_local_clip_are_not_drawn(tmp_path):
    celebv(tmp_path, PEOPLE, False)
    for path in (tmp_path / "35666").glob("video1*.mp4"):  # id1, id10, id11
        path.unlink()
    assert len(RandomClips(tmp_path, tmp_path / "u").sample(12, seed=0)) == 9


def test_a_plain_folder_and_a_video_data_set_work_too(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "clips").mkdir()
    for number in range(3):
        write_video(tmp_path / "clips" / f"{number}.mp4", np.full((3, 16, 16, 3), 60 * number, np.uint8), 5)
    by_folder = RandomClips(tmp_path / "clips", tmp_path / "u").sample(5, seed=1)
    assert len(by_folder) == 3
    files = [(tmp_path / "clips" / f"{n}.mp4") for n in range(3)]
    rows = {"video": [{"bytes": f.read_bytes(), "path": None} for f in files], "person_id": [7, 7, 8]}
    features = datasets.Features({"video": datasets.Video(), "person_id": datasets.Value("int64")})
    found = RandomClips(datasets.Dataset.from_dict(rows, features=features), tmp_path / "u").sample(5, seed=1)
    assert len(found) == 2 and {m.sha256 for m in found} < {m.sha256 for m in by_folder}
    assert all(read_video(m.path)[0].shape == (3, 16, 16, 3) for m in found)


@pytest.mark.parametrize("text", ["{", "[]", '{"clips": {"a": {}}}', '{"people": {}}', '{"groups": {"p": 3}}'])
def test_a_foreign_json_file_is_one_clear_line(tmp_path, text):
    (tmp_path / "info.json").write_text(text)
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(PVChatError, match="not in CelebV-HQ layout") as error:
        RandomClips(tmp_path, tmp_path / "u")
    assert "\n" not in str(error.value)


def test_draws_do_not_depend_on_the_order_of_the_json_file(tmp_path):
    shuffled = list(PEOPLE.items())
    random.Random(3).shuffle(shuffled)
    first = RandomClips(celebv(tmp_path / "a", PEOPLE, True), tmp_path / "u").sample(6, seed=2)
    second = RandomClips(celebv(tmp_path / "b", dict(shuffled), True), tmp_path / "u").sample(6, seed=2)
    assert [m.sha256 for m in first] == [m.sha256 for m in second]
