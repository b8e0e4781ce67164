"""Loaders on small trees that follow each corpus's grammar, and on the corpora where they are."""

import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import emodb_folder, needs_emodb, tried
from pyarrow import parquet

from gmp_utils import GmpError
from gmp_utils.data import corpora
from gmp_utils.data.ragged import Ragged
from gmp_utils.stages import prepare_data

FOUR = ["angry", "happy", "neutral", "sad"]


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def rows(corpus, folder, *columns, **options):
    """What is known of the utterances that have a label."""
    manifest = corpora.load(corpus, folder, **options).set_index("utterance")
    manifest = manifest[manifest.emotion.notna()]
    return {name: tuple(row) for name, row in manifest[list(columns)].iterrows()}


@pytest.fixture
def iemocap(tmp_path):
    """Two dialogs: the marked actor of the first is the woman, of the second the man."""
    labels = {
        "Ses01F_impro01": [
            ("6.2901 - 8.2357", "Ses01F_impro01_F000", "neu", "2.5000, 2.5000, 3.5000"),
            ("10.0100 - 11.3925", "Ses01F_impro01_M000", "exc", "4.0000, 3.5000, 3.0000"),
        ],
        "Ses05M_script01_1b": [
            ("1.0000 - 2.0000", "Ses05M_script01_1b_F002", "xxx", "2.5000, 3.0000, 2.0000"),
            ("3.0000 - 4.0000", "Ses05M_script01_1b_M001", "ang", "1.5000, 4.0000, 4.5000"),
        ],
    }
    for dialog, turns in labels.items():
        session = tmp_path / f"Session{dialog[4]}"
        text = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        for seconds, turn, label, values in turns:
            text += f"[{seconds}]\t{turn}\t{label}\t[{values}]\n"
            text += "C-E2:\tNeutral;\t()\nC-F1:\tAnger;\t(caf\xe9)\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
            touch(
                session,
                f"sentences/wav/{dialog}/{turn}.wav",
                f"sentences/wav/{dialog}/._{turn}.wav",
            )
        touch(session, f"dialog/EmoEvaluation/Categorical/{dialog}_e2_cat.txt")
        folder = session / "dialog" / "EmoEvaluation"
        (folder / f"{dialog}.txt").write_bytes(text.encode("latin-1"))
        (folder / f"._{dialog}.txt").write_bytes(b"\x00\x05\x16\x07" + text.encode("latin-1"))
        (session / "dialog" / "transcriptions").mkdir()
        said = "".join(
            f"{turn} [{seconds.replace(' ', '')}]: Excuse me.\n" for seconds, turn, *_ in turns
        )
        (session / "dialog" / "transcriptions" / f"{dialog}.txt").write_text(said)
    return tmp_path


def test_iemocap(iemocap, capsys):
    """The talker is in the last field; values are valence, activation, dominance."""
    found = rows("iemocap", iemocap, "speaker", "gender", "session", "emotion", "valence", "arousal",
                 "dominance", "text")  # fmt: skip
    assert found == {
        "Ses01F_impro01_F000":
            ("Ses01F", "female", "1", "neutral", 2.5, 2.5, 3.5, "Excuse me."),
        "Ses01F_impro01_M000":
            ("Ses01M", "male", "1", "happy", 4.0, 3.5, 3.0, "Excuse me."),
        "Ses05M_script01_1b_F002":
            ("Ses05F", "female", "5", "no agreement", 2.5, 3.0, 2.0, "Excuse me."),
        "Ses05M_script01_1b_M001":
            ("Ses05M", "male", "5", "angry", 1.5, 4.0, 4.5, "Excuse me."),
    }  # fmt: skip
    four = corpora.load("iemocap", iemocap, ["angry", "happy"], {"exc": "excited", "neu": "happy"})
    assert four.emotion.tolist() == ["happy", "angry"]
    assert "iemocap: 2 utterances of other emotions are left out" in capsys.readouterr().out
    with pytest.raises(GmpError, match="label_map: found 'anger', expected some of ang, dis, exc"):
        corpora.load("iemocap", iemocap, None, {"anger": "angry"})


