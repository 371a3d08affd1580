"""Architectures by name: everything timm knows, and our own compact network among it."""

import difflib
from typing import Any

import timm
import torch
from timm.models import register_model
from torch import Tensor, nn

from btray.config import ModelConfig
from btray.errors import UserError


class ConvBlock(nn.Sequential):
    """Convolution, batch norm and ReLU, `depth` times, then 2 x 2 max pooling."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, *(outputs,) * (depth - 1)):
            layers += conv_bn_relu(channels, outputs, kernel=3)
        super().__init__(*layers, nn.MaxPool2d(2))


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Return the three layers of one convolutional unit, padded to keep the size."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class CompactCNN(nn.Module):
    """A VGG-like network of under a million parameters for single-channel slices.

    A strided stem halves the resolution, four blocks of convolution, batch norm and ReLU
    follow, each ending in max pooling, then global average pooling, dropout and a dense
    head (after Simonyan & Zisserman 2015 and Ioffe & Szegedy 2015).
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        widths: tuple[int, ...] = (32, 64, 128, 192),
        depths: tuple[int, ...] = (1, 2, 2, 2),
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = widths[-1]
        self.stem = nn.Sequential(*conv_bn_relu(in_chans, 16, kernel=5, stride=2))
        shapes = zip((16, *widths[:-1]), widths, depths, strict=True)
        self.blocks = nn.Sequential(*(ConvBlock(*shape) for shape in shapes))
        self.feature_info = [
            {"module": f"blocks.{number}", "num_chs": width, "reduction": 4 * 2**number}
            for number, width in enumerate(widths)
        ]
        self.dropout = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes)
        self.apply(_initialise)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map [batch, channels, height, width] to [batch, features, height/32, width/32]."""
        features: Tensor = self.blocks(self.stem(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [batch, num_classes]."""
        features = self.forward_features(images).mean(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(features))
        return logits


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


@register_model
def btray_cnn(pretrained: bool = False, **options: Any) -> CompactCNN:  # noqa: ANN401
    """Build our own compact CNN; it has no pretrained weights."""
    if pretrained:
        raise UserError("model.name: btray_cnn has no pretrained weights")
    if options.get("drop_path_rate"):
        raise ValueError("it has no residual blocks; model.drop_path must be 0")
    known = ("num_classes", "in_chans", "drop_rate", "widths", "depths")
    return CompactCNN(**{key: value for key, value in options.items() if key in known})


def create_model(config: ModelConfig, num_classes: int, image_size: int | None = None) -> nn.Module:
    """Build a network that maps [batch, 1, size, size] to logits [batch, num_classes].

    Transformers are built for one size of input: with `image_size` (pixels) for that one,
    and any network is tried on it; without, for the size their authors chose.

    Raises:
        UserError: the name is unknown (nearest names given), or the network cannot be
            built with these settings or cannot take images of this size.

    """
    if not timm.is_model(config.name):
        close = difflib.get_close_matches(config.name, timm.list_models(), n=3)
        hint = f"nearest: {', '.join(close)}" if close else "see `timm.list_models()`"
        raise UserError(f"model.name: no architecture is called {config.name!r}; {hint}")
    options: dict[str, Any] = {"in_chans": 1, "drop_rate": config.dropout}
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    try:
        if image_size is not None and _is_built_for_one_size(config.name):
            options["img_size"] = image_size
        model: nn.Module = timm.create_model(config.name, num_classes=num_classes, **options)
        if image_size is not None:
            _try_on(model, image_size)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        size = f" with image.size={image_size}" if image_size is not None else ""
        reason = " ".join(str(error).split())
        raise UserError(f"model.name: {config.name} cannot be used{size}: {reason}") from None
    return model.to(memory_format=torch.channels_last)


def _is_built_for_one_size(name: str) -> bool:
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return settings is not None and bool(settings.fixed_input_size)


@torch.no_grad()
def _try_on(model: nn.Module, image_size: int) -> None:
    model.eval()(torch.zeros(1, 1, image_size, image_size))
    model.train()
