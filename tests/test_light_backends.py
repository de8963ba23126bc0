"""The light backends, measured on cartoon clips whose truth is known and on a photograph that is moved about."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from pvchat.dataset_builder import cartoon
from pvchat.dataset_builder.backends import light
from pvchat.dataset_builder.backends.light import cutout as cutting
from pvchat.dataset_builder.backends.light.colour import lab_to_rgb, rgb_to_lab
from pvchat.dataset_builder.backends.light.compose import compose, only_head_above
from pvchat.dataset_builder.backends.light.matte import subject_matte
from pvchat.dataset_builder.backends.light.places import PLACES, draw_place
from pvchat.dataset_builder.backends.light.scene import replay
from pvchat.dataset_builder.engine import Rejected, hash_file
from pvchat.dataset_builder.protocols import (
    FaceEmbedder,
    FaceGallery,
    NegativeRetriever,
    Person,
    PortraitAnimator,
    PortraitGenerator,
    QARefiner,
    QualityFilter,
    SceneVideoGenerator,
)
from pvchat.dataset_builder.recipe import DRIVERS
from pvchat.dataset_builder.refine import RuleRefiner
from pvchat.dataset_builder.video_io import read_video, write_video
from pvchat.errors import PVChatError


def overlap(first, second):
    return (first & second).sum() / (first | second).sum()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """20 cartoon people in random scenes, once through mp4: (frames (6, 256, 256, 3), true matte)."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(5)
    made = []
    for index, member in enumerate(cartoon.cast(20, seed=3)):
        scene = cartoon.Scene.random(rng)
        truth = [cartoon.render_matte(member.identity, scene, t, 256) for t in np.linspace(0, 1, 6)]
        write_video(folder / f"{index}.mp4", cartoon.render_clip(member.identity, scene, 6, 256), 6)
        made.append((read_video(folder / f"{index}.mp4")[0], np.stack(truth)))
    return made


@pytest.fixture(scope="module")
def person(clips):
    frames = clips[1][0]
    return Person(frames, 6.0, cutting.matte_bytes(frames), best=2)


def photograph(frames=6):
    """The astronaut moved slowly over noise: frames and the region that certainly is the person."""
    data = pytest.importorskip("skimage.data")
    portrait = np.asarray(Image.fromarray(data.astronaut()[0:400, 60:400]).resize((218, 256)))
    rng = np.random.default_rng(0)
    ground = np.asarray(
        Image.fromarray(rng.integers(40, 160, (16, 20, 3), dtype=np.uint8)).resize(
            (320, 256), Image.Resampling.BICUBIC
        )
    )
    y, x = np.mgrid[0:256, 0:218]
    head = ((x - 105) / 48) ** 2 + ((y - 68) / 62) ** 2 < 1
    neck = (np.abs(x - 112) < 34) & (y > 100)
    body = ((x - 110) / 108) ** 2 + ((y - 256) / 120) ** 2 < 1
    shape = (head | neck | body)[..., None]
    clip, truth = [], []
    for t in range(frames):
        frame, mask = ground[:, 20 + 2 * t : 276 + 2 * t].copy(), np.zeros((256, 256), bool)
        left = 20 + round(6 * np.sin(t))
        frame[:, left : left + 218] = np.where(shape, portrait, frame[:, left : left + 218])
        mask[:, left : left + 218] = shape[..., 0]
        clip.append(frame)
        truth.append(mask)
    return np.stack(clip), np.stack(truth)


def test_the_matte_finds_cartoon_people(clips):
    scores = [overlap(subject_matte(frames) > 0.5, truth) for frames, truth in clips]
    assert np.mean(scores) >= 0.93 and min(scores) >= 0.8, np.round(scores, 2)


def test_the_matte_finds_a_photographed_person():
    frames, truth = photograph()
    assert overlap(subject_matte(frames) > 0.5, truth) >= 0.85


def astronaut(frames=6):
    """The whole photograph by a moving camera: her hair has the colours of the rocket beside her, her suit reaches the
    sides, and she is not in the middle."""
    data = pytest.importorskip("skimage.data")
    photo = Image.fromarray(data.astronaut())
    boxes = [(10 + 8 * t, 3 * t, 430 + 6 * t, 420 + t) for t in range(frames)]
    clip = [np.asarray(photo.resize((256, 256), Image.Resampling.LANCZOS, box=box)) for box in boxes]
    where = {  # pixels of the photograph
        True: [(225, 35), (180, 75), (265, 80), (222, 110), (222, 200), (100, 330), (330, 330), (225, 380)],
        False: [(20, 20), (120, 60), (330, 60), (400, 100), (60, 150), (350, 160), (420, 200)],
    }
    points = [
        (person, t, round((y - box[1]) / (box[3] - box[1]) * 256), round((x - box[0]) / (box[2] - box[0]) * 256))
        for person, pixels in where.items()
        for x, y in pixels
        for t, box in enumerate(boxes)
    ]
    return np.stack(clip), [p for p in points if 0 <= p[2] < 256 and 0 <= p[3] < 256]