def test_iemocap_of_the_wrong_level_or_incomplete(iemocap):
    with pytest.raises(GmpError, match="no recording is named as iemocap"):
        corpora.load("iemocap", iemocap.parent)
    with pytest.raises(GmpError, match="no recording is named as iemocap"):
        corpora.load("iemocap", iemocap / "Session1")
    lost = iemocap / "Session5/sentences/wav/Ses05M_script01_1b/Ses05M_script01_1b_M001.wav"
    lost.unlink()
    with pytest.raises(GmpError, match=r"M001\.wav: not there"):
        corpora.load("iemocap", iemocap)


def test_crema_d(tmp_path):
    touch(tmp_path, "AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_IEO_SAD_HI.wav",
          "AudioWAV/._1001_DFA_ANG_XX.wav", "AudioWAV/1001_XXX_ANG_XX.wav")  # fmt: skip
    assert rows("crema_d", tmp_path, "speaker", "gender", "emotion", "text") == {
        "1001_DFA_ANG_XX": ("1001", "male", "angry", "DFA"),
        "1002_IEO_SAD_HI": ("1002", "female", "sad", "IEO"),
    }
    from gmp_utils.data.corpora.crema_d import FEMALE

    assert len(FEMALE) == 43


def test_ravdess(tmp_path):
    """Odd actors are men; songs and films have no label here."""
    touch(tmp_path, "Actor_01/03-01-05-02-01-01-01.wav", "Actor_24/03-01-02-01-02-02-24.wav",
          "Actor_01/03-02-05-02-01-01-01.wav", "Actor_01/01-01-05-02-01-01-01.wav")  # fmt: skip
    assert rows("ravdess", tmp_path, "speaker", "gender", "emotion", "text") == {
        "03-01-05-02-01-01-01": ("01", "male", "angry", "01"),
        "03-01-02-01-02-02-24": ("24", "female", "calm", "02"),
    }


@pytest.mark.parametrize("name", ["AudioData/{}/{}.wav", "{}_{}.wav"])
def test_savee(tmp_path, name):
    """Two-letter emotions go before their first letter, in both layouts."""
    touch(tmp_path, *(name.format("DC", code) for code in ("a01", "sa02", "su03", "n30")))
    touch(tmp_path, "AudioData/other/a01.wav")
    assert rows("savee", tmp_path, "speaker", "gender", "emotion") == {
        "DC_a01": ("DC", "male", "angry"),
        "DC_sa02": ("DC", "male", "sad"),
        "DC_su03": ("DC", "male", "surprised"),
        "DC_n30": ("DC", "male", "neutral"),
    }


def test_tess(tmp_path):
    """Labels are in the names, whatever the folder is called."""
    touch(tmp_path, "OAF_Pleasant_surprise/OAF_back_ps.wav", "YAF_sad/YAF_dog_angry.wav")
    assert rows("tess", tmp_path, "speaker", "gender", "emotion", "text") == {
        "OAF_back_ps": ("OAF", "female", "surprised", "back"),
        "YAF_dog_angry": ("YAF", "female", "angry", "dog"),
    }


def test_esd(tmp_path):
    """Both layouts; the emotion is the number's block of 350."""
    touch(tmp_path, "0001/Angry/0001_000351.wav", "0011/Neutral/train/0011_000350.wav",
          "0015/Surprise/0015_001750.wav", "0021/Angry/0021_000351.wav")  # fmt: skip
    assert rows("esd", tmp_path, "speaker", "gender", "emotion", "text") == {
        "0001_000351": ("0001", "female", "angry", "mandarin 1"),
        "0011_000350": ("0011", "male", "neutral", "english 350"),
        "0015_001750": ("0015", "female", "surprised", "english 350"),
    }


