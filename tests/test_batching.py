from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.data.ragged import Ragged
from gmp_utils.runs import hardware
from gmp_utils.training import batching
from gmp_utils.training.batching import DurationBatchSampler, Masking, Utterances, collate


@pytest.mark.parametrize("n_frames", [1, 2, 5, 9, 10, 11, 49, 499])
def test_masks_stay_inside_and_exist(n_frames):
    masking = Masking(0.8, 10)
    for seed in range(20):
        mask = masking.draw(n_frames, np.random.default_rng(seed))
        assert mask.shape == (n_frames,)
        assert mask.any()


def test_masked_prediction_needs_masks():
    with pytest.raises(GmpError, match=r"mask_probability: found 0\.0, expected above 0"):
        Masking(0.0, 10)


def test_masks_need_no_pseudo_labels(noise_corpus):
    """Masks have as many frames as the CNN's output, and as many features as the model."""
    corpus = open_corpus(str(noise_corpus))
    names = corpus.waveforms.utterances[:4]
    dataset = Utterances(corpus.waveforms, names, None, None, Masking(0.5, 5), hidden_size=100)
    for index, name in enumerate(names):
        item = dataset[index]
        assert len(item["mask"]) == (corpus.waveforms.lengths[name] - 400) // 320 + 1
        assert item["feature_mask"].shape == (100,)
        assert item["feature_mask"].sum() == 64  # one span
    plain = Utterances(corpus.waveforms, names, None, None, Masking(0.5, 5))
    assert set(plain[0]) == {"inputs", "mask"}


def test_masked_share_is_huberts():
    """With 0.8 / 10, fairseq and transformers both mask 0.566 to 0.589 of the frames."""
    rng = np.random.default_rng(0)
    share = np.mean([Masking(0.8, 10).draw(300, rng).mean() for _ in range(500)])
    assert share == pytest.approx(0.57, abs=0.015)
    mask = Masking(0.05, 10, min_spans=1).draw(200, np.random.default_rng(3))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    assert len(edges) > 0
    assert ((edges[1::2] - edges[::2]) >= 10).all()


def ragged_frames(lengths):
    names = [f"u{index}" for index in range(len(lengths))]
    values = np.arange(sum(lengths) * 2, dtype=np.float32).reshape(-1, 2)
    labels = Ragged(np.zeros((sum(lengths), 3), np.int32), dict(zip(names, lengths)))
    return Ragged(values, labels.lengths), labels


def test_padding_is_never_masked():
    lengths = [30, 12, 4, 1]
    frames, labels = ragged_frames(lengths)
    dataset = Utterances(frames, frames.utterances, None, labels, Masking(0.8, 10))
    batch = collate([dataset[index] for index in range(len(lengths))])
    assert batch["lengths"].tolist() == lengths
    assert batch["mask"].any(dim=1).all()
    padding = torch.arange(30) >= batch["lengths"][:, None]
    assert padding.any()
    assert not (batch["mask"] & padding).any()
    assert (batch["inputs"][padding] == 0).all()


def test_masks_depend_on_seed_epoch_and_utterance_only():
    frames, labels = ragged_frames([40, 40])

    def masks(seed, epoch):
        dataset = Utterances(frames, frames.utterances, None, labels, Masking(0.5, 5), seed)
        first = 2 * epoch
        return [dataset[first + 1]["mask"].tolist(), dataset[first]["mask"].tolist()]

    assert masks(0, 0) == masks(0, 0)
    assert masks(0, 0) != masks(0, 1)
    assert masks(0, 0) != masks(1, 0)
    assert masks(0, 0)[0] != masks(0, 0)[1]


def test_waveforms_are_normalized_before_padding():
    rng = np.random.default_rng(0)
    values = (rng.normal(500, 100, 900)).astype(np.int16)
    waveforms = Ragged(values, {"a": 600, "b": 300})
    dataset = Utterances(waveforms, ["a", "b"])
    batch = collate([dataset[0], dataset[1]])
    for row, length in zip(batch["inputs"], (600, 300)):
        assert row[:length].mean().abs() < 1e-5
        assert row[:length].std(unbiased=False) == pytest.approx(1, abs=1e-5)
    assert (batch["inputs"][1, 300:] == 0).all()


