"""Encoders that others published, in fmct's own modules: each layout is read strictly, or not at all."""

from fmct.models.adapters.adapted import LAYOUTS, AdaptedEncoder, load_adapted
from fmct.models.adapters.fmhct import load_fmhct
from fmct.models.adapters.threedino import load_3dino
from fmct.models.adapters.voxelfm import load_voxelfm

__all__ = ["LAYOUTS", "AdaptedEncoder", "load_3dino", "load_adapted", "load_fmhct", "load_voxelfm"]