def test_msp_improv(tmp_path):
    """Names lose UTD and .avi; activation is turned round."""
    name = "MSP-IMPROV-S01A-F01-P-FM01"
    touch(tmp_path, f"Audio/session1/S01A/P/{name}.wav")
    (tmp_path / "Evalution.txt").write_text(
        "UTD-IMPROV-S01A-F01-P-FM01.avi; N; A:2.000000; V:3.500000; D:3.000000; N:4.000000;\n"
        "P1; Neutral; Neutral; A:2.000000; V:3.000000; D:3.000000; N:4.000000;\n"
    )
    columns = ("speaker", "gender", "session", "emotion", "valence", "arousal", "dominance")
    expected = {name: ("F01", "female", "1", "neutral", 3.5, 4.0, 3.0)}
    assert rows("msp_improv", tmp_path, *columns) == expected
    (tmp_path / "Evalution.txt").rename(tmp_path / "Evaluation.txt")
    assert rows("msp_improv", tmp_path, *columns) == expected
    (tmp_path / "Evaluation.txt").unlink()
    with pytest.raises(GmpError, match=r"no Evalution\.txt"):
        corpora.load("msp_improv", tmp_path)


@pytest.mark.parametrize(("word", "audio"), [("consensus", "Audios"), ("concensus", "Audio")])
def test_msp_podcast(tmp_path, word, audio):
    """Both spellings, a third number, unknown speakers and genders, audio without a label."""
    (tmp_path / "Labels").mkdir()
    (tmp_path / "Labels" / f"labels_{word}.csv").write_text(
        "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n"
        "MSP-PODCAST_0001_0008.wav,H,5.2,4.8,4.4,127,Female,Train\n"
        "MSP-PODCAST_0002_0033_0001.wav,X,3,2,5.5,8,Male,Development\n"
        "MSP-PODCAST_0003_0001.wav,A,3,2,5.5,Unknown,Male,Train\n"
        "MSP-PODCAST_0003_0002.wav,A,3,2,5.5,9,Unknown,Train\n"
    )
    names = ("0001_0008", "0002_0033_0001", "0003_0001", "0003_0002", "0009_0001")
    touch(tmp_path / audio, *(f"MSP-PODCAST_{name}.wav" for name in names))
    columns = ("speaker", "gender", "emotion", "valence", "arousal", "dominance", "split")
    assert rows("msp_podcast", tmp_path, *columns) == {
        "MSP-PODCAST_0001_0008": ("127", "female", "happy", 4.8, 5.2, 4.4, "train"),
        "MSP-PODCAST_0002_0033_0001": ("8", "male", "no agreement", 2.0, 3.0, 5.5, "validation"),
        "MSP-PODCAST_0003_0001": (None, "male", "angry", 2.0, 3.0, 5.5, "train"),
        "MSP-PODCAST_0003_0002": ("9", None, "angry", 2.0, 3.0, 5.5, "train"),
    }
    manifest = corpora.load("msp_podcast", tmp_path)
    unlabelled = manifest[manifest.emotion.isna()]
    assert unlabelled.path.tolist() == [str(tmp_path / audio / "MSP-PODCAST_0009_0001.wav")]
    (tmp_path / audio / "MSP-PODCAST_0001_0008.wav").unlink()
    with pytest.raises(GmpError, match=r"row 1: no recording .*0001_0008\.wav"):
        corpora.load("msp_podcast", tmp_path)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_of_ones_own(tmp_path, ending):
    touch(tmp_path, "a/1.wav", "2.flac")
    table = pd.DataFrame(
        {
            "path": ["a/1.wav", str(tmp_path / "2.flac")],
            "speaker": ["007", "008"],
            "gender": ["female", "male"],
            "emotion": ["calm", "rage"],
            "valence": [4, 2],
        }
    )
    file = tmp_path / f"mine.{ending}"
    table.to_csv(file, index=False) if ending == "csv" else table.to_parquet(file)
    manifest = corpora.load("table", file, ["calm", "angry"], {"rage": "angry"})
    assert manifest.path.tolist() == [str(tmp_path / "a/1.wav"), str(tmp_path / "2.flac")]
    assert manifest.speaker.tolist() == ["007", "008"]
    assert manifest.emotion.tolist() == ["calm", "angry"]
    assert manifest.valence.tolist() == [4.0, 2.0]


