"""What ranks, savers and measurements import, and with it torch, timm and torchvision: see tests/forked.py."""

import pytest
import torch

import pretrain.dino
from fmct.bench import stepping
from fmct.train.deepspeed import import_deepspeed

deepspeed = import_deepspeed(torch.device("cpu"))

__all__ = ["deepspeed", "pretrain", "pytest", "stepping"]
