"""The tokenizers of a small vocabulary of words, and the two text encoders."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from .settings import TEXT_LENGTH, Size

PAD = 0  # of T5; the pipeline's attention mask is 1 on every other token
PUNCTUATION = (",", ".")


def new_t5_tokenizer(words: Sequence[str]) -> T5TokenizerFast:
    """A T5 tokenizer of which every word is one piece."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(mark, -1.0) for mark in PUNCTUATION]
    pieces += [(f"▁{word}", -1.0) for word in sorted(set(words) - set(PUNCTUATION))]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=TEXT_LENGTH)


def new_clip_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """A CLIP tokenizer with as many merges as it takes to make every word one token."""
    trainer = BpeTrainer(
        vocab_size=100_000,
        min_frequency=0,
        show_progress=False,
        initial_alphabet=list(string.ascii_lowercase),
        end_of_word_suffix="</w>",
    )
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = WhitespaceSplit()
    alphabet = [*string.ascii_lowercase, *PUNCTUATION]
    learner.train_from_iterator([*alphabet, *sorted(set(words))], trainer)
    vocabulary, merges = _vocabulary_and_merges(learner.to_str())
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_LENGTH)


def _vocabulary_and_merges(tokenizer_json: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer_json)["model"]
    merges = [
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]
    ]
    return dict(model["vocab"]), merges


def token_ids(tokenizer: T5TokenizerFast | CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """The tokens [N, 32] of captions, padded as the pipelines pad them."""
    return tokenizer(
        list(captions),
        padding="max_length",
        max_length=TEXT_LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids


class WordTable:
    """The tokens that a tokenizer gives to captions of known words, found twenty times faster."""

    def __init__(self, tokenizer: T5TokenizerFast | CLIPTokenizer, words: Sequence[str]) -> None:
        empty = token_ids(tokenizer, [""])[0].tolist()
        before = int(tokenizer.bos_token_id is not None)
        self.first, self.rest = empty[:before], empty[before:]
        self.word = {w: token_ids(tokenizer, [w])[0, before].item() for w in words}

    def ids(self, captions: Sequence[str]) -> Tensor:
        """The tokens [N, 32] of captions, as `token_ids` gives them."""
        rows = [
            [*self.first, *(self.word[word] for word in caption.split()), *self.rest][:TEXT_LENGTH]
            for caption in captions
        ]
        return torch.tensor(rows)


def new_t5(vocabulary: int, size: Size) -> T5EncoderModel:
    """A small T5 encoder. FLUX knows the order of words by its relative positions alone."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=size.t5_width,
            d_kv=size.t5_width // size.t5_heads,
            d_ff=size.t5_inner,
            num_layers=size.t5_layers,
            num_heads=size.t5_heads,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=TEXT_LENGTH,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def new_clip(tokenizer: CLIPTokenizer, size: Size) -> CLIPTextModel:
    """A small CLIP text encoder, whose pooled output is that of the first end token."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.clip_width,
            intermediate_size=4 * size.clip_width,
            projection_dim=size.clip_width,
            num_hidden_layers=size.clip_layers,
            num_attention_heads=size.clip_width // 32,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def drop_captions(ids: Tensor, empty: Tensor, dropped: Tensor) -> Tensor:
    """The tokens with those of dropped captions replaced by the tokens of ""."""
    return torch.where(dropped[:, None], empty, ids)
