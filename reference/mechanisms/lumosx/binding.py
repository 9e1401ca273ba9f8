"""One request, bound: which prompt words belong to which reference, and what the model reads.

A *scene* is what a person writes, a *layout* its shape; the *binding* is everything else of one
request. `bind` turns a scene into both.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.reference.encoders.umt5 import TextEncoder
from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder
from lumosx_rt.reference.errors import LumosXError, listing
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.scenes.words import NEGATIVE_PROMPT


@dataclass(frozen=True)
class Binding:
    """What the model reads of one request.

    text, null_text: float32 [text_len, text_dim], the prompt and the negative prompt.
    template: float32 [references, text_len], the words each reference is bound to.
    references: float32 [references, channels, rows, columns], clean latents.
    """

    text: Tensor
    null_text: Tensor
    template: Tensor
    references: Tensor


def word_template(masks: NDArray[np.bool_], layout: SceneLayout) -> NDArray[np.float32]:
    """How strongly each prompt word is promoted for each reference (omega of
    docs/spec.md#word-weights).

    masks: bool [references, text_len], the prompt tokens that spell each reference's word.
    Returns float32 [references, text_len]. A lone reference keeps its own words; every image of a
    subject gets all words of the subject, minus the mean of the other subjects' words.
    """
    template = masks.astype(np.float32)
    spans = [(a - layout.video_frames, b - layout.video_frames) for a, b in layout.groups]
    spans = spans[layout.lone :]
    if not spans:
        return template
    own = np.stack([masks[a:b].any(axis=0) for a, b in spans]).astype(np.float32)
    others = (own.sum(axis=0) - own) / max(len(spans) - 1, 1)
    for (a, b), words in zip(spans, own - others, strict=True):
        template[a:b] = words
    return template


def word_masks(scene: Scene, encoder: TextEncoder) -> NDArray[np.bool_]:
    """The prompt tokens that spell each reference's word: bool [references, text_len].

    Raises one LumosXError for all words that spell no tokens of the prompt.
    """
    ids, _ = encoder.tokenize(scene.caption)
    masks = np.zeros((len(scene.references), encoder.text_len), np.bool_)
    for row, reference in zip(masks, scene.references, strict=True):
        row[:] = encoder.word_mask(ids, reference.word)
    lost = [
        f"'{reference.word}' spells no tokens of the caption (it is cut off after "
        f"{encoder.text_len} tokens, or stands there only inside another word); "
        "nothing would bind its picture, so reword the caption or rename the picture"
        for reference, row in zip(scene.references, masks, strict=True)
        if not row.any()
    ]
    if lost:
        raise LumosXError(listing(f"scene '{scene.name}'", lost))
    return masks


def bind(
    scene: Scene,
    size: VideoSize,
    encoder: TextEncoder,
    vae: VideoAutoencoder,
    negative_prompt: str = NEGATIVE_PROMPT,
) -> tuple[SceneLayout, Binding]:
    """A scene as the model takes it. Raises LumosXError for words that bind nothing."""
    layout = scene.layout(*size.grid)
    masks = word_masks(scene, encoder)
    _, rows, columns = size.latent
    latents = torch.zeros(0, len(vae.model.config.latents_mean), rows, columns)
    if layout.references:
        pixels = torch.from_numpy(scene.fitted(size.height, size.width)).permute(0, 3, 1, 2)
        latents = vae.encode_images(pixels)[:, :, 0]
    return layout, Binding(
        text=encoder.encode(scene.caption),
        null_text=encoder.encode(negative_prompt),
        template=torch.from_numpy(word_template(masks, layout)),
        references=latents,
    )
