"""LivePortrait computes what the original computed, reads its files, and moves a still without touching the rest."""

import math
import os

import numpy as np
import pytest
import torch

from pvchat.dataset_builder.backends.liveportrait import LivePortrait, LivePortraitAnimator
from pvchat.dataset_builder.backends.liveportrait.crop import (
    EYES_AND_MOUTH,
    FIVE_POINT_SCALE,
    FIVE_POINT_SHIFT,
    LANDMARK_SCALE,
    LANDMARK_SHIFT,
    eyes_and_mouth,
    face_square,
    mean_square,
    network_input,
    paste_back,
    paste_mask,
    to_tensor,
    warp,
    warped_mask,
)
from pvchat.dataset_builder.backends.liveportrait.drivers import driver_motion
from pvchat.dataset_builder.backends.liveportrait.model import FILES, fill_networks, hub_files, weight_files
from pvchat.dataset_builder.backends.liveportrait.motion import (
    Motion,
    keypoints,
    refine,
    relative_keypoints,
    rotation_matrix,
)
from pvchat.dataset_builder.backends.liveportrait.networks import (
    SPADE,
    AppearanceFeatureExtractor,
    ConvNeXtV2,
    MotionExtractor,
    SPADEDecoder,
    StitchingNetwork,
    WarpingNetwork,
)
from pvchat.dataset_builder.engine import Rejected
from pvchat.dataset_builder.protocols import Face, Person, PortraitAnimator
from pvchat.dataset_builder.recipe import DRIVERS
from pvchat.dataset_builder.video_io import write_video
from pvchat.errors import MissingBackendError, PVChatError
from tests.golden_faces import Golden, golden_cases, golden_listings, read_listing, stored_part

needs_full = pytest.mark.skipif(not os.environ.get("PVCHAT_FULL"), reason="2 GB and a minute; set PVCHAT_FULL=1")
CPU = torch.device("cpu")


# -- golden cases -----------------------------------------------------------------------------------------------------


class LivePortraitCase(Golden):
    """A case with the pictures and motions of its inputs, and the comparison with its outputs."""

    def image(self, name):
        """uint8 pictures (..., H, W, 3) -> (B, 3, H, W) in [0, 1]"""
        pictures = self.input(name)
        return (pictures if pictures.ndim == 4 else pictures[None]).movedim(-1, 1).float() / 255

    def motion(self, prefix):
        """Refined motion and canonical key points of the inputs `prefix`.*"""
        shapes = {"pitch": (1,), "yaw": (1,), "roll": (1,), "t": (3,), "exp": (21, 3), "scale": (1,), "kp": (21, 3)}
        values = {name: self.input(f"{prefix}.{name}").reshape(-1, *shape) for name, shape in shapes.items()}
        kp = values.pop("kp")
        return Motion(**values), kp

    def fill(self, net, module):
        """Gives the module the weights of the recipe; every name and shape must fit."""
        module.load_state_dict(self.weights(net), strict=True)
        return module.eval()

    def check(self, name, ours):
        """Within the allowed error, on the stored part of the tensor, on average, and on its statistics."""
        info = self.meta["outputs"][name]
        ours = torch.as_tensor(ours).detach()
        assert list(ours.shape) == info["shape"], name
        stored = self.tensors[f"output.{name}"].double()
        part = ours[stored_part(info["index"])] if "index" in info else ours
        error = (part.double() - stored).abs()
        worst, mean = error.max().item(), error.mean().item()
        print(f"{self.meta['case']} {name}: {worst:.2e} of {info['atol']:.0e}, mean {mean:.1e}")
        assert worst <= info["atol"], f"{name}: {worst} > {info['atol']}"
        assert mean <= info.get("mean_atol", math.inf), f"{name}: mean {mean} > {info['mean_atol']}"
        if f"output.{name}#mean" in self.tensors:
            full = ours.double().flatten(2)
            for statistic, value in (("mean", full.mean(2)), ("rms", full.square().mean(2).sqrt())):
                expected = self.tensors[f"output.{name}#{statistic}"].double()
                torch.testing.assert_close(value, expected, atol=info.get("mean_atol", info["atol"]), rtol=0)


