"""A tiny text encoder, tokenizer and VAE with random weights, for tests and demos.

They have the shapes of the real ones and none of their knowledge. Last layers are scaled
so that latents of ordinary images look like noise of unit size, and so that such noise decodes
to visible colour.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan
    from transformers import UMT5EncoderModel

CONTRAST = 0.4  # standard deviation of decoded noise: colourful, and seldom beyond [-1, 1]


def random_components(seed: int = 0) -> tuple["UMT5EncoderModel", Any, "AutoencoderKLWan"]:
    """Text encoder, tokenizer and VAE: float32, on the CPU, the same for the same seed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return _text_encoder(), byte_tokenizer(), _vae()


def byte_tokenizer() -> Any:
    """A tokenizer of transformers for any text: one id per byte, none merged.

    Ids 0, 1 and 2 are padding, end and unknown; a text begins with a space, so that a word has the
    same ids alone and inside a sentence; the end token comes last.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("<pad>", "</s>", "<unk>")
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate((*special, *symbols))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    build: Any = PreTrainedTokenizerFast
    return build(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _text_encoder() -> "UMT5EncoderModel":
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=259, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    model: Any = UMT5EncoderModel(config)
    found: UMT5EncoderModel = model.eval().requires_grad_(False)
    return found


def _vae() -> "AutoencoderKLWan":
    from diffusers import AutoencoderKLWan

    build: Any = AutoencoderKLWan
    model = build(base_dim=8, dim_mult=[1, 2, 4, 4], num_res_blocks=1).eval().requires_grad_(False)
    _smooth(model.decoder)
    mean, std = torch.tensor(model.config.latents_mean), torch.tensor(model.config.latents_std)
    blobs = torch.rand(4, 3, 5, 6, 6).mul(2).sub(1)
    images = torch.nn.functional.interpolate(blobs, size=(5, 48, 48), mode="trilinear")
    latents = model.encode(images).latent_dist.mode()
    half = model.config.z_dim
    _standardise(model.quant_conv, latents, mean, std, slice(0, half))
    noise = torch.randn(1, half, 3, 12, 12) * std.view(-1, 1, 1, 1) + mean.view(-1, 1, 1, 1)
    # a first look is clamped, so it is taken at a small scale
    model.decoder.conv_out.weight.mul_(0.01)
    pixels = model.decode(noise).sample
    _standardise(model.decoder.conv_out, pixels, torch.zeros(3), torch.full((3,), CONTRAST))
    found: AutoencoderKLWan = model
    return found


def _smooth(decoder: Any) -> None:
    """Turn every 3x3 kernel into a blur (channels stay mixed at random): blobs, not snow."""
    row = torch.tensor([0.25, 0.5, 0.25])
    for conv in decoder.modules():
        weight = getattr(conv, "weight", None)
        if weight is not None and weight.shape[-2:] == (3, 3):
            weight.copy_(weight.sum((-2, -1), keepdim=True) * torch.outer(row, row))


def _standardise(
    conv: Any, seen: Tensor, mean: Tensor, std: Tensor, rows: slice = slice(None)
) -> None:
    """Scale output channels of a convolution whose output was `seen` to a mean and a deviation.

    Factors are rounded, so that the last bits of a machine's arithmetic do not reach the weights.
    """
    channels = seen.transpose(0, 1).flatten(1).double()
    factor = (std.double() / channels.std(1)).float()
    factor = torch.tensor([float(f"{value:.3g}") for value in factor.tolist()])
    shift = mean - factor * channels.mean(1).float()
    shift = torch.tensor([float(f"{value:.3g}") for value in shift.tolist()])
    conv.weight[rows] *= factor.view(-1, 1, 1, 1, 1)
    conv.bias[rows] = conv.bias[rows] * factor + shift
