"""Text and its fusion with speech: trained on training speakers, weighted on validation speakers."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, classifier, seal_again, write_noise_corpus
from transformers import BertConfig, BertModel, BertTokenizer

from gmp_utils import GmpError
from gmp_utils.evaluation import collect, metrics
from gmp_utils.runs.experiments import SYSTEM_NAMES
from gmp_utils.runs.files import read_json
from gmp_utils.stages import text_fusion
from gmp_utils.stages.baselines import Fold

WORDS = {"angry": "go away now", "happy": "what a day", "neutral": "the door is", "sad": "no more"}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory, tiny_encoder):
    """A run of noises, which no network can classify, with words, which can be classified; and a network."""
    run = write_noise_corpus(tmp_path_factory.mktemp("spoken") / "run")
    stage = run / "01_prepare_data"
    manifest = pd.read_parquet(stage / "manifest.parquet")
    odd = manifest.utterance.str.endswith("9")
    manifest["text"] = manifest.emotion.map(WORDS).where(~odd, "hm hm")
    manifest.to_parquet(stage / "manifest.parquet", index=False)
    seal_again(stage)
    return run, classifier(run, tiny_encoder, schedule=QUICK)


def test_the_speech_weight_is_the_best_one_and_among_ties_nearest_to_a_half():
    true = np.array([0, 1, 0, 1])
    right, wrong = np.eye(2)[true], np.eye(2)[1 - true]
    fold = SimpleNamespace(corpus=SimpleNamespace(protocol=SimpleNamespace(selection="validation")))
    fold.uar = lambda scores: metrics.uar(true, scores.argmax(axis=1))

    def best(speech, text):
        weights = text_fusion.SPEECH_WEIGHTS
        return Fold.select(fold, lambda w: w * speech + (1 - w) * text, weights, 0.5)[0]

    assert best(right, wrong) == pytest.approx(0.55)
    assert best(wrong, right) == pytest.approx(0.45)
    assert best(right, right) == 0.5


@pytest.mark.parametrize("kind", text_fusion.TEXT_KINDS)
def test_words_are_classified_but_noises_are_not(spoken, kind):
    run, network = spoken
    stage = text_fusion.fuse(str(run), 1, kind=kind, speech=network)
    fused = pd.read_parquet(stage / "predictions.parquet").query("part == 'test'")
    alone = pd.read_parquet(network / "predictions.parquet").query("part == 'test'")
    assert fused.utterance.tolist() == alone.utterance.tolist()
    assert metrics.uar(alone.true, alone.predicted) < 0.6
    assert metrics.uar(fused.true, fused.predicted) > 0.85
    if kind == "late-fusion":
        assert read_json(stage / "metrics.json")["speech_weight"] < 0.6


def test_fusions_are_rows_of_the_table(spoken):
    run, network = spoken
    for kind in text_fusion.TEXT_KINDS:
        text_fusion.fuse(str(run), 1, kind=kind, speech=network)
    names = {"CE", *(SYSTEM_NAMES[kind] for kind in text_fusion.TEXT_KINDS)}
    assert set(collect.collect(str(run)).system) == names
    table = collect.training_costs(str(run)).set_index("system")
    assert (table.parameters > 0).all()
    seconds = table.training_seconds
    assert seconds[SYSTEM_NAMES["late-fusion"]] > seconds["CE"]


def test_impossible_fusions_are_rejected(tmp_path, spoken):
    silent, run = str(write_noise_corpus(tmp_path / "run")), str(spoken[0])
    with pytest.raises(GmpError, match=r"1f0 has no text \(72 such of 72\)"):
        text_fusion.fuse(silent, 1, kind="text", speech=spoken[1])
    for settings, message in (
        ((run, ["early"], "tf-idf", ["ce"]), "text 'early': expected one of text"),
        ((run, ["text"], "tf-idf", []), "there is no network to fuse it with"),
        ((silent, ["text"], "tf-idf", ["ce"]), "has no text"),
        ((run, ["text"], "./nowhere", ["ce"]), "no such folder"),
    ):
        with pytest.raises(GmpError, match=message):
            text_fusion.check_text(*settings)
    text_fusion.check_text(silent, [], "tf-idf", [])


def test_words_of_other_speakers_do_not_change_the_training_features():
    texts, train = ["one two", "two three", "three one", "four five"], [0, 1, 2]
    first = text_fusion.tfidf(texts, train)
    other = text_fusion.tfidf([*texts[:3], "six one"], train)
    assert (first[train] != other[train]).nnz == 0
    assert first[3].nnz == 0
    assert other[3].nnz == 1
    topics = [text_fusion.topics(words, train, 0)[train] for words in (first, other)]
    np.testing.assert_array_equal(*topics)


def test_a_text_encoder_is_averaged_over_its_own_tokens(tmp_path):
    """In a batch and alone, with and without padding. Float32 sums are in another order."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "go", "away", "now", "what"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    texts = ["go away now", "what"]
    embedded = text_fusion.embed(texts, str(tmp_path))
    assert embedded.shape == (2, 16)
    with torch.no_grad():
        states = model(torch.tensor([[2, 8, 3]])).last_hidden_state
    np.testing.assert_allclose(embedded[1], states[0].mean(dim=0), atol=1e-5)
