"""Damaged recordings and tables of labels: listed or rejected with a GmpError, and others unaffected."""

import io
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis.configuration import set_hypothesis_home_dir

from gmp_utils import GmpError
from gmp_utils.data import corpora, waveform_store

pytestmark = pytest.mark.slow
CHECKS = settings(
    max_examples=30,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """Hypothesis keeps files in the current folder, even without a database."""
    folder = tmp_path_factory.mktemp("hypothesis")
    set_hypothesis_home_dir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@st.composite
def damaged(draw, whole):
    """One of some files (bytes): cut, overwritten after its header, or replaced by junk."""
    content = bytearray(draw(st.sampled_from(whole)))
    at = draw(st.integers(0, len(content)))
    damage = draw(st.sampled_from(["cut", "overwrite", "insert", "junk"]))
    if damage == "cut":
        del content[at:]
    elif damage == "overwrite":
        content[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
    elif damage == "insert":
        content[at:at] = draw(st.binary(max_size=40))
    else:
        content[:] = draw(st.binary(max_size=200))
    return bytes(content)


def encoded(samples, rate, kind):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def test_damaged_recordings_are_listed_and_others_are_unaffected(tmp_path):
    """What is readable has the length that the report states."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4410)
    whole = [encoded(noise, 44100, kind) for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF")]
    reference = waveform_store.write_store(write(tmp_path, [whole[0]]), tmp_path / "reference")[0]

    @CHECKS
    @given(st.lists(damaged(whole), min_size=10, max_size=10))
    def decode(contents):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            manifest = write(Path(folder), [whole[0], *contents])
            store, report = waveform_store.write_store(manifest, Path(folder) / "store")
            assert np.array_equal(store["0"], reference["0"])
            for row in report.itertuples():
                if pd.notna(row.unreadable):
                    assert row.unreadable.startswith(row.path) and not len(store[row.utterance])
                else:
                    assert len(store[row.utterance]) == round(row.seconds * 16000) >= 400

    decode()


def write(folder, contents):
    names = [str(number) for number in range(len(contents))]
    paths = [str(folder / name) for name in names]
    for path, content in zip(paths, contents):
        Path(path).write_bytes(content)
    return pd.DataFrame({"utterance": names, "path": paths})


def test_damaged_tables_are_rejected_or_read(tmp_path):
    """What is read has recordings of the table's folder only, each under a name of its own."""
    table = pd.DataFrame({"path": ["a.wav", "b c.wav"], "speaker": ["1", "é"], "emotion": ["sad", "calm"],
                          "start": [0.0, 1.5], "valence": [1.0, 4.25]})  # fmt: skip
    for name in table.path:
        (tmp_path / name).touch()
    file = tmp_path / "table.csv"
    outcomes = {"read": 0, "rejected": 0}

    @CHECKS
    @given(damaged([table.to_csv(index=False).encode()]))
    def read(content):
        file.write_bytes(content)
        try:
            manifest = corpora.load("table", file)
        except GmpError:
            outcomes["rejected"] += 1
        else:
            assert manifest.utterance.is_unique
            assert set(manifest.path) <= {str(tmp_path / name) for name in table.path}
            outcomes["read"] += 1

    read()
    assert min(outcomes.values()) > 0
