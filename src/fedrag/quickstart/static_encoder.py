"""A retriever's encoder from nothing: word pieces of the training text, with a random vector each.

No weights are downloaded and none were trained elsewhere, so whatever such an encoder finds after training, it has
learned in that training. Small, fast on a CPU, and no match for a pre-trained model.

>>> encoder = static_encoder(["Paris lies on the Seine.", "Rome lies on the Tiber."], width=8)
>>> encoder.encode(["Which river?"]).shape
(1, 8)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from fedrag.errors import InputError


def static_encoder(
    texts: Sequence[str], *, width: int = 256, vocabulary: int = 8000, seed: int = 0, idf: bool = False
) -> SentenceTransformer:
    """An encoder with nothing pre-trained: random vectors of the word pieces of `texts`, averaged over a text.

    The same texts and seed give the same encoder, to the bit.

    Args:
        texts: what the word pieces are learned from; only training text, or the test is no longer unseen.
        width: of the vectors.
        vocabulary: number of word pieces.
        seed: of the vectors.
        idf: make a vector the longer, the fewer of the `texts` hold its word piece. The untrained encoder then ranks
            much like TF-IDF; without, training has to find out by itself that "the" says little.

    Encoder: sentence-transformers' `StaticEmbedding`. Raises `InputError` when there is no text.
    """
    if not texts:
        raise InputError("the encoder's word pieces are learned from texts, got none")
    pieces = _word_pieces(texts, vocabulary)
    vectors = torch.randn(pieces.get_vocab_size(), width, generator=torch.Generator().manual_seed(seed))  # [v, d]
    if idf:
        held = Counter(id for encoding in pieces.encode_batch(texts) for id in set(encoding.ids))
        rarity = torch.tensor([math.log1p(len(texts) / (held[id] + 1)) for id in range(len(vectors))])  # [v]
        vectors *= (rarity / rarity.mean()).unsqueeze(1)
    return SentenceTransformer(modules=[StaticEmbedding(pieces, embedding_weights=vectors)], device="cpu")


def _word_pieces(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Lower-cased WordPiece, the same at every run.

    The trainer numbers the inner characters ("##a") in the random order of a hash table and breaks ties by number, so
    that two runs differ. Named beforehand as special tokens they keep their order; the tokenizer that is returned
    knows them as plain pieces again.
    """
    lower = normalizers.Lowercase()
    characters = sorted({char for text in texts for char in lower.normalize_str(text) if not char.isspace()})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=["[PAD]", "[UNK]", *(f"##{char}" for char in characters)],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    trained = _lower_cased(models.WordPiece(unk_token="[UNK]"))
    trained.train_from_iterator(texts, trainer)
    return _lower_cased(models.WordPiece(vocab=trained.get_vocab(), unk_token="[UNK]"))


def _lower_cased(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return tokenizer
