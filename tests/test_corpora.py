"""Readers of corpora, on small folders named like each corpus, and on the corpora themselves if present."""

import hashlib
import os
import shutil

import pandas as pd
import pytest
import soundfile
from conftest import EMODB

from gmp_utils import GmpError
from gmp_utils.data import corpora
from gmp_utils.stages import prepare_data

FOUR = ["angry", "happy", "neutral", "sad"]


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def rows(corpus, folder, *columns, **options):
    """Columns of the utterances that have a label."""
    manifest = corpora.load(corpus, folder, **options).set_index("utterance")
    manifest = manifest[manifest.emotion.notna()]
    return {name: tuple(row) for name, row in manifest[list(columns)].iterrows()}


def test_languages_of_esd_are_groups(tmp_path):
    touch(tmp_path, "0001_000351.wav", "0011_000351.wav")
    assert rows("esd", tmp_path, "group") == {
        "0001_000351": ("mandarin",),
        "0011_000351": ("english",),
    }


@pytest.fixture
def iemocap(tmp_path):
    """Two dialogs: the woman wears the markers in the first, the man in the second."""
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
            folder = f"sentences/wav/{dialog}"
            touch(session, f"{folder}/{turn}.wav", f"{folder}/._{turn}.wav")
        touch(session, f"dialog/EmoEvaluation/Categorical/{dialog}_e2_cat.txt")
        folder = session / "dialog" / "EmoEvaluation"
        (folder / f"{dialog}.txt").write_bytes(text.encode("latin-1"))
        (folder / f"._{dialog}.txt").write_bytes(b"\x00\x05\x16\x07" + text.encode("latin-1"))
        (session / "dialog" / "transcriptions").mkdir()
        lines = [
            f"{turn} [{seconds}]: Excuse me.\n".replace(" - ", "-") for seconds, turn, *_ in turns
        ]
        (session / "dialog" / "transcriptions" / f"{dialog}.txt").write_text("".join(lines))
    return tmp_path


def test_iemocap(iemocap, capsys):
    """The talker is in the last field; values are valence, activation, dominance."""
    columns = "speaker", "gender", "session", "emotion", "valence", "arousal", "dominance", "text"
    text = "Excuse me."
    emotions = ["angry", "happy", "neutral", "no agreement"]
    assert rows("iemocap", iemocap, *columns, emotions=emotions) == {
        "Ses01F_impro01_F000": ("Ses01F", "female", "1", "neutral", 2.5, 2.5, 3.5, text),
        "Ses01F_impro01_M000": ("Ses01M", "male", "1", "happy", 4.0, 3.5, 3.0, text),
        "Ses05M_script01_1b_F002": ("Ses05F", "female", "5", "no agreement", 2.5, 3.0, 2.0, text),
        "Ses05M_script01_1b_M001": ("Ses05M", "male", "5", "angry", 1.5, 4.0, 4.5, text),
    }
    assert set(corpora.load("iemocap", iemocap).emotion.dropna()) == set(emotions[:3])
    changes = {"exc": "excited", "neu": "happy"}
    two = corpora.load("iemocap", iemocap, emotions=["angry", "happy"], label_map=changes)
    assert two.emotion.tolist() == ["happy", "angry"]
    assert "iemocap: 2 utterances of other emotions are excluded" in capsys.readouterr().out
    with pytest.raises(GmpError, match="label_map 'anger': expected one of ang, dis, exc"):
        corpora.load("iemocap", iemocap, label_map={"anger": "angry"})
    with pytest.raises(GmpError, match="label_map: exc has no emotion"):
        corpora.load("iemocap", iemocap, label_map={"exc": None})


def test_iemocap_of_the_wrong_level_or_incomplete(iemocap):
    for folder in (iemocap.parent, iemocap / "Session1"):
        with pytest.raises(GmpError, match="no recording is named as iemocap"):
            corpora.load("iemocap", folder)
    (recording,) = iemocap.rglob("Ses05M_script01_1b_M001.wav")
    recording.unlink()
    with pytest.raises(GmpError, match=r"M001\.wav: not there"):
        corpora.load("iemocap", iemocap)


