"""The command line: what it prints, what it refuses, and the exit codes other programs rely on."""

import json
import wave

import av
import numpy as np
import pytest

from pvchat.cli import COMMANDS, build_parser, main
from pvchat.dataset_builder.cartoon import Identity, Scene, cast, is_drawn, reference_scene, render_clip
from pvchat.dataset_builder.cartoon import write_video as write_drawn
from pvchat.dataset_builder.video_io import read_video, write_video
from pvchat.demo import ASSETS

NAMES = [module.__name__.rsplit(".", 1)[-1].replace("_", "-") for module in COMMANDS]


@pytest.fixture
def real_clip(tmp_path):
    """A clip that carries no mark of the cartoon world."""
    path = tmp_path / "clip.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8), 12.0)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_help_opens_with_two_examples(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"examples:\n  pvchat {name}" in text
    assert text.count(f"  pvchat {name}") >= 2


def test_every_command_takes_json():
    parser = build_parser()
    words = {"demo": [], "personalize": ["a.mp4", "--name", "A"], "build": ["a.mp4", "--name", "A"]}
    words |= {"train": ["d"], "evaluate": ["r"], "chat": ["r", "v"]}
    words |= {"subjects": ["list"], "score": ["a"], "ablate": ["data"], "serve": ["r"], "convert": ["c", "o"]}
    words |= {"export-lmms-eval": ["d", "o"], "personalize-many": ["s.yaml"]}
    words |= {name: ["d", "--repo", "a/b"] for name in ("push", "push-model", "push-dataset")}
    for name in NAMES:
        assert parser.parse_args([name, *words[name], "--json"]).json


def refusal(capsys, *words) -> str:
    """Runs a command that must fail by the user's mistake, in one line, and returns the line."""
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert code == 1, captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def bad_video(kind, folder):
    path = folder / "bad.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a video")
    elif kind == "truncated":
        whole = folder / "whole.mp4"
        write_video(whole, np.zeros((12, 64, 64, 3), np.uint8), 12.0)
        path.write_bytes(whole.read_bytes()[:400])
    elif kind == "audio":
        path = folder / "bad.wav"
        with wave.open(str(path), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(b"\0\0" * 800)
    elif kind == "one frame":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=12)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "audio", "one frame"])
def test_an_unusable_reference_is_one_line_and_leaves_nothing(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video = bad_video(kind, tmp_path)
    line = refusal(capsys, "personalize", video, "--name", "<Nz>", "--i-have-consent", "--gallery", tmp_path)
    assert video.name in line
    assert not (tmp_path / "runs").exists()


def test_a_name_without_letters_is_refused(real_clip, capsys, tmp_path):
    assert "name" in refusal(capsys, "personalize", real_clip, "--name", "<42>", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_real_person_is_not_learned_without_consent(real_clip, capsys, tmp_path):
    line = refusal(capsys, "personalize", real_clip, "--name", "Nz", "--gallery", tmp_path, "--out", tmp_path / "run")
    assert "consent" in line
    assert not (tmp_path / "run").exists()


def test_a_real_person_needs_a_gallery(real_clip, capsys, tmp_path):
    words = ("personalize", real_clip, "--name", "Nz", "--i-have-consent", "--out", tmp_path / "run")
    assert "--gallery" in refusal(capsys, *words)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_else_is_not_touched(capsys, tmp_path):
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.jpg").write_bytes(b"x")
    assert "something else" in refusal(capsys, "demo", "--out", out)
    assert [p.name for p in out.iterdir()] == ["holiday.jpg"]


def test_a_run_of_another_version_is_refused(capsys, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"format": 999, "inputs": {}}))
    assert "another version" in refusal(capsys, "demo", "--out", tmp_path)


def test_wrong_words_are_the_users_mistake(capsys):
    assert "--help" in refusal(capsys, "demo", "--no-such-option")


def test_something_that_is_no_adapter_is_refused(capsys, tmp_path):
    assert "adapter" in refusal(capsys, "chat", tmp_path, tmp_path / "v.mp4", "Who?")


def test_a_defect_of_ours_gives_code_2_and_the_traceback(capsys, monkeypatch, real_clip):
    def broken(*args, **kwargs):
        raise RuntimeError("boom")

    monkeypatch.setattr("pvchat.cli.show.show_plan", broken)
    assert main(["build", str(real_clip), "--name", "Nz", "--dry-run"]) == 2
    assert "boom" in capsys.readouterr().err


def test_dry_run_says_what_would_be_made_and_makes_nothing(capsys, real_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["build", str(real_clip), "--name", "Nz", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (plan["clips"], plan["questions"]) == (81, 1455)
    assert not (tmp_path / "runs").exists()


def test_the_bundled_reference_shows_the_first_cast_member():
    member = cast(1)[0]
    frames, _ = read_video(ASSETS / "reference.mp4")
    rendered = render_clip(member.identity, reference_scene(member), num_frames=len(frames), size=frames.shape[1])
    assert np.abs(frames.astype(int) - rendered.astype(int)).mean() < 6


def test_drawn_clips_carry_their_mark(tmp_path, real_clip):
    rng = np.random.default_rng(0)
    write_drawn(tmp_path / "drawn.mp4", render_clip(Identity.random(rng), Scene.random(rng)), 8)
    assert is_drawn(tmp_path / "drawn.mp4")
    assert not is_drawn(real_clip)
