"""People of a film: tracklets, groups, and the choice of the subjects."""

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvchat.dataset_builder import cartoon
from pvchat.dataset_builder.engine import Rejected
from pvchat.dataset_builder.identities import (
    Tracklet,
    Wish,
    choose_subjects,
    find_people,
    group_tracklets,
    link_faces,
    sample_frames,
    shot_numbers,
)
from pvchat.dataset_builder.protocols import Face
from pvchat.errors import PVChatError

LEFT, RIGHT = (10.0, 20.0, 40.0, 50.0), (60.0, 20.0, 90.0, 50.0)
AXES = np.eye(6, dtype=np.float32)  # six people who have nothing in common


def shifted(box, x, y=0.0):
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


class Script:
    """Frames whose first pixel is their number; `faces[number]` lists (box, who). Embeds by looking it up."""

    id, different, eps = "script@1", 0.4, 0.3

    def __init__(self, faces):
        self.faces, self.detector = faces, self

    def frames(self, shots=(0,)):
        """shots: numbers of the frames that start a new shot, in another colour."""
        film = np.zeros((len(self.faces), 64, 96, 3), np.uint8)
        for t in range(len(film)):
            film[t] = 250 if sum(t >= s for s in shots) % 2 else 5
            film[t, 0, 0] = t
        return film

    def detect(self, frames):
        return [[Face(box, 1.0) for box, _ in self.faces[frame[0, 0, 0]]] for frame in frames]

    def embed_faces(self, frames, faces):
        who = [dict(self.faces[f[0, 0, 0]])[face.box] for f, face in zip(frames, faces, strict=True)]
        return AXES[who]


def test_one_face_over_the_whole_film_is_one_person_with_its_boxes():
    script = Script([[(shifted(LEFT, t), 0)] for t in range(16)])
    (person,) = find_people(script.frames(), 16.0, script)
    assert person.seconds == pytest.approx(1.0)
    assert sorted(person.faces) == list(range(0, 16, 2))  # 8 of 16 frames per second
    assert person.box_at(3) == pytest.approx(shifted(LEFT, 3))  # between two frames that were looked at
    assert person.box_at(15) is None


def test_people_are_sorted_by_time_on_screen():
    film = [[(LEFT, 0), (RIGHT, 1)] if t < 5 else [(RIGHT, 1)] for t in range(12)]
    people = find_people(Script(film).frames(), 8.0, Script(film))
    assert [int(p.embedding.argmax()) for p in people] == [1, 0]
    assert [p.seconds for p in people] == pytest.approx([12 / 8, 5 / 8])


def test_a_person_who_leaves_and_returns_elsewhere_is_one_person():
    film = [[(LEFT, 2)]] * 4 + [[]] * 3 + [[(RIGHT, 2)]] * 4
    (person,) = find_people(Script(film).frames(), 8.0, Script(film))
    assert len(person.tracklets) == 2 and person.box_at(5) is None


def test_a_cut_ends_a_tracklet_even_at_the_same_place():
    film = [[(LEFT, 0)]] * 4 + [[(LEFT, 1)]] * 5
    script = Script(film)
    people = find_people(script.frames(shots=(0, 4)), 8.0, script)
    assert [sorted(p.faces) for p in people] == [[4, 5, 6, 7, 8], [0, 1, 2, 3]]