NAMES = {  # utterance, speaker, gender, emotion and text; None for a recording without a label
    "crema_d": {
        "AudioWAV/1001_DFA_ANG_XX.wav": ("1001_DFA_ANG_XX", "1001", "male", "angry", "DFA"),
        "AudioWAV/1002_IEO_SAD_HI.wav": ("1002_IEO_SAD_HI", "1002", "female", "sad", "IEO"),
        "AudioWAV/1001_XXX_ANG_XX.wav": None,
    },
    "ravdess": {  # odd actors are men; songs and films have no label here
        "Actor_01/03-01-05-02-01-01-01.wav": ("03-01-05-02-01-01-01", "01", "male", "angry", "01"),
        "Actor_24/03-01-02-01-02-02-24.wav": ("03-01-02-01-02-02-24", "24", "female", "calm", "02"),
        "Actor_01/03-02-05-02-01-01-01.wav": None,
        "Actor_01/01-01-05-02-01-01-01.wav": None,
    },
    "emodb": {
        "03a01Wa.wav": ("03a01Wa", "03", "male", "angry", "a01"),
        "16b10Tb.wav": ("16b10Tb", "16", "female", "sad", "b10"),
        "10a02N.flac": ("10a02N", "10", "male", "neutral", "a02"),
        "10A02TB.WAV": ("10A02TB", "10", "male", "sad", "A02"),  # as some file systems write it
        "99a01Wa.wav": None,
    },
    "savee": {  # both layouts; two-letter emotions go before their first letter
        "AudioData/DC/a01.wav": ("DC_a01", "DC", "male", "angry", None),
        "AudioData/DC/sa02.wav": ("DC_sa02", "DC", "male", "sad", None),
        "JE_su03.wav": ("JE_su03", "JE", "male", "surprised", None),
        "AudioData/other/a01.wav": None,
    },
    "tess": {  # labels are in the names, whatever the folder's name
        "OAF_Pleasant_surprise/OAF_back_ps.wav": ("OAF_back_ps", "OAF", "female", "surprised", "back"),
        "yaf_sad/yaf_cat_Sad.wav": ("yaf_cat_Sad", "YAF", "female", "sad", "cat"),
        "YAF_sad/YAF_dog_angry.wav": ("YAF_dog_angry", "YAF", "female", "angry", "dog"),
    },
    "esd": {  # both layouts; the emotion is the number's block of 350
        "0001/Angry/0001_000351.wav": ("0001_000351", "0001", "female", "angry", "mandarin 1"),
        "0011/Neutral/train/0011_000350.wav":
            ("0011_000350", "0011", "male", "neutral", "english 350"),
        "0015/Surprise/0015_001750.wav":
            ("0015_001750", "0015", "female", "surprised", "english 350"),
        "0021/Angry/0021_000351.wav": None,
    },
    "emovo": {
        "EMOVO/f3/gio-f3-b1.wav": ("gio-f3-b1", "F3", "female", "happy", "b1"),
        "EMOVO/m1/rab-m1-n5.wav": ("rab-m1-n5", "M1", "male", "angry", "n5"),
        "EMOVO/m1/rab-m1-b4.wav": None,
    },
    "cafe": {  # folders are accented; neutral recordings at 192 kHz lack the intensity
        "Col\u00e8re/Fort/01-C-2-1.wav": ("01-C-2-1", "01", "male", "angry", "sentence 1"),
        "Peur/Faible/12-P-1-6.wav": ("12-P-1-6", "12", "female", "fearful", "sentence 6"),
        "Neutre/07-N-1-3.wav": ("07-N-1-3", "07", "male", "neutral", "sentence 3"),
        "CaFE_192k_1/Neutre/06-N-4.flac": ("06-N-4", "06", "female", "neutral", "sentence 4"),
        "Neutre/13-N-1-3.wav": None,
    },
    "jl_corpus": {  # "male" is a part of "female"
        "JL(wav+txt)/female2_excited_15b_2.wav":
            ("female2_excited_15b_2", "FEMALE2", "female", "excited", None),
        "JL(wav+txt)/male1_sad_1a_1.wav": ("male1_sad_1a_1", "MALE1", "male", "sad", None),
        "JL(wav+txt)/male1_question_1a_1.wav": None,
    },
    "shemo": {  # F is female, or fearful
        "female/F31F02.wav": ("F31F02", "F31", "female", "fearful", None),
        "male/M56W10.wav": ("M56W10", "M56", "male", "surprised", None),
        "female/F32F01.wav": None,
    },
    "emov_db": {  # both layouts; names repeat between speakers, and some have two underscores
        "bea/Amused/amused_1-15_0002.wav":
            ("bea_amused_1-15_0002", "BEA", "female", "amused", "0002"),
        "josh/Amused/amused_1-15_0002.wav":
            ("josh_amused_1-15_0002", "JOSH", "male", "amused", "0002"),
        "sam_Disgusted/Disgust_141_168_0141.wav":
            ("sam_Disgust_141_168_0141", "SAM", "male", "disgusted", "0141"),
        "noe/Amused/amused_1-15_0002.wav": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("corpus", NAMES)
def test_acted_corpora(corpus, tmp_path):
    touch(tmp_path, *NAMES[corpus], "._03a01Wa.wav", "readme.txt")
    manifest = corpora.load(corpus, tmp_path).set_index("path")
    assert len(manifest) == len(NAMES[corpus])
    manifest = manifest.reindex(columns=["utterance", "speaker", "gender", "emotion", "text"])
    for name, expected in NAMES[corpus].items():
        row = manifest.loc[str(tmp_path / name)]
        assert tuple(row.where(row.notna(), None)) == (
            expected or (str(tmp_path / name), *[None] * 4)
        )


def test_two_copies_of_a_corpus_are_rejected(tmp_path):
    """CREMA-D has its recordings as WAV and as MP3."""
    touch(tmp_path, "AudioMP3/1001_DFA_ANG_XX.mp3", "AudioWAV/1001_DFA_ANG_XX.wav")
    with pytest.raises(GmpError, match=r"AudioWAV/1001_DFA_ANG_XX\.wav: also at .*AudioMP3"):
        corpora.load("crema_d", tmp_path)


def test_msp_improv(tmp_path):
    """Names lose UTD and .avi; activation is inverted."""
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
    correct = (tmp_path / "Evaluation.txt").read_text()
    (tmp_path / "Evaluation.txt").write_text(correct.replace("V:3.500000", "V:3,500000"))
    with pytest.raises(GmpError, match=r"Evaluation\.txt: found 'UTD-.*V:3,5.*', expected a turn"):
        corpora.load("msp_improv", tmp_path)
    (tmp_path / "Evaluation.txt").write_text(correct)
    assert rows("msp_improv", tmp_path, *columns) == expected
    (tmp_path / "Evaluation.txt").unlink()
    with pytest.raises(GmpError, match=r"no Evalution\.txt"):
        corpora.load("msp_improv", tmp_path)
    touch(tmp_path, f"copy/{name}.wav", "Evalution.txt")
    with pytest.raises(GmpError, match=rf"copy/{name}\.wav: also at .*Audio"):
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
    emotions = {"emotions": ["angry", "happy", "no agreement"]}
    assert rows("msp_podcast", tmp_path, *columns, **emotions) == {
        "MSP-PODCAST_0001_0008": ("127", "female", "happy", 4.8, 5.2, 4.4, "train"),
        "MSP-PODCAST_0002_0033_0001": ("8", "male", "no agreement", 2.0, 3.0, 5.5, "validation"),
        "MSP-PODCAST_0003_0001": (None, "male", "angry", 2.0, 3.0, 5.5, "train"),
        "MSP-PODCAST_0003_0002": ("9", None, "angry", 2.0, 3.0, 5.5, "train"),
    }
    assert "text" not in corpora.load("msp_podcast", tmp_path)
    (tmp_path / "Transcripts").mkdir()
    (tmp_path / "Transcripts" / "MSP-PODCAST_0003_0001.txt").write_text("Well, no.\n")
    manifest = corpora.load("msp_podcast", tmp_path)
    assert manifest.set_index("utterance").text.dropna().to_dict() == {
        "MSP-PODCAST_0003_0001": "Well, no."
    }
    unlabelled = manifest[manifest.emotion.isna()]  # without a row, and without agreement
    paths = [tmp_path / audio / f"MSP-PODCAST_{name}.wav" for name in (names[1], names[4])]
    assert sorted(unlabelled.path) == list(map(str, paths))
    (tmp_path / audio / "MSP-PODCAST_0001_0008.wav").unlink()
    with pytest.raises(GmpError, match=r"row 1: no recording .*0001_0008\.wav"):
        corpora.load("msp_podcast", tmp_path)


@pytest.mark.parametrize(
    ("column", "ending"), [("path", "csv"), ("file", "csv"), ("file_name", "parquet")]
)
def test_a_table(tmp_path, column, ending):
    touch(tmp_path, "a/1.wav", "2.flac")
    table = pd.DataFrame(
        {column: ["a/1.wav", str(tmp_path / "2.flac")], "speaker": ["007", "008"],
         "gender": ["female", "male"], "emotion": ["calm", "rage"], "valence": [4, 2],
         "group": ["20 to 30", None]}
    )  # fmt: skip
    file = tmp_path / f"mine.{ending}"
    table.to_csv(file, index=False) if ending == "csv" else table.to_parquet(file)
    manifest = corpora.load("table", file, emotions=["calm", "angry"], label_map={"rage": "angry"})
    assert manifest.path.tolist() == [str(tmp_path / "a/1.wav"), str(tmp_path / "2.flac")]
    assert manifest.speaker.tolist() == ["007", "008"]
    assert manifest.emotion.tolist() == ["calm", "angry"]
    assert manifest.valence.tolist() == [4.0, 2.0]
    table.set_index(column).to_parquet(tmp_path / "indexed.parquet")  # as audformat does
    assert len(corpora.load("table", tmp_path / "indexed.parquet", emotions=["calm", "rage"])) == 2
    assert manifest.group.dropna().tolist() == ["20 to 30"]


def test_ratings_have_a_declared_scale(tmp_path, iemocap):
    """A table's scale is a parameter. Test corpora get the training corpus's scale: 73 on 0 to 100 is
    1 + 0.73 · 4 on IEMOCAP's 1 to 5.
    """
    touch(tmp_path / "own", "1.wav", "2.wav")
    text = "path,speaker,gender,emotion,age,valence\n1.wav,a,female,happy,9,{}\n2.wav,b,male,angry,9,\n"
    file = tmp_path / "own" / "mine.csv"
    columns = ["valence", "rating_min", "rating_max"]
    for rating, scale in ((-0.4, [-1, 1]), (73, [0, 100])):
        file.write_text(text.format(rating))
        manifest = corpora.load("table", file, rating_scale=scale)
        assert manifest.loc[0, columns].tolist() == [rating, *scale]
        assert manifest.valence.isna().tolist() == [False, True]
        with pytest.raises(
            GmpError, match=rf"1: valence {rating}, expected 1 to 7; .* rating_scale"
        ):
            corpora.load("table", file)
    pair = ("iemocap", iemocap), ("table", file)
    both = corpora.cross_corpus(*pair, rating_scale=[0, 100])
    rated = both.set_index("utterance").loc["table/1", columns].astype(float)
    assert rated.tolist() == pytest.approx([3.92, 1, 5])
    assert both.set_index("utterance").valence["iemocap/Ses01F_impro01_M000"] == 4
    for scale in ([7, 1], [1], [0, 5, 10]):
        with pytest.raises(GmpError, match=r"rating_scale .* expected the lowest and the highest"):
            corpora.load("table", file, rating_scale=scale)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,gender\n1.wav,male\n", "no column speaker"),
        ("path,speaker,gender,emotion\n2.wav,1,male,sad\n", r"row 1: no recording .*2\.wav"),
        ("path,speaker,gender,emotion\n1.wav,1,,sad\n,2,male,sad\n", "row 2: no path"),
        ("path,speaker,text,emotion\n1.wav,1,No, no,sad\n", "more cells .* commas in quotes"),
        ("path,speaker,gender,emotion\n1.wav,1,Mann,sad\n", "row 1, column gender: found Mann"),
        ("", "cannot be read as a table"),
        ("path,speaker\n", "no rows"),
        ("path;speaker\n1.wav;1\n", "no column path"),
        ("path,speaker,Start,end\n1.wav,1,0,1\n", "column 'Start', expected 'start'"),
        ("path,speaker,start,end\n1.wav,1,.5,.2\n", r"row 1: start 0\.5, end 0\.2"),
        ("path,speaker,emotion\n1.wav,1,sad\n./1.wav,1,happy\n", "row 2: .*1.wav has another"),
    ],
)
def test_a_table_that_lacks_something_is_rejected(tmp_path, text, message):
    file = tmp_path / "mine.csv"
    with pytest.raises(GmpError, match="no such file"):
        corpora.load("table", file)
    touch(tmp_path, "1.wav")
    file.write_text(text)
    with pytest.raises(GmpError, match=message):
        corpora.load("table", file)
    file.write_text("path,speaker,gender,emotion\n1.wav,1,,sad\n")
    assert corpora.load("table", file).gender.isna().all()


