"""A trained network in use, from Python.

network = mapolicy.load_network("runs/my-train")
probabilities = network.predict(["cat.jpg", "dog.png"])
"""

import os
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor, nn

from ..bundle.limits import Limits
from ..data.decode import CorruptImageError, bombs_as_errors, read_file
from ..data.reading import ImageReading
from ..errors import InputError
from .build import built_network
from .network_config import NetworkConfig
from .network_file import NetworkFile, read_network_file

BATCH_SIZE = 64

AnImage: TypeAlias = Tensor | Image.Image | str | os.PathLike[str]


class TrainedNetwork(nn.Module):
    """A network with its classes and with everything that happens to an image before it.

    In evaluation mode and without gradients, as `load_network` returns it. Move it to a device with `to`.

    Attributes:
        network: timm's module; takes normalised float images.
        config: what its file says.
        reading: how images of any size and kind become its uint8 input.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, config: NetworkConfig, reading: ImageReading) -> None:
        super().__init__()
        self.network, self.config, self.reading = network, config, reading
        about = config.pretrained_cfg
        # In the units of uint8 pixels, as in `transforms.basic.Normalisation`.
        self.register_buffer("mean", torch.tensor(about.mean)[:, None, None] * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(about.std)[:, None, None] * 255), persistent=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.config.label_names

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 [B, C, S, S] of the network's size, on its device, to logits float32 [B, K]."""
        logits: Tensor = self.network((images - self.mean) * self.scale)
        return logits

    def predict(self, images: AnImage | Iterable[AnImage], batch_size: int = BATCH_SIZE) -> Tensor:
        """The probability of each class for images of any size.

        Images are read as those were that the network learned from. The network's mode is not changed.

        Args:
            images: uint8 [B, C, H, W] or [C, H, W] with 1 or 3 channels; or a path, an image of Pillow's, or several of
                these.
            batch_size: images in one forward.

        Returns:
            float32 [B, K] on the CPU; rows sum to 1.

        Raises:
            TypeError: something else.
            InputError: a file is no image that can be read.
        """
        items = _listed(images)
        with bombs_as_errors():
            parts = [self._probabilities(items[at : at + batch_size]) for at in range(0, len(items), batch_size)]
        return torch.cat(parts) if parts else torch.empty(0, len(self.classes))

    def pixels(self, image: AnImage) -> Tensor:
        """One image as the network's input, uint8 [C, S, S]; put `decode.bombs_as_errors` around a loop over images.

        Raises:
            TypeError: no image.
            CorruptImageError: a file is no image that can be read.
        """
        if isinstance(image, str | os.PathLike):
            path = os.fspath(image)
            return torch.tensor(self.reading.read(read_file(path), path))
        if isinstance(image, Image.Image):
            return torch.tensor(self.reading.pixels(image))
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or len(image) not in (1, 3):
            found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            hint = "; torch.from_numpy or PIL.Image.fromarray converts it" if found == "ndarray" else ""
            wanted = "expected uint8 [C, H, W] with 1 or 3 channels, a path or an image of PIL"
            raise TypeError(f"found {found}, {wanted}{hint}")
        if tuple(image.shape) == self.config.pretrained_cfg.input_size:
            return image.cpu()
        array = image.cpu().numpy()
        return self.pixels(Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)))

    def _probabilities(self, images: Iterable[AnImage]) -> Tensor:
        try:
            batch = torch.stack([self.pixels(image) for image in images])
        except CorruptImageError as problem:
            raise InputError(problem.what, problem.why, "name images that Pillow can read") from None
        with torch.inference_mode():
            return self.forward(batch.to(self.mean.device)).float().softmax(dim=1).cpu()


def _listed(images: AnImage | Iterable[AnImage]) -> Sequence[AnImage]:
    """The images one by one."""
    if isinstance(images, Tensor):
        return [images] if images.ndim == 3 else list(images)
    if isinstance(images, str | os.PathLike | Image.Image) or not isinstance(images, Iterable):
        return [images]
    return list(images)


def load_network(
    path: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    limits: Limits | None = None,
    trust_arguments: bool = False,
) -> TrainedNetwork:
    """Load a trained network, ready for use.

    The file is untrusted: it is checked before anything is built, and nothing in it is executed or opened.

    Args:
        path: `network.safetensors`, or the folder of a finished run.
        device: of the network.
        limits: of the file's size and of its parameters; None takes the default ones.
        trust_arguments: accept arguments of the network's constructor that are not allowed from a stranger.

    Raises:
        InputError: not a network file that can be used; one line says why.
    """
    return ready_network(read_network_file(path, limits), device, trust_arguments)


def ready_network(
    file: NetworkFile, device: torch.device | str = "cpu", trust_arguments: bool = False
) -> TrainedNetwork:
    """The network of a file that was read; arguments and errors as `load_network`."""
    reading = ImageReading.from_dict(file.config.mapolicy.images, file.source)
    network = TrainedNetwork(built_network(file, trust_arguments), file.config, reading)
    return network.eval().to(torch.device(device))
