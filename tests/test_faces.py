"""Finding, aligning, embedding and judging faces."""

import importlib
import importlib.util
import os
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import save_file

from pvchat.dataset_builder.backends.common import weights_file
from pvchat.dataset_builder.backends.faces.align import ARCFACE, WHOLE_FACE, align, crop_box, similarity
from pvchat.dataset_builder.backends.faces.auraface import AuraFace
from pvchat.dataset_builder.backends.faces.facenet import FaceNet, InceptionResnetV1, to_input
from pvchat.dataset_builder.backends.faces.hog import FaceHog
from pvchat.dataset_builder.backends.faces.landmarks import FaceLandmarks
from pvchat.dataset_builder.backends.faces.lbp import LbpDetector, one_box_per_face, vote
from pvchat.dataset_builder.backends.faces.mtcnn import MTCNN, ONet, PNet, RNet, normalise
from pvchat.dataset_builder.backends.faces.quality import EarQuality, FaceQuality, grey, laplacian_variance, measure
from pvchat.dataset_builder.backends.faces.sface import SFace
from pvchat.dataset_builder.backends.faces.yunet import YuNet
from pvchat.dataset_builder.engine import Rejected
from pvchat.dataset_builder.protocols import Face, FaceDetector, FaceEmbedder, Person, QualityFilter
from pvchat.errors import MissingBackendError, PVChatError
from tests.golden_faces import Golden, golden_cases, golden_listings, read_listing

WHEEL = os.environ.get("PVCHAT_FACENET_WHEEL")
needs_wheel = pytest.mark.skipif(not WHEEL, reason="PVCHAT_FACENET_WHEEL does not name a facenet-pytorch 2.6.0 wheel")

POINTS = np.array([[70.0, 90.0], [118.0, 84.0], [98.0, 116.0], [80.0, 140.0], [120.0, 135.0]])


@pytest.fixture(scope="module")
def astronaut():
    from skimage import data

    return data.astronaut()


class Fixed:
    """A detector that finds the same faces in every frame."""

    id, licences = "fixed@1", ("Apache-2.0",)

    def __init__(self, *faces):
        self.faces = list(faces)

    def detect(self, frames):
        return [self.faces for _ in frames]


FACE = Face((60.0, 60.0, 130.0, 150.0), 1.0, POINTS)


def blank_person(frames=3):
    return Person(np.full((frames, 200, 200, 3), 90, np.uint8), 8.0)


def assert_near(golden, name, ours):
    theirs, atol = golden.tensors[f"output.{name}"], golden.meta["outputs"][name]["atol"]
    error = (torch.as_tensor(ours).double() - theirs.double()).abs().max().item()
    assert error <= atol, f"{name}: error {error:.2e}, allowed {atol:.0e}"


# Alignment


@settings(max_examples=50, deadline=None)
@given(
    source=arrays(np.float64, (5, 2), elements=st.floats(-100, 100)),
    angle=st.floats(-3.1, 3.1),
    scale=st.floats(0.05, 20),
    shift=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
)
def test_a_known_similarity_is_recovered(source, angle, scale, shift):
    source = source + np.arange(10).reshape(5, 2) ** 2  # never one point
    if np.ptp(source, axis=0).max() < 1:
        return
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity(source, source @ turn.T + shift)
    np.testing.assert_allclose(matrix, np.column_stack([turn, shift]), rtol=1e-6, atol=1e-6 * (1 + scale * 100))


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, (5, 2), elements=st.floats(-50, 50)), arrays(np.float64, (5, 2), elements=st.floats(-9, 9)))
def test_no_other_similarity_is_closer(source, noise):
    source = source + np.arange(10).reshape(5, 2) ** 2
    target = 2 * source[:, ::-1] + noise
    matrix = similarity(source, target)

    def error(m):
        return float(((source @ m[:, :2].T + m[:, 2] - target) ** 2).sum())

    a, b, x, y = matrix[0, 0], matrix[1, 0], *matrix[:, 2]
    for da, db, dx, dy in 1e-3 * np.vstack([np.eye(4), -np.eye(4)]):
        assert error(matrix) <= error(np.array([[a + da, -b - db, x + dx], [b + db, a + da, y + dy]])) + 1e-6


def test_points_that_coincide_are_refused():
    with pytest.raises(PVChatError, match="points coincide"):
        similarity(np.ones((5, 2)), WHOLE_FACE)


