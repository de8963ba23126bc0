"""Cards: the README.md of what is published, filled from the files that the steps before wrote."""

from .adapter_card import adapter_card, write_adapter_card
from .base_card import base_card, write_converted_card
from .dataset_card import dataset_card

__all__ = ["adapter_card", "base_card", "dataset_card", "write_adapter_card", "write_converted_card"]