def test_batches_on_the_gpu_are_the_same(monkeypatch):
    """Tested without a GPU: tensors are sliced and padded like arrays."""
    frames, labels = ragged_frames([30, 12, 40])
    monkeypatch.setattr(hardware, "device", lambda: "cpu")
    monkeypatch.setattr(hardware, "fits", lambda n_bytes: False)
    assert batching.to_gpu_if_it_fits(frames) is frames
    monkeypatch.setattr(hardware, "fits", lambda n_bytes: True)
    placed = batching.to_gpu_if_it_fits(frames)
    assert torch.is_tensor(placed.values)
    batches = [
        collate([Utterances(inputs, ["u2", "u1"], None, labels)[index] for index in range(2)])
        for inputs in (frames, placed)
    ]
    assert batches[0].keys() == {"lengths", "inputs", "frame_labels"}
    torch.testing.assert_close(*batches, rtol=0, atol=0)
    waveforms = Ragged(np.zeros(24000, np.int16), {"a": 16000, "b": 8000})
    assert batching.to_gpu_if_it_fits(waveforms) is waveforms


def test_seconds_count_samples_and_frames():
    waveforms = Ragged(np.zeros(24000, np.int16), {"a": 16000, "b": 8000})
    assert Utterances(waveforms, ["b", "a"]).seconds.tolist() == [0.5, 1.0]
    frames = Ragged(np.zeros((75, 4), np.float32), {"a": 50, "b": 25})
    assert Utterances(frames, ["a", "b"]).seconds.tolist() == [1.0, 0.5]


def lognormal_lengths(n, mean=1.3, spread=0.65):
    """IEMOCAP-like: mean 4.6 s."""
    seconds = np.random.default_rng(0).lognormal(mean, spread, n).clip(0.6, 30)
    return SimpleNamespace(seconds=seconds)


@pytest.mark.parametrize(
    "lengths, budget, size", [((340, 0.96, 0.35), 60, 8), ((4300,), 320, 64), ((12000,), 200, 64)]
)
def test_batches_have_each_utterance_once_within_the_limit_with_little_padding(
    lengths, budget, size
):
    """EmoDB's size and mean (2.8 s) with the demo's batches, IEMOCAP's with the paper's, and more."""
    dataset, n = lognormal_lengths(*lengths), lengths[0]
    sampler = DurationBatchSampler(dataset, budget, max_utterances=size)
    batches = list(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(n))
    assert len(batches) == len(sampler)
    padded = [len(batch) * dataset.seconds[batch].max() for batch in batches]
    assert max(padded) <= budget
    assert max(map(len, batches)) <= size
    assert 1 - dataset.seconds.sum() / sum(padded) < 0.05


def test_epochs_differ_seeds_repeat_and_evaluation_keeps_order():
    dataset = lognormal_lengths(300)
    sampler = DurationBatchSampler(dataset, 100, seed=3)
    first = list(sampler)
    assert first == list(DurationBatchSampler(dataset, 100, seed=3))
    sampler.set_epoch(1)
    second = {frozenset(index - 300 for index in batch) for batch in sampler}
    assert len(second & {frozenset(batch) for batch in first}) < len(first) / 2
    assert sorted(sum(sampler, [])) == list(range(300, 600))  # indices continue in the next epoch
    plain = list(DurationBatchSampler(dataset, 100, shuffle=False))
    assert sum(plain, []) == list(range(300))


def test_every_epoch_has_as_many_batches():
    """Trainer expects one number, and an epoch with more batches would lose the rest."""
    dataset = lognormal_lengths(300)
    sampler = DurationBatchSampler(dataset, 40, seed=3)
    plain = set()
    for epoch in range(8):
        sampler.set_epoch(epoch)
        plain.add(len(list(sampler)))
    assert len(plain) > 1
    sampler.fix_batches_per_epoch(8)
    for epoch in range(8):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == max(plain)
        assert sorted(sum(batches, [])) == list(range(300 * epoch, 300 * epoch + 300))
