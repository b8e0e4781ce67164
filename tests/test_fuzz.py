"""What nobody asked for, fed to the decoder and the readers of corpora: listed or refused, never a traceback.

Whatever is thrown in, recordings that are fine come out as they do without it.
"""

import io
import os
import re
import struct
import tempfile
import tracemalloc
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import FULL, tried
from hypothesis import HealthCheck, given, settings
from hypothesis.configuration import set_hypothesis_home_dir

from gmp_utils import GmpError
from gmp_utils.data import audio, corpora, waveform_store
from gmp_utils.data.corpora import crema_d, emodb, esd, ravdess, savee, tess

BATCH = 50  # recordings in a store
WORDS = [*(b"1.2.3", b"nan", b"-inf", b"1e999", b"9" * 400, b"../up.wav", b"/etc/hostname", b".."),
         *(b"\n", b"\r", b"\0", b'"', b",", b";", b"\t", b"\xff\xfe", "café".encode())]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """Hypothesis keeps files in the current folder, even without a database; libsndfile one of SD2's."""
    folder = tmp_path_factory.mktemp("hypothesis")
    set_hypothesis_home_dir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def examples(full, short):
    """Settings for so many examples, the same ones each time."""
    return settings(
        max_examples=full if FULL else short,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged(draw, whole):
    """One of some files (bytes), cut, overwritten, spliced with another or filled with junk."""
    content = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 3))):
        at, field = draw(st.integers(0, len(content))), draw(st.integers(0, 99))
        how = draw(st.sampled_from(["cut", "drop", "write", "header", "insert", "splice", "junk"]))
        if how == "cut":
            del content[at:]
        elif how == "drop":
            del content[at : at + field]
        elif how == "write":
            content[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
        elif how == "header":
            number = draw(st.sampled_from([0, 1, 2**16 - 1, 2**31 - 1, 2**31, 2**36, 2**64 - 1]))
            width = draw(st.sampled_from([2, 4, 8]))
            order = draw(st.sampled_from(["little", "big"]))
            content[field : field + width] = (number % 256**width).to_bytes(width, order)
        elif how == "insert":
            content[at:at] = draw(st.one_of(st.binary(max_size=40), st.sampled_from(WORDS)))
        elif how == "splice":
            content[at:] = draw(st.sampled_from(whole))[at + field :]
        else:
            content[:] = draw(st.binary(max_size=200))
    return bytes(content)


def encoded(samples, rate=16000, **how):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **how)
    return file.getvalue()


def every_format():
    """A tenth of a second in all that libsndfile writes."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1600, 2))
    found = []
    for kind in sorted(soundfile.available_formats()):
        for subtype in sorted(soundfile.available_subtypes(kind)):
            for n_channels, rate in ((1, 16000), (2, 44100)):
                try:
                    samples = noise[:, :n_channels]
                    found.append(encoded(samples, rate, format=kind, subtype=subtype))
                except soundfile.LibsndfileError:  # not each subtype, rate and number of channels
                    continue
    assert len(found) > 100
    return found


def store_of(folder, files):
    """Recordings by name, and the store and report of them."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest = pd.DataFrame(
        {"utterance": list(files), "path": [str(folder / name) for name in files]}
    )
    return waveform_store.write_store(manifest, folder / "store")


def test_damaged_recordings_are_listed_and_the_others_are_as_ever(tmp_path):
    """In every format; what is readable has the length and the level that the report says."""
    whole, counts = every_format(), {"files": 0, "unreadable": 0}
    good = {
        "good": encoded(np.random.default_rng(1).uniform(-0.5, 0.5, 22050), 22050, format="WAV")
    }
    alone = store_of(tmp_path, good)[0]["good"]
    endings = st.sampled_from([".wav", ".flac", ".ogg", ".mp3", ".gsm", ""])

    @examples(full=240, short=6)
    @given(st.lists(damaged(whole), min_size=BATCH, max_size=BATCH), endings)
    def decode(contents, ending):
        files = {f"{number}{ending}": content for number, content in enumerate(contents)}
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            store, report = store_of(Path(folder), files | good)
            assert os.path.getsize(f"{folder}/store.npy") < 2**24
            assert np.array_equal(store["good"], alone)
            for row in report.itertuples():
                if pd.notna(row.unreadable):
                    assert row.unreadable.startswith(row.path) and not row.digest
                else:
                    assert len(store[row.utterance]) == round(row.seconds * 16000) >= 400
                    assert 0 <= row.peak <= audio.LOUDEST and len(row.digest) == 16
        counts["files"] += len(contents)
        counts["unreadable"] += int(report.unreadable.notna().sum())

    decode()
    assert counts["files"] == (12_000 if FULL else 300)
    assert 0.2 < counts["unreadable"] / counts["files"] < 0.95
    tried(
        "recording cut, overwritten, spliced or junk, in every format",
        counts["files"],
        f"{counts['unreadable']} listed as unreadable, the rest decoded",
    )


