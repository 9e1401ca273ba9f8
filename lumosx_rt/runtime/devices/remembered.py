"""What requests share, kept between them: embeddings of texts, latents of pictures.

By content, so that nothing stale can come back, and as it was made, so that a request makes the
same video with or without. A text encoder may also be let go, and comes back for new words.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from threading import RLock
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.reference.encoders.umt5 import Prompt, TextEncoder
from lumosx_rt.reference.encoders.wan_vae import Tile, VideoAutoencoder
from lumosx_rt.reference.process import check_process

REMEMBERED_BYTES = 256 << 20
Key = tuple[object, ...]


class Remembered:
    """Tensors by key, up to so many bytes; what was not asked for longest goes first."""

    def __init__(self, limit_bytes: int = REMEMBERED_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = self.hits = self.misses = 0
        self._tensors: OrderedDict[Key, Tensor] = OrderedDict()
        self._lock = RLock()

    def recall(self, key: Key) -> Tensor | None:
        with self._lock:
            found = self._tensors.get(key)
            self.hits += found is not None
            self.misses += found is None
            if found is None:
                return None
            self._tensors.move_to_end(key)
            return found.clone()

    def keep(self, key: Key, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        with self._lock:
            if size > self.limit_bytes or key in self._tensors:
                return
            self._tensors[key] = tensor.clone()
            self.bytes += size
            while self.bytes > self.limit_bytes:
                _, oldest = self._tensors.popitem(last=False)
                self.bytes -= oldest.numel() * oldest.element_size()


class RememberingTextEncoder(TextEncoder):
    """A text encoder that encodes a text once, and can be freed in between."""

    def __init__(self, load: Callable[[], TextEncoder], remembered: Remembered) -> None:
        encoder = load()
        super().__init__(encoder.model, encoder.tokenizer, encoder.text_len)
        self._load, self._remembered, self._lock = load, remembered, RLock()

    def embed(self, prompt: Prompt) -> Tensor:
        check_process(self._pid, "the text encoder")  # before a lock that nobody would open
        key = ("text", prompt.text)
        with self._lock:
            found = self._remembered.recall(key)
            if found is None:
                if self.is_free:
                    self.model = self._load().model
                found = super().embed(prompt)
                self._remembered.keep(key, found)
        return found

    @property
    def is_free(self) -> bool:
        return isinstance(self.model, SimpleNamespace)

    def free(self) -> None:
        """Let the weights go; the tokenizer stays."""
        with self._lock:
            self.model = SimpleNamespace(config=self.model.config)
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # others than torch may want what it held


class RememberingVae(VideoAutoencoder):
    """A VAE that encodes a picture once. Threads take turns: it has one set of caches.

    decoder: another one to decode videos with.
    """

    def __init__(
        self,
        vae: VideoAutoencoder,
        remembered: Remembered,
        decoder: VideoAutoencoder | None = None,
    ) -> None:
        super().__init__(vae.model)
        self._remembered, self._lock, self._decoder = remembered, RLock(), decoder

    def encode_images(self, images: Tensor) -> Tensor:
        check_process(self._pid, "the VAE")
        keys = [_content(image) for image in images]
        with self._lock:
            found = [self._remembered.recall(key) for key in keys]
            missing = [i for i, latents in enumerate(found) if latents is None]
            if missing:
                for i, latents in zip(missing, super().encode_images(images[missing]), strict=True):
                    found[i] = latents
                    self._remembered.keep(keys[i], latents)
        return torch.stack([latents for latents in found if latents is not None])

    def decode_frames_uint8(self, latents: Tensor, tile: Tile | None = None) -> NDArray[np.uint8]:
        check_process(self._pid, "the VAE")
        with self._lock:
            if self._decoder is not None:
                return self._decoder.decode_frames_uint8(latents, tile)
            return super().decode_frames_uint8(latents, tile)


def _content(image: Tensor) -> Key:
    data: Any = image.contiguous().numpy()
    return "picture", str(image.dtype), tuple(image.shape), hashlib.sha256(data).hexdigest()
