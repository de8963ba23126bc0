"""pvchat: from one reference video of a person to a video language model that recognises that person.

    from pvchat import VideoChat, personalize

Importing the package is cheap; names are loaded when they are used. `import pvchat.modeling_pvchat` registers the
model with the Auto classes of transformers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {"VideoChat": "session", "personalize": "runs", "PVChatError": "errors"}

__all__ = ["PVChatError", "VideoChat", "personalize"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
