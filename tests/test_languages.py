"""Hints to queries in a language that the model does not read."""

import logging

import pytest

from hivlp import HiVLP
from hivlp.hub.languages import foreign, languages_of, readers
from hivlp.index.language_hint import LanguageHint
from synthetic import FakeEncoder


@pytest.mark.parametrize(
    "text",
    ["a dog on a beach", "dog", "café in Zürich", "Rio de Janeiro", "van Gogh", "la la land", "con artist",
     "5 µm scale", "2 dogs 🐕", "naïve art", "the die is cast", "Der Spiegel", ""],
)  # fmt: skip
def test_english_with_its_names_and_loans_is_english(text):
    assert foreign(text, "English") == ""


@pytest.mark.parametrize(
    ("text", "strange"),
    [("собака на пляже", "собака на пляже"), ("a photo of 狗", "狗"), ("ein Hund am Strand", "ein"),
     ("perro en la playa", "en la"), ("un chien sur la plage", "un sur la"), ("cane sulla spiaggia", "sulla")],
)  # fmt: skip
def test_what_is_not_english_is_named(text, strange):
    assert set(foreign(text, "English").split()) == set(strange.split())


def test_a_model_of_many_languages_reads_everything():
    assert foreign("собака", "many") == "" and foreign("ein Hund", "100") == ""


def test_a_model_of_chinese_does_not_read_english():
    assert foreign("a dog", "Chinese") == "a dog" and foreign("一只狗", "Chinese") == ""


def test_languages_are_found_by_short_name_and_by_hub_id_with_a_revision():
    assert languages_of("hivlp-mini") == "English"
    assert (
        languages_of("siglip2-b16:int8") == languages_of("onnx-community/siglip2-base-patch16-224-ONNX@ab12") == "many"
    )
    assert languages_of("owner/unknown") == ""
    assert "siglip2-b16" in readers("English") and "clip-b32" not in readers("English")


def test_the_hint_is_given_once_and_names_models_that_read_it(caplog):
    model, hint = HiVLP.from_pretrained("hivlp-mini"), LanguageHint()
    with caplog.at_level(logging.WARNING):
        hint.look(model, ["a dog"])
        assert not caplog.records
        hint.look(model, ["a dog", "собака"])
        hint.look(model, ["狗"])
    (record,) = caplog.records
    assert "собака" in record.getMessage() and "siglip2-b16" in record.getMessage()


def test_a_model_of_unknown_languages_is_judged_by_its_tokenizer(caplog):
    model, hint = HiVLP.from_pretrained("hivlp-mini"), LanguageHint()
    model.source = "/some/folder"
    assert model.unknown_words("a dog, собака 🐕") == ["собака", "🐕"]
    with caplog.at_level(logging.WARNING):
        hint.look(model, ["dog 🐕"])
        assert not caplog.records
        hint.look(model, ["собака"])
    assert len(caplog.records) == 1


def test_an_encoder_without_a_tokenizer_gets_no_hint(caplog):
    with caplog.at_level(logging.WARNING):
        LanguageHint().look(FakeEncoder(), ["собака"])
    assert not caplog.records