@pytest.mark.parametrize("ending", ["csv", "PARQUET"])
def test_a_table_is_read_as_it_is_meant(tmp_path, ending):
    """White space, Unicode forms, words that pandas reads as missing, digits as labels, further columns."""
    touch(tmp_path, "1.wav", "NA.wav", "3.wav", "4.wav")
    table = pd.DataFrame(
        {"path": ["1.wav", "NA.wav", "3.wav", "4.wav"], "utterance": list("abcd"),
         "speaker": ["Andr\u00e9", "Andre\u0301 ", "NA", "\u00a0None"], "age": [1, 2, 3, 4],
         "emotion": ["0", " 1", "None", ""], "gender": ["male", "male ", None, None]}
    )  # fmt: skip
    file = tmp_path / f"mine.{ending}"
    table.to_csv(file, index=False) if ending == "csv" else table.to_parquet(file)
    manifest = corpora.load("table", file, label_map={0: "calm"}, emotions=["calm", 1, "None"])
    assert manifest.speaker.tolist() == ["Andr\u00e9", "Andr\u00e9", "NA", "None"]
    assert manifest.emotion.tolist()[:3] == ["calm", "1", "None"] and pd.isna(manifest.emotion[3])
    assert "age" not in manifest and manifest.path[1].endswith("NA.wav")