def lying(content, at, layout, value):
    return content[:at] + struct.pack(layout, value) + content[at + struct.calcsize(layout) :]


def test_headers_that_lie_reserve_nothing(tmp_path):
    """Lengths, rates and channels that are not there; what a pipe leaves in a header is no lie."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    wav, flac, silence = (
        encoded(samples, format=kind)
        for samples, kind in ((noise, "WAV"), (noise, "FLAC"), (0 * noise, "FLAC"))
    )
    aiff, au = encoded(noise, format="AIFF"), encoded(noise, format="AU")
    streaminfo = int.from_bytes(flac[18:26], "big") >> 36 << 36  # rate, channels, bits; then length
    lies = {
        "does not say how long": [lying(flac, 18, ">Q", streaminfo)],
        r"1193\.0 h of audio": [lying(flac, 18, ">Q", streaminfo + 2**36 - 1)],
        "18.6 h of audio": [lying(silence, 18, ">Q", streaminfo + 2**30 + 1)],
        "cannot be decoded": [
            *(lying(flac, 18, ">Q", streaminfo + n) for n in (16001, 2**20, 2**30)),
            *(lying(silence, 18, ">Q", streaminfo + n) for n in (16001, 2**20, 2**30)),
            *(lying(wav, 22, "<H", n_channels) for n_channels in (0, 1025, 2**16 - 1)),
            *(lying(wav, 24, "<I", rate) for rate in (0, 2**32 - 1)),
        ],
        r"sampled at \d+ Hz, expected a usual rate.*convert it": [
            lying(wav, 24, "<I", rate) for rate in (1, 3999, 11127, 44101, 400_000, 2**31 - 1)
        ],
        r"cut short, 0\.[45]\d* of 1\.000 s": [wav[:16000], aiff[:16000], au[:16000]],
        "0.0000 s of audio, expected at least": [lying(wav, 40, "<I", 0)],
    }
    told = {f"{why} {n}": why for why, such in lies.items() for n in range(len(such))}
    contents = [content for such in lies.values() for content in such]
    files = {str(number): content for number, content in enumerate(contents)}
    whole = {"wav": wav, "piped": lying(wav, 40, "<I", 2**32 - 1), "silence": silence}
    tracemalloc.start()
    store, report = store_of(tmp_path, files | whole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25 and store.values.nbytes < 2**22
    assert report.unreadable.tail(len(whole)).isna().all()
    assert np.array_equal(store["wav"], store["piped"])
    for reason, why in zip(report.unreadable, told.values()):
        assert re.search(why, reason), reason
    tried("header that lies about length, rate or channels", len(files), "listed as unreadable")


TURN = "[6.2901 - 8.2357]\tSes01F_impro01_F00{}\tneu\t[2.5000, 2.5000, 3.5000]\n"
JUDGED = "UTD-IMPROV-S01A-F01-P-FM0{}.avi; N; A:2.000000; V:3.500000; D:3.000000; N:4.000000;\n"
OWN = pd.DataFrame({"path": ["a.wav", "b/c d.wav"], "speaker": ["1", "é"], "emotion": ["sad", "calm"],
                    "start": [0.0, 1.5], "end": [0.5, None], "valence": [1.0, 4.25]})  # fmt: skip
SPOKEN = ("utterance,speaker,gender,session,emotion,valence,arousal,dominance,text,emotion_start,"
          "emotion_end\n"
          "S1F_1,S1F,female,1,sad,1,2,3,a b,0,1\nS1M_1,S1M,male,1,happy,1,2,3,a,0,1\n")  # fmt: skip
PODCAST = ("FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n"
           "MSP_1.wav,H,5.2,4.8,4.4,127,Female,Train\nMSP_2.wav,X,3,2,5.5,Unknown,Male,Test1\n")  # fmt: skip
RELEASES = {  # the file of labels, what is in it, and the recordings
    "iemocap": ("Session1/dialog/EmoEvaluation/Ses01F_impro01.txt", [TURN.format(0) + TURN.format(1)],
                [f"Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F00{n}.wav" for n in (0, 1)]),
    "msp_improv": ("Evalution.txt", [JUDGED.format(1) + JUDGED.format(2)],
                   [f"Audio/MSP-IMPROV-S01A-F01-P-FM0{number}.wav" for number in (1, 2)]),
    "msp_podcast": ("Labels/labels_consensus.csv", [PODCAST], ["Audios/MSP_1.wav", "Audios/MSP_2.wav"]),
    "synthetic": ("labels.csv", [SPOKEN], ["wav/S1F_1.wav", "wav/S1M_1.wav"]),
    "table": ("own.csv", [OWN.to_csv(index=False)], OWN.path),
    "table in parquet": ("own.parquet", [OWN.to_parquet(), OWN.to_parquet(compression=None)], OWN.path),
}  # fmt: skip


@pytest.mark.parametrize("release", RELEASES)
def test_damaged_labels_are_refused_or_read(release, tmp_path):
    """What is read has each recording once, labelled or not, and none from elsewhere."""
    corpus, counts = release.split()[0], {"read": 0, "refused": 0}
    file, whole, recordings = RELEASES[release]
    whole = [content if isinstance(content, bytes) else content.encode() for content in whole]
    labels = tmp_path / "corpus" / file
    places = sorted(str(tmp_path / "corpus" / name) for name in recordings)
    for place in (*places, labels, tmp_path / "up.wav"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).touch()
    folder = labels if corpus == "table" else tmp_path / "corpus"

    def load():
        manifest = corpora.load(corpus, folder)
        assert manifest.utterance.is_unique and len(manifest)
        if corpus == "table":
            assert set(manifest.path) <= set(places)
        else:
            assert sorted(manifest.path) == places

    @examples(full=1000, short=15)
    @given(damaged(whole))
    def read(content):
        labels.write_bytes(content)
        try:
            load()
            counts["read"] += 1
        except GmpError as error:
            assert str(error).encode()
            counts["refused"] += 1

    for content in whole:
        labels.write_bytes(content)
        load()
    read()
    assert counts["read"] + counts["refused"] == (1000 if FULL else 15) and counts["refused"]
    tried(f"labels of {release} cut, overwritten or junk", sum(counts.values()),
          f"{counts['refused']} refused, the rest read")  # fmt: skip


BY_NAME = {module.__name__.rpartition(".")[2]: module.NAME
           for module in (crema_d, emodb, esd, ravdess, savee, tess)}  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), max_size=9)
BYTES = (
    st.binary(min_size=1, max_size=9).map(os.fsdecode).filter(lambda name: not {*name} & {*"/\0"})
)


@pytest.mark.parametrize("corpus", BY_NAME)
def test_odd_names_are_listed_or_refused(corpus, tmp_path):
    """Names by a corpus's grammar, nearly so, any text and any bytes: each recording is listed, once."""
    grammar = st.from_regex(BY_NAME[corpus], fullmatch=True)
    near = st.tuples(TEXT, grammar).map("".join)
    names = st.one_of(grammar, near, TEXT.map("{}.wav".format), BYTES.map("{}.wav".format))
    counts = {"read": 0, "refused": 0, "not UTF-8": 0}

    @examples(full=500, short=20)
    @given(st.lists(names, min_size=1, max_size=4, unique=True), TEXT.map("{} below".format))
    def load(names, below):
        text = not any("\udc80" <= letter <= "\udcff" for name in names for letter in name)
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            os.mkdir(os.path.join(folder, below))
            paths = [os.path.join(folder, below, name) for name in names]
            try:
                for path in paths:
                    Path(path).touch()
            except OSError:  # some file systems take UTF-8 only
                return
            try:
                manifest = corpora.load(corpus, folder)
            except GmpError as error:
                assert str(error).encode() and ("not UTF-8" in str(error)) != text
                counts["refused" if text else "not UTF-8"] += 1
            else:
                seen = [path for path in paths if not os.path.basename(path).startswith("._")]
                assert sorted(manifest.path) == sorted(seen) and text
                counts["read"] += 1

    load()
    assert counts["read"] and counts["refused"]
    said = ", ".join(f"{count} {what}" for what, count in counts.items())
    tried(f"recordings named nearly as {corpus} names them", sum(counts.values()), said)
