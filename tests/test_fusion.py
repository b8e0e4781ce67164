"""Text beside speech: learnt from training speakers, weighed on validation speakers."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, SMALL, seal_again, write_noise_corpus
from transformers import BertConfig, BertModel, BertTokenizer

from gmp_utils import GmpError, classifiers, costs, evaluation, finetuning, fusion, runs

WORDS = {"angry": "go away now", "happy": "what a day", "neutral": "the door is", "sad": "no more"}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory, tiny_encoder):
    """A run of noises that no network can tell apart, with words that can be; and a network."""
    run = write_noise_corpus(tmp_path_factory.mktemp("spoken") / "run")
    stage = run / "01_prepare_data"
    manifest = pd.read_parquet(stage / "manifest.parquet")
    odd = manifest.utterance.str.endswith("9")
    manifest["text"] = manifest.emotion.map(WORDS).where(~odd, "hm hm")
    manifest.to_parquet(stage / "manifest.parquet", index=False)
    seal_again(stage)
    network = finetuning.finetune(
        str(run), 1, str(tiny_encoder), "ce", QUICK, use_gmps=False, network=SMALL
    )
    return run, network


def test_the_weight_is_the_best_and_of_equals_the_nearest_to_a_half():
    true = np.array([0, 1, 0, 1])
    right, wrong = np.eye(2)[true], np.eye(2)[1 - true]
    assert fusion.weight_of_speech(right, wrong, true) == pytest.approx(0.55)
    assert fusion.weight_of_speech(wrong, right, true) == pytest.approx(0.45)
    assert fusion.weight_of_speech(right, right, true) == 0.5


@pytest.mark.parametrize("kind", fusion.KINDS)
def test_words_tell_what_noises_do_not(spoken, kind):
    run, network = spoken
    stage = fusion.fuse(str(run), 1, kind, network)
    found = pd.read_parquet(stage / "predictions.parquet").query("part == 'test'")
    alone = pd.read_parquet(network / "predictions.parquet").query("part == 'test'")
    assert found.utterance.tolist() == alone.utterance.tolist()
    assert evaluation.uar(alone.true, alone.predicted) < 0.6
    assert evaluation.uar(found.true, found.predicted) > 0.85
    if kind == "late-fusion":
        assert runs.read_json(stage / "metrics.json")["weight of speech"] < 0.6


def test_fusions_are_rows_of_the_table(spoken):
    run, network = spoken
    for kind in fusion.KINDS:
        fusion.fuse(str(run), 1, kind, network)
    names = {"CE", *(evaluation.LOSS_NAMES[kind] for kind in fusion.KINDS)}
    assert set(classifiers.collect(str(run)).loss) == names
    table = costs.costs(str(run)).set_index("loss")
    assert (table.parameters > 0).all()
    assert table.seconds[evaluation.LOSS_NAMES["late-fusion"]] > table.seconds["CE"]


def test_what_cannot_be_fused_is_said(tmp_path, spoken):
    run = write_noise_corpus(tmp_path / "run")
    with pytest.raises(GmpError, match=r"1f0 has no text \(72 such of 72\)"):
        fusion.fuse(str(run), 1, "text", spoken[1])
    with pytest.raises(GmpError, match="text: found 'early', expected some of text, late-fusion"):
        fusion.fuse(str(spoken[0]), 1, "early", spoken[1])
    with pytest.raises(GmpError, match="found 'early'"):
        fusion.check(str(spoken[0]), ["early"], "tf-idf", ["ce"])
    with pytest.raises(GmpError, match="there is no network to join it with"):
        fusion.check(str(spoken[0]), ["text"], "tf-idf", [])
    with pytest.raises(GmpError, match="has no text"):
        fusion.check(str(run), ["text"], "tf-idf", ["ce"])
    with pytest.raises(GmpError, match=r"encoder '\./nowhere': no such folder"):
        fusion.check(str(spoken[0]), ["text"], "./nowhere", ["ce"])
    fusion.check(str(run), [], "tf-idf", [])


def test_words_of_held_out_speakers_shape_nothing():
    texts, heard = ["one two", "two three", "three one", "four five"], [0, 1, 2]
    known = fusion._tfidf(texts, heard)
    other = fusion._tfidf([*texts[:3], "six one"], heard)
    assert (known[heard] != other[heard]).nnz == 0
    assert known[3].nnz == 0
    assert other[3].nnz == 1
    topics = [fusion._topics(words, heard, 0)[heard] for words in (known, other)]
    np.testing.assert_array_equal(*topics)
    with pytest.raises(GmpError, match="no words in the training speakers' transcripts"):
        fusion._tfidf(["", "", "", "what"], heard)


def test_a_text_encoder_is_averaged_over_its_own_tokens(tmp_path):
    """Together and alone, padding or not: float32 sums in another order."""
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
    found = fusion.embed(texts, str(tmp_path))
    assert found.shape == (2, 16)
    with torch.no_grad():
        states = model(torch.tensor([[2, 8, 3]])).last_hidden_state
    np.testing.assert_allclose(found[1], states[0].mean(dim=0), atol=1e-5)