def test_copies_of_corpora_have_other_suffixes(tmp_path, iemocap):
    """Upper case, flac and mp3, and two known misspellings in official copies."""
    names = ["03a01Fa.WAV", "03a01Wa.flac", "08a01Na.Mp3"]
    touch(tmp_path, *(f"emodb/{name}" for name in names))
    assert corpora.load("emodb", tmp_path / "emodb").emotion.notna().tolist() == [True] * 3
    touch(tmp_path, "crema_d/1040_ITH_SAD_X.wav", "tess/OA_bite_neutral.wav")
    assert corpora.load("crema_d", tmp_path / "crema_d").emotion.tolist() == ["sad"]
    assert corpora.load("tess", tmp_path / "tess").speaker.tolist() == ["OAF"]
    before = corpora.load("iemocap", iemocap).emotion.tolist()
    for path in iemocap.glob("Session*/sentences/wav/*/*.wav"):
        path.rename(path.with_suffix(".FLAC"))
    assert corpora.load("iemocap", iemocap).emotion.tolist() == before


@pytest.mark.parametrize("change", [("\t", "  "), ("[2", " [-2"), ("[", "ï»¿[")])
def test_lines_that_are_nearly_turns_are_rejected(iemocap, change):
    path = iemocap / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    lines = path.read_text("latin-1").splitlines()
    number = next(index for index, line in enumerate(lines) if line.startswith("["))
    lines[number] = lines[number].replace(*change)
    path.write_text("\n".join(lines), "latin-1")
    with pytest.raises(GmpError, match=r"impro01\.txt: found .*F000.*expected a turn"):
        corpora.load("iemocap", iemocap)


