"""Conversion of a SentencePiece model file, all that ``transformers`` 5 writes for SigLIP, to a ``tokenizer.json``.

The file is a protocol buffer (``sentencepiece_model.proto``), of which three parts matter: the pieces with their
scores, how text is normalised, and what stands for the unknown. What SigLIP does before is in its authors' big_vision:
lower case, no punctuation, single spaces.
"""

from __future__ import annotations

import string
import struct
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from hivlp.errors import ModelError

SPACE = "▁"
# Numbers of fields and types in sentencepiece_model.proto.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, KIND = 1, 2, 3
UNKNOWN = 2  # of the kinds of pieces
MODEL_KIND, UNIGRAM = 3, 1
CHARACTER_MAP = 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
END = "</s>"

Fields = dict[int, list[int | bytes]]


def convert_sentencepiece(path: Path) -> Tokenizer:
    """A tokenizer that gives the ids of ``SiglipTokenizer``, texts being lower-cased already.

    Only texts that spell out ``</s>``, ``<unk>`` or the sign for a space may be split otherwise.

    Raises:
        ModelError: if the file is not a unigram model of sentencepiece that knows ``</s>``.
    """
    try:
        whole = _fields(path.read_bytes())
        pieces: list[tuple[str, float]] = []
        unknown = end = None
        for raw in whole.get(PIECES, []):
            fields = _fields(_bytes(raw))
            piece = _bytes(fields[PIECE][0]).decode("utf-8")
            kind = fields.get(KIND, [1])[0]
            if kind == UNKNOWN:
                unknown = len(pieces)
            if piece == END:
                end = len(pieces)
            pieces.append((piece, struct.unpack("<f", _bytes(fields.get(SCORE, [b"\0\0\0\0"])[0]))[0]))
        trainer = _fields(_bytes(whole.get(TRAINER, [b""])[0]))
        if trainer.get(MODEL_KIND, [UNIGRAM])[0] != UNIGRAM:
            raise ValueError("not a unigram model")
        if unknown is None or end is None:
            raise ValueError(f"no unknown piece, or no {END}")
        characters = _bytes(_fields(_bytes(whole.get(NORMALIZER, [b""])[0])).get(CHARACTER_MAP, [b""])[0])
        tokenizer = Tokenizer(models.Unigram(pieces, unknown, False))
    except (OSError, ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read as a sentencepiece model: {error}") from error
    punctuation = Regex("[" + "".join(f"\\{sign}" for sign in string.punctuation) + "]")
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(SPACE, " "),
            normalizers.Replace(punctuation, ""),
            *([normalizers.Precompiled(characters)] if characters else []),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always", split=False)
    special = (END, pieces[unknown][0])
    tokenizer.add_special_tokens([AddedToken(piece, lstrip=True, rstrip=True, normalized=False) for piece in special])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    return tokenizer


def _fields(data: bytes) -> Fields:
    """Number -> values of a message, each an integer or bytes.

    Raises:
        ValueError: if it is not one.
    """
    fields: Fields = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        value: int | bytes
        if kind == VARINT:
            value, at = _varint(data, at)
        else:
            if kind == BYTES:
                length, at = _varint(data, at)
            elif kind in (FIXED64, FIXED32):
                length = 8 if kind == FIXED64 else 4
            else:
                raise ValueError(f"no field of type {kind}")
            value = data[at : at + length]
            if len(value) != length:
                raise ValueError("it ends early")
            at += length
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and where it ends."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise ValueError("it ends early")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where there should be text")
    return value
