"""Checkpoints: the names and layouts of tensors, and the files they are in."""

from lowbit.checkpoints import gguf
from lowbit.checkpoints.safetensors import load_file, load_model, save_file, save_model

__all__ = ["gguf", "load_file", "load_model", "save_file", "save_model"]