@pytest.fixture
def linked(tmp_path):
    """A folder with a recording and links that lead out of it, and a link to the folder."""
    touch(tmp_path, "secret.wav", "corpus/in.wav", "corpus/deep/in.wav")
    (tmp_path / "corpus" / "out").symlink_to(tmp_path)
    (tmp_path / "corpus" / "out.wav").symlink_to(tmp_path / "secret.wav")
    (tmp_path / "corpus" / "deep" / "linked.wav").symlink_to("../in.wav")
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    return tmp_path


INSIDE = ["in.wav", "deep/in.wav", "deep/../in.wav", "deep/linked.wav", "../corpus/in.wav",
          "{}/corpus/in.wav"]  # fmt: skip
OUTSIDE = ["../secret.wav", "deep/../../secret.wav", "out/secret.wav", "out.wav", "{}/secret.wav",
           "../corpus2/in.wav"]  # fmt: skip


@pytest.mark.parametrize("folder", ["corpus", "link"])
def test_a_table_names_recordings_below_its_folder_only(linked, folder):
    """A parameter allows others. A link to the folder itself does not lead out of it."""
    file = linked / folder / "mine.csv"
    inside = [path.format(linked) for path in INSIDE]
    table = pd.DataFrame({"utterance": [str(n) for n in range(len(inside))], "path": inside})
    table.assign(speaker="1").to_csv(file, index=False)
    assert len(corpora.load("table", file)) == len(inside)
    for path in OUTSIDE:
        pd.DataFrame({"path": ["in.wav", path.format(linked)], "speaker": "1"}).to_csv(file)
        with pytest.raises(GmpError, match=r'row 2: .* leads out of .*"outside" of notebook 01'):
            corpora.load("table", file)
    pd.DataFrame({"path": ["in.wav", "../secret.wav"], "speaker": "1"}).to_csv(file, index=False)
    manifest = prepare_data.read_manifest("run", "table", corpus_dir=str(file), outside=True)
    paths = [str(linked / name) for name in ("corpus/in.wav", "secret.wav")]
    assert manifest.path.map(os.path.realpath).tolist() == paths


