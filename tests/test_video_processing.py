"""Reading video files, picking frames, and turning them into tiles."""

import os
import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from pvchat.modeling_pvchat import PVChatVideoProcessor, count_frames, frame_indices, read_video
from pvchat.modeling_pvchat.video_processing_pvchat import list_videos
from tests.reference_preprocessing import closest_aspect_ratio, hd_padding

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "preproc.safetensors"
NUM_FRAMES = 11
# file name -> codec, pixel format, height, width
FORMATS = {
    "h264.mp4": ("libx264", "yuv420p", 48, 64),
    "odd_size.mp4": ("libx264", "yuv444p", 37, 51),
    "h264.mkv": ("libx264", "yuv420p", 48, 64),
    "vp9.webm": ("libvpx-vp9", "yuv420p", 48, 64),
    "vp8.webm": ("libvpx", "yuv420p", 48, 64),
    "mpeg4.avi": ("mpeg4", "yuv420p", 48, 64),
    "h264.ts": ("libx264", "yuv420p", 48, 64),
}


# -- helpers ----------------------------------------------------------------------------------------------------------


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frame i is grey of level 20 * i, so that its number survives compression."""
    levels = np.arange(count, dtype=np.uint8) * 20
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames of `numbered_frames` these are."""
    return np.round(frames.mean(axis=(1, 2, 3)) / 20).astype(int).tolist()