def hooks(golden, module, root=""):
    """Checks the output of every submodule that the case names, at the module's next calls."""
    for name in golden.meta["outputs"]:
        if name.startswith(f"hook.{root}"):
            part = module.get_submodule(name.removeprefix("hook."))
            part.register_forward_hook(lambda _module, _inputs, output, name=name: golden.check(name, output))


# -- the networks -----------------------------------------------------------------------------------------------------


@golden_cases("lp_small")
@torch.no_grad()
def test_the_networks_at_a_reduced_size_compute_what_the_original_computed(golden):
    golden = LivePortraitCase(golden)
    sizes = golden.meta["config"]
    warping = {k: v for k, v in sizes["warping_module"].items() if k != "estimate_occlusion_map"}
    motion = {k: v for k, v in sizes["motion_extractor"].items() if k != "in_chans"}
    appearance = golden.fill("F", AppearanceFeatureExtractor(**sizes["appearance_feature_extractor"]))
    features = appearance(golden.image("image_u8"))
    golden.check("feature_3d", features)
    warped = golden.fill("W", WarpingNetwork(**warping))(
        features, golden.input("kp_source"), golden.input("kp_driving")
    )
    for name in ("deformation", "occlusion_map", "out"):
        golden.check(name, warped[name])
    golden.check("image", golden.fill("G", SPADEDecoder(**sizes["spade_generator"]))(warped["out"]))
    for name, value in golden.fill("M", ConvNeXtV2(**motion))(golden.image("image_u8")).items():
        golden.check(f"motion.{name}", value)


@golden_cases("lp_appearance")
@pytest.mark.slow
@torch.no_grad()
def test_the_appearance_feature_extractor_computes_what_the_original_computed(golden):
    golden = LivePortraitCase(golden)
    net = golden.fill("net", AppearanceFeatureExtractor())
    hooks(golden, net)
    features = net(golden.image("image_u8"))
    golden.check("feature_3d", features)
    golden.check("feature_3d_corner", features[:, :, :, :4, -4:])


@golden_cases("lp_motion")
@pytest.mark.slow
@torch.no_grad()
def test_the_motion_extractor_computes_what_the_original_computed(golden):
    golden = LivePortraitCase(golden)
    net = golden.fill("net", MotionExtractor())
    hooks(golden, net)
    raw = net(golden.image("image_u8"))
    for name, value in raw.items():
        golden.check(f"raw.{name}", value)
    motion, kp = refine(raw)
    for name in ("pitch", "yaw", "roll", "exp"):
        golden.check(f"refined.{name}", getattr(motion, name))
    golden.check("refined.kp", kp)
    golden.check("rotation", motion.rotation)
    golden.check("keypoints", keypoints(kp, motion))
    golden.check("angles_rotation", rotation_matrix(*golden.input("angles_deg").split(1, 1)))


@golden_cases("lp_warping")
@needs_full
@pytest.mark.slow
@torch.no_grad()
def test_the_warping_network_computes_what_the_original_computed(golden):
    golden = LivePortraitCase(golden)
    net = golden.fill("net", WarpingNetwork())
    hooks(golden, net)
    net.dense_motion_network.hourglass.register_forward_pre_hook(
        lambda _module, inputs: golden.check("hourglass_input", inputs[0])
    )
    warped = net(*(golden.input(name) for name in ("feature_3d", "kp_source", "kp_driving")))
    for name in ("deformation", "occlusion_map", "out"):
        golden.check(name, warped[name])


@golden_cases("lp_generator")
@needs_full
@pytest.mark.slow
@torch.no_grad()
def test_the_generator_computes_what_the_original_computed(golden):
    golden = LivePortraitCase(golden)
    net = golden.fill("net", SPADEDecoder())
    hooks(golden, net)
    image = net(golden.input("feature"))
    golden.check("image", image)
    golden.check("image_crop", image[:, :, 200:264, 300:364])
    golden.check("image_corner", image[:, :, :16, -16:])
    golden.check("image_u8_crop", (image[0, :, 200:264, 300:364] * 255).to(torch.uint8).movedim(0, -1))


@golden_cases("lp_stitching")
@torch.no_grad()
def test_stitching_computes_what_the_original_computed(golden):
    golden = LivePortraitCase(golden)
    for name, sizes in golden.meta["config"].items():
        net = golden.fill(name, StitchingNetwork(**sizes))
        golden.check(f"net.{name}", net(golden.input(f"net.{name}")))
    model = small_model()
    golden.fill("stitching", model.stitching)
    source, driving = golden.input("kp_source"), golden.input("kp_driving")
    golden.check("stitch", model.stitching(torch.cat([source, driving], 1).flatten(1)))
    golden.check("stitching", model.stitch(source, driving))


