"""Which files the server may read: videos below the folders that were allowed, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import PVChatError


class AllowedVideos:
    """Finds the file that a `video_url` means.

    Args:
        folders: what lies below them may be read.

    Raises:
        PVChatError: no folder, or one that does not exist.
    """

    def __init__(self, folders: Sequence[str | Path]):
        if not folders:
            raise PVChatError("Videos are read from allowed folders only: pass --allow-dir FOLDER.")
        missing = [folder for folder in folders if not Path(folder).is_dir()]
        if missing:
            raise PVChatError(f"There is no folder {missing[0]}; --allow-dir takes folders that exist.")
        self.folders = [Path(folder).resolve() for folder in folders]

    def find(self, url: str) -> Path:
        """The file of a path, relative to an allowed folder or absolute, or of a `file://` URL.

        The same words answer for files that do not exist and for those that may not be read, so that nobody can look
        around with questions.

        Raises:
            PVChatError: another kind of URL, a path with `..`, or no file below an allowed folder.
        """
        try:
            parts = urlsplit(url)
            local = parts.scheme in ("", "file") and parts.netloc in ("", "localhost")
            path = Path(unquote(parts.path) if parts.scheme == "file" else url)
            if local and ".." not in path.parts:
                for folder in self.folders:
                    found = (folder / path).resolve(strict=False)  # an absolute path replaces the folder
                    if found.is_file() and any(found.is_relative_to(allowed) for allowed in self.folders):
                        return found
        except (OSError, ValueError, RuntimeError):  # too long, no text, links in a circle
            local = True
        if not local:
            raise PVChatError("video_url must be a path or a file:// URL below an allowed folder; nothing is fetched.")
        raise PVChatError("There is no such video below an allowed folder.")
