"""Refiners by a language model: the check of its answers, and a scripted endpoint."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from pvchat.dataset_builder.backends.vlm import (
    LLMRefiner,
    LocalLLM,
    OpenAIEndpoint,
    refine,
)
from pvchat.dataset_builder.backends.vlm.refine import PLACEHOLDER as P
from pvchat.dataset_builder.backends.vlm.refine import find_fault
from pvchat.dataset_builder.protocols import QARefiner
from pvchat.dataset_builder.records import QA, SubjectSpec
from pvchat.errors import PVChatError
from tests.vlm_models import TEXT, louder, tokenizer

# -- the check of refined answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "original, refined",
    [
        ("A man is waving. He wears a red shirt.", f"{P} is waving. {P} wears a red shirt."),
        ("There is a young woman who is reading. Her hair is long.", f"{P} is reading. {P}'s hair is long."),
        ("A man is talking to a woman. He smiles at her.", f"{P} is talking to a woman. {P} smiles at her."),
        ("They wave and carry a bag.", f"{P} waves and carries a bag."),
        ("They go home.", f"{P} goes home."),
        ("A man walks with another man. He wears a hat.", f"{P} walks with another man. He wears a hat."),
        ("Someone is standing in a kitchen.", f"{P} is standing in a kitchen."),
        ("The man in the red shirt is dancing.", f"{P} in the red shirt is dancing."),
        ("A woman stands beside a man in a crowd.", f"{P} stands beside a man in a crowd."),
        ("He dresses in glasses.", f"{P} dresses in glasses."),
    ],
)
def test_a_faithful_edit_passes_the_check(original, refined):
    assert find_fault(original, refined) is None


@pytest.mark.parametrize(
    "original, refined, reason",
    [
        ("A man is waving.", "The man is waving.", "the name is missing"),
        ("A man is waving.", f"{P} is waving happily.", "facts"),
        ("A man in a hat is waving.", f"{P} is waving.", "facts"),
        ("A man is not waving.", f"{P} is waving.", "facts"),
        ("A man is waving at Bob.", f"{P} is waving at Tom.", "facts"),
        ("A man is waving.", f"Sure! Here it is: {P} is waving.", "facts"),
        ("A man sits, then stands.", f"{P} stands, then sits.", "facts"),
        ("A man is talking to a woman.", f"{P} is talking to {P}.", "bystander"),
        ("A man is talking to a man.", f"{P} is talking to {P}.", "bystander"),
        ("A man is talking to a woman. She smiles.", f"{P} is talking to a woman. {P} smiles.", "other people"),
        ("A man is with another man. He smiles.", f"{P} is with another man. {P} smiles.", "unclear"),
        ("A man stands among people. He smiles.", f"{P} stands among people. {P} smiles.", "unclear"),
        ("A person is with a man. He smiles.", f"{P} is with a man. {P} smiles.", "unclear"),
        ("A man is with another man.", f"{P} is with another {P}.", "somebody else"),
        ("A man hugs a woman.", f"A woman hugs {P}.", "somebody else"),
        ("A man hugs a man.", f"A man hugs {P}.", "somebody else"),
        ("Two men are talking.", f"Two {P} are talking.", "somebody else"),
    ],
)
def test_a_planted_fault_is_found(original, refined, reason):
    assert reason in find_fault(original, refined)


# -- refiners ---------------------------------------------------------------------------------------------------------


def qa(answer: str) -> QA:
    return QA("What is <Nz> doing?", answer, "action", "vlm")


@pytest.fixture
def subject(tmp_path) -> SubjectSpec:
    return SubjectSpec("<Nz>", tmp_path / "clip.mp4", noun="man")


class Model:
    id = "model@1"

    def __init__(self, reply):
        self.reply, self.asked = reply, []

    def complete(self, system, user):
        self.asked.append(user)
        return self.reply


def test_a_checked_reply_is_taken_and_names_the_model(subject):
    refiner = LLMRefiner(Model(f'"{P} is waving to another man."\n'))
    assert isinstance(refiner, QARefiner)
    found = refiner.refine(qa("A man is waving to another man."), subject)
    assert (found.answer, found.refined_by) == ("<Nz> is waving to another man.", "llm:model@1")
    assert "<Nz>" not in refiner.model.asked[0] and not refiner.failed


def test_a_reply_that_fails_the_check_leaves_the_rules_answer_and_is_counted(subject):
    refiner = LLMRefiner(Model("I cannot help with people."))
    found = refiner.refine(qa("A man is waving."), subject)
    assert (found.answer, found.refined_by) == ("<Nz> is waving.", "rules")
    hopeless = refiner.refine(qa("It is raining."), subject)
    assert (hopeless.answer, hopeless.refined_by) == ("It is raining.", "none")
    assert refiner.failed == {"the name is missing": 2}


def test_an_answer_with_the_name_is_not_sent_anywhere(subject):
    refiner = LLMRefiner(Model("x"))
    assert refiner.refine(qa("<Nz> is waving."), subject).answer == "<Nz> is waving."
    assert refiner.model.asked == []


class Endpoint(ThreadingHTTPServer):
    """Loopback server. script: one (status, body) per request; the last one repeats."""

    def __init__(self, *script):
        self.script, self.requests = list(script), []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        script = self.server.script
        status, reply = script.pop(0) if len(script) > 1 else script[0]
        self.send_response(status)
        if status == 302:
            self.send_header("Location", reply)
            reply = ""
        data = reply.encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def completion(text: str) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture(autouse=True)
def _no_waiting_and_no_key(monkeypatch):
    monkeypatch.setattr(refine, "WAITS", (0.0, 0.0))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # what goes to this computer must not take it
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


def test_openai_compatible_endpoint_refines_without_seeing_the_name(subject, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Endpoint(completion(f"{P} is waving.")) as server:
        model = OpenAIEndpoint(server.url + "/", "gpt-4o")
        found = LLMRefiner(model).refine(qa("A man is waving."), subject)
        (path, headers, body), *more = server.requests
    assert (found.answer, found.refined_by) == ("<Nz> is waving.", f"llm:gpt-4o@127.0.0.1:{server.server_port}")
    assert not more and path == "/v1/chat/completions" and headers["Authorization"] == "Bearer sk-secret"
    assert body["model"] == "gpt-4o" and body["temperature"] == 0
    assert "A man is waving." in body["messages"][-1]["content"] and "Nz" not in json.dumps(body)


def test_a_busy_endpoint_is_asked_again(subject):
    with Endpoint((429, "slow down"), (503, ""), completion(f"{P} waves.")) as server:
        found = LLMRefiner(OpenAIEndpoint(server.url, "m")).refine(qa("A man waves."), subject)
        assert found.answer == "<Nz> waves." and len(server.requests) == 3


@pytest.mark.parametrize(
    "reply, tries, message",
    [
        ((401, "Incorrect API key sk-secret"), 1, "answered 401"),
        ((500, ""), 3, "answered 500"),
        ((200, "not json"), 1, "not answer in the form"),
        ((200, '{"choices": []}'), 1, "not answer in the form"),
        ((302, "http://127.0.0.1:9/elsewhere"), 1, "answered 302"),
    ],
)
def test_an_endpoint_that_fails_is_one_clear_line_without_the_key(subject, monkeypatch, reply, tries, message):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Endpoint(reply) as server:
        with pytest.raises(PVChatError, match=message) as error:
            LLMRefiner(OpenAIEndpoint(server.url, "m")).refine(qa("A man waves."), subject)
        assert len(server.requests) == tries
    assert "\n" not in str(error.value) and "sk-secret" not in str(error.value)


def test_an_unreachable_endpoint_is_one_clear_line(subject):
    with Endpoint((200, "")) as server:
        url = server.url
    with pytest.raises(PVChatError, match="cannot be reached"):
        LLMRefiner(OpenAIEndpoint(url, "m")).refine(qa("A man waves."), subject)


def test_a_third_party_needs_permission_and_encryption():
    with pytest.raises(PVChatError, match="third party"):
        OpenAIEndpoint("https://api.example.com/v1", "gpt-4o")
    with pytest.raises(PVChatError, match="third party"):
        OpenAIEndpoint("http://localhost.example.com/v1", "gpt-4o")
    with pytest.raises(PVChatError, match="use https"):
        OpenAIEndpoint("http://api.example.com/v1", "gpt-4o", allow_third_party=True)
    allowed = OpenAIEndpoint("https://user:word@api.example.com/v1", "gpt-4o", allow_third_party=True)
    assert allowed.id == "gpt-4o@api.example.com"
    assert OpenAIEndpoint("http://localhost:8000/v1", "m").id == "m@localhost:8000"
    for url in ("localhost:8000", "ftp://localhost/v1", ""):
        with pytest.raises(PVChatError, match="not an address"):
            OpenAIEndpoint(url, "m")


def test_a_local_model_completes_as_its_generate_does_and_its_nonsense_is_not_accepted(subject, tmp_path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    text = {key: value for key, value in TEXT.items() if key != "rope_parameters"}
    louder(Qwen3ForCausalLM(Qwen3Config(**text))).save_pretrained(tmp_path / "llm")
    tokenizer().save_pretrained(tmp_path / "llm")
    model = LocalLLM.from_pretrained(tmp_path / "llm")
    first = model.complete("Be brief.", "A man waves.")
    assert first == model.complete("Be brief.", "A man waves.") != model.complete("Be brief.", "A dog runs.")
    refiner = LLMRefiner(model)
    found = refiner.refine(qa("A man waves."), subject)
    assert (found.answer, found.refined_by) == ("<Nz> waves.", "rules") and sum(refiner.failed.values()) == 1
    assert refiner.id.startswith("llm:llm@")