# -- motion arithmetic ------------------------------------------------------------------------------------------------


@golden_cases("lp_keypoints")
@torch.no_grad()
def test_relative_motion_computes_what_the_original_computed(golden):
    """The other outputs of the case belong to options that this package does not have: absolute motion, a picture as
    driver, parts of the face, retargeting of eyes and lips, normalised lips."""
    golden = LivePortraitCase(golden)
    source, kp = golden.motion("source")
    driving, driving_kp = golden.motion("driving")
    golden.check("x_s", keypoints(kp, source))
    golden.check("driving_R", driving.rotation)
    golden.check("driving_x", keypoints(driving_kp, driving))
    model = small_model()
    golden.fill("stitching", model.stitching)
    first = Motion(*(value[:1] for value in vars(driving).values()))
    for name in ("default", "pose_friendly"):
        golden.check(f"x_d.{name}", model.driving_keypoints(kp, source, driving)[1])
    golden.check("x_d.multiplier_1p3", model.driving_keypoints(kp, source, driving, 1.3)[1])
    golden.check("x_d.multiplier_0p5_pose_friendly", model.driving_keypoints(kp, source, driving, 0.5)[1])
    golden.check("x_d.one_frame_clip", model.driving_keypoints(kp, source, first)[1])
    for name in ("no_stitching", "no_stitching_pose_friendly"):
        golden.check(f"x_d.{name}", relative_keypoints(kp, source, driving))


def test_a_driving_motion_that_stays_leaves_the_source_where_it_is():
    source, kp = random_motion(1, 0), torch.randn(1, 21, 3)
    still = Motion(*(value.repeat(3, *(1,) * (value.ndim - 1)) for value in vars(random_motion(1, 1)).values()))
    moved = relative_keypoints(kp, source, still)
    torch.testing.assert_close(moved, keypoints(kp, source).expand(3, -1, -1), atol=1e-5, rtol=0)


def random_motion(frames, seed):
    rng = torch.Generator().manual_seed(seed)
    shapes = [(frames, 1)] * 3 + [(frames, 3), (frames, 21, 3), (frames, 1)]
    values = [torch.randn(shape, generator=rng) for shape in shapes]
    return Motion(*values[:5], values[5].abs() + 0.5)


# -- drivers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_starts_and_ends_at_rest_and_moves_in_between(driver):
    motion = driver_motion(driver, 50, 3)
    values = torch.cat([value.flatten(1) for value in vars(motion).values()], 1)
    rest = torch.cat([torch.zeros(1, values.shape[1] - 1), torch.ones(1, 1)], 1)
    torch.testing.assert_close(values[[0, -1]], rest.expand(2, -1), atol=1e-6, rtol=0)
    scaled = values - rest
    assert (scaled / torch.tensor([10.0] * 3 + [1.0] * 67)).abs().max() > 0.005
    assert scaled[:, :3].abs().max() < 20 and scaled[:, 3:].abs().max() < 0.06
    assert scaled.diff(dim=0)[:, :3].abs().max() < 6  # degrees per frame: no jumps


def test_drivers_differ_from_each_other_and_seeds_vary_them():
    def curve(driver, seed):
        return torch.cat([value.flatten() for value in vars(driver_motion(driver, 50, seed)).values()])

    curves = [curve(driver, 0) for driver in DRIVERS]
    for i, a in enumerate(curves):
        assert all((a - b).abs().max() > 0.01 for b in curves[i + 1 :])
    for driver in DRIVERS:
        torch.testing.assert_close(curve(driver, 5), curve(driver, 5), atol=0, rtol=0)
        assert len({curve(driver, seed).numpy().tobytes() for seed in range(4)}) == 4


def test_yes_nods_no_shakes_and_only_smile_curls_the_lips():
    yes, no, smile = (driver_motion(driver, 50, 0) for driver in ("yes", "no", "smile"))
    assert yes.pitch.abs().max() > 5 and yes.yaw.abs().max() == 0
    assert no.yaw.abs().max() > 8 and no.pitch.abs().max() == 0
    assert smile.exp[25, 14, 1] < -0.01 and yes.exp.abs().max() == 0