def test_around_a_face_the_matte_keeps_hair_and_clothes_in_the_background_s_colours():
    frames, points = astronaut()
    alpha = subject_matte(frames)
    right = [(alpha[t, y, x] > 0.5) == person for person, t, y, x in points]
    assert np.mean(right) > 0.97, [point for point, ok in zip(points, right, strict=True) if not ok]


def test_faces_are_found_in_photographs_and_not_in_drawings(clips):
    from pvchat.dataset_builder.backends.light.face import face_boxes
    from pvchat.dataset_builder.backends.light.matte import WORKING_SIDE, shrink

    boxes = face_boxes(shrink(astronaut()[0], WORKING_SIDE))
    assert boxes.shape == (6, 3) and (np.abs(boxes[:, 2] - 32) < 8).all()
    assert all(face_boxes(shrink(frames, WORKING_SIDE)) is None for frames, _ in clips)


def test_the_head_ends_below_the_chin():
    """Under her wide hair the outline is narrowest beside the mouth; a foreground up to there would hide the chin."""
    photo = Image.fromarray(pytest.importorskip("skimage.data").astronaut())
    boxes = [(115 - t, 25, 365 + t, 275 + 2 * t) for t in range(6)]
    frames = np.stack([np.asarray(photo.resize((256, 256), Image.Resampling.LANCZOS, box=box)) for box in boxes])
    chins = [(178 - top) / (bottom - top) * 256 for _, top, _, bottom in boxes]
    cut = cutting.cut_out(Person(frames, 6.0))
    assert all(chin < neck < chin + 30 for chin, neck in zip(chins, cut.neck, strict=True)), (chins, cut.neck)


def test_no_background_is_left_in_the_colours_around_the_person(clips):
    frames, truth = clips[1]
    cut = cutting.cut_out(Person(frames, 6.0))
    green = np.where(truth[..., None], frames, np.uint8([0, 255, 0]))
    cut_green = cutting.cut_out(Person(green, 6.0, cut.alpha))
    edge = (cut.alpha > 100) & (cut.alpha < 250)
    assert (cut_green.rgb[edge] == (0, 255, 0)).all(1).mean() < 0.05


def test_a_picture_without_a_person_is_rejected_with_a_reason():
    flat = np.full((2, 64, 64, 3), 128, np.uint8)
    with pytest.raises(Rejected, match="no person stands out"):
        cutting.cut_out(Person(flat, 6.0, np.zeros((2, 64, 64), np.uint8)))


def test_colours_survive_a_trip_through_lab():
    rgb = np.random.default_rng(0).integers(0, 256, (500, 3), dtype=np.uint8)
    assert np.abs(lab_to_rgb(rgb_to_lab(rgb)) * 255 - rgb).max() < 1.5
    assert rgb_to_lab(np.uint8([[255, 255, 255]]))[0] == pytest.approx([100, 0, 0], abs=0.1)


def test_recolouring_changes_the_clothes_and_leaves_the_face(clips):
    changed_clothes = []
    for frames, _ in clips:
        cut = cutting.cut_out(Person(frames, 6.0))
        new = cutting.recolour(cut, seed=7)
        t = 0
        difference = np.abs(new.rgb[t].astype(int) - cut.rgb[t]).max(-1)
        y, x = np.mgrid[0:256, 0:256]
        head = (cut.alpha[t] > 200) & (y < cut.neck[t] - 20) & (np.abs(x - cut.centre[t]) < 0.4 * cut.width[t])
        clothes = (cut.alpha[t] > 200) & (y > 235) & (np.abs(x - 128) < 60)
        assert (difference[head] > 12).mean() < 0.02
        changed_clothes.append((difference[clothes] > 12).mean())
    assert np.median(changed_clothes) > 0.5 and np.mean(np.array(changed_clothes) > 0.15) >= 0.8


