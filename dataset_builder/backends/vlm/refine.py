"""Role QARefiner by a language model, checked: the model puts the name where the subject is meant, nothing else.

    answer -> model (sees "<person>", never the name) -> check -> name          refined_by "llm:..."
                                                         `-> rules' answer      refined_by "rules" or "none"

The paper uses GPT-4o for this and takes every reply. Here a reply that fails the check is dropped with its reason, and
the rules' answer stands.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch

from ....errors import PVChatError
from ...records import QA, SubjectSpec
from ...refine import NOUNS, RuleRefiner
from ..common import LoadsOnce, load_chat_model, load_weights, model_revision, weights_id

PLACEHOLDER = "<person>"
SYSTEM = "You edit short answers about a video. Reply with the edited answer and nothing else."
PROMPT = (
    "The answer below is about one {noun} in the video: the one it speaks of first. Write {name} wherever it means "
    "that {noun} (in place of words like 'the man', 'a woman', 'he', 'she', 'they'; {name}'s for 'his', 'her', "
    "'their'). Leave every other person as they are. Change nothing else: no word about clothes, actions or places "
    "may be added, dropped or moved.\n\nAnswer: {answer}"
)
MAX_NEW_TOKENS = 160
WAITS = (1.0, 4.0)  # seconds before an endpoint that is busy or does not answer is asked again
TIMEOUT = 60.0  # seconds


class LanguageModel(Protocol):
    """Completes a chat of one turn. id: changes when the model does."""

    id: str

    def complete(self, system: str, user: str) -> str: ...


class LLMRefiner:
    """model: OpenAIEndpoint, LocalLLM, or anything that fits. failed: reason -> how many replies failed the check."""

    def __init__(self, model: LanguageModel):
        self.model = model
        self.id = f"llm:{model.id}"
        self.failed: Counter[str] = Counter()
        self._rules = RuleRefiner()

    def refine(self, qa: QA, subject: SubjectSpec) -> QA:
        """See protocols.QARefiner; answers with the name in them are left to the rules. Raises PVChatError when the
        model cannot be reached."""
        if subject.name in qa.answer:
            return self._rules.refine(qa, subject)
        prompt = PROMPT.format(noun=subject.noun, name=PLACEHOLDER, answer=qa.answer)
        reply = self.model.complete(SYSTEM, prompt).strip().strip('"').strip()
        reason = find_fault(qa.answer, reply, subject.noun)
        if reason is not None:
            self.failed[reason] += 1
            return self._rules.refine(qa, subject)
        return dataclasses.replace(qa, answer=reply.replace(PLACEHOLDER, subject.name), refined_by=self.id)


# -- the check --------------------------------------------------------------------------------------------------------

_OBJECTS = {"he": "he him his himself", "she": "she her hers herself", "any": "they them their theirs themselves"}
_PRONOUNS = {word: kind for kind, words in _OBJECTS.items() for word in words.split()}
_GENERIC = {*NOUNS, "someone", "somebody"}
_PERSON = re.compile(rf"{PLACEHOLDER}|\b(?:{'|'.join((*_GENERIC, *_PRONOUNS))})\b", re.IGNORECASE)
# Words that may come and go with the subject: "There is a man who is waving" -> "<person> is waving".
_FREE = {
    *_GENERIC, *_PRONOUNS, "a", "an", "the", "this", "that", "who", "there", "one", "s", "is", "are", "was", "were",
    "be", "been", "being", "has", "have", "had", "do", "does", "did", "young", "old", "elderly", "middle-aged",
    "adult",
}  # fmt: skip
# Before the name these show that somebody else was renamed.
_BEFORE_OTHERS = {
    "a", "an", "the", "this", "that", "another", "other", "second", "third", "two", "three", "several", "some", "many",
    "each", "every", "no", "any", "both",
}  # fmt: skip
_INDEFINITE = re.compile(
    rf"\b(?:another|other|(?:a|the) second|(?:a|an|one)(?: [a-z-]+){{0,2}}?) (?:{'|'.join(_GENERIC)})\b"
    r"|\b(?:someone|somebody)(?: else)?\b",
    re.IGNORECASE,
)
_CROWD = re.compile(r"\b(?:others|people|persons|men|women|children|boys|girls|crowd|group|friends?|family)\b", re.I)
_WORD = re.compile(rf"{PLACEHOLDER}|[a-z0-9]+(?:-[a-z0-9]+)*", re.IGNORECASE)


def find_fault(original: str, refined: str, noun: str = "person") -> str | None:
    """Why `refined` is not `original` with PLACEHOLDER for its subject; None when it is. noun: as in SubjectSpec.

    Subject: who is spoken of first has the name. Bystanders: their mentions stay, nobody with "a", "the", "another",
    ... becomes the name, and after the sentence that brings in somebody who could be meant by the same pronoun, the
    text is unchanged. Facts: the words left without the subject, articles and auxiliaries are the same, in order.
    """
    if PLACEHOLDER not in refined:
        return "the name is missing"
    words = _words(refined)
    if any(word in _BEFORE_OTHERS for word, after in zip(words, words[1:], strict=False) if after == PLACEHOLDER):
        return "somebody else was given the name"
    if _PERSON.search(refined)[0] != PLACEHOLDER:
        return "somebody else was given the name"
    kind = _subject_kind(original, noun)
    opposite = {"he": "she", "she": "he"}.get(kind)
    others = _others(original)
    if Counter(o.lower() for o in others) - Counter(m[0].lower() for m in _INDEFINITE.finditer(refined)):
        return "a bystander was renamed"
    if _after_rival(original, others, kind) != _after_rival(refined, others, kind):
        return "it is unclear who is meant"
    if _facts(original, opposite) != _facts(refined, opposite):
        return "facts or other people were added, dropped or moved"
    return None


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text.replace("'s", ""))]


def _kind(word: str) -> str | None:
    return NOUNS.get(word) or _PRONOUNS.get(word)


def _facts(text: str, opposite: str | None) -> list[str]:
    """The words that carry facts, without the endings that agreement changes ("they wave" -> "<person> waves").

    opposite: words for people of this kind cannot mean the subject, so they count as facts.
    """
    kept = [w for w in _words(text) if w != PLACEHOLDER and (w not in _FREE or (opposite and _kind(w) == opposite))]
    return [re.sub(r"ie$", "y", re.sub(r"(?<=..)s$", "", re.sub(r"oes$", "o", word))) for word in kept]


def _subject_kind(text: str, noun: str) -> str:
    """ "he", "she" or "any": by the first word for a person in the text, else by the user's noun."""
    first = _PERSON.search(text)
    kind = _kind(first[0].lower()) if first else None
    return kind if kind in ("he", "she") else NOUNS.get(noun, "any")


