"""Language models that write and edit the answers.

ChatWriter          any image-text-to-text model with a chat template, such as Qwen3-VL
InternVideo2Writer  the paper's model by its own remote code (converted weights: pvchat.session.VLMWriter)
VLMAttributes       gender and age by one of these writers, off unless asked for
LLMRefiner          puts the name into answers by OpenAIEndpoint or LocalLLM, and checks the result
"""

from .attributes import VLMAttributes
from .internvideo2 import InternVideo2Writer
from .refine import LLMRefiner, LocalLLM, OpenAIEndpoint
from .writer import ChatWriter

__all__ = ["ChatWriter", "InternVideo2Writer", "LLMRefiner", "LocalLLM", "OpenAIEndpoint", "VLMAttributes"]