def heads_of(frames, alpha, seeds):
    """Share of the clips whose person's head reaches the upper edge."""
    person = Person(frames, 6.0, alpha)
    cut = cutting.cut_out(person)
    white = dataclasses.replace(cut, rgb=np.full_like(cut.rgb, 255))
    clips = [compose(white, "a studio", seed) for seed in seeds]
    return np.mean([(clip[:, 0] > 210).all(-1).any() for clip in clips])


def test_the_camera_cuts_no_head_off_that_the_film_shows_whole():
    alpha = np.zeros((4, 128, 128), np.uint8)
    alpha[:, 8:128, 40:88] = 255  # close to the upper edge: 1.2 times as large it would leave the frame
    frames = np.random.default_rng(0).integers(0, 90, (4, 128, 128, 3), dtype=np.uint8)
    frames[alpha > 0] = 120
    assert heads_of(frames, alpha, range(30)) == 0
    alpha[:, :8, 40:88] = 255  # the film itself cuts the head: the cut stays at the edge
    frames[alpha > 0] = 120
    assert heads_of(frames, alpha, range(30)) == 1


def test_hands_whose_arms_are_hidden_do_not_float_in_the_air():
    alpha = np.zeros((2, 100, 100), np.uint8)
    alpha[:, 10:100, 40:60] = 255  # head and body
    alpha[:, 70:80, 60:90] = alpha[:, 40:80, 80:90] = 255  # an arm with the hand beside the head
    cut = cutting.Cutout(
        np.zeros((2, 100, 100, 3), np.uint8), alpha, *(np.full(2, v) for v in (10.0, 60.0, 50.0, 20.0))
    )
    above = only_head_above(cut, 65)
    assert not above[:, :65, 80:90].any() and (above[:, 10:100, 40:60] == 255).all()
    assert (above[:, 65:] == alpha[:, 65:]).all() and alpha[:, 45, 85].all()
    assert (only_head_above(cut, 90) == alpha).all()  # the arm shows: the hand stays


def test_places_are_many_and_depend_on_the_seed_alone():
    for kind in PLACES:
        first, second = draw_place(kind, 32, 48, 1), draw_place(kind, 32, 48, 2)
        assert first.shape == (45, 67, 3) and (first == draw_place(kind, 32, 48, 1)).all() and (first != second).any()


def test_replay_stays_inside_the_clip_and_moves_one_way_or_back():
    for seed in range(50):
        index = replay(16, seed)
        assert len(index) == 16 and index.min() >= 0 and index.max() <= 15 and np.abs(np.diff(index)).max() <= 2
    assert (replay(1, 3) == 0).all()


def test_generated_clips_are_deterministic_and_differ_by_seed(person):
    scenes = light.CompositeScenes()
    first, again, other = (scenes.generate(person, "", seed) for seed in (1, 1, 2))
    assert first.frames.shape == person.frames.shape and first.frames.dtype == np.uint8
    assert (first.frames == again.frames).all() and (first.frames != other.frames).mean() > 0.5
    assert first.truth["place"] in PLACES
    assert scenes.generate(person, "the shore", 1).truth["place"] == "the shore"


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_moves_the_head_and_not_the_shoulders(person, driver):
    from pvchat.dataset_builder.backends.light.animate import driver_curve, warp

    still = cutting.cut_out(person).still()
    moved = warp(still, driver_curve(driver, 12, seed=3))
    motion = np.abs(moved.rgb[1:].astype(int) - moved.rgb[:-1]).max(-1).mean((0, 2))
    top, neck = int(still.top[0]), int(still.neck[0])
    head = motion[top + 5 : neck - 10].mean()
    assert head > 0.5 and motion[neck + 40 :].max() < 0.1 * head


def test_a_portrait_is_one_new_still_that_can_be_animated(person):
    portrait = light.PhotometricPortraits().generate(person, "", 4)
    assert portrait.frames.shape == (1, 256, 256, 3) and portrait.alpha.shape == (1, 256, 256)
    made = light.WarpAnimator().animate(portrait, "yes", 4)
    assert made.frames.shape[1:] == (256, 256, 3) and len(made.frames) >= 8


def test_the_best_still_is_sharp_and_lit(person):
    from scipy.ndimage import gaussian_filter

    sharp = person.frames[0]
    blurred = gaussian_filter(sharp, (4, 4, 0))
    dark = (sharp * 0.05).astype(np.uint8)
    reports = light.ClassicalQuality().score(Person(np.stack([blurred, sharp, dark]), 6.0, person.alpha[[0, 0, 0]]))
    assert reports[1].score > reports[0].score and not reports[1].reasons
    assert reports[2].reasons == ("the head is too dark or too bright",)