def test_a_table_that_lacks_something(tmp_path):
    file = tmp_path / "mine.csv"
    with pytest.raises(GmpError, match="no such file"):
        corpora.load("table", file)
    file.write_text("path,gender\n1.wav,male\n")
    with pytest.raises(GmpError, match="no column 'speaker'; found path, gender"):
        corpora.load("table", file)
    file.write_text("path,speaker,gender,emotion\n1.wav,1,male,sad\n")
    with pytest.raises(GmpError, match=r"row 1: no recording .*1\.wav"):
        corpora.load("table", file)
    touch(tmp_path, "1.wav")
    file.write_text("path,speaker,gender,emotion\n1.wav,1,,sad\n,2,male,sad\n")
    with pytest.raises(GmpError, match="row 2: no path"):
        corpora.load("table", file)
    file.write_text("path,speaker,gender,emotion\n1.wav,1,,sad\n")
    assert corpora.load("table", file).gender.isna().all()
    file.write_text("path,speaker,gender,emotion\n1.wav,1,Mann,sad\n")
    with pytest.raises(GmpError, match="column gender: found Mann"):
        corpora.load("table", file)


@pytest.fixture
def linked(tmp_path):
    """A folder with a recording in it and ways out of it, as it is and by a link to it."""
    touch(tmp_path, "secret.wav", "corpus/in.wav", "corpus/deep/in.wav")
    (tmp_path / "corpus" / "out").symlink_to(tmp_path)
    (tmp_path / "corpus" / "out.wav").symlink_to(tmp_path / "secret.wav")
    (tmp_path / "corpus" / "deep" / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "corpus" / "deep" / "linked.wav").symlink_to("../in.wav")
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    return tmp_path


INSIDE = ["in.wav", "deep/in.wav", "deep/../in.wav", "deep/linked.wav", "./deep/./in.wav",
          "../corpus/in.wav", "{}/corpus/in.wav"]  # fmt: skip
OUTSIDE = ["../secret.wav", "deep/../../secret.wav", "out/secret.wav", "out.wav", "{}/secret.wav",
           "deep/../out/corpus/../secret.wav", "/etc/hostname", "../corpus2/in.wav"]  # fmt: skip


@pytest.mark.parametrize("folder", ["corpus", "link"])
def test_a_table_names_recordings_below_its_folder_only(linked, folder, monkeypatch):
    """Refused before anything is read; allowed by a parameter; a folder that is a link is no way out."""
    file = linked / folder / "mine.csv"
    inside = [path.format(linked) for path in INSIDE]
    table = pd.DataFrame({"utterance": [str(n) for n in range(len(inside))], "path": inside})
    table.assign(speaker="1").to_csv(file, index=False)
    assert len(corpora.load("table", file)) == len(inside)
    for path in OUTSIDE:
        pd.DataFrame({"path": ["absent.wav", path.format(linked)], "speaker": "1"}).to_csv(file)
        with pytest.raises(GmpError, match=r'row 2: .* leads out of .*"outside" of notebook 01'):
            corpora.load("table", file)
    pd.DataFrame({"path": ["in.wav", "../secret.wav"], "speaker": "1"}).to_csv(file, index=False)
    read = ("run", "table", str(file), "", "", [], {}, 0)
    with pytest.raises(GmpError, match=r"row 2: '\.\./secret\.wav' leads out of"):
        prepare_data.read_manifest(*read)
    allowed = prepare_data.read_manifest(*read, outside=True)
    assert allowed.path.map(os.path.realpath).tolist() == [
        str(linked / "corpus" / "in.wav"), str(linked / "secret.wav"),
    ]  # fmt: skip
    pd.DataFrame({"path": ["deep/loop.wav", "a\0.wav"], "speaker": "1"}).to_parquet(
        file.with_suffix(".parquet")
    )
    with pytest.raises(GmpError, match="row 2: no path of a recording"):
        corpora.load("table", file.with_suffix(".parquet"))
    tried(
        f"path of a table that leads out of its folder ({folder})",
        len(OUTSIDE),
        "refused, row and path named",
    )


