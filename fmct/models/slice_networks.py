"""The five published two-dimensional contrast networks: one logit for a slice.

Ye et al., Radiology: Artificial Intelligence 2022;4(3):e210285. Bodies are timm's; heads are the published ones. The
Keras bodies' padding and batch-norm constants are matched where timm has a port of them (tf_efficientnet_b4).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmct.errors import ConfigError, WeightsError
from fmct.models.keyed import keyed_uniform

BODIES = {
    "efficientnet_b4": "tf_efficientnet_b4",
    "resnet101v2": "resnetv2_101",
    "imagenet": "resnetv2_101",
    "inception_v3": "inception_v3",
}
NETWORKS = (*BODIES, "simple_cnn")
SMALLEST_SIDE = {"inception_v3": 75}
_SIMPLE_WIDTH = 256
_STREAMS = 1 << 16  # numbers a layer may ask for; each layer has streams of its own


@dataclass(frozen=True)
class SliceNetworkConfig:
    """The network.

    name: efficientnet_b4, resnet101v2, inception_v3 and simple_cnn begin with random weights; imagenet is a ResNet101V2
    with ImageNet weights that stays as it is, in inference mode, and of which the head alone learns. weights: their
    safetensors file, empty: from timm's hub. hidden: units of the head's hidden layer (simple_cnn: 256, twice).
    dropout: of the heads that have one (efficientnet_b4, simple_cnn). drop_path: stochastic depth of efficientnet_b4.
    filters: of simple_cnn's four stages. input_scale: what slices in [0, 1] are multiplied with.
    """

    name: str = "efficientnet_b4"
    weights: str = ""
    hidden: int = 1000
    dropout: float = 0.3
    drop_path: float = 0.2
    filters: list[int] = field(default_factory=lambda: [16, 64, 128, 128])
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in NETWORKS:
            raise ConfigError(f"network.name: expected one of {', '.join(NETWORKS)}; got {self.name!r}.")
        if self.hidden < 1 or not (0 <= self.dropout < 1 and 0 <= self.drop_path < 1) or self.input_scale <= 0:
            raise ConfigError(
                "network: hidden is positive, dropout and drop_path lie in [0, 1), input_scale is positive; got "
                f"{self.hidden}, {self.dropout}, {self.drop_path} and {self.input_scale}."
            )
        if len(self.filters) < 1 or min(self.filters) < 1:
            raise ConfigError(f"network.filters: expected positive numbers, got {list(self.filters)}.")
        if self.weights and self.name != "imagenet":
            raise ConfigError(f"network.weights: {self.name} begins with random weights; only imagenet reads a file.")


class DrawKeys:
    """The draws of the batch that a network sees; None outside training."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now: Tensor | None = None


class KeyedDropout(nn.Module):
    """Dropout whose mask is a function of (seed, draw, layer, unit): the same after a resume, for any batch."""

    def __init__(self, rate: float, keys: DrawKeys, *, layer: int) -> None:
        super().__init__()
        self.rate, self.layer = rate, layer
        self._keys = keys

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, F) with a share of `rate` units set to 0 and the others scaled up, in training."""
        if not self.training or self.rate == 0:
            return x
        kept = _uniform(self._keys, self.layer, x.shape[1], x) >= self.rate
        return x * kept / (1 - self.rate)


class KeyedDropPath(nn.Module):
    """Stochastic depth whose choice is a function of (seed, draw, layer); in the place of timm's."""

    def __init__(self, rate: float, keys: DrawKeys, *, layer: int) -> None:
        super().__init__()
        self.rate, self.layer = rate, layer
        self._keys = keys

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, …) with a share of `rate` samples set to 0 and the others scaled up, in training."""
        if not self.training or self.rate == 0:
            return x
        kept = _uniform(self._keys, self.layer, 1, x) >= self.rate
        return x * (kept / (1 - self.rate)).reshape(-1, *[1] * (x.ndim - 1))


class SliceNetwork(nn.Module):
    """One logit for a slice of `side` pixels."""

    def __init__(self, config: SliceNetworkConfig, *, side: int, seed: int = 0) -> None:
        super().__init__()
        self.config, self.side = config, side
        self._keys = DrawKeys(seed)
        smallest = SMALLEST_SIDE.get(config.name, 2 ** len(config.filters) if config.name == "simple_cnn" else 32)
        if side < smallest:
            raise ConfigError(f"network.name={config.name}: needs slices of at least {smallest} pixels, got {side}.")
        self.mean, self.std = (0.5, 0.5) if config.name == "imagenet" else (0.0, 1.0)
        self.body, width = _body(config, self._keys, side)
        self.head = _head(config, width, self._keys)
        self._still: list[nn.Module] = []
        if config.name == "imagenet":
            self.freeze(None)

    def forward(self, slices: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return (B,) logits of (B, H, W) slices in [0, 1]. keys: (B,) draws, which dropout depends on in training."""
        if self.training and keys is None:
            raise ValueError("SliceNetwork: in training the draws of a batch are needed (dropout depends on them).")
        x = (slices[:, None] * self.config.input_scale - self.mean) / self.std
        self._keys.now = keys
        try:
            return self.head(self.body(x.expand(-1, 3, -1, -1)))[:, 0]
        finally:
            self._keys.now = None

    def freeze(self, layers: int | None) -> None:
        """Hold the first `layers` layers with parameters still, None: the whole body. They run in inference mode."""
        if layers is None:
            self._still = [self.body]
        else:
            found = [part for part in self.modules() if list(part.parameters(recurse=False))]
            if not 0 <= layers <= len(found):
                raise ConfigError(f"freeze: expected 0 to {len(found)} layers, got {layers}.")
            self._still = [*([self.body] if self.config.name == "imagenet" else []), *found[:layers]]
        for part in self._still:
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "SliceNetwork":
        """Set training mode, frozen layers apart."""
        super().train(mode)
        for part in getattr(self, "_still", ()):
            part.eval()
        return self