def test_without_a_matte_the_quality_is_judged_all_the_same(person):
    with_matte = light.ClassicalQuality().score(person)
    assert light.ClassicalQuality().score(Person(person.frames, person.fps)) == with_matte


def test_the_embedding_tells_other_clips_of_a_person_from_other_people():
    rng = np.random.default_rng(2)
    embedder = light.HeadEmbedder()
    members = [m.identity for m in cartoon.cast(6, seed=9)]

    def vector(identity):
        return embedder.embed(Person(cartoon.render_clip(identity, cartoon.Scene.random(rng), 3, 128), 6.0))

    vectors = np.stack([[vector(identity) for _ in range(3)] for identity in members])
    same = np.mean([a @ b for v in vectors for i, a in enumerate(v) for b in v[i + 1 :]])
    cross = np.mean([a @ b for i, v in enumerate(vectors) for w in vectors[i + 1 :] for a in v for b in w])
    assert same > cross + 0.2


SUBJECT = np.eye(8, dtype=np.float32)[0]


def test_one_photographed_person_is_alike_whatever_camera_and_light():
    frames = astronaut()[0]
    embedder = light.HeadEmbedder()
    reference = embedder.embed(Person(frames, 6.0))
    others = {
        "mirrored": frames[:, :, ::-1],
        "brighter": np.clip(frames * 1.15, 0, 255).astype(np.uint8),
        "later": frames[3:],
        "nearer": np.repeat(np.repeat(frames[:, 20:200, 40:220], 2, 1), 2, 2),
    }
    found = {
        name: float(embedder.embed(Person(np.ascontiguousarray(f), 6.0)) @ reference) for name, f in others.items()
    }
    assert min(found.values()) > 0.9, found


def gallery(tmp_path, similarities):
    """A folder of files whose embedding has these cosines with SUBJECT, each leaning another way."""
    for index, _ in enumerate(similarities):
        (tmp_path / f"{index}.png").write_bytes(b"picture %d" % index)

    def embed(path, sha256):
        s = similarities[int(path.stem)]
        if s is None:
            raise Rejected("no person stands out")
        vector = s * SUBJECT
        vector[1 + int(path.stem)] = np.sqrt(1 - s * s)
        return vector

    return light.FolderGallery(tmp_path, light.HeadEmbedder(), embed)


def test_the_gallery_gives_look_alikes_but_never_the_subject(tmp_path):
    folder = gallery(tmp_path, [0.2, 0.99, 0.9, None, 0.5])
    found = folder.search(SUBJECT, 2)
    assert [m.path.stem for m in found] == ["2", "4"]
    assert {p.name: r for p, r in folder.skipped.items()} == {"3.png": "no person stands out"}


def test_random_people_are_other_people_than_the_look_alikes(tmp_path):
    folder = gallery(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    alike = folder.search(SUBJECT, 3)
    first = folder.sample(10, 1, exclude=[m.sha256 for m in alike])
    assert {m.path.stem for m in first} == {"0", "1", "2"}
    assert first == folder.sample(10, 1, exclude=[m.sha256 for m in alike])


def test_copies_and_hidden_files_are_nobody_new(tmp_path):
    folder = gallery(tmp_path, [0.1, 0.2])
    (tmp_path / "0-copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "1.png").write_bytes(b"other")
    folder = light.FolderGallery(tmp_path, folder.embedder, lambda path, sha256: np.array([1.0, 0.0]))
    assert len(folder.sample(10, 0)) == 2
    assert {m.sha256 for m in folder.sample(10, 0)} == {hash_file(tmp_path / f"{i}.png") for i in range(2)}


def test_an_unusable_gallery_is_one_line(tmp_path):
    with pytest.raises(PVChatError, match="no pictures or videos"):
        light.FolderGallery(tmp_path, light.HeadEmbedder(), None)
    with pytest.raises(PVChatError, match="not a folder"):
        light.FolderGallery(tmp_path / "nowhere", light.HeadEmbedder(), None)


def test_every_light_backend_fits_its_role(tmp_path):
    roles = {
        SceneVideoGenerator: light.CompositeScenes(),
        PortraitGenerator: light.PhotometricPortraits(),
        PortraitAnimator: light.WarpAnimator(),
        QualityFilter: light.ClassicalQuality(),
        FaceEmbedder: light.HeadEmbedder(),
        QARefiner: RuleRefiner(),
        FaceGallery: gallery(tmp_path, [0.1]),
        NegativeRetriever: gallery(tmp_path, [0.1]),
    }
    for role, backend in roles.items():
        assert isinstance(backend, role), role