@pytest.mark.parametrize("template", [WHOLE_FACE, ARCFACE], ids=["whole_face", "arcface"])
@pytest.mark.parametrize("angle", [0.0, 0.5, -1.2])
def test_the_points_of_a_turned_face_land_on_the_template(template, angle):
    size, centre, scale = 160, np.array([230.0, 260.0]), 190.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (template - template.mean(0)) @ turn.T * scale + centre
    frame = np.zeros((500, 500, 3), np.uint8)
    y, x = np.mgrid[:500, :500]
    for point in points:
        frame[np.hypot(x - point[0], y - point[1]) < 5] = 255
    crop = align(frame, points, template, size)
    y, x = np.mgrid[:size, :size]
    for place in template * size:
        near = np.hypot(x - place[0], y - place[1]) < 8
        weights = crop[..., 0][near].astype(float)
        found = np.array([np.average(x[near], weights=weights), np.average(y[near], weights=weights)])
        np.testing.assert_allclose(found, place, atol=0.5)


def test_what_lies_outside_the_frame_is_black():
    crop = align(np.full((100, 100, 3), 200, np.uint8), POINTS - 60, WHOLE_FACE, 64)
    assert crop.shape == (64, 64, 3) and crop[0, 0].max() == 0 and crop[32, 32].min() == 200


# Networks


@golden_cases("mtcnn")
@pytest.mark.parametrize("net, case", [(PNet, "pnet"), (RNet, "rnet"), (ONet, "onet")])
def test_the_nets_of_mtcnn_equal_the_golden_vectors(golden, net, case):
    golden = Golden(golden)
    net = net().eval()
    net.load_state_dict(golden.weights(f"{case}_recipe"))
    with torch.no_grad():
        out = net(normalise(golden.tensors[f"input.{case}"].permute(0, 3, 1, 2).float()))
    names = ["box", "points", "prob"] if len(out) == 3 else ["box", "prob"]
    for name, ours in zip(names, out, strict=True):
        assert_near(golden, f"{case}_recipe.{name}", ours)


@pytest.fixture(scope="module")
def mtcnn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(folder, [n for n in wheel.namelist() if n.startswith("facenet_pytorch/data/")])
    return MTCNN(folder / "facenet_pytorch" / "data")


@golden_cases("mtcnn")
@needs_wheel
@pytest.mark.parametrize("case", ["pnet", "rnet", "onet"])
def test_the_published_nets_of_mtcnn_equal_the_golden_vectors(golden, mtcnn, case):
    golden = Golden(golden)
    with torch.no_grad():
        out = getattr(mtcnn, f"_{case}").cpu()(normalise(golden.tensors[f"input.{case}"].permute(0, 3, 1, 2).float()))
    for name, ours in zip(["box", "points", "prob"] if len(out) == 3 else ["box", "prob"], out, strict=True):
        assert_near(golden, f"{case}.{name}", ours)


@golden_cases("mtcnn")
@needs_wheel
@pytest.mark.parametrize("picture", ["astronaut", "two_faces", "no_face"])
def test_mtcnn_finds_what_the_golden_vectors_say(golden, mtcnn, astronaut, picture):
    golden = Golden(golden)
    image = astronaut if picture == "astronaut" else golden.tensors[f"input.{picture}"].numpy()
    faces = mtcnn.detect(image[None])[0]
    assert len(faces) == golden.meta["detect"][picture]["faces"]
    if not faces:
        return
    assert_near(golden, f"detect.{picture}.boxes", np.array([face.box for face in faces]))
    assert_near(golden, f"detect.{picture}.probs", np.array([face.score for face in faces]))
    assert_near(golden, f"detect.{picture}.points", np.stack([face.points for face in faces]))
    crops = to_input(np.stack([crop_box(image, face.box, 160) for face in faces]), 128)
    assert_near(golden, f"extract.{picture}", crops[:, :, ::4, ::4])
    wide = np.stack([crop_box(image, face.box, 160, margin=14) for face in faces])
    wide = torch.from_numpy(wide).permute(0, 3, 1, 2).float()
    assert_near(golden, f"extract_margin14.{picture}", wide[:, :, ::4, ::4])


def test_mtcnn_without_weights_says_which_package_carries_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingBackendError, match="--no-deps facenet-pytorch==2.6.0"):
        MTCNN()


