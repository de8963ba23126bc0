"""Cards: the README.md of what is published, filled from the files that the steps before wrote."""

from .dataset_card import dataset_card

__all__ = ["dataset_card"]
