"""One base in memory, adapters loaded on demand, and videos that were read once.

Used by one thread at a time: which adapter is active is a state of the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..dataset_builder.engine import hash_file
from ..errors import MissingBackendError, PVChatError
from ..session import Conversation, Piece, VideoChat

MAX_ADAPTERS = 4
MAX_VIDEOS = 8  # key-value caches of video prefixes; at 7B one takes about 50 MB


class Engine:
    """Answers for every subject of a base, and for the base alone.

    Args:
        base: a checkpoint folder or Hub name; `None` for the base on the Hub that the first adapter names, or, when it
            was trained on a folder, for the embedded model.
        adapters: subjects' adapter folders.
        max_adapters, max_videos: how many stay in memory; the one that was not used for longest goes first.

    Raises:
        PVChatError: there is no such base, an adapter does not fit it, or two subjects have one name.
        MissingBackendError: PEFT is not installed.
    """

    def __init__(
        self,
        base: str | Path | None,
        adapters: list[Path],
        max_adapters: int = MAX_ADAPTERS,
        max_videos: int = MAX_VIDEOS,
    ):
        if min(max_adapters, max_videos) < 1:
            raise PVChatError("At least one adapter and one video must fit in memory.")
        records = _records(adapters)
        named = records[0].base["id"] if records else ""
        self._base = VideoChat.from_pretrained(base or (named if "/" in named else None))
        self._model = self._base.model
        self.base_name = _base_name(self._base)
        self.adapters = _checked(adapters, records, self._model, self.base_name)
        self.max_adapters, self.max_videos = max_adapters, max_videos
        self._chats: OrderedDict[str, VideoChat] = OrderedDict()
        self._conversations: OrderedDict[tuple[str, str], Conversation] = OrderedDict()

    @property
    def models(self) -> list[str]:
        """Names that may be asked for: subjects, and the base last."""
        return [*self.adapters, self.base_name]

    @property
    def loaded(self) -> list[str]:
        """Subjects in memory, the one used last at the end."""
        return list(self._chats)

    def stream(self, model: str, video: Path, question: str, max_tokens: int) -> Iterator[Piece]:
        """The answer in pieces. No other method may be called before it is read to its end or closed.

        Raises:
            PVChatError: the video cannot be read, the question is refused, or the adapter cannot be loaded any more.
        """
        with self._answering(model) as chat:
            yield from self._conversation(model, chat, video).stream(question, max_tokens)

    @contextmanager
    def _answering(self, model: str) -> Iterator[VideoChat]:
        if model != self.base_name:
            yield self._chat(model)
        elif self._chats:
            with self._model.disable_adapter():
                yield self._base
        else:
            yield self._base

    def _chat(self, name: str) -> VideoChat:
        """The subject's chat, whose adapter is loaded if need be and made the active one."""
        from ..trainers.adapter import SubjectRecord, load_subject_adapter

        adapter = _adapter_name(list(self.adapters).index(name))
        if name in self._chats:
            self._chats.move_to_end(name)
            self._model.set_adapter(adapter, inference_mode=True)
            return self._chats[name]
        self._model = load_subject_adapter(self._model, self.adapters[name], adapter)
        self._chats[name] = VideoChat(
            self._model, self._base.processor, SubjectRecord.read(self.adapters[name]).subject
        )
        if len(self._chats) > self.max_adapters:
            self._forget(next(iter(self._chats)))
        return self._chats[name]

    def _forget(self, name: str) -> None:
        del self._chats[name]
        self._model.delete_adapter(_adapter_name(list(self.adapters).index(name)))
        for key in [key for key in self._conversations if key[0] == name]:
            del self._conversations[key]

    def _conversation(self, model: str, chat: VideoChat, video: Path) -> Conversation:
        """The video as this model has read it; told apart by content, so that a file may be replaced."""
        try:
            key = model, hash_file(video)
        except OSError as error:
            raise PVChatError(f"The video cannot be read ({error.strerror}).") from error
        if key not in self._conversations:
            self._conversations[key] = chat.conversation(video)
        self._conversations.move_to_end(key)
        while len(self._conversations) > self.max_videos:
            self._conversations.popitem(last=False)
        return self._conversations[key]


def _adapter_name(index: int) -> str:
    """PEFT's name for a subject's adapter; a subject's own name may hold what module names may not."""
    return f"subject{index}"


def _base_name(chat: VideoChat) -> str:
    name = str(getattr(chat.model.config, "_name_or_path", "") or "base")
    return Path(name).name if Path(name).is_dir() else name


def _records(adapters: list[Path]) -> list:
    """What `subject.json` says about each."""
    if not adapters:
        return []
    try:
        from ..trainers.adapter import SubjectRecord
    except ImportError as error:
        raise MissingBackendError("Adapters need PEFT: pip install 'pvchat[train]'.") from error
    return [SubjectRecord.read(folder) for folder in adapters]


def _checked(adapters: list[Path], records: list, model, base_name: str) -> Mapping[str, Path]:
    """Folders by subject, in order; all that can be known to be wrong with one is said now, not at its first use."""
    if not adapters:
        return {}
    from ..trainers.adapter import check_fits

    found: dict[str, Path] = {}
    for folder, record in zip(adapters, records, strict=True):
        check_fits(model, folder, record)
        name = record.subject.strip("<>")
        if name in found or name == base_name:
            raise PVChatError(
                f"The name {name} is taken twice ({found.get(name, 'the base')} and {folder}); serve one of them."
            )
        found[name] = folder
    profiles = {record.profile for record in records}
    routings = {str(record.qformer) for record in records if record.qformer["routing"] != "none"}
    if len(profiles) > 1 or len(routings) > 1:
        kinds = ", ".join(
            f"{name} ({r.profile}, {r.qformer['routing']})" for name, r in zip(found, records, strict=True)
        )
        raise PVChatError(f"These adapters do not fit into one base: {kinds}; serve profiles and routings apart.")
    return found