def _others(text: str) -> list[str]:
    """Mentions that bring in somebody, without the first one when it is the subject's."""
    found = [match[0] for match in _INDEFINITE.finditer(text)]
    first, mention = _PERSON.search(text), _INDEFINITE.search(text)
    if mention and mention.start() <= first.start() and not re.match("another|other|.* second", mention[0], re.I):
        return found[1:]
    return found


def _after_rival(text: str, others: list[str], kind: str) -> list[str] | None:
    """The sentences after the one with the first bystander who could share the subject's pronoun; None without one."""
    rivals = [other.lower() for other in others if {_kind(other.split()[-1].lower()), kind} != {"he", "she"}]
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    for number, sentence in enumerate(sentences):
        if _CROWD.search(sentence) or any(rival in sentence.lower() for rival in rivals):
            return sentences[number + 1 :]
    return None


# -- the models -------------------------------------------------------------------------------------------------------


class OpenAIEndpoint:
    """A model behind an OpenAI-compatible `/chat/completions`: GPT-4o, or a server on this computer.

    url: up to and with the version, such as https://api.openai.com/v1 or http://localhost:8000/v1.
    allow_third_party: descriptions of a private person leave this computer only with this.
    The key, if the endpoint wants one, is read from the environment variable OPENAI_API_KEY.
    Raises PVChatError: not an address; not on this computer and not allowed, or not encrypted.
    """

    def __init__(self, url: str, model: str, allow_third_party: bool = False):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise PVChatError(f"The endpoint {url!r} is not an address; pass for example http://localhost:8000/v1.")
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if not local and not allow_third_party:
            raise PVChatError(
                f"What {parts.hostname} is asked tells a third party about the person; allow it explicitly, or use a "
                f"model on this computer."
            )
        if not local and parts.scheme != "https":
            raise PVChatError(f"Descriptions of a person are not sent to {parts.hostname} unencrypted; use https.")
        self.id = f"{model}@{parts.netloc.rpartition('@')[2]}"
        self._model = model
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._host = parts.hostname
        # What goes to this computer takes no proxy, and nothing follows a redirect to somewhere else.
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def complete(self, system: str, user: str) -> str:
        """Raises PVChatError: refused, unreachable after a few tries, or not the expected form."""
        body = {
            "model": self._model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers, method="POST")
        for wait in (*WAITS, None):
            try:
                with self._opener.open(request, timeout=TIMEOUT) as response:
                    reply = json.load(response)
                return str(reply["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                problem, again = f"answered {error.code} {error.reason}", error.code == 429 or error.code >= 500
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                problem, again = f"cannot be reached ({getattr(error, 'reason', error)})", True
            except (ValueError, KeyError, IndexError, TypeError):
                problem, again = "did not answer in the form of /chat/completions", False
            if not again or wait is None:
                break
            time.sleep(wait)
        raise PVChatError(
            f"The endpoint {self._host} {problem}; check its address, the model {self._model!r} and OPENAI_API_KEY, "
            f"or use a model on this computer."
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


class LocalLLM(LoadsOnce):
    """A causal language model with a chat template on this computer.

    load: gives the model and its tokenizer; called at the first chat. name: the id.
    """

    def __init__(self, load: Callable[[], tuple[Any, Any]], name: str):
        super().__init__(load)
        self.id = name

    @classmethod
    def from_pretrained(cls, name: str | Path = "Qwen/Qwen3-4B-Instruct-2507") -> LocalLLM:
        """From a folder or the Hub. Raises MissingBackendError when there is no such model; at the first chat, when it
        cannot be loaded."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        licence = "Apache-2.0"
        revision = load_weights(model_revision, name, licence)
        load = partial(load_chat_model, AutoModelForCausalLM, AutoTokenizer, name, licence, revision)
        return cls(load, weights_id(name, revision))

    @torch.inference_mode()
    def complete(self, system: str, user: str) -> str:
        """The most likely reply."""
        chat = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        model, tokenizer = self._loaded
        inputs = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, enable_thinking=False, return_dict=True, return_tensors="pt"
        ).to(model.device)
        output = model.generate(
            **inputs, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=MAX_NEW_TOKENS
        )
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