def test_shots_change_at_cuts_and_not_in_a_moving_picture():
    moving = np.stack([np.roll(np.arange(64 * 96 * 3).reshape(64, 96, 3) % 251, t, 1) for t in range(4)])
    film = np.concatenate([moving, 255 - moving // 4]).astype(np.uint8)
    assert shot_numbers(film).tolist() == [0] * 4 + [1] * 4


def in_one_room(count, num_frames, seed):
    """Clips of two drawn people in one place, light and camera, cut in the middle."""
    rng = np.random.default_rng(seed)
    members = [member.identity for member in cartoon.cast(count + 1, seed=seed)]
    for first, second in zip(members, members[1:], strict=False):
        scene = cartoon.Scene.random(rng)
        clips = [cartoon.render_clip(person, scene, num_frames, 96) for person in (first, second)]
        yield np.concatenate([clips[0][: num_frames // 2], clips[1][num_frames // 2 :]])


@pytest.mark.parametrize("num_frames", [12, 24])
def test_a_cut_between_two_people_in_one_room_is_found(num_frames):
    half = num_frames // 2
    found = [shot_numbers(film).tolist() == [0] * half + [1] * half for film in in_one_room(8, num_frames, 6)]
    assert sum(found) >= 7, found


@pytest.mark.parametrize("action", ["jumping", "dancing", "waving", "playing with a ball"])
def test_fast_motion_is_no_cut(action):
    rng = np.random.default_rng(2)
    for member in cartoon.cast(3, seed=1):
        scene = dataclasses.replace(cartoon.Scene.random(rng), action=action)
        assert not shot_numbers(cartoon.render_clip(member.identity, scene, 16, 96)).any()


@pytest.mark.parametrize("step", [20, 60, 110])
def test_a_camera_that_is_torn_about_is_no_cut(step):
    from skimage import data

    photograph = np.tile(data.astronaut(), (1, 2, 1))
    places = [abs((t * step) % 512 - 256) for t in range(5)]
    places = [places[0]] * 5 + places + [places[-1]] * 5  # at rest, torn, at rest
    assert not shot_numbers(np.stack([photograph[60:316, x : x + 256] for x in places])).any()


def test_many_hard_cuts_close_together_are_all_found():
    film = np.repeat(np.uint8([[[[10, 10, 10]]], [[[240, 20, 20]]], [[[20, 240, 20]]]]), 2, 0)
    assert shot_numbers(np.broadcast_to(film, (6, 32, 32, 3))).tolist() == [0, 0, 1, 1, 2, 2]


def test_two_people_at_one_place_in_one_room_are_not_one_tracklet():
    """The faces lie one upon the other before and after the cut; only the picture tells."""
    script = Script([[(LEFT, 0)]] * 6 + [[(LEFT, 1)]] * 6)
    film = next(in_one_room(1, 12, 5))
    film[:, 0, 0] = np.arange(12)[:, None]
    assert [sorted(person.faces) for person in find_people(film, 8.0, script)] == [[*range(6)], [*range(6, 12)]]


def test_three_people_side_by_side_are_found_when_all_faces_count():
    middle = shifted(LEFT, 25)
    script = Script([[(shifted(LEFT, -8), 0), (middle, 1), (RIGHT, 2)]] * 6)
    assert len(find_people(script.frames(), 8.0, script)) == 2  # as in the paper
    assert len(find_people(script.frames(), 8.0, script, max_faces=None)) == 3


def test_only_the_largest_faces_of_a_frame_count():
    film = [[(LEFT, 0), (RIGHT, 1), ((0.0, 0.0, 60.0, 60.0), 2)]] * 4
    people = find_people(Script(film).frames(), 8.0, Script(film), max_faces=1)
    assert [int(p.embedding.argmax()) for p in people] == [2]


def test_crossing_faces_keep_their_best_overlap():
    found = [
        [Face(LEFT, 1.0), Face(shifted(LEFT, 25), 1.0)],
        [Face(shifted(LEFT, 20), 1.0), Face(shifted(LEFT, 3), 1.0)],
    ]
    chains = link_faces(found, [0, 0])
    boxes = sorted([face.box[0] for _, face in chain] for chain in chains)
    assert boxes == [[10.0, 13.0], [35.0, 30.0]]


def test_a_film_without_faces_is_rejected():
    with pytest.raises(Rejected, match="no face found"):
        find_people(Script([[]] * 3).frames(), 8.0, Script([[]] * 3))


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"max_faces": 0}, {"fps": 0.0}])
def test_numbers_that_are_not_positive_are_refused(options):
    script = Script([[(LEFT, 0)]])
    with pytest.raises(PVChatError, match="must be positive"):
        find_people(script.frames(), **{"fps": 8.0, "embedder": script, **options})


@given(st.integers(1, 400), st.floats(1, 120), st.floats(1, 30))
def test_sampling_keeps_the_first_frame_and_the_rate(num_frames, fps, rate):
    index = sample_frames(num_frames, fps, rate)
    assert index[0] == 0 and index[-1] < num_frames and (np.diff(index) >= 1).all()
    assert len(index) == pytest.approx(num_frames * min(1.0, rate / fps), abs=1)


# Groups


def tracklet(who, first, length=3, box=LEFT, noise=0.0, seed=0):
    vector = AXES[who] + noise * np.random.default_rng(seed).normal(size=6)
    frames = tuple(range(first, first + length))
    return Tracklet(frames, (Face(box, 1.0),) * length, (vector / np.linalg.norm(vector)).astype(np.float32))


def outline(people):
    return [(sorted(p.faces), [t.frames for t in p.tracklets], p.embedding.round(4).tolist()) for p in people]


tracklets = st.lists(
    st.builds(
        tracklet,
        who=st.integers(0, 3),
        first=st.integers(0, 30),
        length=st.integers(1, 8),
        box=st.sampled_from([LEFT, RIGHT]),
        noise=st.sampled_from([0.0, 0.1, 0.3]),
        seed=st.integers(0, 99),
    ),
    min_size=1,
    max_size=10,
    unique_by=lambda t: (t.frames, t.faces[0].box),
)


@settings(max_examples=100, deadline=None)
@given(tracklets, st.integers(0, 999))
def test_people_do_not_depend_on_the_order_of_the_tracklets(items, seed):
    shuffled = items[:]
    random.Random(seed).shuffle(shuffled)
    assert outline(group_tracklets(items, 0.3, 1 / 8)) == outline(group_tracklets(shuffled, 0.3, 1 / 8))


@settings(max_examples=100, deadline=None)
@given(tracklets)
def test_nobody_is_twice_in_a_frame_and_no_tracklet_has_two_people(items):
    people = group_tracklets(items, 0.3, 1 / 8)
    assert people
    assert [p.seconds for p in people] == sorted((p.seconds for p in people), reverse=True)
    for person in people:
        frames = [i for t in person.tracklets for i in t.frames]
        assert len(frames) == len(set(frames)) and person.seconds == pytest.approx(len(frames) / 8)
    used = [id(t) for p in people for t in p.tracklets]
    assert len(used) == len(set(used)) and set(used) <= {id(t) for t in items}


def test_a_stray_face_is_nobody_while_others_are_people():
    people = group_tracklets([tracklet(0, 0, 5), tracklet(1, 9, 2)], 0.3, 1 / 8)
    assert [int(p.embedding.argmax()) for p in people] == [0]


def test_when_nobody_has_three_faces_two_are_enough_and_at_last_all_are_one():
    assert len(group_tracklets([tracklet(0, 0, 2), tracklet(1, 9, 1)], 0.3, 1 / 8)) == 1
    (person,) = group_tracklets([tracklet(0, 0, 1), tracklet(1, 9, 1)], 0.3, 1 / 8)
    assert len(person.tracklets) == 2


def test_two_faces_of_one_frame_are_two_people_however_alike():
    people = group_tracklets([tracklet(0, 0, 6, LEFT), tracklet(0, 0, 5, RIGHT)], 0.3, 1 / 8)
    assert [p.tracklets[0].faces[0].box for p in people] == [LEFT, RIGHT]


def test_two_faces_of_one_frame_stay_two_people_when_a_third_tracklet_links_them():
    items = [tracklet(0, 0, 6, LEFT), tracklet(0, 0, 5, RIGHT), tracklet(0, 20, 4)]
    people = group_tracklets(items, 0.3, 1 / 8)
    assert [len(p.faces) for p in people] == [10, 5]


def test_the_embedders_eps_decides():
    near = [tracklet(0, 0), Tracklet((9, 10, 11), (Face(LEFT, 1.0),) * 3, np.float32([0.8, 0.6, 0, 0, 0, 0]))]
    assert len(group_tracklets(near, 0.1, 1 / 8)) == 2
    assert len(group_tracklets(near, 0.3, 1 / 8)) == 1


# Subjects


@pytest.fixture
def people():
    film = [[(LEFT, 0), (RIGHT, 1)]] * 5 + [[(RIGHT, 1)]] * 4
    return find_people(Script(film).frames(), 8.0, Script(film))  # 1 is longer on screen than 0


def test_the_subject_is_whoever_is_longest_on_screen(people):
    assert choose_subjects(people, [Wish()], different=0.4) == [people[0]]
    assert int(people[0].embedding.argmax()) == 1


@pytest.mark.parametrize("box", [LEFT, shifted(LEFT, 8), (0.0, 0.0, 50.0, 64.0)])
def test_a_box_chooses_the_face_that_it_overlaps_most(people, box):
    assert choose_subjects(people, [Wish(box=box)], different=0.4) == [people[1]]


def test_a_photo_chooses_the_person_it_is_most_like(people):
    photo = np.float32([0.8, 0.3, 0, 0, 0, 0.5])
    assert choose_subjects(people, [Wish(photo=photo / np.linalg.norm(photo))], different=0.4) == [people[1]]


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(3)), st.permutations(range(3)))
def test_the_choice_does_not_depend_on_the_order_of_people_or_wishes(order, wish_order):
    found = group_tracklets([tracklet(0, 0, 4, LEFT), tracklet(1, 0, 5, RIGHT), tracklet(2, 9, 6)], 0.3, 1 / 8)
    wishes = [Wish(box=LEFT), Wish(photo=AXES[2]), Wish()]
    chosen = choose_subjects([found[i] for i in order], [wishes[i] for i in wish_order], different=0.4)
    assert [int(person.embedding.argmax()) for person in chosen] == [[0, 2, 1][i] for i in wish_order]


