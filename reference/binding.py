"""One request, bound: which prompt words belong to which reference, and the reference latents."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lumosx_rt.reference.layout import SceneLayout


def word_template(masks: NDArray[np.bool_], layout: SceneLayout) -> NDArray[np.float32]:
    """How strongly each prompt word is promoted for each reference (omega of SPEC 4.3).

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
