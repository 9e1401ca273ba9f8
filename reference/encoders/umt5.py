"""Text to embeddings: what LumosX does around transformers' UMT5EncoderModel
(docs/spec.md#text)."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.reference.checkpoints.bundle import Bundle, find_bundle
from lumosx_rt.reference.encoders.weights import (
    load_t5,
    load_tokenizer,
)
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.process import OfItsProcess, check_process
from lumosx_rt.reference.scenes.words import clean_text, word_mask

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel


PAD_ID = 0
END_ID = 1


class Prompt(NamedTuple):
    """A text, cleaned and tokenized once.

    ids: int64 [text_len], padded with id 0. real: bool [text_len], False where padded. tokens: of
    the whole text, its end included. lost: what of the text lies behind the cut.
    """

    text: str
    ids: NDArray[np.int64]
    real: NDArray[np.bool_]
    tokens: int = 0
    lost: str = ""

    def cut(self, what: str) -> list[str]:
        """Return a warning where the text is longer than what is read of it, else nothing."""
        if self.tokens <= len(self.ids):
            return []
        words = self.lost.split()
        more = " ..." if len(words) > 8 else ""
        return [
            f"{what} has {self.tokens} tokens, the text encoder reads {len(self.ids)}: it is cut "
            f"before '{' '.join(words[:8])[:80]}{more}'; shorten it"
        ]


def tokenized(tokenizer: Any, text: str, text_len: int) -> Prompt:
    """Tokenize a text that `clean_text` was applied to, for a text encoder of `text_len` tokens.

    tokenizer: of transformers, of the fast kind.
    """
    found = list(tokenizer(text, truncation=True, max_length=text_len).input_ids)
    ids = np.full(text_len, PAD_ID, np.int64)
    ids[: len(found)] = found
    real = np.arange(text_len) < len(found)
    if len(found) < text_len:
        return Prompt(text, ids, real, len(found))
    whole = tokenizer(text, return_offsets_mapping=True)
    tokens, places = len(whole.input_ids), whole.offset_mapping
    if tokens <= text_len:
        return Prompt(text, ids, real, tokens)
    cut = places[text_len - 1][0]  # of the first token that the end token displaces
    return Prompt(text, ids, real, tokens, text[text.rfind(" ", 0, cut) + 1 :])


class TextEncoder(OfItsProcess):
    """Captions and words to embeddings, ids and word masks (docs/spec.md#text)."""

    def __init__(self, model: "UMT5EncoderModel", tokenizer: Any, text_len: int = 512) -> None:
        """tokenizer: of transformers, with pad id 0, and end id 1 after every text."""
        self.model, self._pid = cast(Any, model), os.getpid()
        self.tokenizer, self.text_len = tokenizer, text_len
        ids = list(tokenizer("").input_ids)
        if ids != [END_ID] or tokenizer.pad_token_id not in (None, PAD_ID):
            raise BadInput(
                f"tokenizer: an empty text gives ids {ids[:8]} and padding is "
                f"{tokenizer.pad_token_id}; the text encoder needs [{END_ID}] and {PAD_ID} (UMT5's)"
            )
        if len(tokenizer) > self.model.config.vocab_size:
            raise BadInput(
                f"tokenizer: {len(tokenizer)} ids, the text encoder has embeddings for "
                f"{self.model.config.vocab_size}; they are not of one model"
            )

    @property
    def text_dim(self) -> int:
        return int(self.model.config.d_model)

    def prompt(self, text: str) -> Prompt:
        """Tokenize a text that `clean_text` was applied to.

        It is truncated so that the end token stays, and padded with id 0.
        """
        return tokenized(self.tokenizer, text, self.text_len)

    def tokenize(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids int64 [text_len] of any text, and which of them are real, bool [text_len]."""
        prompt = self.prompt(clean_text(text))
        return prompt.ids, prompt.real

    def encode(self, text: str) -> Tensor:
        """Embeddings of any text, float32 [text_len, text_dim]; rows past it are zero."""
        return self.embed(self.prompt(clean_text(text)))

    @torch.no_grad()
    def embed(self, prompt: Prompt) -> Tensor:
        """Embeddings of a prompt, float32 [text_len, text_dim], on the CPU; rows past it are zero
        (docs/spec.md#text)."""
        check_process(self._pid, "the text encoder")
        device = self.model.shared.weight.device
        attended = torch.from_numpy(prompt.real).to(device)
        hidden = self.model(
            input_ids=torch.from_numpy(prompt.ids).to(device)[None],
            attention_mask=attended.long()[None],
        ).last_hidden_state[0]
        return torch.where(attended[:, None], hidden.float(), 0.0).cpu()

    def word_mask(self, prompt_ids: NDArray[np.int64], word: str) -> NDArray[np.bool_]:
        """Return which prompt tokens spell a cleaned word, at every place: bool [text_len]
        (docs/spec.md#word-masks)."""
        return word_mask(prompt_ids, self.prompt(word).ids, END_ID)


def load_text_encoder(
    source: Bundle | str | Path,
    text_len: int = 512,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> TextEncoder:
    """Return the text encoder and the tokenizer of a bundle, in any layout
    (docs/spec.md#checkpoints).

    dtype: as stored by default. device: where its weights are read to. Raises LumosXError if either
    is missing, damaged or foreign.
    """
    bundle = source if isinstance(source, Bundle) else find_bundle(source)
    tokenizer = load_tokenizer(bundle.require("tokenizer").path)
    return TextEncoder(load_t5(bundle.require("text_encoder"), dtype, device), tokenizer, text_len)
