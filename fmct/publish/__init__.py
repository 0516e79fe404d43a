"""Encoders out and back in: folder, model card, golden numbers, hub."""

from fmct.publish.load import Embedding, PublishedEncoder, SelfTest, load_encoder

__all__ = ["Embedding", "PublishedEncoder", "SelfTest", "load_encoder"]