def test_mtcnn_of_random_weights_survives_small_and_empty_pictures(tmp_path):
    torch.manual_seed(0)
    for name, net in (("pnet", PNet()), ("rnet", RNet()), ("onet", ONet())):
        torch.save(net.state_dict(), tmp_path / f"{name}.pt")
    detector = MTCNN(tmp_path)
    assert isinstance(detector, FaceDetector)
    for height, width in ((8, 8), (12, 40), (48, 33)):
        assert len(detector.detect(np.zeros((1, height, width, 3), np.uint8))) == 1


@golden_listings("facenet_inception_resnet_v1")
def test_the_names_and_shapes_of_facenet_are_the_published_ones(golden):
    with torch.device("meta"):
        state = InceptionResnetV1(num_classes=8631).state_dict()
    listing = read_listing(f"state_dicts/{golden}.json")
    assert {name: list(t.shape) for name, t in state.items()} == {name: shape for name, shape, *_ in listing}


@golden_cases("facenet")
@pytest.mark.slow
def test_facenet_equals_the_golden_vectors(golden):
    golden = Golden(golden)
    net = InceptionResnetV1(num_classes=8631).eval()
    net.load_state_dict(golden.weights("net"))
    crops = golden.tensors["input.image_u8"].numpy()
    half, std = to_input(crops), to_input(crops, 128)
    assert_near(golden, "x_half", half[:, :, ::8, ::8])
    assert_near(golden, "x_std", std[:, :, ::8, ::8])
    with torch.no_grad():
        assert_near(golden, "embedding_std", net(std))
        seen = {}

        def remember(name):
            def hook(module, args, out):
                seen[name] = out

            return hook

        hooked = [name.removeprefix("hook.") for name in golden.meta["outputs"] if name.startswith("hook.")]
        for name in hooked:
            net.get_submodule(name).register_forward_hook(remember(name))
        assert_near(golden, "embedding", net(half))
        assert_near(golden, "logits", net.logits(net.features(half)))
    assert sorted(seen) == sorted(hooked) and len(seen) > 15
    for name, out in seen.items():
        entry = golden.meta["outputs"][f"hook.{name}"]
        steps = [part.strip(" []") for part in entry.get("index", "").split(",")]  # "[:, ::8, ::4, ::4]"
        index = tuple(slice(None, None, int(step[2:] or 1) if step.startswith("::") else 1) for step in steps)
        assert_near(golden, f"hook.{name}", out[index])
        if "statistics" in entry:
            flat = out.double().flatten(2)
            for statistic, ours in (("mean", flat.mean(2)), ("rms", flat.square().mean(2).sqrt())):
                theirs = golden.tensors[f"output.hook.{name}#{statistic}"].double()
                assert (ours - theirs).abs().max() <= entry["atol"], f"{name} {statistic}"


@pytest.fixture(scope="module")
def facenet_weights(tmp_path_factory):
    with torch.device("meta"):
        names = InceptionResnetV1().state_dict()
    state = {}
    for i, (name, t) in enumerate(names.items()):
        if t.ndim > 1:
            state[name] = torch.randn(t.shape, generator=torch.Generator().manual_seed(i)) * (2 / t[0].numel()) ** 0.5
        else:
            state[name] = torch.full(t.shape, 1 if name.endswith(("weight", "var")) else 0, dtype=t.dtype)
    path = tmp_path_factory.mktemp("facenet") / "weights.safetensors"
    save_file(state, path)
    return path


def test_facenet_embeds_a_person_as_a_unit_vector_with_the_weights_in_its_id(facenet_weights):
    embedder = FaceNet(Fixed(FACE), facenet_weights)
    assert isinstance(embedder, FaceEmbedder)
    vector = embedder.embed(blank_person())
    assert vector.shape == (512,) and vector.dtype == np.float32 and np.linalg.norm(vector) == pytest.approx(1)
    assert embedder.id.startswith("facenet@1-whole_face+") and embedder.id.endswith("/fixed@1")
    boxed = FaceNet(Fixed(Face(FACE.box, 1.0)), facenet_weights, crop="box")  # needs no points
    assert boxed.id != embedder.id and boxed.embed(blank_person()).shape == (512,)


def test_a_person_without_a_face_is_rejected():
    with pytest.raises(Rejected, match="no face found"):
        FaceHog(Fixed()).embed(blank_person())


def test_facenet_says_that_it_needs_points(facenet_weights):
    with pytest.raises(PVChatError, match="five points"):
        FaceNet(Fixed(Face(FACE.box, 1.0)), facenet_weights).embed(blank_person())


