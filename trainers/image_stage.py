"""Stage 1: the subject in single frames.

Trains subject tokens, `<sks>` rows, head routers, Q-Former and LoRA (see `freezing`) on the first frame of every clip,
with existence and appearance questions, for one epoch. The video encoder is frozen.
"""

from __future__ import annotations

from .base import PVChatSFTTrainer


class ImageStageTrainer(PVChatSFTTrainer):
    stage = 1
    still = True
    _name = "PVChat-stage-1"
