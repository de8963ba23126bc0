"""Requests and answers of the chat completions API, as far as this model can serve them.

Fields of OpenAI's that would change the kind of the answer (several choices, tools, log-probabilities, JSON) are
refused; all others that are not listed here are ignored, sampling settings among them: answers are greedy.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

MAX_MESSAGES = 200
MAX_URL = 4096


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class VideoURL(BaseModel):
    url: str = Field(min_length=1, max_length=MAX_URL, description="path or file:// URL below an allowed folder")


class VideoPart(BaseModel):
    type: Literal["video_url"]
    video_url: VideoURL


class Message(BaseModel):
    role: Literal["user", "assistant"]
    content: str | list[Annotated[TextPart | VideoPart, Field(discriminator="type")]]


class StreamOptions(BaseModel):
    include_usage: bool = False


class TextFormat(BaseModel):
    type: Literal["text"] = "text"


class ChatRequest(BaseModel):
    """The last message is the question; the last video up to there is what it is about."""

    model: str = Field(description="a subject's name, or the base")
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    response_format: TextFormat | None = None
    tools: None = None
    functions: None = None

    def question_and_video(self) -> tuple[str, str]:
        """What is asked, and the URL of the video.

        Raises:
            ValueError: the last message is no question by the user, or there is no video, or more than one in one.
        """
        last = self.messages[-1]
        if last.role != "user":
            raise ValueError("the last message must be the user's question")
        question = " ".join(text for text in _texts(last) if text.strip())
        if not question:
            raise ValueError("the last message must hold a question")
        for message in reversed(self.messages):
            urls = _videos(message)
            if len(urls) > 1:
                raise ValueError("a message may hold one video, this model reads one at a time")
            if urls:
                return question, urls[0]
        raise ValueError("there is no video: give one as {'type': 'video_url', 'video_url': {'url': ...}}")


def _texts(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    return [part.text for part in message.content if isinstance(part, TextPart)]


def _videos(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return []
    return [part.video_url.url for part in message.content if isinstance(part, VideoPart)]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    index: int = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int = 0
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(BaseModel):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pvchat"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    waiting: int = Field(description="requests in the queue, with the one that is being answered")
    loaded: list[str] = Field(description="subjects whose adapter is in memory")


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str | None = None


class ErrorBody(BaseModel):
    error: ErrorDetail