def test_label_files_name_recordings_of_the_corpus_only(linked):
    """MSP-Podcast's file names and the synthetic corpus's utterances; permission is for tables."""
    row = "{},A,3,2,5.5,9,Male,Train\n"
    header = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n"
    (linked / "release" / "Labels").mkdir(parents=True)
    (linked / "release" / "Audios").symlink_to(linked / "corpus")
    labels = linked / "release" / "Labels" / "labels_consensus.csv"
    labels.write_text(header + row.format("in.wav"))
    assert corpora.load("msp_podcast", linked / "release").utterance[0] == "in"
    (linked / "corpus" / "wav").symlink_to(".")
    spoken = "utterance,speaker,gender,session,emotion,text,"
    spoken += "valence,arousal,dominance,emotion_start,emotion_end\n"
    for path in OUTSIDE:
        name = path.format(linked)
        labels.write_text(header + row.format("in.wav") + row.format(name))
        with pytest.raises(GmpError, match=r"consensus\.csv, row 2: .* leads out of .*Audios"):
            corpora.load("msp_podcast", linked / "release", outside=True)
        if name.endswith(".wav"):
            said = f"{name[:-4]},S1F,female,1,sad,a,1,2,3,0,1\n"
            (linked / "corpus" / "labels.csv").write_text(spoken + said)
            with pytest.raises(GmpError, match=r"labels\.csv, row 1: .* leads out of"):
                corpora.load("synthetic", linked / "corpus")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": [1, 2]}, "row 1: path is 1, expected a text"),
        ({"path": [["in.wav"], ["in.wav"]]}, r"row 1: path is .*in\.wav.*, expected a text"),
        ({"path": [b"in.wav", None]}, r"row 1: path is b'in\.wav', expected a text"),
        ({"emotion": [["sad"], None]}, "row 1: emotion is .*sad.*, expected a text"),
        ({"start": ["0.5", "later"]}, "row 2: start is 'later', expected a number"),
        ({"end": [[1.0, 2.0], None]}, "row 1: end is .*, expected a number"),
        ({"start": [0.0, np.inf]}, r"column start: found inf, expected in_range\(0, "),
        ({"utterance": ["a", None]}, "column utterance: found nan, expected a value"),
        ({"utterance": ["a", "a"]}, "column utterance: found a, expected each once"),
        ({"label": "sad"}, "found a column 'label', expected 'emotion'"),
    ],
)
def test_a_table_of_wrong_types_is_refused(tmp_path, columns, message):
    touch(tmp_path, "in.wav")
    base = {"path": ["in.wav"] * 2, "start": [0.0, 1.0], "speaker": ["1", "2"]}
    pd.DataFrame(base | columns).to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(GmpError, match=message):
        corpora.load("table", tmp_path / "mine.parquet")