def test_label_files_name_recordings_of_the_corpus_only(linked):
    """MSP-Podcast's file names; "outside" is for tables."""
    row = "{},A,3,2,5.5,9,Male,Train\n"
    header = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n"
    (linked / "release" / "Labels").mkdir(parents=True)
    (linked / "release" / "Audios").symlink_to(linked / "corpus")
    labels = linked / "release" / "Labels" / "labels_consensus.csv"
    labels.write_text(header + row.format("in.wav"))
    assert corpora.load("msp_podcast", linked / "release").utterance[0] == "in"
    labels.write_text(header + row.format("in.wav") + row.format("../secret.wav"))
    with pytest.raises(GmpError, match=r"consensus\.csv, row 2: .* leads out of .*Audios"):
        corpora.load("msp_podcast", linked / "release", outside=True)


def test_rows_in_messages_are_those_of_the_file(tmp_path):
    """Also if other emotions come first, which are excluded."""
    touch(tmp_path, "in.wav")
    rows = {"path": "in.wav", "start": [0.0, 1, 2], "end": [1.0, 2, 3], "speaker": ["1", "1", "2"]}
    rows |= {"emotion": ["calm", "calm", "sad"], "gender": ["female", "female", "Male"]}
    pd.DataFrame(rows).to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(GmpError, match="row 3, column gender: found Male"):
        corpora.load("table", tmp_path / "mine.parquet", emotions=["sad"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"start": ["0.5", "later"]}, "row 2, column start: found later, expected a number"),
        ({"start": ["0.5", "1_000"]}, "row 2, column start: found 1_000, expected a number"),
        ({"start": [0.0, -1.0]}, "row 2, column start: found -1"),
        ({"utterance": ["a", "a"]}, "column utterance: found a, expected unique values"),
        ({"label": "sad"}, "column 'label', expected 'emotion'"),
        ({"gender": ["female", "f"]}, "row 2, column gender: found f"),
        ({"valence": [2.0, 70.0]}, "in@1: valence 70, expected 1 to 7; .* rating_scale"),
        ({"speaker": ["Ann", "ann"]}, "speaker: found 'Ann', 'ann', expected one spelling"),
        ({"speaker": ["ann", "an\u200bn"]}, "speaker: found 'ann', .*, expected one spelling"),
        (
            {"speaker": ["ann b", "ann\u00a0 b"]},
            "speaker: found 'ann b', .*, expected one spelling",
        ),
        ({"speaker": ["ann", "ａｎｎ"]}, "speaker: found 'ann', .*, expected one spelling"),
        ({"emotion": ["sad", "Sad"]}, "emotion: found 'sad', 'Sad', expected one"),
        ({"speaker": "1", "gender": ["female", "male"]}, "speaker '1': found two genders"),
    ],
)
def test_a_table_of_wrong_types_is_rejected(tmp_path, columns, message):
    touch(tmp_path, "in.wav")
    base = {"path": ["in.wav"] * 2, "start": [0.0, 1.0], "speaker": ["1", "2"]}
    pd.DataFrame(base | columns).to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(GmpError, match=message):
        corpora.load("table", tmp_path / "mine.parquet")
    unknown = dict.fromkeys(("gender", "valence"))
    numbers = {"emotion": [0, 1], "speaker": pd.Categorical(["a", "b"])}
    pd.DataFrame(base | unknown | numbers).to_parquet(tmp_path / "mine.parquet")
    manifest = corpora.load("table", tmp_path / "mine.parquet")
    assert manifest.emotion.tolist() == ["0", "1"]
    assert manifest.speaker.tolist() == ["a", "b"]


