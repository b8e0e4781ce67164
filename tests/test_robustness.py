"""Altered recordings: each alteration by itself, and classifiers under all of them."""

import io

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import classifier, write_noise_corpus
from scipy import signal

from gmp_utils import GmpError
from gmp_utils.data.corpus import open_corpus
from gmp_utils.evaluation import tables
from gmp_utils.runs.files import read_json
from gmp_utils.stages import baselines, publish, robustness
from gmp_utils.stages.robustness import CONDITIONS

RATE = 16000


def alter(condition: str, waveform: np.ndarray) -> np.ndarray:
    return CONDITIONS[condition](waveform, np.random.default_rng(1))


def band_level(waveform: np.ndarray, low: float, high: float) -> float:
    """Mean power density of a band, in dB."""
    frequencies, power = signal.welch(waveform, RATE, nperseg=1024)
    return 10 * np.log10(power[(frequencies >= low) & (frequencies <= high)].mean())


@pytest.fixture
def speech() -> np.ndarray:
    """Two seconds of noise with the spectral slope of speech, at a fifth of full scale."""
    noise = np.random.default_rng(0).normal(size=2 * RATE)
    filtered = signal.sosfilt(signal.butter(1, 1000, fs=RATE, output="sos"), noise)
    return 0.2 * filtered / np.abs(filtered).max()


@pytest.mark.parametrize("snr", [20, 10, 5])
def test_noise_has_its_level_and_is_white(speech, snr):
    added = alter(f"noise, {snr} dB", speech) - speech
    found = 10 * np.log10(np.sum(speech**2) / np.sum(added**2))
    assert found == pytest.approx(snr, abs=0.1)
    # A band of 2 kHz is averaged over 128 bins and 61 windows, so random deviations are below 0.1 dB.
    assert band_level(added, 0, 2000) == pytest.approx(band_level(added, 6000, 8000), abs=0.5)


def test_echoes_decay_by_60_db_in_half_a_second():
    """From the slope of the response's backward-integrated energy (Schroeder, 1965), −5 to −35 dB."""
    response = alter("reverberation", np.eye(1, RATE)[0])
    direct, echo = response[0], response[1:]
    assert direct == pytest.approx(1)
    assert np.sum(echo**2) == pytest.approx(1)
    remaining = 10 * np.log10(np.cumsum(echo[: RATE // 2 - 1][::-1] ** 2)[::-1])
    part = (remaining < -5) & (remaining > -35)
    slope, _ = np.polyfit(np.flatnonzero(part) / RATE, remaining[part], 1)
    assert -60 / slope == pytest.approx(0.5, abs=0.03)


def test_a_telephone_keeps_its_band():
    noise = np.random.default_rng(0).normal(size=10 * RATE)
    filtered = alter("telephone", noise)
    for low, high in ((400, 1000), (1000, 2000), (2000, 3200)):
        assert band_level(filtered, low, high) == pytest.approx(band_level(noise, low, high), abs=1)
    for low, high in ((0, 150), (5000, 8000)):
        assert band_level(filtered, low, high) < band_level(noise, low, high) - 30


def test_levels_are_those_of_16_bits(speech):
    np.testing.assert_allclose(alter("20 dB quieter", speech), speech / 10, atol=0.5 / 32767)
    louder = alter("20 dB louder", speech)
    np.testing.assert_allclose(louder, (10 * speech).clip(-1, 1), atol=0.5 / 32767)
    assert np.mean(np.abs(louder) == 1) > 0.01


def test_mp3_is_neither_shifted_nor_cut(speech):
    decoded = alter("MP3", speech)
    assert len(decoded) == len(speech)
    correlation = signal.correlate(decoded, speech, "same")
    assert correlation.argmax() == len(speech) // 2
    assert 0.9 < np.corrcoef(decoded, speech)[0, 1] < 0.9999
    file = io.BytesIO()
    rate = {"bitrate_mode": "CONSTANT", "compression_level": robustness.MP3_COMPRESSION}
    soundfile.write(file, np.tile(speech, 10), RATE, format="MP3", **rate)
    assert len(file.getvalue()) * 8 / 20 == pytest.approx(24000, rel=0.02)


def test_a_run_without_networks_and_probes_is_rejected(tmp_path):
    run = str(write_noise_corpus(tmp_path / "run"))
    baselines.classify(run, 1, baseline="majority")
    with pytest.raises(GmpError, match="robustness: found no network and no probe"):
        robustness.classify_altered(run)


def test_networks_and_probes_are_tested_under_all_conditions(tmp_path, tiny_encoder):
    run, encoder = write_noise_corpus(tmp_path / "run"), str(tiny_encoder)
    stages = {"CE": classifier(run, encoder)}
    for name, system in (("probe", "probe of the untouched encoder"), ("majority", "majority")):
        stages[system] = baselines.classify(str(run), 1, baseline=name, encoder=encoder)
    table = pd.read_parquet(robustness.classify_altered(str(run)) / "predictions.parquet")
    assert table.variant.unique().tolist() == list(CONDITIONS)
    assert set(table.system) == {"no GMPs, CE", "no GMPs, probe of the untouched encoder"}
    assert len(table) == 2 * len(CONDITIONS) * 24
    for system in ("CE", "probe of the untouched encoder"):
        before = pd.read_parquet(stages[system] / "predictions.parquet").query("part == 'test'")
        same = table[table.system == f"no GMPs, {system}"].set_index(["variant", "utterance"])
        agreement = {
            condition: (
                same.predicted[condition][before.utterance].array == before.predicted
            ).mean()
            for condition in CONDITIONS
        }
        assert agreement["clean"] == 1
        assert agreement["20 dB quieter"] > 0.8  # models normalize levels
    assert len(tables.scores(table)) == 2 * len(CONDITIONS)
    published = publish.publish(stages["CE"])
    card = (published / "model" / "README.md").read_text()
    temperature = read_json(published / "metrics.json")["temperature"]
    for condition in CONDITIONS:
        rows = table[(table.system == "no GMPs, CE") & (table.variant == condition)]
        scores = np.exp(rows[open_corpus(str(run)).emotions].to_numpy() / temperature)
        confidence = (scores / scores.sum(axis=1, keepdims=True)).max(axis=1).mean()
        hit = rows.true == rows.predicted
        recall = hit.groupby(rows.true).mean().mean()
        row = f"| {condition} | {recall:.3f} | {hit.mean():.3f} | {confidence:.3f}"
        if condition == "clean":
            clean_confidence, clean_hit = confidence, hit.mean()
        misleading = confidence > clean_confidence and hit.mean() < clean_hit
        assert row + ("\\* |" if misleading else " |") in card
    corpus = open_corpus(str(run))
    names = corpus.partition(1)["test"]
    waves = robustness.altered(corpus.waveforms, names, "noise, 5 dB")
    assert waves.lengths == {name: corpus.waveforms.lengths[name] for name in names}
    again = robustness.altered(corpus.waveforms, names, "noise, 5 dB")
    np.testing.assert_array_equal(waves.values, again.values)