def test_several_subjects_are_different_people(people):
    assert choose_subjects(people, [Wish(), Wish()], different=0.4) == people
    assert choose_subjects(people, [Wish(), Wish(box=RIGHT)], different=0.4) == people[::-1]


@pytest.mark.parametrize(
    "wishes, message",
    [
        ([Wish()] * 3, "3 subjects were asked for, but the video shows 2"),
        ([Wish(box=(0.0, 55.0, 5.0, 60.0))], r"touches no face of the first frame \(faces there: 60,20,90,50; 10,20"),
        ([Wish(photo=AXES[4])], r"like nobody in the video \(similarity 0.00"),
        ([Wish(photo=AXES[0][:3])], "use one embedder for both"),
        ([Wish(box=LEFT), Wish(photo=AXES[0])], "Two subjects point at the same person"),
    ],
)
def test_a_choice_that_cannot_be_made_says_why(people, wishes, message):
    with pytest.raises(PVChatError, match=message):
        choose_subjects(people, wishes, different=0.4)


@pytest.mark.parametrize("box", [(1, 2, 3), (5, 5, 5, 9), (9, 0, 1, 4), (0, 0, float("nan"), 3)])
def test_a_box_that_is_none_is_refused(box):
    with pytest.raises(PVChatError, match="x0,y0,x1,y1"):
        Wish(box=box)


def test_box_and_photo_together_are_refused():
    with pytest.raises(PVChatError, match="not by both"):
        Wish(box=LEFT, photo=AXES[0])


def test_two_people_of_a_real_picture_are_told_apart_without_weights():
    """A photograph's face on the left, its mirrored and darkened twin on the right: two people in one film."""
    from skimage import data

    from pvchat.dataset_builder.backends.faces.hog import FaceHog
    from pvchat.dataset_builder.backends.faces.lbp import LbpDetector

    face = data.astronaut()[20:220, 120:320]
    twin = (face[:, ::-1] * 0.7).astype(np.uint8)
    frames = np.stack([np.concatenate([face, twin] if t < 3 else [face, 0 * twin], 1) for t in range(4)])
    people = find_people(frames, 8.0, FaceHog(LbpDetector()))
    assert [len(p.faces) for p in people] == [4, 3]
    assert [p.box_at(0)[0] < 200 for p in people] == [True, False]
