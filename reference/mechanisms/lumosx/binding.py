"""One request, bound: which prompt words belong to which reference, and what the model reads.

A *scene* is what a person writes, a *layout* its shape; the *binding* is everything else of one
request.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.reference.encoders.umt5 import Prompt, TextEncoder
from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder
from lumosx_rt.reference.errors import BadInput, listing
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout, layout_of
from lumosx_rt.reference.scenes.prepared import PreparedScene, prepare_scene
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.scenes.words import NEGATIVE_PROMPT, clean_text


@dataclass(frozen=True)
class Binding:
    """What the model reads of one request.

    text, null_text: float32 [text_len, text_dim], the prompt and the negative prompt.
    template: float32 [references, text_len], the words each reference is bound to.
    references: float32 [references, channels, rows, columns], clean latents.
    warnings: what of the texts is not read.
    """

    text: Tensor
    null_text: Tensor
    template: Tensor
    references: Tensor
    warnings: tuple[str, ...] = ()

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with words for people."""
        yield "the text encoder's embeddings of the prompt", self.text
        yield "the text encoder's embeddings of the negative prompt", self.null_text
        yield "the VAE's latents of the references", self.references


def word_template(masks: NDArray[np.bool_], layout: SceneLayout) -> NDArray[np.float32]:
    """Return how strongly each prompt word is promoted for each reference (omega of
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


def word_masks(
    name: str, prompt: Prompt, words: Sequence[str], encoder: TextEncoder
) -> NDArray[np.bool_]:
    """Return the prompt tokens that spell each reference's cleaned word: bool [references,
    text_len].

    name: of the scene, for messages. Raises one LumosXError for all words that spell no tokens.
    """
    masks = np.zeros((len(words), encoder.text_len), np.bool_)
    for row, word in zip(masks, words, strict=True):
        row[:] = encoder.word_mask(prompt.ids, word)
    lost = [
        f"'{word}' spells no tokens of the caption (it is cut off after "
        f"{encoder.text_len} tokens, or stands there only inside another word); "
        "nothing would bind its picture, so reword the caption or rename the picture"
        for word, row in zip(words, masks, strict=True)
        if not row.any()
    ]
    if lost:
        raise BadInput(listing(f"scene '{name}'", lost))
    return masks


def bind(
    scene: PreparedScene,
    layout: SceneLayout,
    size: VideoSize,
    encoder: TextEncoder,
    vae: VideoAutoencoder,
    negative_prompt: str = NEGATIVE_PROMPT,
) -> Binding:
    """Encode a prepared scene as the model reads it.

    size: of the video; the scene's pictures have its height and width. Raises LumosXError for words
    that bind nothing, before anything is encoded.
    """
    prompt = encoder.prompt(scene.caption)
    masks = word_masks(scene.name, prompt, scene.words, encoder)
    _, rows, columns = size.latent
    latents = torch.zeros(0, len(vae.model.config.latents_mean), rows, columns)
    if layout.references:
        pixels = torch.from_numpy(scene.pictures).permute(0, 3, 1, 2)
        latents = vae.encode_images(pixels)[:, :, 0]
    negative = encoder.prompt(clean_text(negative_prompt))
    warnings = prompt.cut("the caption")
    if negative_prompt != NEGATIVE_PROMPT:
        warnings += negative.cut("the negative prompt")
    return Binding(
        text=encoder.embed(prompt),
        null_text=encoder.embed(negative),
        template=torch.from_numpy(word_template(masks, layout)),
        references=latents,
        warnings=tuple(warnings),
    )


def bind_scene(
    scene: Scene,
    size: VideoSize,
    encoder: TextEncoder,
    vae: VideoAutoencoder,
    negative_prompt: str = NEGATIVE_PROMPT,
) -> tuple[SceneLayout, Binding]:
    """Prepare, lay out and bind a scene. Raises LumosXError for whatever is wrong with it."""
    prepared = prepare_scene(scene, size.height, size.width)
    layout = layout_of(prepared, size.grid)
    return layout, bind(prepared, layout, size, encoder, vae, negative_prompt)