def test_a_smile_begins_at_the_mouth_and_ends_at_the_eyes():
    exp = driver_motion("smile", 50, 0).exp
    mouth, cheek = exp[:, 14, 1].abs(), exp[:, 3, 1].abs()
    assert mouth[3] > 0 and cheek[3] == 0 and mouth[47] == 0 and cheek[47] > 0
    assert exp[25, 14, 1] < 0 and exp[25, 3, 1] < 0  # upwards


# -- crop and paste-back ----------------------------------------------------------------------------------------------


@golden_cases("lp_crop")
@pytest.mark.parametrize("count", EYES_AND_MOUTH)
@pytest.mark.parametrize("face", [0, 1])
def test_a_face_is_cut_out_as_the_original_does(golden, count, face):
    golden, case = LivePortraitCase(golden), f"lmk{count}_{face}"
    points = golden.input(case).double().numpy()
    square = face_square(points, LANDMARK_SCALE, LANDMARK_SHIFT)
    golden.check(f"{case}.center", square.center)
    golden.check(f"{case}.size", np.array([square.size] * 2))
    golden.check(f"{case}.angle", np.array([square.angle]))
    golden.check(f"{case}.M_o2c", square.to_crop())
    golden.check(f"{case}.M_c2o", np.linalg.inv(square.to_crop()))
    golden.check(f"{case}.pt2_lip", eyes_and_mouth(points))
    golden.check(f"{case}.pt_crop", (np.c_[points, np.ones(count)] @ square.to_crop().T)[:, :2])


@golden_cases("lp_crop")
def test_pictures_are_cut_and_pasted_as_the_original_does(golden):
    golden = LivePortraitCase(golden)
    frame = golden.input("image_u8").numpy()
    square = face_square(golden.input("lmk106_0").numpy(), LANDMARK_SCALE, LANDMARK_SHIFT)
    to_frame = np.linalg.inv(square.to_crop())
    cut = warp(to_tensor(frame[None], CPU), square.to_crop(), (512, 512))
    golden.check("crop_512", cut[0].round().movedim(0, -1))
    golden.check("crop_256", 255 * network_input(frame[None], square, CPU)[0].movedim(0, -1))
    golden.check("mask_template", paste_mask())
    mask = warped_mask(to_frame, frame.shape[:2], CPU)
    golden.check("mask_ori", mask[0, 0])
    rendered = to_tensor(golden.input("rendered_u8").numpy()[None], CPU)
    golden.check("pasted", paste_back(frame, rendered, to_frame, mask)[0])


@golden_cases("lp_crop")
def test_a_driving_clip_is_cut_out_by_one_square_as_the_original_does(golden):
    golden = LivePortraitCase(golden)
    squares = [face_square(points.numpy(), 2.2, -0.1) for points in golden.input("driving_lmk203")]
    boxes = [[*(s.center - s.size / 2), *(s.center + s.size / 2)] for s in squares]
    golden.check("driving_boxes", np.array(boxes))
    golden.check("driving_box_mean", np.mean(boxes, 0))
    matrix = mean_square(squares).to_crop()
    golden.check("driving_M_o2c", matrix)
    cut = warp(to_tensor(golden.input("image_u8").numpy()[None], CPU), matrix, (512, 512))
    golden.check("driving_crop_512", cut[0].round().movedim(0, -1))


def test_paste_back_leaves_pixels_outside_the_mask_untouched():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (90, 120, 3), np.uint8)
    to_frame = np.linalg.inv(face_square(FACE_POINTS * 0.6, FIVE_POINT_SCALE, FIVE_POINT_SHIFT).to_crop())
    mask = warped_mask(to_frame, frame.shape[:2], CPU)
    outside, inside = (mask == 0)[0, 0].numpy(), (mask == 1)[0, 0].numpy()
    assert outside.sum() > 1000 and inside.sum() > 1000
    pasted = paste_back(frame, torch.full((2, 3, 512, 512), 7.0), to_frame, mask)
    assert (pasted[:, outside] == frame[outside]).all() and (pasted[:, inside] == 7).all()


