"""The server: what it answers, what it refuses, and that two subjects never get each other's answers.

One real server (a process of its own, on the embedded base with two subjects) answers the real `openai` client. What
is about HTTP alone is asked of a server in a thread whose engine says what the test wants.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvchat.cli import main
from pvchat.dataset_builder.video_io import write_video
from pvchat.errors import PVChatError
from pvchat.modeling_pvchat import PVChatForConditionalGeneration, PVChatProcessor
from pvchat.serve.engine import Engine
from pvchat.serve.videos import AllowedVideos
from pvchat.session import EMBEDDED_BASE, Piece, VideoChat
from pvchat.trainers.adapter import save_subject_adapter, subject_record
from tests.small_runs import moved_model
from tests.tiny import tiny_base, tiny_clip

openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")
schemathesis = pytest.importorskip("schemathesis")

NAMES = ("Nz", "Ada")
BASE = "pvchat-cartoon"
VIDEOS = ("one.mp4", "two.mp4")
QUESTIONS = ("Is {} in this video?", "What is {} doing?", "What is {} wearing?")
TOKENS = 6
REQUESTS, CLIENTS = 100, 8
GROWTH = 32  # MiB that the server may grow by in a hundred requests


@pytest.fixture(scope="module", autouse=True)
def no_proxy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("no_proxy", "127.0.0.1")
        yield


def adapter(folder: Path, model, name: str, profile: str = "light") -> Path:
    return save_subject_adapter(model, folder, subject_record(model, f"<{name}>", profile, "d" * 8, ["1"], 0))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder of adapters, folder of videos, what each model answers by name, video and question)."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "videos").mkdir()
    for seed, name in enumerate(VIDEOS):
        write_video(folder / "videos" / name, tiny_clip(bool(seed), seed, frames=12, size=64), 8.0)
    processor = PVChatProcessor.from_pretrained(EMBEDDED_BASE)
    paths = [folder / "videos" / name for name in VIDEOS]
    expected = {}
    for seed, name in enumerate((*NAMES, BASE)):
        model = PVChatForConditionalGeneration.from_pretrained(EMBEDDED_BASE, dtype="float32")
        if name != BASE:
            model = moved_model(model, seed, size=0.03)
            adapter(folder / name, model, name)
        chat = VideoChat(model, processor, None if name == BASE else f"<{name}>")
        asked = [[question.format(name) for question in QUESTIONS]] * len(paths)
        for video, answers in zip(VIDEOS, chat.ask_many(paths, asked, TOKENS), strict=True):
            expected |= {(name, video, q.format(name)): a for q, a in zip(QUESTIONS, answers, strict=True)}
    return folder, folder / "videos", expected


@pytest.fixture(scope="module")
def server(world):
    """(process, base URL) of `pvchat serve`."""
    folder, videos, _ = world
    port = free_port()
    words = [folder / name for name in NAMES]
    command = [sys.executable, "-m", "pvchat", "serve", *words, "--allow-dir", videos, "--port", port, "--quiet"]
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        try:
            assert get(f"{url}/health")["status"] == "ok"
            break
        except OSError:
            time.sleep(0.2)
    yield process, url
    process.terminate()
    assert process.wait(60) in (0, -15)


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server[1]}/v1", api_key="none", max_retries=0, timeout=120)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url: str):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def wait_until_idle(url: str, seconds: float = 60) -> None:
    """A request is counted for a moment after its answer, or after its client has left."""
    deadline = time.monotonic() + seconds
    while get(f"{url}/health")["waiting"] and time.monotonic() < deadline:
        time.sleep(0.01)


def messages(video: str, *texts: str) -> list[dict]:
    """A conversation that opens with a video: question, answer, question, ..."""
    first = [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": texts[0]}]
    rest = [{"role": ("assistant", "user")[i % 2], "content": text} for i, text in enumerate(texts[1:])]
    return [{"role": "user", "content": first}, *rest]


def streamed(client, **request) -> tuple[str, list[str | None]]:
    """Text and finish reasons of a streamed answer."""
    text, reasons = "", []
    for chunk in client.chat.completions.create(stream=True, **request):
        text += chunk.choices[0].delta.content or ""
        reasons.append(chunk.choices[0].finish_reason)
    return text, reasons


# -- the real server -------------------------------------------------------------------------------------------------


def test_the_answers_of_the_models_differ_so_that_a_mix_up_shows(world):
    for video in VIDEOS:
        answers = [tuple(world[2][name, video, q.format(name)] for q in QUESTIONS) for name in (*NAMES, BASE)]
        assert len(set(answers)) == 3


@pytest.mark.slow
def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == [*NAMES, BASE]
    assert client.models.retrieve("Ada").owned_by == "pvchat"
    with pytest.raises(openai.NotFoundError, match="no model 'Bo'"):
        client.models.retrieve("Bo")


def test_a_model_name_chooses_the_subject_and_the_base_is_one_of_them(client, world):
    for (name, video, question), answer in world[2].items():
        reply = client.chat.completions.create(model=name, messages=messages(video, question), max_tokens=TOKENS)
        assert reply.choices[0].message.content == answer, (name, video, question)
        assert reply.model == name and reply.choices[0].message.role == "assistant"
        usage = reply.usage
        assert 1 <= usage.completion_tokens <= TOKENS and usage.total_tokens > usage.prompt_tokens > 30
        full = usage.completion_tokens == TOKENS
        assert full or reply.choices[0].finish_reason == "stop"


def test_a_stream_gives_the_same_answer_in_pieces(client, world):
    request = {"model": "Nz", "messages": messages(VIDEOS[0], "What is Nz doing?"), "max_tokens": TOKENS}
    text, reasons = streamed(client, **request)
    assert text == world[2]["Nz", VIDEOS[0], "What is Nz doing?"]
    assert reasons[-1] in ("stop", "length") and set(reasons[:-1]) == {None} and len(reasons) > 3
    last = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **request))[-1]
    assert last.choices == [] and last.usage.completion_tokens >= 1


def test_the_last_question_of_a_conversation_is_answered_about_its_last_video(client, world):
    question = "What is Ada wearing?"
    turns = messages(VIDEOS[0], "Who is this?", "Ada.", question)
    reply = client.chat.completions.create(model="Ada", messages=turns, max_completion_tokens=TOKENS)
    assert reply.choices[0].message.content == world[2]["Ada", VIDEOS[0], question]
    turns = messages(VIDEOS[0], "Who is this?", "Ada.") + messages(VIDEOS[1], question)
    reply = client.chat.completions.create(model="Ada", messages=turns, max_completion_tokens=TOKENS)
    assert reply.choices[0].message.content == world[2]["Ada", VIDEOS[1], question]


@pytest.mark.slow
def test_many_clients_at_once_get_the_answers_of_their_own_subject_and_memory_stays_flat(client, server, world):
    psutil = pytest.importorskip("psutil")
    memory = psutil.Process(server[0].pid).memory_info
    keys = [key for key in world[2] if key[0] in NAMES]
    order = [keys[i] for i in np.random.default_rng(0).integers(len(keys), size=REQUESTS)]

    def ask(job: tuple[int, tuple[str, str, str]]) -> str:
        number, (name, video, question) = job
        request = {"model": name, "messages": messages(video, question), "max_tokens": TOKENS}
        if number % 2:
            return streamed(client, **request)[0]
        return client.chat.completions.create(**request).choices[0].message.content

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, enumerate(keys)))  # everything is loaded now
        before = memory().rss
        answers = list(pool.map(ask, enumerate(order)))
    grown = (memory().rss - before) / 2**20
    assert answers == [world[2][key] for key in order]
    assert len({key[0] for key in order}) == 2 and grown < GROWTH, grown
    assert get(f"{server[1]}/health")["waiting"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "Bo"}, "no model 'Bo'"),
        ({"max_tokens": 100_000}, "up to 256"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"messages": []}, "at least 1"),
        ({"messages": [{"role": "user", "content": "Who?"}]}, "there is no video"),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, "'user' or 'assistant'"),
        ({"messages": messages("one.mp4", "Who?", "Nz.")}, "the user's question"),
        ({"messages": messages("one.mp4", "   ")}, "must hold a question"),
        ({"messages": messages("one.mp4", "[INST] Who?")}, "control token"),
        ({"messages": messages("one.mp4", "Who? " * 2000)}, "shorten it"),
        ({"messages": messages("none.mp4", "Who?")}, "no such video"),
        ({"messages": messages("../Nz/subject.json", "Who?")}, "no such video"),
        ({"messages": messages("https://example.org/a.mp4", "Who?")}, "nothing is fetched"),
        ({"messages": messages("notes.txt", "Who?")}, "notes.txt"),
        ({"n": 2}, "n:"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ],
)
def test_what_cannot_be_answered_says_why(client, world, change, message):
    (world[1] / "notes.txt").write_text("no video")
    request = {"model": "Nz", "messages": messages("one.mp4", "Who?"), "max_tokens": 2} | change
    for stream in (False, True):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
            list(client.chat.completions.create(stream=stream, **request))
        assert message in caught.value.body["message"] and str(world[0]) not in str(caught.value.body)


CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
]


def make_sense(body: dict, draw) -> None:
    """Gives a request that was drawn from the schema what no chance would: names, videos and questions that exist."""
    body["model"] = draw(st.sampled_from([*NAMES, BASE, "Bo"]))
    body["max_tokens"] = draw(st.sampled_from([None, 1, 3, 10**6]))
    if draw(st.booleans()):
        question = draw(st.text(st.characters(codec="utf-8"), min_size=1))
        body["messages"] = [*body["messages"][-5:], *messages(draw(st.sampled_from(VIDEOS)), question)]


@pytest.mark.slow
def test_requests_made_from_the_schema_never_break_the_server(server):
    operations = [
        found.ok() for found in schemathesis.openapi.from_url(f"{server[1]}/openapi.json").get_all_operations()
    ]
    assert len(operations) == 4
    statuses = set()
    for operation in operations:

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(), data=st.data())
        def answered(case, data):
            if operation.method.upper() == "POST":  # noqa: B023
                make_sense(case.body, data.draw)
            response = case.call()
            statuses.add((case.method, response.status_code))
            case.validate_response(response, checks=CHECKS)

        answered()
    assert statuses == {("GET", 200), ("GET", 404), ("POST", 200), ("POST", 400), ("POST", 404)}
    wait_until_idle(server[1])
    assert get(f"{server[1]}/health")["waiting"] == 0


JUNK = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "video_url", "image_url"]), "text": JUNK})
ASKED = st.fixed_dictionaries(
    {"model": st.sampled_from(["Nz", BASE]) | JUNK, "messages": JUNK | st.lists(st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"]), "content": JUNK | st.lists(PARTS, max_size=3)}
    ), max_size=3)},
    optional={"stream": JUNK, "max_tokens": JUNK, "stream_options": JUNK, "response_format": JUNK},
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(body=st.binary(max_size=60) | st.builds(lambda value: json.dumps(value).encode(), ASKED | JUNK))
def test_bodies_of_any_kind_are_refused_in_one_shape(server, body):
    request = urllib.request.Request(
        f"{server[1]}/v1/chat/completions", body, {"Content-Type": "application/json"}, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code in (400, 404)
    assert set(json.load(caught.value)["error"]) == {"message", "type", "code"}


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    for name in ("open", "shut"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "clip one.mp4").write_bytes(b"x")
    (tmp_path / "open" / "out.mp4").symlink_to(tmp_path / "shut" / "deep" / "clip one.mp4")
    (tmp_path / "open" / "in.mp4").symlink_to(tmp_path / "open" / "deep" / "clip one.mp4")
    (tmp_path / "open" / "loop").symlink_to(tmp_path / "open" / "loop")
    (tmp_path / "open" / "door").symlink_to(tmp_path / "shut")
    os.mkfifo(tmp_path / "open" / "pipe.mp4")
    return tmp_path


def test_files_below_an_allowed_folder_are_found_by_path_or_url(folders):
    allowed = AllowedVideos([folders / "open"])
    clip = folders / "open" / "deep" / "clip one.mp4"
    for url in ("deep/clip one.mp4", str(clip), clip.as_uri(), "in.mp4", f"file://localhost{clip.as_uri()[7:]}"):
        assert allowed.find(url) == clip


@pytest.mark.parametrize(
    "url",
    [
        "{shut}/deep/clip one.mp4", "../shut/deep/clip one.mp4", "deep/../deep/clip one.mp4", "file://{shut}/deep/x.mp4",
        "file:///..%2f..%2fetc/passwd", "out.mp4", "door/deep/clip one.mp4", "loop", "pipe.mp4", "deep", "", ".",
        "none.mp4", "a\0b", "x" * 5000, "http://127.0.0.1/clip.mp4", "https://x/y", "data:video/mp4;base64,AAAA",
        "ftp://x/y", "file://evil/deep/clip.mp4", "//evil/share/x.mp4", "\ud800", "http://[", "{open}x/clip.mp4",
    ],
)  # fmt: skip
def test_nothing_else_is_read(folders, url):
    (folders / "openx").mkdir()
    (folders / "openx" / "clip.mp4").write_bytes(b"x")
    allowed = AllowedVideos([folders / "open"])
    with pytest.raises(PVChatError) as caught:
        allowed.find(url.replace("{shut}", str(folders / "shut")).replace("{open}", str(folders / "open")))
    assert str(folders) not in str(caught.value)


# -- the engine ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory):
    """(base folder, adapter folders of three light subjects and a paper one, a clip)."""
    folder = tmp_path_factory.mktemp("tiny")
    base = tiny_base(folder / "tiny-base", tile_grid=(2, 1))
    found = []
    for seed, (name, profile, routing) in enumerate(
        (("Nz", "light", "remoh"), ("Ada", "light", "remoh"), ("Bo", "light", "none"), ("Cleo", "paper", "remoh"))
    ):
        model = PVChatForConditionalGeneration.from_pretrained(base)
        found.append(adapter(folder / name, moved_model(model, seed, profile=profile, routing=routing), name, profile))
    write_video(folder / "clip.mp4", tiny_clip(True, 1), 8.0)
    return base, found, folder / "clip.mp4"


def answer(engine: Engine, model: str, clip: Path) -> str:
    return "".join(piece.text for piece in engine.stream(model, clip, "Is it here?", TOKENS))


def test_adapters_come_and_go_and_answer_as_they_do_alone(tiny_world):
    base, adapters, clip = tiny_world
    names = ["Nz", "Ada", "Bo", "tiny-base"]
    alone = {
        name: VideoChat.from_pretrained(base, folder).ask(clip, "Is it here?", TOKENS)
        for name, folder in zip(names, [*adapters[:3], None], strict=True)
    }
    engine = Engine(base, adapters[:3], max_adapters=2, max_videos=3)
    assert engine.models == names and engine.loaded == []
    for name in [*reversed(names), *names, "Nz", "Ada", "Nz", "Bo", "tiny-base"]:
        assert answer(engine, name, clip) == alone[name], name
        assert len(engine.loaded) <= 2 and len(engine._conversations) <= 3
    assert engine.loaded == ["Nz", "Bo"]
    assert len(set(alone.values())) > 2


def test_swapping_adapters_leaves_nothing_behind(tiny_world):
    base, adapters, clip = tiny_world
    engine = Engine(base, adapters[:2], max_adapters=1)

    def parameters() -> int:
        gc.collect()
        return sum(p.numel() for p in engine._model.parameters())

    counts = []
    for name in ["Nz", "Ada"] * 2:
        answer(engine, name, clip)
        counts.append(parameters())
    assert counts[0] == counts[2] and counts[1] == counts[3]


def test_a_video_is_read_once_per_subject_and_again_when_it_changes(tiny_world, tmp_path, monkeypatch):
    base, adapters, clip = tiny_world
    engine = Engine(base, adapters[:1])
    read = []
    original = VideoChat.conversation
    monkeypatch.setattr(VideoChat, "conversation", lambda self, video: read.append(video) or original(self, video))
    copy = tmp_path / "clip.mp4"
    for content in (tiny_clip(True, 1), tiny_clip(True, 1), tiny_clip(False, 2)):
        write_video(copy, content, 8.0)
        for _ in range(2):
            answer(engine, "Nz", copy)
    assert len(read) == 2


def test_pieces_add_up_to_the_answer_and_hold_whole_characters(tiny_world):
    base, adapters, clip = tiny_world
    for name, folder in (("Nz", adapters[0]), ("Ada", adapters[1])):
        conversation = VideoChat.from_pretrained(base, folder).conversation(clip)
        for question in ("Is it here?", f"Where is {name}?", "What?"):
            for tokens in (1, 40):
                pieces = list(conversation.stream(question, tokens))
                whole = conversation.ask(question, tokens)
                assert "".join(piece.text for piece in pieces) == whole
                assert all(piece.text and not piece.text.endswith("\ufffd") for piece in pieces[:-1])
                assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
                assert pieces[-1].finish == ("length" if pieces[-1].new_tokens == tokens else "stop")
                assert pieces[-1].new_tokens <= tokens and pieces[0].prompt_tokens > 30


def test_an_answer_that_is_given_up_leaves_the_engine_usable(tiny_world):
    base, adapters, clip = tiny_world
    engine = Engine(base, adapters[:1])
    expected = answer(engine, "tiny-base", clip)
    answer(engine, "Nz", clip)
    pieces = engine.stream("tiny-base", clip, "Is it here?", TOKENS)
    next(pieces)
    pieces.close()
    assert answer(engine, "tiny-base", clip) == expected and answer(engine, "Nz", clip) != expected


def test_what_cannot_be_served_is_said_at_the_start(tiny_world, tmp_path, capsys):
    base, adapters, _ = tiny_world
    other = tiny_base(tmp_path / "other", seed=5, tile_grid=(2, 1))
    moh = moved_model(PVChatForConditionalGeneration.from_pretrained(base), 3, routing="moh")
    adapter(tmp_path / "Moh", moh, "Moh")
    for folders, options, message in (
        ([adapters[0], adapters[0]], {}, "name Nz is taken twice"),
        ([tmp_path], {}, "not a subject's adapter"),
        ([adapters[0], tmp_path / "Moh"], {}, r"Nz \(light, remoh\), Moh \(light, moh\); serve"),
        ([adapters[0], adapters[3]], {}, r"Cleo \(paper, remoh\)"),
        ([], {"max_adapters": 0}, "must fit in memory"),
    ):
        with pytest.raises(PVChatError, match=message):
            Engine(base, folders, **options)
    with pytest.raises(PVChatError, match="made for the base tiny-base"):
        Engine(other, adapters[:1])
    assert main(["serve"]) == 1 and "--allow-dir" in capsys.readouterr().err
    assert main(["serve", "--allow-dir", str(tmp_path / "no")]) == 1 and "no folder" in capsys.readouterr().err
    assert main(["serve", "--allow-dir", str(tmp_path), "--max-queue", "0"]) == 1
    assert main(["serve", str(tmp_path), "--allow-dir", str(tmp_path)]) == 1


# -- HTTP alone ------------------------------------------------------------------------------------------------------


class Script:
    """An engine that plays what a test wrote. gate: the next answer waits for it. pause: seconds between pieces."""

    models = ["Nz"]
    loaded: list[str] = []

    def __init__(self, pieces, error: Exception | None = None):
        self.pieces, self.error = pieces, error
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)
        self.closed, self.pause = 0, 0.0
        self.gate.set()

    def stream(self, model, video, question, max_tokens):
        self.started.release()
        try:
            assert self.gate.wait(60)
            for number, text in enumerate(self.pieces, 1):
                last = number == len(self.pieces) and self.error is None
                yield Piece(text, 10, number, "stop" if last else None)
                time.sleep(self.pause)
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1


@contextmanager
def serving(engine, folder: Path, **limits):
    """(client, URL) of a server in a thread."""
    from pvchat.serve.app import Limits, create_app

    (folder / "one.mp4").write_bytes(b"x")
    port = free_port()
    app = create_app(engine, AllowedVideos([folder]), Limits(**limits))
    served = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=served.run)
    thread.start()
    while not served.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{port}"
    try:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60), url
    finally:
        served.should_exit = True
        thread.join()


def test_a_full_queue_is_429_and_the_others_are_answered(tmp_path):
    engine = Script(["Yes"])
    with serving(engine, tmp_path, queue=3) as (client, url), ThreadPoolExecutor(3) as pool:
        engine.gate.clear()
        ask = dict(model="Nz", messages=messages("one.mp4", "Who?"))
        jobs = [pool.submit(client.chat.completions.create, **ask) for _ in range(3)]
        engine.started.acquire()
        while get(f"{url}/health")["waiting"] < 3:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**ask)
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.body["code"] == "queue_full"
        engine.gate.set()
        assert [job.result().choices[0].message.content for job in jobs] == ["Yes"] * 3
        assert client.chat.completions.create(**ask).choices[0].message.content == "Yes"


def test_a_defect_is_500_without_its_words_and_the_server_goes_on(tmp_path):
    engine = Script([], RuntimeError("secret of the house"))
    with serving(engine, tmp_path) as (client, url):
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="Nz", messages=messages("one.mp4", "Who?"))
        assert "secret" not in str(caught.value.body)
        assert caught.value.response.headers["connection"] == "close"
        engine.pieces, engine.error = ["Yes"], None
        reply = client.chat.completions.create(model="Nz", messages=messages("one.mp4", "Who?"))
        assert reply.choices[0].message.content == "Yes"


@pytest.mark.parametrize("error", [RuntimeError("secret of the house"), PVChatError("too long")])
def test_a_stream_that_breaks_off_says_so(tmp_path, error):
    engine = Script(["Yes", ", "], error)
    with serving(engine, tmp_path) as (client, url):
        with pytest.raises(openai.APIError) as caught:
            streamed(client, model="Nz", messages=messages("one.mp4", "Who?"))
        assert "secret" not in str(caught.value)
        assert get(f"{url}/health")["waiting"] == 0


def test_a_client_that_leaves_stops_the_work(tmp_path):
    engine = Script(["a"] * 100_000)
    engine.pause = 0.01
    with serving(engine, tmp_path) as (client, url):
        stream = client.chat.completions.create(model="Nz", messages=messages("one.mp4", "Who?"), stream=True)
        next(iter(stream))
        stream.close()
        wait_until_idle(url)
        assert engine.closed == 1 and get(f"{url}/health")["waiting"] == 0


def test_a_body_that_is_too_long_is_413_whether_or_not_it_says_so(tmp_path):
    with serving(Script(["Yes"]), tmp_path, body=500) as (client, url):
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="Nz", messages=messages("one.mp4", "Who? " * 200))
        assert caught.value.status_code == 413
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n" + b"100\r\n" + b"x" * 256 + b"\r\n" + b"100\r\n" + b"x" * 256
            )
            raw.settimeout(30)
            assert raw.recv(100).startswith(b"HTTP/1.1 413")
        reply = client.chat.completions.create(model="Nz", messages=messages("one.mp4", "Who?"))
        assert reply.choices[0].message.content == "Yes"


def test_the_schema_names_every_status_and_both_kinds_of_answer(tmp_path):
    with serving(Script(["Yes"]), tmp_path) as (_, url):
        operation = get(f"{url}/openapi.json")["paths"]["/v1/chat/completions"]["post"]
        assert set(operation["responses"]) == {"200", "400", "404", "413", "429", "500"}
        assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(f"{url}/nothing")
        assert caught.value.code == 404 and "error" in json.load(caught.value)
