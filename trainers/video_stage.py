"""Stage 2: the subject in motion.

Goes on from stage 1 on whole clips with all questions, for seven epochs. The `paper` profile also trains the last
blocks of the video encoder.
"""

from __future__ import annotations

from .base import PVChatSFTTrainer


class VideoStageTrainer(PVChatSFTTrainer):
    stage = 2
    still = False
    _name = "PVChat-stage-2"
