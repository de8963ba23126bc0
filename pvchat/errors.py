"""Errors that are the user's to fix. The command line prints them as one line and exits with code 1."""


class PVChatError(ValueError):
    """A mistake of the user: the message says what was given, what is allowed and what to do, in one line."""


class MissingBackendError(PVChatError):
    """A backend is not available here; the message carries the pip line or names the alternative."""


def first_line(error: BaseException, limit: int = 160) -> str:
    """What an error says: its first line that is not empty, at most `limit` characters, or the name of its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:limit]


def no_model(base: object, error: BaseException) -> PVChatError:
    """To be raised when loading `base`, a checkpoint folder or a name on the Hub, ended with `error`."""
    return PVChatError(
        f"No PVChat model could be loaded from {base} ({first_line(error, 200)}); pass a checkpoint folder or a Hub "
        f"name."
    )