def test_parts_at_nearly_the_same_time_have_different_names(tmp_path):
    touch(tmp_path, "in.wav")
    starts = [0.0, 1.5, 1234.567, 1234.571]
    table = pd.DataFrame({"path": "in.wav", "start": starts, "speaker": "1"})
    table.iloc[[3, 2, 0, 1]].to_parquet(tmp_path / "mine.parquet")
    names = corpora.load("table", tmp_path / "mine.parquet").utterance
    assert names.tolist() == ["in@1234.571", "in@1234.567", "in@0", "in@1.5"]


def test_recordings_of_iemocap_without_its_labels(iemocap):
    for folder in iemocap.glob("Session*/dialog/EmoEvaluation"):
        shutil.rmtree(folder)
    with pytest.raises(GmpError, match=r"no Session\*/dialog/EmoEvaluation"):
        corpora.load("iemocap", iemocap)


def test_a_label_that_is_in_no_map(iemocap):
    path = iemocap / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    path.write_text(path.read_text("latin-1").replace("\tneu\t", "\tmeh\t"), "latin-1")
    with pytest.raises(GmpError, match=r"F000\.wav: label 'meh'; iemocap has ang, hap"):
        corpora.load("iemocap", iemocap)
    assert "bored" in set(corpora.load("iemocap", iemocap, label_map={"meh": "bored"}).emotion)


PUBLISHED = {  # utterances and speakers, as stated by papers, pages and lists of the corpora
    "iemocap": (10039, 10), "crema_d": (7442, 91), "ravdess": (1440, 24), "savee": (480, 4),
    "tess": (2800, 2), "esd": (35000, 20), "emovo": (588, 6), "cafe": (936, 12),
    "jl_corpus": (2400, 4), "shemo": (3000, 87), "emov_db": (6893, 4),
}  # fmt: skip


@pytest.mark.parametrize("corpus", PUBLISHED)
def test_published_counts(corpus):
    folder = os.environ.get(f"{corpus.upper()}_DIR")
    if not folder:
        pytest.skip(f"{corpus} is not here; set {corpus.upper()}_DIR to its folder")
    manifest = corpora.load(corpus, folder)
    assert (len(manifest), manifest.speaker.nunique()) == PUBLISHED[corpus]
    if corpus == "iemocap":
        counts = corpora.load(corpus, folder, emotions=FOUR).emotion.value_counts().to_dict()
        assert counts == {"neutral": 1708, "happy": 1636, "angry": 1103, "sad": 1084}


def test_emodb_is_complete():
    manifest = corpora.load("emodb", EMODB)
    assert len(manifest) == 535
    assert manifest.emotion.value_counts().to_dict() == {
        "angry": 127, "bored": 81, "neutral": 79, "happy": 71, "fearful": 69, "sad": 62,
        "disgusted": 46,
    }  # fmt: skip
    speakers = manifest.speaker.value_counts().sort_index().tolist()
    assert speakers == [49, 58, 43, 38, 55, 35, 61, 69, 56, 71]
    assert manifest.groupby("speaker").gender.first().value_counts().tolist() == [5, 5]
    assert len(corpora.load("emodb", EMODB.parent, emotions=FOUR)) == 339


def test_emodbs_samples_are_the_published_ones():
    """A hash of all samples, computed from the published WAV files."""
    folder = os.environ.get("EMODB_DIR", EMODB)
    digest = hashlib.sha256()
    for path in corpora.load("emodb", folder).path:
        samples, rate = soundfile.read(path, dtype="int16")
        assert (rate, samples.ndim) == (16000, 1)
        digest.update(samples.tobytes())
    assert digest.hexdigest() == "530e92682959a29cad60d44f5c99e2d529ea1a4246cd969b987f54942af4fc85"


def test_wrong_folders_and_names(tmp_path):
    touch(tmp_path, "songs/song.mp3", "emodb/03a01Wa.wav")
    for corpus, folder, message in (
        ("emodb", "absent", "no such folder"),
        ("emodb", "songs", r"found song\.mp3"),
        ("iemo", "emodb", "expected one of synthetic"),
        ("emodb", "emodb", "surprised"),
    ):
        with pytest.raises(GmpError, match=message):
            corpora.load(corpus, tmp_path / folder, emotions=["surprised"])