def build_slice_network(
    config: SliceNetworkConfig, *, side: int, seed: int = 0, pretrained: bool = False
) -> SliceNetwork:
    """Return a network with weights drawn from the seed; the global generator stays as it was.

    pretrained: read the ImageNet weights of the network that has some (see `load_imagenet`).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SliceNetwork(config, side=side, seed=seed)
    if pretrained and config.name == "imagenet":
        load_imagenet(network, config.weights)
    return network


def load_imagenet(network: SliceNetwork, path: str = "") -> None:
    """Load ImageNet weights into a body through timm: a safetensors file, or without one timm's hub.

    Every tensor of timm's classifier must be there and fit; the classifier itself is then left out. Raises
    WeightsError.
    """
    import timm

    name = BODIES["imagenet"]
    if path and (not Path(path).is_file() or Path(path).suffix != ".safetensors"):
        raise WeightsError(
            f"network.weights={path}: expected the safetensors file of timm's {name} (model.safetensors of the hub's "
            f"timm/{name}.a1h_in1k). Pickles are not opened."
        )
    try:
        overlay = {"file": path} if path else None
        loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # what a hub, a disk or a misfit raises is of many classes
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise WeightsError(
            f"ImageNet weights of {name}: {path or 'the hub'} gave none that fit ({reason.strip()[:200]}). Without a "
            "network, download model.safetensors elsewhere and name it: network.weights=FILE."
        ) from None
    body = {n: v for n, v in loaded.state_dict().items() if not n.startswith("head.fc.")}
    network.body.load_state_dict(body)


def _body(config: SliceNetworkConfig, keys: DrawKeys, side: int) -> tuple[nn.Module, int]:
    """Return (the body, the width of what it gives): pooled features, or flattened ones of the simple network."""
    if config.name == "simple_cnn":
        return _simple_body(config.filters), config.filters[-1] * (side // 2 ** len(config.filters)) ** 2
    import timm

    options: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.name == "efficientnet_b4" else {}
    body = timm.create_model(BODIES[config.name], pretrained=False, num_classes=0, **options)
    _key_drop_paths(body, keys)
    return body, int(body.num_features)  # type: ignore[arg-type]


def _simple_body(filters: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in zip([3, *filters[:-1]], filters, strict=True):
        convolution = nn.Conv2d(inner, outer, 3, padding=1)
        # Keras' momentum 0.95 is what the running mean keeps; torch's is what it takes.
        layers += [_glorot(convolution), nn.BatchNorm2d(outer, momentum=0.05, eps=1e-3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


def _head(config: SliceNetworkConfig, width: int, keys: DrawKeys) -> nn.Sequential:
    if config.name == "simple_cnn":
        return nn.Sequential(
            _glorot(nn.Linear(width, _SIMPLE_WIDTH)),
            nn.ReLU(),
            KeyedDropout(config.dropout, keys, layer=0),
            _glorot(nn.Linear(_SIMPLE_WIDTH, _SIMPLE_WIDTH)),
            nn.ReLU(),
            KeyedDropout(config.dropout, keys, layer=1),
            _glorot(nn.Linear(_SIMPLE_WIDTH, 1)),
        )
    dense = [_glorot(nn.Linear(width, config.hidden)), nn.ReLU()]
    last = _glorot(nn.Linear(config.hidden, 1))
    if config.name != "efficientnet_b4":
        return nn.Sequential(*dense, last)
    before, after = (KeyedDropout(config.dropout, keys, layer=layer) for layer in (0, 1))
    return nn.Sequential(before, *dense, after, last)


def _key_drop_paths(body: nn.Module, keys: DrawKeys) -> None:
    """Put keyed stochastic depth in the place of timm's, whose choices come from the global generator."""
    from timm.layers.drop import DropPath

    found = [(name, part) for name, part in body.named_modules() if isinstance(part, DropPath)]
    for layer, (name, part) in enumerate(found, start=2):
        parent, _, own = name.rpartition(".")
        setattr(body.get_submodule(parent), own, KeyedDropPath(float(part.drop_prob or 0.0), keys, layer=layer))


def _glorot(layer: nn.Module) -> nn.Module:
    """Return a layer with Keras' first weights: Glorot uniform, biases 0."""
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _uniform(keys: DrawKeys, layer: int, count: int, like: Tensor) -> Tensor:
    """Return (B, count) numbers in [0, 1) of a layer for the batch's draws."""
    assert keys.now is not None
    streams = range(layer * _STREAMS, layer * _STREAMS + count)
    return keyed_uniform(keys.now.to(like.device), seed=keys.seed, streams=streams).T.to(like.dtype)