def test_parts_at_nearly_the_same_time_have_names_of_their_own(tmp_path):
    touch(tmp_path, "in.wav")
    starts = [0.0, 1.5, 1234.567, 1234.571]
    pd.DataFrame({"path": "in.wav", "start": starts, "speaker": "1"}).to_csv(tmp_path / "mine.csv")
    with pytest.raises(GmpError, match="column Unnamed: 0: expected some of"):
        corpora.load("table", tmp_path / "mine.csv")
    pd.DataFrame({"path": "in.wav", "start": starts, "speaker": "1"}).iloc[[3, 2, 0, 1]].to_parquet(
        tmp_path / "mine.parquet"
    )
    names = corpora.load("table", tmp_path / "mine.parquet").utterance
    assert names.tolist() == ["in@1234.571", "in@1234.567", "in@0", "in@1.5"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a table that can be read"),
        (b"\x00\xff\xfe", "not a table that can be read"),
        (b"path,speaker\n\xe9.wav,1\n", "not a table that can be read .*UTF-8"),
        (b'path,speaker\n"in.wav,1\n', "not a table that can be read"),
        (b"path,speaker\n", "found no row below the header, path, speaker"),
        (b"path,speaker\nin.wav,1,2\n", "rows have more fields than its header"),
        (b"path;speaker\nin.wav;1\n", "no column 'path'; found path;speaker"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "mine.csv").write_bytes(content)
    with pytest.raises(GmpError, match=message):
        corpora.load("table", tmp_path / "mine.csv")


def test_names_that_are_not_utf8_are_refused(tmp_path):
    """Of a recording, and of the folder of a table."""
    name = os.fsdecode(b"03a01W\xff.wav")
    try:
        touch(tmp_path, f"emodb/{name}", "emodb/03a01Wa.wav", f"{name}/in.wav")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    with pytest.raises(GmpError, match=r"03a01W\\udcff\.wav': a name that is not UTF-8.*rename it"):
        corpora.load("emodb", tmp_path / "emodb")
    table = tmp_path / name / "mine.csv"
    table.write_text("path,speaker\nin.wav,1\n")
    with pytest.raises(GmpError, match=r"03a01W\\udcff\.wav/mine\.csv': a name that is not UTF-8"):
        corpora.load("table", table)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    touch(tmp_path, "a/03a01Wa.wav", "b/03a01Wb.wav")
    scandir = os.scandir

    def denied(path):  # root, who may run the tests, may list anything
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(GmpError, match=r"b': cannot be listed \(Permission denied\)"):
        corpora.load("emodb", tmp_path)


def test_ratings_that_are_no_numbers_and_turns_that_are_there_twice(iemocap, tmp_path):
    path = iemocap / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    path.write_text(path.read_text("latin-1").replace("[4.0000", "[4.0.000"), "latin-1")
    with pytest.raises(
        GmpError, match=r"impro01\.txt, Ses01F_impro01_M000: found '4\.0\.000', expected a number"
    ):
        corpora.load("iemocap", iemocap)
    path.unlink()
    path.mkdir()
    with pytest.raises(GmpError, match="cannot be read"):
        corpora.load("iemocap", iemocap)
    name = "MSP-IMPROV-S01A-F01-P-FM01"
    touch(tmp_path, f"improv/Audio/{name}.wav", f"improv/copy/{name}.wav")
    labels = tmp_path / "improv" / "Evalution.txt"
    line = f"UTD{name[3:]}.avi; N; A:2.0; V:3.5; D:3.0; N:4.0;\n"
    labels.write_text(line)
    with pytest.raises(GmpError, match=rf"copy/{name}\.wav: also at .*Audio"):
        corpora.load("msp_improv", tmp_path / "improv")
    (tmp_path / "improv" / "copy" / f"{name}.wav").unlink()
    labels.write_text(line.replace("2.0", "2..0"))
    with pytest.raises(GmpError, match=rf"txt, {name}: found '2\.\.0', expected a number"):
        corpora.load("msp_improv", tmp_path / "improv")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_in_artifacts_are_not_run(tmp_path):
    """Objects in a .npy, and in parquet a type that pyarrow once unpickled."""
    ran, stem = tmp_path / "ran", tmp_path / "store"
    payload = pickle.dumps(Payload(ran))
    Ragged.create(stem, ["a"], [1], np.int16)
    np.save(stem.with_suffix(".npy"), np.array([Payload(ran)], dtype=object), allow_pickle=True)
    with pytest.raises(GmpError, match="store: cannot be read"):
        Ragged.open(stem)
    touch(tmp_path, "a.wav")
    planted = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": payload,
    }
    planted |= {"PANDAS": payload}
    for kind, path in ((pa.string(), "a.wav"), (pa.binary(), payload)):
        fields = [pa.field("path", kind, metadata=planted), pa.field("speaker", pa.string())]
        table = pa.table([pa.array([path], kind), pa.array(["1"])], pa.schema(fields, planted))
        parquet.write_table(table, tmp_path / "mine.parquet")
        if kind == pa.string():
            assert corpora.load("table", tmp_path / "mine.parquet").utterance.tolist() == ["a"]
        else:
            with pytest.raises(GmpError, match=r"row 1: path is b'.*, expected a text"):
                corpora.load("table", tmp_path / "mine.parquet")
    assert not ran.exists()
    pickle.loads(payload)
    assert ran.exists()


def test_a_label_that_no_map_names(iemocap):
    path = iemocap / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    path.write_text(path.read_text("latin-1").replace("\tneu\t", "\tmeh\t"), "latin-1")
    with pytest.raises(GmpError, match=r"F000\.wav: label 'meh'; iemocap has ang, hap"):
        corpora.load("iemocap", iemocap)
    assert "bored" in set(corpora.load("iemocap", iemocap, None, {"meh": "bored"}).emotion)


PUBLISHED = {  # facts that the corpora's own papers and pages state
    "iemocap": (10039, 10),
    "crema_d": (7442, 91),
    "ravdess": (1440, 24),
    "savee": (480, 4),
    "tess": (2800, 2),
    "esd": (35000, 20),
}


