"""Stage two: a frozen slab network and a recurrent reader of its features, as one network."""

from torch import Tensor, nn

from fmct.models.adaptation import EncoderHolder
from fmct.models.conv_lstm import SeriesReader
from fmct.models.slab_network import SlabNetwork, SlabOutput, TokenSlabNetwork


class SlabSeriesNetwork(EncoderHolder):
    """A slab network, which stays as it is, and a reader of whole series."""

    def __init__(self, slabs: SlabNetwork | TokenSlabNetwork, reader: SeriesReader) -> None:
        super().__init__()
        self.slabs = slabs
        self.reader = reader

    def encoders(self) -> list[nn.Module]:
        """The slab network: what does not train."""
        return [self.slabs]

    def forward(self, x: Tensor, spacing: Tensor | None = None, *, drop_path_keys: Tensor | None = None) -> SlabOutput:
        """Return what the slab network says of (B, C, D, H, W) slabs."""
        return self.slabs(x, spacing, drop_path_keys=drop_path_keys)

    def read(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return (B, 1) logits of series from (B, T, C, gh, gw) features of their slabs in z order; valid (B, T)."""
        return self.reader(features, valid)