def test_a_crop_that_does_not_exist_and_weights_of_another_net_are_refused(tmp_path):
    with pytest.raises(PVChatError, match="whole_face or box"):
        FaceNet(Fixed(), crop="mouth")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(PVChatError, match="another network"):
        FaceNet(Fixed(), tmp_path / "other.safetensors")
    (tmp_path / "broken.pth").write_bytes(b"PK")
    with pytest.raises(PVChatError, match="cannot be read as weights"):
        FaceNet(Fixed(), tmp_path / "broken.pth")
    with pytest.raises(PVChatError, match="is not a file"):
        FaceNet(Fixed(), tmp_path / "absent.pth")


def test_without_the_hub_facenet_names_file_and_licence(monkeypatch):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(MissingBackendError, match=r"py-feat/facenet \(licence: MIT") as error:
        FaceNet(Fixed())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("module", ["yunet", "sface", "auraface", "facenet"])
def test_weights_of_the_hub_are_fetched_at_a_pinned_commit_which_is_part_of_the_id(module, monkeypatch, tmp_path):
    backend = importlib.import_module(f"pvchat.dataset_builder.backends.faces.{module}")
    asked = []
    (tmp_path / "file").write_bytes(b"weights")

    def fetch(repo, filename, revision):
        asked.append((repo, filename, revision))
        return str(tmp_path / "file")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    options = {"backend": module, "licence": "MIT"}
    path, version = weights_file(None, backend.REPO, backend.FILE, backend.REVISION, **options)
    assert asked == [(backend.REPO, backend.FILE, backend.REVISION)] and len(backend.REVISION) == 40
    _, local = weights_file(tmp_path / "file", backend.REPO, backend.FILE, backend.REVISION, **options)
    assert version == f"{backend.REVISION[:8]}.{local}" and path == tmp_path / "file"


@pytest.mark.parametrize("embedder", [SFace, AuraFace, FaceNet, FaceHog])
def test_the_band_of_an_embedder_lies_below_one_person(embedder):
    assert 0 < embedder.different < embedder.same < 1 and embedder.eps > 0


@pytest.mark.parametrize(
    "package, make",
    [
        ("cv2", lambda: YuNet("x.onnx")),
        ("cv2", lambda: SFace(Fixed(), "x.onnx")),
        ("onnxruntime", lambda: AuraFace(Fixed(), "x.onnx")),
        ("mediapipe", lambda: FaceLandmarks("x.task")),
    ],
)
def test_an_absent_package_gives_one_line_with_the_pip_command(monkeypatch, package, make):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingBackendError, match=rf'{package}.*pip install "pvchat\[faces\]"') as error:
        make()
    assert "\n" not in str(error.value)


# OpenCV: networks of the published outputs with made-up weights


def onnx_model(path, inputs, outputs, nodes, constants):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node(*node[:3], **node[3]) for node in nodes],
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path