def write(path: Path, frames: np.ndarray, codec="libx264", pix_fmt="yuv420p", fps: int = 10, **options) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path, codec: str, sample_format: str, cover: Path | None = None) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16000)
        stream.layout = "mono"
        if cover is not None:
            with av.open(str(cover)) as picture:
                cover_stream = container.add_stream_from_template(picture.streams.video[0])
                cover_stream.disposition = av.stream.Disposition.attached_pic
                for packet in picture.demux():
                    if packet.size:
                        packet.stream = cover_stream
                        container.mux(packet)
        silence = np.zeros((1, 1152), np.float32 if sample_format == "fltp" else np.int16)
        for i in range(5):
            frame = av.AudioFrame.from_ndarray(silence, format=sample_format, layout="mono")
            frame.sample_rate, frame.pts = 16000, i * 1152
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(source: Path, target: Path, share: float) -> Path:
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One numbered clip of every format."""
    folder = tmp_path_factory.mktemp("videos")
    for name, (codec, pix_fmt, height, width) in FORMATS.items():
        write(folder / name, numbered_frames(NUM_FRAMES, height, width), codec, pix_fmt)
    return folder


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> Path:
    """A clip whose frames are large enough to cut the file between and inside them."""
    folder = tmp_path_factory.mktemp("noisy")
    frames = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    write(folder / "clip.mp4", frames)
    write(folder / "streamable.mp4", frames, movflags="faststart")
    write(folder / "clip.mkv", frames)
    write(folder / "clip.webm", frames, "libvpx")
    write(folder / "clip.avi", frames, "mpeg4")
    return folder


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    if not GOLDEN.exists():
        pytest.skip(f"golden vectors are not at {GOLDEN}")
    return load_file(GOLDEN)


def processor(**changes) -> PVChatVideoProcessor:
    return PVChatVideoProcessor(**{"size": 32, "num_frames": 4, "tile_grid": (2, 1), **changes})


def pixels(video, still: bool = False, **changes) -> torch.Tensor:
    return processor(**changes)(video, return_tensors="pt", still=still)["pixel_values_videos"]


def noise(frames: int = 6, height: int = 40, width: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


# -- which frames -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_segments", [4, 8, 16])
def test_frame_indices_equal_the_authors(golden, num_segments):
    expected = golden[f"output.get_index.segments{num_segments}"].tolist()
    assert [frame_indices(n, num_segments).tolist() for n in golden["input.num_frames"].tolist()] == expected


@settings(max_examples=300)
@given(total=st.integers(1, 2**31), num_segments=st.integers(1, 64))
def test_frame_indices_ascend_and_stay_inside_the_video(total, num_segments):
    indices = frame_indices(total, num_segments)
    assert len(indices) == num_segments
    assert (np.diff(indices) >= 0).all()
    assert indices[0] >= 0 and indices[-1] <= total - 1


@given(num_segments=st.integers(1, 64))
def test_a_one_frame_video_gives_that_frame_every_time(num_segments):
    assert frame_indices(1, num_segments).tolist() == [0] * num_segments


@pytest.mark.parametrize("total, num_segments", [(0, 8), (-1, 8), (8, 0)])
def test_frame_indices_refuse_nothing_to_choose_from(total, num_segments):
    with pytest.raises(ValueError, match="at least 1"):
        frame_indices(total, num_segments)


# -- reading files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_reader_returns_all_frames_in_order(folder, name):
    frames, fps = read_video(folder / name)
    assert frames.dtype == np.uint8 and frames.shape == (NUM_FRAMES, *FORMATS[name][2:], 3)
    assert numbers(frames) == list(range(NUM_FRAMES))
    assert fps == 10.0


@pytest.mark.parametrize("name", FORMATS)
def test_reader_counts_frames_whether_or_not_the_header_does(folder, name):
    assert count_frames(folder / name) == NUM_FRAMES
    seen = []
    frames, _ = read_video(str(folder / name), lambda total: seen.append(total) or frame_indices(total, 4))
    assert seen[-1] == NUM_FRAMES
    assert numbers(frames) == frame_indices(NUM_FRAMES, 4).tolist()


def test_reader_repeats_and_reorders_frames_as_asked(folder):
    frames, _ = read_video(folder / "h264.mkv", [7, 2, 2, 0])
    assert numbers(frames) == [7, 2, 2, 0]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_reader_reads_short_clips(tmp_path, count):
    path = write(tmp_path / "short.mp4", numbered_frames(count))
    assert numbers(read_video(path)[0]) == list(range(count))
    assert numbers(read_video(path, lambda total: frame_indices(total, 8))[0]) == frame_indices(count, 8).tolist()


@pytest.mark.parametrize("stated", [3, 40])
def test_reader_recounts_when_the_header_states_a_wrong_number(folder, tmp_path, stated):
    data = bytearray((folder / "mpeg4.avi").read_bytes())
    length = data.index(b"strh") + 8 + 32  # chunk name and size, then 32 bytes of header before dwLength
    assert struct.unpack_from("<I", data, length) == (NUM_FRAMES,)
    struct.pack_into("<I", data, length, stated)
    path = tmp_path / "wrong.avi"
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == stated
    assert numbers(read_video(path, lambda total: [0, total - 1])[0]) == [0, NUM_FRAMES - 1]


def test_reader_turns_phone_videos_upright(tmp_path):
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :, :16] = 255  # white at the left of the stored picture
    data = bytearray(write(tmp_path / "stored.mp4", frames).read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    assert struct.unpack_from(">9i", data, matrix)[:2] == (65536, 0)
    struct.pack_into(">9i", data, matrix, 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # shown a quarter turn clockwise
    path = tmp_path / "phone.mp4"
    path.write_bytes(data)
    upright, _ = read_video(path)
    assert upright.shape == (2, 64, 32, 3)
    assert upright[:, :14].min() > 230 and upright[:, 18:].max() < 25  # left turned clockwise is top


def test_reader_gives_one_size_when_a_recording_changes_its_size(tmp_path):
    large = write(tmp_path / "large.h264", numbered_frames(3, 48, 64))
    small = write(tmp_path / "small.h264", numbered_frames(2, 32, 32))
    path = tmp_path / "call.h264"
    path.write_bytes(large.read_bytes() + small.read_bytes())
    frames, _ = read_video(path)
    assert frames.shape == (5, 48, 64, 3)
    assert numbers(frames) == [0, 1, 2, 0, 1]


def test_reader_is_deterministic(noisy):
    first, second = read_video(noisy / "clip.mp4")[0], read_video(noisy / "clip.mp4")[0]
    assert np.array_equal(first, second)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs the list of open files")
@pytest.mark.parametrize("indices", [None, [0], lambda total: [total - 1], [99]])
def test_reader_closes_the_file(folder, indices):
    before = len(os.listdir("/proc/self/fd"))
    try:
        read_video(folder / "h264.mp4", indices)
    except ValueError:
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_reader_takes_a_picture_as_one_frame(tmp_path):
    Image.fromarray(noise(1)[0]).save(tmp_path / "face.png")
    assert np.array_equal(read_video(tmp_path / "face.png")[0], noise(1))


def test_reader_reads_a_live_recording_of_unknown_length(tmp_path):
    path = tmp_path / "live.mkv"

    class Pipe:  # no seek: the muxer cannot go back to write the length
        def __init__(self):
            self.file = path.open("wb")

        def write(self, data):
            return self.file.write(data)

    pipe = Pipe()
    with av.open(pipe, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in numbered_frames(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    pipe.file.close()
    assert numbers(read_video(path)[0]) == list(range(5))


# -- files that are no videos -----------------------------------------------------------------------------------------


def bad_file(kind: str, folder: Path, noisy: Path) -> Path:
    path = folder / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "empty.mp4":
        path.touch()
    elif kind == "text.mp4" or kind == "text.nfo":
        path.write_text("not a video\n" * 100)
    elif kind == "bytes.mp4":
        path.write_bytes(np.random.default_rng(0).bytes(4000))
    elif kind.startswith("cut."):
        cut(noisy / f"clip{path.suffix}", path, 0.6)
    elif kind == "cut_streamable.mp4":
        cut(noisy / "streamable.mp4", path, 0.6)
    elif kind == "sound.mp4":
        write_sound(path, "aac", "fltp")
    elif kind == "song_with_cover.mp3":
        cover = folder / "cover.png"
        Image.fromarray(noise(1)[0]).save(cover)
        write_sound(path, "libmp3lame", "fltp", cover)
    elif kind == "unknown_codec.avi":
        data = write(folder / "known.avi", numbered_frames(2), "mpeg4").read_bytes()
        path.write_bytes(data.replace(b"FMP4", b"ZZZZ"))
    elif kind == "no_frames.avi":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            container.start_encoding()
    return path


BAD_FILES = {
    "missing.mp4": "does not exist",
    "folder": "is a folder",
    "empty.mp4": "is empty",
    "text.mp4": "is not a video",
    "text.nfo": "is a text file",
    "bytes.mp4": "is not a video",
    "cut.mp4": "is not a video, or it is damaged",
    "cut_streamable.mp4": "is cut off or damaged",
    "cut.mkv": "is cut off",
    "cut.webm": "is cut off",
    "cut.avi": "is cut off or damaged",
    "sound.mp4": "no video stream",
    "song_with_cover.mp3": "no video stream",
    "unknown_codec.avi": "codec that cannot be decoded",
    "no_frames.avi": "has a video stream without frames",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_video_gives_one_clear_line(tmp_path, noisy, kind):
    path = bad_file(kind, tmp_path, noisy)
    calls = (
        lambda: read_video(path),
        lambda: read_video(path, lambda total: frame_indices(total, 8)),
        lambda: count_frames(path),
        lambda: pixels(path),
    )
    for call in calls:
        with pytest.raises(ValueError, match=BAD_FILES[kind]) as caught:
            call()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["https://example.org/clip.mp4", "data:video/mp4;base64," + "A" * 10_000])
def test_an_address_is_refused_briefly(address):
    with pytest.raises(ValueError, match="is an address, not a file") as caught:
        read_video(address)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("indices", [[NUM_FRAMES], [-1], [0, 500], lambda total: [total]])
def test_a_frame_that_the_video_does_not_have_is_refused(folder, indices):
    with pytest.raises(ValueError, match="has no frame"):
        read_video(folder / "h264.mp4", indices)


def test_asking_for_no_frame_is_refused(folder):
    with pytest.raises(ValueError, match="at least one index"):
        read_video(folder / "h264.mp4", [])


# -- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, name, frames", [(112, "res112", 8), (224, "res224.frame0", 1)])
def test_tiles_without_antialias_and_clamp_equal_the_authors(golden, size, name, frames):
    ours = processor(size=size, antialias=False, clamp=False).to_tiles(golden["input.clip"][:frames])
    expected = golden[f"output.hd_no_padding.{name}"][0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_dead_code_of_the_authors_is_reproduced_for_the_vectors(golden):
    candidates = [(1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (4, 1), (1, 4), (2, 2), (1, 5), (5, 1), (6, 1), (2, 3)]
    candidates += [(1, 6), (3, 2)]
    shapes = [list(closest_aspect_ratio(w, h, candidates)) for w, h in golden["input.sizes_wh"].tolist()]
    assert shapes == golden["output.find_closest_aspect_ratio"].tolist()

    padded = hd_padding(golden["input.clip"][:1].float())
    mean, std = torch.tensor(processor().image_mean), torch.tensor(processor().image_std)
    padded = (padded / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected = golden["output.hd_padding.res224.frame0"][0]
    torch.testing.assert_close(padded, expected[0], rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    columns=st.integers(1, 3),
    rows=st.integers(1, 3),
    size=st.sampled_from([8, 16]),
    height=st.integers(5, 60),
    width=st.integers(5, 60),
    antialias=st.booleans(),
)
def test_tiles_equal_a_naive_cut_of_the_resized_frame(columns, rows, size, height, width, antialias):
    video = noise(2, height, width)
    tiles = processor(size=size, tile_grid=(columns, rows), antialias=antialias, clamp=False).to_tiles(
        torch.from_numpy(video).permute(0, 3, 1, 2)
    )
    assert tiles.shape == (columns * rows + 1, 2, 3, size, size)
    for t, frame in enumerate(video):
        image = torch.tensor(frame, dtype=torch.float32).permute(2, 0, 1)[None]
        image = F.interpolate(image, (rows * size, columns * size), mode="bicubic", antialias=antialias)[0]
        for channel in range(3):
            image[channel] = (image[channel] / 255 - processor().image_mean[channel]) / processor().image_std[channel]
        for row in range(rows):
            for column in range(columns):
                expected = image[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
                torch.testing.assert_close(tiles[row * columns + column, t], expected, rtol=0, atol=1e-4)
        whole = F.interpolate(image[None], (size, size), mode="bicubic", antialias=antialias)[0]
        torch.testing.assert_close(tiles[-1, t], whole, rtol=0, atol=1e-4)


def test_shapes_and_dtype():
    assert pixels([noise(), noise(9, 20, 90)]).shape == (2, 3, 4, 3, 32, 32)
    assert pixels(noise(), tile_grid=(3, 2)).shape == (1, 7, 4, 3, 32, 32)
    alone = pixels(noise(), tile_grid=None)
    assert alone.shape == (1, 1, 4, 3, 32, 32) and alone.dtype == torch.float32
    as_numpy = processor()(noise(), return_tensors="np")["pixel_values_videos"]
    assert isinstance(as_numpy, np.ndarray) and as_numpy.dtype == np.float32


def test_without_a_grid_the_frame_is_resized_once():
    video = torch.from_numpy(noise(1)).permute(0, 3, 1, 2)
    plain = F.interpolate(video.float(), (32, 32), mode="bicubic", antialias=True).clamp(0, 255) / 255
    mean, std = torch.tensor(processor().image_mean), torch.tensor(processor().image_std)
    expected = (plain - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(pixels(video, tile_grid=None)[0, 0, :1], expected)


def test_a_single_colour_becomes_its_normalised_value_everywhere():
    video = np.full((3, 30, 50, 3), (255, 0, 128), np.uint8)
    values = pixels(video)
    for channel, level in enumerate((1.0, 0.0, 128 / 255)):
        expected = (level - processor().image_mean[channel]) / processor().image_std[channel]
        assert torch.allclose(values[:, :, :, channel], torch.tensor(expected), atol=1e-4)


def test_antialias_keeps_fine_texture_from_turning_into_patterns():
    stripes = np.zeros((1, 64, 256, 3), np.uint8)
    stripes[:, :, ::3] = 255  # finer than a pixel of the result: a third grey on average
    filtered, sampled = pixels(stripes, tile_grid=None), pixels(stripes, tile_grid=None, antialias=False)
    assert filtered.std(dim=-1).mean() < 0.2 < sampled.std(dim=-1).mean()


def test_clamp_keeps_pixels_in_range_where_bicubic_overshoots():
    edge = np.zeros((1, 8, 8, 3), np.uint8)
    edge[:, :, 4:] = 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor().image_mean, processor().image_std))
    clamped = pixels(edge, tile_grid=None) * std + mean
    free = pixels(edge, tile_grid=None, clamp=False) * std + mean
    assert clamped.min() > -1e-6 and clamped.max() < 1 + 1e-6
    assert free.min() < -0.01 and free.max() > 1.01


def test_every_way_to_pass_frames_gives_the_same_pixels():
    video = noise()
    expected = pixels(video)
    first = torch.from_numpy(video).permute(0, 3, 1, 2)
    pictures = [Image.fromarray(frame) for frame in video]
    for same in (
        first,
        first.numpy(),
        torch.from_numpy(video),
        pictures,
        list(video),
        tuple(first),
        [video],
        [pictures],
    ):
        assert torch.equal(pixels(same), expected)
    frozen = video.copy()
    frozen.flags.writeable = False
    assert torch.equal(pixels(frozen), expected)


def test_pictures_of_other_modes_are_read_as_rgb():
    grey = [Image.fromarray(frame).convert("L") for frame in noise()]
    rgb = [picture.convert("RGB") for picture in grey]
    assert torch.equal(pixels(grey), pixels(rgb))


@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm", "odd_size.mp4"])
def test_a_path_gives_the_pixels_of_its_frames(folder, name):
    expected = pixels(read_video(folder / name)[0])
    assert torch.equal(pixels(folder / name), expected)
    assert torch.equal(pixels(str(folder / name)), expected)


def test_a_batch_keeps_its_order_however_it_is_nested(folder):
    a, b, c = noise(seed=1), folder / "h264.mp4", noise(5, 33, 44, seed=2)
    expected = torch.cat([pixels(a), pixels(b), pixels(c)])
    assert torch.equal(pixels([a, b, c]), expected)
    assert torch.equal(pixels([[a, str(b)], [], [c]]), expected)
    assert torch.equal(pixels(np.stack([a, a])), torch.cat([pixels(a)] * 2))


def test_still_repeats_the_first_frame(folder):
    video = noise()
    moving, still = pixels(video), pixels(video, still=True)
    assert still.shape == moving.shape
    assert torch.equal(still[:, :, :1], moving[:, :, :1])  # frame 0 is always the first that is chosen here
    assert all(torch.equal(still[:, :, t], still[:, :, 0]) for t in range(4))
    assert not torch.equal(still, moving)
    path = folder / "h264.mp4"
    assert torch.equal(pixels(path, still=True), pixels(read_video(path, [0])[0]))


def test_still_reads_no_further_than_the_first_frame(noisy, tmp_path):
    broken_later = cut(noisy / "streamable.mp4", tmp_path / "cut.mp4", 0.6)
    assert torch.equal(pixels(broken_later, still=True), pixels(noisy / "streamable.mp4", still=True))


def test_sampling_requests_of_servers_have_no_effect():
    asked = processor()(noise(40), num_frames=32, fps=2, do_sample_frames=False, return_metadata=True, device=None)
    assert torch.equal(asked["pixel_values_videos"], pixels(noise(40)))


def test_settings_cannot_change_from_call_to_call():
    with pytest.raises(TypeError, match="size, antialias cannot change from call to call"):
        processor()(noise(), size=64, antialias=False)


@pytest.mark.parametrize(
    "video, message",
    [
        ([], "at least one video"),
        (noise(0), "at least one frame"),
        (noise().astype(np.float32), "must be uint8"),
        (noise()[..., :2], r"must be \(T, H, W, 3\)"),
        (noise()[..., 0], r"array of shape|of shape \(6, 40, 70\)"),
        (noise()[0], r"of shape \(40, 70, 3\)"),
        (7, "got int"),
        ([noise(), None], "got NoneType"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "one size"),
    ],
)
def test_what_is_no_video_is_refused(video, message):
    with pytest.raises(ValueError, match=message) as caught:
        pixels(video)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": {"height": 32, "width": 64}}, "size must be one number"),
        ({"size": 0}, "size must be one number"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"tile_grid": (2,)}, "tile_grid must be columns and rows"),
        ({"tile_grid": (2, 0)}, "tile_grid must be columns and rows"),
        ({"image_mean": (0.5,)}, "must have 3 values"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        processor(**changes)


def test_list_videos_turns_paths_into_strings():
    assert list_videos([Path("a.mp4"), ["b.mp4"]]) == ["a.mp4", "b.mp4"]


# -- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"tile_grid": None}, {"tile_grid": (3, 2), "antialias": False, "clamp": False, "num_frames": 3}]
)
def test_a_saved_video_processor_gives_the_same_pixels(tmp_path, changes):
    before = processor(**changes)
    before.save_pretrained(tmp_path)
    after = PVChatVideoProcessor.from_pretrained(tmp_path)
    assert after.to_dict() == before.to_dict()
    assert torch.equal(after(noise())["pixel_values_videos"], before(noise())["pixel_values_videos"])


def test_settings_can_change_when_loading(tmp_path):
    processor().save_pretrained(tmp_path)
    loaded = PVChatVideoProcessor.from_pretrained(tmp_path, antialias=False, clamp=False, tile_grid=None)
    expected = pixels(noise(), antialias=False, clamp=False, tile_grid=None)
    assert torch.equal(loaded(noise())["pixel_values_videos"], expected)
