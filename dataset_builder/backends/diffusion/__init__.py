"""Generators on diffusers' pipelines: clips (ConsisID, Wan VACE), portraits (Qwen-Image-Edit, FLUX.2 klein) and
animations (Wan-Animate-2). Weights and packages are loaded at the first call; see docs/backends.md for licences and
memory."""

from .consisid import ConsisIDScenes
from .edit import KleinPortraits, QwenEditPortraits
from .wan_animate import WanAnimator
from .wan_vace import WanVACEScenes

__all__ = ["ConsisIDScenes", "KleinPortraits", "QwenEditPortraits", "WanAnimator", "WanVACEScenes"]
