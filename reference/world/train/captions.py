"""The drawn world's text encoder: a tokenizer and a tiny UMT5, both trained on its captions.

The encoder learns what a caption says of each word: which word it is, where the person it belongs
to stands, and how it moves. Linear read-outs ask for that while training and are thrown away.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumosx_rt.reference.world.story import CENTRES, MOTIONS, THING_CENTRES, Story, story

TEXT_LEN = 80
TEXT_DIM = 64
VOCABULARY = 256
PAD, END = 0, 1
PLACES = sorted({c for places in (*CENTRES.values(), *THING_CENTRES.values()) for c in places})
UNASKED = -100


def train_tokenizer(captions: Iterator[str] | list[str]) -> Any:
    """A tokenizer of transformers in UMT5's manner: pad id 0, and end id 1 after every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    inner.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>", "<unk>"],
        show_progress=False,
    )
    inner.train_from_iterator(captions, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", END)]
    )
    build: Any = PreTrainedTokenizerFast
    return build(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def new_text_encoder(seed: int = 0) -> Any:
    """An untrained UMT5 encoder, 0.2 million weights."""
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UMT5EncoderModel(
            UMT5Config(
                vocab_size=VOCABULARY,
                d_model=TEXT_DIM,
                d_kv=16,
                d_ff=160,
                num_layers=3,
                num_heads=4,
                dropout_rate=0.0,
            )
        )


def train_text_encoder(
    model: Any,
    tokenizer: Any,
    steps: int = 800,
    seed: int = 0,
    learning_rate: float = 3e-3,
    progress: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> None:
    """Train in place, on 64 captions a step."""
    torch.manual_seed(seed)
    readouts = nn.ModuleList(
        nn.Linear(TEXT_DIM, n) for n in (VOCABULARY, len(PLACES), len(MOTIONS))
    )
    parameters = [*model.parameters(), *readouts.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 50, (steps - step) / (0.5 * steps))
        told = [story((step * 64 + i) % 6000, 1 + (step + i) % 4) for i in range(64)]
        ids, places, motions = _questions(told, tokenizer)
        hidden = model(input_ids=ids, attention_mask=(ids != PAD).long()).last_hidden_state
        asked = torch.where(ids == PAD, UNASKED, ids)
        losses = [
            F.cross_entropy(readout(hidden).transpose(1, 2), answers, ignore_index=UNASKED)
            for readout, answers in zip(readouts, (asked, places, motions), strict=True)
        ]
        optimizer.zero_grad(set_to_none=True)
        sum(losses, torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        names = ("word", "place", "motion")
        progress(step, {n: float(v.detach()) for n, v in zip(names, losses, strict=True)})
    model.requires_grad_(False).eval()


def _questions(told: list[Story], tokenizer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, and for each token that spells an entity, its place and its motion."""
    shape = (len(told), TEXT_LEN)
    ids = np.full(shape, PAD)
    places, motions = np.full(shape, UNASKED), np.full(shape, UNASKED)
    for row, one in enumerate(told):
        found = tokenizer(one.caption, truncation=True, max_length=TEXT_LEN).input_ids
        ids[row, : len(found)] = found
        start = 0
        for person in one.people:
            for word in (person.word, *(a.word for a in person.attributes)):
                start = _find(ids[row], tokenizer(word).input_ids[:-1], start)
                places[row, start] = PLACES.index(person.centre)
                motions[row, start] = MOTIONS.index(person.motion)
                start += 1
        if one.thing_word is not None:
            start = _find(ids[row], tokenizer(one.thing_word).input_ids[:-1], start)
            places[row, start] = PLACES.index(one.thing_centre)
    return torch.from_numpy(ids), torch.from_numpy(places), torch.from_numpy(motions)


def _find(ids: "np.ndarray[Any, Any]", word: list[int], start: int) -> int:
    """Where a word stands next: the index of its last token."""
    for at in range(start, len(ids) - len(word) + 1):
        if ids[at : at + len(word)].tolist() == word:
            return at + len(word) - 1
    raise ValueError(f"word {word} not found after {start}")