@pytest.fixture
def planted_yunet(tmp_path):
    """A YuNet that sees one face around cell (20, 10) of stride 8, whatever the picture."""
    inputs, outputs, nodes, constants = {"input": [1, 3, 640, 640]}, {}, [], {}
    nodes.append(("ReduceMean", ["input"], ["mean"], {"axes": [1, 2, 3], "keepdims": 0}))
    nodes.append(("Mul", ["mean", "nothing"], ["zero"], {}))
    constants["nothing"] = np.zeros(1, np.float32)
    for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            value = np.zeros((1, (640 // stride) ** 2, width), np.float32)
            if stride == 8:
                cell = 10 * 80 + 20
                value[0, cell] = {
                    "cls": [1],
                    "obj": [1],
                    "bbox": [0, 0, np.log(10), np.log(12)],
                    "kps": [-2, -2, 2, -2, 0, 0, -1.5, 3, 1.5, 3],
                }[kind]
            name = f"{kind}_{stride}"
            outputs[name], constants[f"c_{name}"] = list(value.shape), value
            nodes.append(("Add", [f"c_{name}", "zero"], [name], {}))
    return onnx_model(tmp_path / "yunet.onnx", inputs, outputs, nodes, constants)


def test_yunet_gives_boxes_and_points_in_pixels_of_the_frame(planted_yunet):
    pytest.importorskip("cv2")
    detector = YuNet(planted_yunet)
    assert isinstance(detector, FaceDetector)
    (faces,) = detector.detect(np.zeros((1, 160, 320, 3), np.uint8))  # half as wide as the net's square
    (face,) = faces
    np.testing.assert_allclose(face.box, (60, 16, 100, 64), atol=0.1)  # centre (160, 80), 80 x 96 pixels of the square
    np.testing.assert_allclose(face.points[:3], [[72, 32], [88, 32], [80, 40]], atol=0.1)
    assert face.score == pytest.approx(1)


def test_sface_embeds_a_person(tmp_path):
    pytest.importorskip("cv2")
    weight = np.random.default_rng(0).normal(size=(128, 3)).astype(np.float32)
    path = onnx_model(
        tmp_path / "sface.onnx",
        {"data": [1, 3, 112, 112]},
        {"fc1": [1, 128]},
        [
            ("GlobalAveragePool", ["data"], ["pooled"], {}),
            ("Flatten", ["pooled"], ["flat"], {"axis": 1}),
            ("Gemm", ["flat", "weight", "bias"], ["fc1"], {"transB": 1}),
        ],
        {"weight": weight, "bias": np.zeros(128, np.float32)},
    )
    embedder = SFace(Fixed(FACE), path)
    frames = np.zeros((1, 200, 200, 3), np.uint8)
    frames[..., 0] = 200  # red only: the net must get RGB
    vector = embedder.embed(Person(frames, 1.0))
    np.testing.assert_allclose(vector, weight[:, 0] / np.linalg.norm(weight[:, 0]), atol=2e-3)


def test_auraface_embeds_a_person(tmp_path):
    pytest.importorskip("onnxruntime")
    weight = np.random.default_rng(0).normal(size=(512, 3)).astype(np.float32)
    path = onnx_model(
        tmp_path / "auraface.onnx",
        {"input.1": ["N", 3, 112, 112]},
        {"embedding": ["N", 512]},
        [
            ("GlobalAveragePool", ["input.1"], ["pooled"], {}),
            ("Flatten", ["pooled"], ["flat"], {"axis": 1}),
            ("Gemm", ["flat", "weight"], ["embedding"], {"transB": 1}),
        ],
        {"weight": weight},
    )
    frames = np.zeros((2, 200, 200, 3), np.uint8)
    frames[..., 0] = 255
    vector = AuraFace(Fixed(FACE), path).embed(Person(frames, 1.0))
    expected = weight @ np.float32([1, -1, -1])  # RGB scaled to -1..1
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=2e-3)


@pytest.mark.parametrize("make", [YuNet, lambda path: SFace(Fixed(), path)], ids=["yunet", "sface"])
def test_a_broken_onnx_file_gives_one_line(tmp_path, make):
    pytest.importorskip("cv2")
    (tmp_path / "broken.onnx").write_bytes(b"bad")
    with pytest.raises(PVChatError, match="cannot be read"):
        make(tmp_path / "broken.onnx")


# Without weights


def test_lbp_finds_the_face_of_a_photograph(astronaut):
    detector = LbpDetector()
    assert isinstance(detector, FaceDetector)
    (faces,) = detector.detect(astronaut[None])
    x0, y0, x1, y1 = faces[0].box
    assert x0 < 200 < 250 < x1 and y0 < 100 < 130 < y1  # the eyes to the mouth
    assert x1 - x0 < 130


@pytest.mark.parametrize("light", [1.0, 0.5])
def test_lbp_sees_one_face_in_a_still_of_one_person(astronaut, light):
    """The cascade also fires at her suit, and more than once at her face."""
    still = (astronaut * light).astype(np.uint8)
    for frames in (still[None], np.repeat(still[None], 3, 0)):  # frames that are alike all err alike
        assert [len(faces) for faces in LbpDetector().detect(frames)] == [1] * len(frames)


def test_boxes_on_one_face_are_one_and_those_beside_each_other_are_two():
    face, twice, other = (10.0, 10.0, 60.0, 60.0), (14.0, 6.0, 60.0, 52.0), (80.0, 10.0, 130.0, 60.0)
    assert one_box_per_face([twice, other, face]) == [face, other]


def test_lbp_finds_nothing_in_noise_and_in_tiny_pictures():
    noise = np.random.default_rng(0).integers(0, 255, (1, 60, 60, 3), dtype=np.uint8)
    assert LbpDetector().detect(noise) == [[]]
    assert LbpDetector().detect(np.zeros((2, 8, 8, 3), np.uint8)) == [[], []]


def test_frames_vote_a_false_box_down_even_when_it_is_larger():
    true, false = (10.0, 10.0, 40.0, 40.0), (60.0, 0.0, 160.0, 100.0)
    faces = vote([[true], [false, true], [true], [true]])
    assert [[face.box for face in frame] for frame in faces] == [[true]] * 4


def test_the_largest_box_of_a_single_frame_is_best():
    small, large = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 50.0, 50.0)
    assert [face.box for face in vote([[small, large]])[0]] == [large, small]


def test_face_hog_tells_100_people_apart_and_knows_one_in_other_light():
    from skimage import data

    pictures = [np.repeat((x[..., None] * 255).astype(np.uint8), 3, 2) for x in data.lfw_subset()[:100]]
    embedder = FaceHog(Fixed())
    assert isinstance(embedder, FaceEmbedder)
    whole = [Face((0.0, 0.0, 25.0, 25.0), 1.0)] * 100
    vectors = embedder.embed_faces(pictures, whole)
    between = (vectors @ vectors.T)[np.triu_indices(100, 1)]
    assert between.max() < embedder.same
    assert 0.3 < np.mean(between < embedder.different) < 0.7
    darker = [(0.6 * picture).astype(np.uint8) for picture in pictures]
    assert (embedder.embed_faces(darker, whole) * vectors).sum(1).min() > embedder.same


# Quality


@golden_cases("face_quality")
def test_quality_equals_the_golden_scores_and_decisions(golden):
    golden = Golden(golden)
    kind = {"the eyes are not open": "eyes", "the face is turned away": "frontal"}
    found, decisions = {name: [] for name in ("left_ear", "right_ear", "frontal", "visibility", "score")}, []
    for i, landmarks in enumerate(golden.tensors["input.landmarks"].numpy()):
        picture = golden.tensors[f"input.image_{i:02d}"].numpy()
        assert_near(golden, f"gray_{i:02d}", grey(picture).astype(int))
        quality = measure(landmarks, picture)
        report = quality.report()
        decisions.append(kind.get(report.reasons[0], "visibility") if report.reasons else "ok")
        values = (quality.left_eye, quality.right_eye, quality.frontal, quality.visible, report.score)
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    assert decisions == golden.meta["decisions"]
    for name, values in found.items():
        assert_near(golden, name, values)
    sharpness = [laplacian_variance(golden.tensors[f"output.gray_{i:02d}"].numpy()) for i in range(len(decisions))]
    assert_near(golden, "laplacian_variance", sharpness)


def test_every_reason_is_given_in_order():
    report = FaceQuality(left_eye=0.3, right_eye=0.2, frontal=0.3, sharp=1.0, visible=0.7).report()
    assert [reason.split()[-1] for reason in report.reasons] == ["open", "away", "picture"]
    assert FaceQuality(0.25, 0.25, 0.31, 0.0, 0.8).report().reasons == ()


class Mesh:
    id, licences = "mesh@1", ("Apache-2.0",)

    def __init__(self, mesh):
        self.mesh = mesh

    def find(self, frame):
        assert frame.shape == (1024, 1024, 3)
        return self.mesh


def test_ear_quality_scores_the_aligned_face_of_every_frame():
    mesh = np.full((478, 2), 0.5)
    mesh[[362, 33]], mesh[[263, 133]] = [0.4, 0.5], [0.6, 0.5]
    mesh[[385, 387, 160, 158]], mesh[[373, 380, 153, 144]] = [0.5, 0.45], [0.5, 0.55]
    quality = EarQuality(Fixed(FACE), Mesh(mesh))
    assert isinstance(quality, QualityFilter)
    reports = quality.score(blank_person())
    assert len(reports) == 3 and all(r.reasons == () for r in reports)
    assert reports[0].score == pytest.approx(50 + 25, abs=2)  # a grey picture is not sharp, but for its black border


def test_ear_quality_refuses_frames_without_face_or_mesh():
    assert EarQuality(Fixed(), Mesh(None)).score(blank_person(1))[0].reasons == ("no face found",)
    assert EarQuality(Fixed(FACE), Mesh(None)).score(blank_person(1))[0].reasons == ("no landmarks found",)


def test_the_landmarker_without_its_file_says_where_it_is(tmp_path):
    pytest.importorskip("mediapipe")
    with pytest.raises(MissingBackendError, match=r"face_landmarker.task \(licence: Apache-2.0\)"):
        FaceLandmarks()
    (tmp_path / "face_landmarker.task").write_bytes(b"bad")
    with pytest.raises(PVChatError, match="is not a face_landmarker.task"):
        FaceLandmarks(tmp_path / "face_landmarker.task")
