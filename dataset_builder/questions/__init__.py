"""The question bank (`bank.json`) and the sampler that turns it into questions and answers."""

from .bank import Bank, load_bank

__all__ = ["Bank", "load_bank"]
