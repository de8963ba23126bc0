"""pvchat: from one reference video of a person to a video language model that recognises that person."""

__version__ = "0.1.0"