def test_five_points_and_a_whole_outline_give_about_the_same_square():
    """The outline: an ellipse 2.2 eye distances wide from the brows to the chin, seen from the front."""
    turn = np.linspace(0, 2 * np.pi, 63, endpoint=False)
    outline = np.c_[1.1 * np.cos(turn), 0.68 + 1.15 * np.sin(turn)]
    five = np.array([[-0.5, 0], [0.5, 0], [0, 0.57], [-0.45, 1.07], [0.45, 1.07]])
    landmarks = np.vstack([outline, np.zeros((5, 2))])  # 68 points; those that place eyes and mouth are set below
    for row, point in {36: (-0.5, 0), 39: (-0.5, 0), 42: (0.5, 0), 45: (0.5, 0), 48: (0, 1.07), 54: (0, 1.07)}.items():
        landmarks[row] = point
    a = face_square(100 * five, FIVE_POINT_SCALE, FIVE_POINT_SHIFT)
    b = face_square(100 * landmarks, LANDMARK_SCALE, LANDMARK_SHIFT)
    assert abs(a.size / b.size - 1) < 0.1 and np.abs(a.center - b.center).max() < 0.03 * b.size


@pytest.mark.parametrize("points", [np.zeros((4, 2)), np.zeros((5, 2))])
def test_points_that_are_no_face_are_refused_in_one_line(points):
    with pytest.raises(PVChatError, match="cannot be cut out") as caught:
        face_square(points, 2.3, 0.0)
    assert "\n" not in str(caught.value)


# -- weights ----------------------------------------------------------------------------------------------------------

SMALL = {
    "appearance_feature_extractor": dict(
        block_expansion=4, max_features=16, reshape_channel=4, reshape_depth=4, num_resblocks=1
    ),
    "motion_extractor": dict(depths=(1, 1, 1, 1), dims=(4, 8, 8, 8)),
    "warping_module": dict(
        block_expansion=2, max_features=16, reshape_channel=4,
        dense_motion_params=dict(block_expansion=2, max_features=4, num_blocks=2, reshape_depth=4, compress=1),
    ),
    "spade_generator": dict(block_expansion=2, max_features=8),
}  # fmt: skip


def small_model(seed=0):
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SPADE, "HIDDEN", 8)
        patch.setattr(SPADEDecoder, "LAST", 8)
        torch.manual_seed(seed)
        return LivePortrait(**SMALL).eval()


@pytest.fixture
def official(tmp_path):
    """A folder laid out as the published one, of a small model with seed 1."""
    model = small_model(1)
    for name, file in FILES.items():
        path = tmp_path / "liveportrait" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        state = getattr(model, name).state_dict()
        if name == "stitching":
            parts = {f"module.{key}": value for key, value in state.items()}
            state = {"retarget_shoulder": parts, "retarget_mouth": {}, "retarget_eye": {}}
        torch.save(state, path)
    return tmp_path


@golden_listings(*(f"lp_{name}" for name in FILES))
def test_the_names_and_shapes_are_those_of_the_official_files(golden):
    with torch.device("meta"):
        net = getattr(LivePortrait(), golden.removeprefix("lp_"))
    ours = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert ours == {key: shape for key, shape, *_ in read_listing(f"state_dicts/{golden}.json")}


@pytest.mark.parametrize("inside", ["", "liveportrait"])
def test_an_official_folder_is_read_back(official, inside):
    loaded = fill_networks(small_model(2), weight_files(official / inside))
    expected = small_model(1).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("fc.bias"), "1 tensors are missing (first: fc.bias)"),
        (lambda state: state.update(other=torch.zeros(1)), "1 tensors are unknown (first: other)"),
        (lambda state: state.update({"fc.bias": torch.zeros(3)}), "1 tensors have another shape (first: fc.bias)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(official, change, message):
    path = official / "liveportrait" / FILES["spade_generator"]
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(PVChatError) as caught:
        fill_networks(small_model(), weight_files(official))
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"retarget_eye": {}}, [1, 2]])
def test_a_stitching_file_without_its_entry_is_refused_in_one_line(official, content):
    torch.save(content, official / "liveportrait" / FILES["stitching"])
    with pytest.raises(PVChatError, match="holds something else"):
        fill_networks(small_model(), weight_files(official))