@pytest.mark.parametrize("corpus", PUBLISHED)
def test_published_counts(corpus):
    folder = os.environ.get(f"{corpus.upper()}_DIR")
    if not folder:
        pytest.skip(f"{corpus} is not here; set {corpus.upper()}_DIR to its folder")
    manifest = corpora.load(corpus, folder)
    assert (len(manifest), manifest.speaker.nunique()) == PUBLISHED[corpus]
    if corpus == "iemocap":
        counts = corpora.load(corpus, folder, FOUR).emotion.value_counts().to_dict()
        assert counts == {"neutral": 1708, "happy": 1636, "angry": 1103, "sad": 1084}


@needs_emodb
def test_emodb_is_complete():
    manifest = corpora.load("emodb", emodb_folder())
    assert len(manifest) == 535
    counts = manifest.emotion.value_counts().to_dict()
    assert counts == {
        "angry": 127, "bored": 81, "neutral": 79, "happy": 71, "fearful": 69, "sad": 62,
        "disgusted": 46,
    }  # fmt: skip
    speakers = manifest.speaker.value_counts().sort_index().tolist()
    assert speakers == [49, 58, 43, 38, 55, 35, 61, 69, 56, 71]
    assert manifest.groupby("speaker").gender.first().value_counts().to_dict() == {
        "female": 5, "male": 5,
    }  # fmt: skip
    assert len(corpora.load("emodb", emodb_folder().parent, FOUR)) == 339


def test_emodb_names(tmp_path):
    touch(tmp_path, "03a01Wa.wav", "16b10Tb.wav", "10a02N.wav", "readme.txt", "99a01Wa.wav")
    manifest = corpora.load("emodb", tmp_path).set_index("utterance")
    assert sorted(manifest.index[manifest.emotion.notna()]) == ["03a01Wa", "10a02N", "16b10Tb"]
    assert manifest.path[manifest.emotion.isna()].tolist() == [str(tmp_path / "99a01Wa.wav")]
    assert manifest.loc["03a01Wa", ["speaker", "gender", "emotion"]].tolist() == [
        "03", "male", "angry",
    ]  # fmt: skip
    assert manifest.loc["16b10Tb", ["gender", "emotion", "text"]].tolist() == [
        "female", "sad", "b10",
    ]  # fmt: skip


def test_wrong_folders_and_names(tmp_path):
    with pytest.raises(GmpError, match="no such folder"):
        corpora.load("emodb", tmp_path / "absent")
    (tmp_path / "song.mp3").touch()
    with pytest.raises(GmpError, match=r"found song\.mp3"):
        corpora.load("emodb", tmp_path)
    with pytest.raises(GmpError, match="expected one of synthetic"):
        corpora.load("iemo", tmp_path)
    (tmp_path / "03a01Wa.wav").touch()
    with pytest.raises(GmpError, match="surprised"):
        corpora.load("emodb", tmp_path, ["surprised"])


def manifest_of(**columns):
    base = {
        "corpus": ["own", "own"],
        "utterance": ["a", "b"],
        "path": ["a.wav", "b.wav"],
        "speaker": ["1", "2"],
        "gender": ["female", "male"],
        "emotion": ["sad", "sad"],
    }
    return pd.DataFrame(base | columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"utterance": ["a", "a"]}, r"column utterance: found a, expected each once"),
        (
            {"gender": ["female", "f"]},
            r"^row 1 of the manifest \(b\.wav\), column gender: found f, ",
        ),
        ({"valence": [2.0, 70.0]}, r"column valence: found 70.0, expected in_range\(0, 7\)"),
        ({"path": ["a.wav", None]}, r"column path: found nan, expected a value"),
        (
            {"mood": ["up", "down"]},
            r"^column mood: expected some of corpus, utterance, path, start",
        ),
    ],
)
def test_schema_names_row_and_value(columns, message):
    with pytest.raises(GmpError, match=message):
        corpora.check(manifest_of(**columns))
    assert len(corpora.check(manifest_of(valence=[2.0, None], gender=None, emotion=None))) == 2
