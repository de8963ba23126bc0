"""The model, as it also goes to the Hub: configuration, encoder, Q-Former, language model, processor.

Importing this package tells transformers' Auto classes about PVChat, and makes `save_pretrained` of model and
processor write a folder that loads with `trust_remote_code=True` where this package is not installed.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

# `transformers.AutoVideoProcessor` is a stand-in that raises where torchvision is missing. The class itself works.
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from .configuration_pvchat import PVChatConfig, PVChatQFormerConfig, PVChatVisionConfig
from .convert_pvchat import convert_state_dict
from .modeling_internvideo2 import PVChatVisionModel
from .modeling_pvchat import PVChatForConditionalGeneration, PVChatModel
from .modeling_qformer import PVChatQFormerModel, insert_routers
from .processing_pvchat import PVChatProcessor
from .video_processing_pvchat import PVChatVideoProcessor, count_frames, frame_indices, read_video


def register_auto_classes() -> None:
    """Makes every Auto class know PVChat's classes, and these classes save their code. Runs on import; repeatable."""
    AutoConfig.register(PVChatConfig.model_type, PVChatConfig, exist_ok=True)
    AutoModel.register(PVChatConfig, PVChatModel, exist_ok=True)
    AutoModelForImageTextToText.register(PVChatConfig, PVChatForConditionalGeneration, exist_ok=True)
    AutoModelForMultimodalLM.register(PVChatConfig, PVChatForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(PVChatConfig, PVChatProcessor, exist_ok=True)
    AutoVideoProcessor.register(PVChatConfig, PVChatVideoProcessor, exist_ok=True)
    # What copies the code into a saved folder. The config lists all Auto classes itself (`AUTO_MAP`).
    PVChatConfig.register_for_auto_class("AutoConfig")
    PVChatModel.register_for_auto_class("AutoModel")
    PVChatForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
    PVChatProcessor.register_for_auto_class("AutoProcessor")
    PVChatVideoProcessor.register_for_auto_class("AutoVideoProcessor")


register_auto_classes()

__all__ = [
    "PVChatConfig",
    "PVChatForConditionalGeneration",
    "PVChatModel",
    "PVChatProcessor",
    "PVChatQFormerConfig",
    "PVChatQFormerModel",
    "PVChatVideoProcessor",
    "PVChatVisionConfig",
    "PVChatVisionModel",
    "convert_state_dict",
    "count_frames",
    "frame_indices",
    "insert_routers",
    "read_video",
    "register_auto_classes",
]