def test_a_folder_without_the_files_is_refused_in_one_line(tmp_path):
    with pytest.raises(PVChatError, match=r"appearance_feature_extractor.pth is missing \(5 of 5 files\)") as caught:
        LivePortraitAnimator(FakeDetector(), folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_gives_one_line_with_the_licence(monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise OSError("no connection\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(MissingBackendError, match="KwaiVGI/LivePortrait.*MIT") as caught:
        hub_files()
    assert "\n" not in str(caught.value)


# -- the backend ------------------------------------------------------------------------------------------------------

FACE_POINTS = np.array([[85.0, 60], [115, 60], [100, 77], [88, 92], [112, 92]])


class FakeDetector:
    id, licences = "fake@1", ("Apache-2.0",)

    def __init__(self, points=FACE_POINTS):
        self.points = points

    def detect(self, frames):
        box = (70.0, 30.0, 130.0, 110.0)
        return [[Face(box, 1.0), Face(box, 0.9, self.points)] if self.points is not None else [] for _ in frames]


@pytest.fixture(scope="module")
def still():
    rng = np.random.default_rng(0)
    return Person(rng.integers(0, 256, (2, 161, 200, 3), np.uint8), 10.0, best=1)


def small_animator(detector=None, **options):
    return LivePortraitAnimator(
        detector or FakeDetector(), num_frames=3, batch_size=2, device="cpu", model=small_model(), **options
    )


def test_a_still_is_animated_within_the_square_of_its_face(still):
    animator = small_animator()
    assert isinstance(animator, PortraitAnimator)
    made = animator.animate(still, "smile", 1)
    assert made.frames.shape == (3, 160, 200, 3) and made.frames.dtype == np.uint8 and made.fps == 25.0
    assert "smil" in made.truth["action"]
    changed = (made.frames != still.frames[1, :160]).any((0, 3))
    square = face_square(FACE_POINTS, FIVE_POINT_SCALE, FIVE_POINT_SHIFT)
    y, x = np.nonzero(changed)
    low, high = square.center - square.size / 2, square.center + square.size / 2
    assert changed[60, 100] and x.min() >= low[0] and y.min() >= low[1] and x.max() <= high[0] and y.max() <= high[1]


def test_a_seed_repeats_and_batches_do_not_matter(still):
    made = small_animator().animate(still, "no", 4).frames
    assert (small_animator().animate(still, "no", 4).frames == made).all()
    other = LivePortraitAnimator(FakeDetector(), num_frames=3, batch_size=1, device="cpu", model=small_model())
    assert np.abs(other.animate(still, "no", 4).frames.astype(int) - made).max() <= 1
    assert (small_animator().animate(still, "no", 5).frames != made).any()
    assert (small_animator().animate(still, "yes", 4).frames != made).any()


def test_the_features_of_the_source_are_computed_once(still):
    animator, calls = small_animator(), []
    model = animator._model
    model.appearance_feature_extractor.register_forward_hook(lambda *_: calls.append("features"))
    model.spade_generator.register_forward_hook(lambda _net, _inputs, out: calls.append(len(out)))
    animator.animate(still, "yes", 0)
    assert calls == ["features", 2, 1]


def test_a_driving_video_gives_the_motion_and_the_rate(still, tmp_path):
    frames = np.random.default_rng(1).integers(0, 256, (3, 160, 200, 3), np.uint8)
    write_video(tmp_path / "nod.mp4", frames, 12.0)
    animator = small_animator(driving_videos={"yes": tmp_path / "nod.mp4"})
    made = animator.animate(still, "yes", 0)
    assert made.fps == 12.0 and made.frames.shape == (3, 160, 200, 3)
    motion, _ = animator._motions["yes"]
    assert motion.exp.shape == (3, 21, 3) and motion.pitch.std() > 0
    assert animator.id != small_animator().id
    assert animator.animate(still, "no", 0).fps == 25.0  # the others keep their curves


def test_a_still_without_a_face_is_dropped_with_a_reason(still):
    with pytest.raises(Rejected, match="no face"):
        small_animator(FakeDetector(points=None)).animate(still, "yes", 0)


def test_a_driving_video_without_a_face_is_refused_in_one_line(still, tmp_path):
    class OnlyStills(FakeDetector):
        def detect(self, frames):
            return super().detect(frames) if len(frames) == 1 else [[] for _ in frames]

    write_video(tmp_path / "wall.mp4", np.zeros((3, 64, 64, 3), np.uint8), 10.0)
    animator = small_animator(OnlyStills(), driving_videos={"yes": tmp_path / "wall.mp4"})
    with pytest.raises(PVChatError, match="No face was found in the driving clip"):
        animator.animate(still, "yes", 0)


def test_bad_settings_are_refused_in_one_line(still, tmp_path):
    with pytest.raises(PVChatError, match="allowed: yes, no, query, smile, angry"):
        small_animator().animate(still, "dance", 0)
    with pytest.raises(PVChatError, match="allowed: yes"):
        small_animator(driving_videos={"dance": tmp_path})
    with pytest.raises(PVChatError, match="driving clip 'yes' is not at"):
        small_animator(driving_videos={"yes": tmp_path / "absent.mp4"})
    with pytest.raises(PVChatError, match="num_frames must be at least 2"):
        LivePortraitAnimator(FakeDetector(), num_frames=1)


def test_weights_are_loaded_at_the_first_call_and_name_the_version(official, still, monkeypatch):
    monkeypatch.setattr("pvchat.dataset_builder.backends.liveportrait.animator.LivePortrait", small_model)
    animator = LivePortraitAnimator(FakeDetector(), folder=official, num_frames=2, device="cpu")
    assert animator._model is None and animator.licences == ("MIT", "Apache-2.0")
    animator.animate(still, "query", 0)
    assert torch.equal(animator._model.spade_generator.fc.weight, small_model(1).spade_generator.fc.weight)
    changed = official / "liveportrait" / FILES["spade_generator"]
    torch.save(small_model(3).spade_generator.state_dict(), changed)
    assert LivePortraitAnimator(FakeDetector(), folder=official, num_frames=2, device="cpu").id != animator.id


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("PVCHAT_FULL"), reason="minutes on a processor without bfloat16; set PVCHAT_FULL=1"
)
def test_half_precision_stays_close_to_single_precision(still):
    single = small_animator().animate(still, "query", 2).frames.astype(int)
    half = small_animator(dtype=torch.bfloat16).animate(still, "query", 2).frames.astype(int)
    assert np.abs(single - half).mean() < 2


# -- the whole path at the official size ------------------------------------------------------------------------------


@golden_cases("lp_chain")
@needs_full
@pytest.mark.slow
@torch.no_grad()
def test_the_whole_path_computes_what_the_original_computed(golden):
    golden = LivePortraitCase(golden)
    model = LivePortrait()
    for name in FILES:
        golden.fill(name, getattr(model, name))
    frame = golden.input("source_u8").numpy()
    square = face_square(golden.input("lmk106_source").numpy(), LANDMARK_SCALE, LANDMARK_SHIFT)
    to_frame = np.linalg.inv(square.to_crop())
    golden.check("crop.M_o2c", square.to_crop())
    golden.check("crop.M_c2o", to_frame)
    golden.check("crop.img_crop_256", 255 * network_input(frame[None], square, CPU)[0].movedim(0, -1))
    image = golden.tensors["output.crop.img_crop_256"].movedim(-1, 0)[None].float() / 255

    source, kp = model.motion(image)
    driving, driving_kp = model.motion(golden.image("driving_u8"))
    for prefix, motion, points in (("source", source, kp), ("driving", driving, driving_kp)):
        for name, value in {**vars(motion), "kp": points}.items():
            golden.check(f"{prefix}.{name}", value)
    x_s, x_d = model.driving_keypoints(kp, source, driving)
    golden.check("x_s", x_s)
    golden.check("x_d", x_d)
    features = model.features(image)
    golden.check("f_s", features)

    mask = warped_mask(to_frame, frame.shape[:2], CPU)
    golden.check("mask_ori", mask[0, 0])
    warped = {}
    model.warping_module.register_forward_hook(lambda _net, _inputs, output: warped.update(output))
    for i in range(len(x_d)):
        picture = model.render(features, x_s, x_d[i : i + 1])
        golden.check(f"frame{i}.occlusion_map", warped["occlusion_map"])
        golden.check(f"frame{i}.deformation", warped["deformation"])
        golden.check(f"frame{i}.image", picture)
        golden.check(f"frame{i}.image_crop", picture[:, :, 216:280, 216:280])
        golden.check(f"frame{i}.pasted", paste_back(frame, 255 * picture, to_frame, mask)[0])
    golden.check(f"frame{i}.image_u8", (picture[0] * 255).to(torch.uint8).movedim(0, -1))
