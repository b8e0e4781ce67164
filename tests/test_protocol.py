import numpy as np
import pandas as pd
import pytest

from gmp_utils import GmpError
from gmp_utils.data.protocol import check_leakage, make_protocol

FOUR = ["angry", "happy", "neutral", "sad"]


def speakers_manifest(n_women, n_men, sessions=False):
    genders = ["female"] * n_women + ["male"] * n_men
    rows = [(f"{n:02d}", gender, emotion) for n, gender in enumerate(genders) for emotion in FOUR]
    manifest = pd.DataFrame(rows, columns=["speaker", "gender", "emotion"]).assign(corpus="mine")
    if sessions:
        manifest["session"] = (manifest.speaker.astype(int) % n_women).astype(str)
    return manifest


@pytest.mark.parametrize("sessions", [False, True])
def test_folds_are_disjoint_balanced_and_complete(sessions):
    manifest = speakers_manifest(5, 5, sessions)
    protocol = make_protocol(manifest)
    assert protocol.fold_by == ("session" if sessions else "speaker")
    tested = []
    for fold in range(1, 6):
        parts = protocol.parts(manifest, fold)
        speakers = {name: set(manifest.speaker[parts == name]) for name in parts.unique()}
        assert sorted(map(len, speakers.values())) == [2, 2, 6]
        assert len(set.union(*speakers.values())) == 10
        assert manifest.gender[parts == "test"].nunique() == 2
        assert manifest.gender[parts == "validation"].nunique() == 2
        tested += sorted(speakers["test"])
    assert sorted(tested) == sorted(manifest.speaker.unique())


@pytest.mark.parametrize(("share", "women", "men"), [(0.5, 4, 4), (0.75, 6, 2), (1, 8, 0)])
def test_training_sets_of_unequal_women_and_men_are_equally_large(share, women, men):
    """Fold 5 tests and validates on one man each, which leaves four women and two men, eight utterances."""
    manifest = speakers_manifest(4, 4)
    everyone = make_protocol(manifest, "leave-one-speaker-out").parts(manifest, 5)
    trained = manifest.gender[everyone == "train"].value_counts().to_dict()
    assert trained == {"female": 16, "male": 8}
    protocol = make_protocol(manifest, "leave-one-speaker-out", female_share=share)
    parts = protocol.parts(manifest, 5)
    trained = manifest.gender[parts == "train"]
    assert ((trained == "female").sum(), (trained == "male").sum()) == (women, men)
    assert (parts == "unused").sum() == 24 - 8
    assert parts[everyone != "train"].equals(everyone[everyone != "train"])
    assert parts.equals(protocol.parts(manifest, 5))


def test_a_protocol_is_described():
    """Strict is the default. Each departure is stated, in capitals where it flatters."""
    manifest = speakers_manifest(5, 5).assign(text="one")
    strict = make_protocol(manifest)
    assert strict.unsupervised_parts == ("train", "unlabeled")
    assert strict.selection_part == "validation"
    loose = make_protocol(manifest, selection="oracle", transductive=True)
    assert loose.unsupervised_parts == ("train", "unlabeled", "validation", "test")
    assert loose.selection_part == "test"
    for sentence in ("5 folds by speaker", "use training speakers only", "best one on validation"):
        assert sentence in strict.describe()
    departures = [
        ({"selection": "oracle"}, "ORACLE"),
        ({"selection": "last"}, "The last epoch is reported"),
        ({"validation": "share"}, "VALIDATION SHARES SPEAKERS"),
        ({"transductive": True}, "TRANSDUCTIVE"),
        ({"disjoint_sentences": True}, "No test sentence is in training or validation"),
        ({"female_share": 0.8}, "Women have 80% of the training utterances"),
        (
            {"labeled_share": 0.1, "label_draw": 3},
            "Only 10% of the training utterances of each emotion",
        ),
        ({"validation": "none", "selection": "last"}, "THERE IS NO VALIDATION"),
    ]
    for rules, sentence in departures:
        assert sentence in make_protocol(manifest, **rules).describe()
        assert sentence not in strict.describe()


def test_a_share_of_each_emotion_keeps_its_labels():
    """24 training utterances of each emotion, but 4 of angry: a tenth of 24, and one of 4."""
    manifest = pd.concat([speakers_manifest(5, 5)] * 4, ignore_index=True)
    everyone = make_protocol(manifest).parts(manifest, 2)
    dropped = manifest.index[(everyone == "train") & (manifest.emotion == "angry")][4:]
    manifest = manifest.drop(dropped)
    shares = {share: make_protocol(manifest, labeled_share=share) for share in (0.1, 0.5)}
    parts = {share: protocol.parts(manifest, 2) for share, protocol in shares.items()}
    labeled = manifest.emotion[parts[0.1] == "train"].value_counts()
    assert labeled.to_dict() == {"angry": 1, "happy": 2, "neutral": 2, "sad": 2}
    assert (parts[0.5] == "train").sum() == 2 + 3 * 12
    assert set(parts[0.1][parts[0.1] == "train"].index) < set(
        parts[0.5][parts[0.5] == "train"].index
    )
    for part in parts.values():
        assert part.replace("unlabeled", "train").equals(everyone.drop(dropped))
    other = make_protocol(manifest, labeled_share=0.1, label_draw=1).parts(manifest, 2)
    assert (other == "train").sum() == 7 and not other.equals(parts[0.1])
    assert make_protocol(manifest, label_draw=1) == make_protocol(manifest)  # nothing is drawn
    with pytest.raises(GmpError, match="labeled_share 0: expected more than 0"):
        make_protocol(manifest, labeled_share=0)


def test_one_speaker_is_left_out():
    manifest = speakers_manifest(3, 2)
    protocol = make_protocol(manifest, "leave-one-speaker-out")
    assert sorted(protocol.folds) == [["00"], ["01"], ["02"], ["03"], ["04"]]
    assert protocol.validation_folds == protocol.folds[1:] + protocol.folds[:1]
    sizes = protocol.parts(manifest, 1).value_counts().to_dict()
    assert sizes == {"train": 12, "validation": 4, "test": 4}


def test_validation_may_be_a_share_of_the_training_utterances():
    manifest = pd.concat([speakers_manifest(5, 5)] * 5, ignore_index=True)
    protocol = make_protocol(manifest, validation="share")
    assert protocol.selection_part == "validation"
    parts = protocol.parts(manifest, 2)
    assert parts.value_counts().to_dict() == {"train": 144, "test": 40, "validation": 16}
    assert set(manifest.speaker[parts == "validation"]) <= set(manifest.speaker[parts == "train"])
    assert parts.equals(protocol.parts(manifest, 2))


def test_there_may_be_no_validation():
    manifest = speakers_manifest(2, 2)
    protocol = make_protocol(manifest, n_folds=2, validation="none", selection="last")
    assert protocol.selection_part == "test"
    assert protocol.parts(manifest, 1).value_counts().to_dict() == {"train": 8, "test": 8}
    with pytest.raises(GmpError, match='use selection "last"'):
        make_protocol(manifest, validation="none")


def test_an_official_split():
    """With its own validation speakers or some of its training speakers. No speaker is in two parts."""
    manifest = speakers_manifest(4, 4)
    number = manifest.speaker.astype(int)
    parts = [number == 7, number.isin([5, 6])]
    manifest["split"] = np.select(parts, ["test1", "validation"], "train")
    protocol = make_protocol(manifest, "split")
    assert (protocol.folds, protocol.validation_folds) == ([["07"]], [["05", "06"]])
    manifest["split"] = manifest.split.replace({"validation": "train"})
    protocol = make_protocol(manifest, "split", n_folds=3)
    # seven training speakers, women first, every third: 00 and 03 of the women, 06 of the men
    assert protocol.validation_folds == [["00", "03", "06"]]
    manifest.loc[manifest.index[-1], "split"] = "train"
    with pytest.raises(GmpError, match="speaker 07 in several parts"):
        make_protocol(manifest, "split")
    with pytest.raises(GmpError, match="utterances without a split"):
        make_protocol(speakers_manifest(4, 4), "split")
    manifest["split"] = np.select([number == 7, number == 6], ["test", "dev"], "train")
    with pytest.raises(GmpError, match="is split into dev, test, train, expected"):
        make_protocol(manifest, "split")
    with pytest.raises(GmpError, match="is split into test, train, unlabeled, expected"):
        make_protocol(manifest.assign(split=manifest.split.replace("dev", "unlabeled")), "split")
    manifest["split"] = manifest.split.replace({"dev": "train"})
    alone = make_protocol(manifest, "split", n_folds=9, validation="none", selection="last")
    assert alone.validation_folds == [[]]


def test_sessions_in_which_speakers_recur_are_no_folds():
    manifest = speakers_manifest(3, 3)
    manifest["session"] = ["1", "2", "1", "2"] * 6
    assert make_protocol(manifest, n_folds=3).fold_by == "speaker"
    with pytest.raises(GmpError, match="one for each speaker"):
        make_protocol(manifest, "session")


def test_two_corpora_are_never_folded_together():
    manifest = speakers_manifest(4, 4)
    tested = manifest.speaker.isin(["00", "07"])
    manifest["corpus"] = np.where(tested, "other", "mine")
    manifest["split"] = np.where(tested, "test", "train")
    protocol = make_protocol(manifest, n_folds=3)
    assert protocol.folds == [["00", "07"]]
    assert "trains on one corpus and tests on another" in protocol.describe()
    with pytest.raises(GmpError, match="fold_by 'speaker' with two corpora"):
        make_protocol(manifest, "speaker")
    with pytest.raises(GmpError, match="fold_by 'cross-corpus' with one corpus"):
        make_protocol(speakers_manifest(4, 4), "cross-corpus")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"fold_by": "session"}, "expected a session for each utterance"),
        ({"n_folds": 11}, "found 10 speakers; use n_folds 10, or"),
        ({"n_folds": 2}, "validation 'speakers' needs 3 or more; use validation \"share\""),
        ({"female_share": 1.5}, r"female_share 1\.5: expected 0 to 1"),
        ({"fold_by": "first"}, "fold_by 'first': expected one of "),
        ({"validation": "first"}, "validation 'first': expected one of "),
        ({"selection": "first"}, "selection 'first': expected one of "),
    ],
)
def test_impossible_folds_are_rejected(rules, message):
    with pytest.raises(GmpError, match=message):
        make_protocol(speakers_manifest(5, 5), **rules)


def test_two_speakers_lead_to_the_settings_that_work():
    """TESS has two women. The messages name the rules one after the other."""
    manifest = speakers_manifest(2, 0)
    with pytest.raises(
        GmpError, match='n_folds 5: found 2 speakers; use n_folds 2 and validation "share"'
    ):
        make_protocol(manifest)
    for rule in ({"n_folds": 2}, {"fold_by": "leave-one-speaker-out"}):
        with pytest.raises(GmpError, match='needs 3 or more; use validation "share", or more'):
            make_protocol(manifest, **rule)
        assert make_protocol(manifest, validation="share", **rule).folds == [["00"], ["01"]]
    with pytest.raises(GmpError, match=r"1 folds: .* needs 2 or more; use more folds"):
        make_protocol(speakers_manifest(1, 0), "leave-one-speaker-out", validation="share")


def test_folds_that_do_not_exist_or_lack_an_emotion_are_rejected():
    manifest = speakers_manifest(5, 5)
    protocol = make_protocol(manifest)
    for fold in (0, 6):
        with pytest.raises(GmpError, match="folds 1 to 5"):
            protocol.parts(manifest, fold)
    rare = manifest[(manifest.emotion != "sad") | (manifest.speaker == "00")]
    with pytest.raises(GmpError, match=r"no training utterance has emotion \['sad'\]"):
        protocol.parts(rare, 1)


def leaky_manifest():
    manifest = speakers_manifest(3, 3)
    manifest["utterance"] = [f"u{index:02d}" for index in range(len(manifest))]
    manifest["digest"] = manifest.utterance
    return manifest


def test_a_recording_in_two_parts_is_rejected():
    manifest = leaky_manifest()
    protocol = make_protocol(manifest, n_folds=3)
    manifest.loc[1, "digest"] = "u00"  # two by one speaker are always in the same part
    assert len(check_leakage(manifest, protocol)) == 3
    manifest.loc[23, "digest"] = "u00"
    with pytest.raises(GmpError, match="have the same samples"):
        check_leakage(manifest, protocol)


def test_shared_sentences_are_counted():
    manifest = leaky_manifest()
    protocol = make_protocol(manifest, n_folds=3)
    assert check_leakage(manifest, protocol).sentences.isna().all()
    parts = protocol.parts(manifest, 1)
    tested, trained = manifest.index[parts == "test"], manifest.index[parts == "train"]
    manifest["text"] = [f"sentence {index}" for index in manifest.index]
    manifest.loc[tested[:3], "text"] = ["One. ", "two", None]
    manifest.loc[trained[:2], "text"] = ["one.", "TWO"]
    assert check_leakage(manifest, protocol).sentences[1] == 2 / len(tested)


def test_test_sentences_are_in_no_other_part():
    """Three sentences in three folds, all but two of all speakers: in fold 2, only 01 and 04 say "b"."""
    spoken = [speakers_manifest(3, 3).assign(text=text) for text in "abc"]
    manifest = pd.concat(spoken, ignore_index=True)
    manifest["utterance"] = manifest["digest"] = [f"u{index:02d}" for index in manifest.index]
    first = {name: manifest.index[manifest.speaker == name][0] for name in ("00", "01", "04")}
    manifest.loc[first.values(), "text"] = ["only in training", "only in test", " B"]
    protocol = make_protocol(manifest, n_folds=3, disjoint_sentences=True)
    assert protocol.folds == [["00", "03"], ["01", "04"], ["02", "05"]]
    parts = protocol.parts(manifest, 2)
    said = pd.crosstab([parts, manifest.speaker], manifest.text.str.strip().str.lower())
    said = said.stack()
    assert said[said > 0].to_dict() == {
        ("train", "00", "a"): 3, ("train", "00", "c"): 4, ("train", "00", "only in training"): 1,
        ("train", "03", "a"): 4, ("train", "03", "c"): 4,
        ("validation", "02", "a"): 4, ("validation", "02", "c"): 4,
        ("validation", "05", "a"): 4, ("validation", "05", "c"): 4,
        ("test", "01", "b"): 4, ("test", "01", "only in test"): 1, ("test", "04", "b"): 5,
        ("left out", "00", "b"): 4, ("left out", "03", "b"): 4,
        ("left out", "02", "b"): 4, ("left out", "05", "b"): 4,
        ("left out", "01", "a"): 3, ("left out", "01", "c"): 4,
        ("left out", "04", "a"): 3, ("left out", "04", "c"): 4,
    }  # fmt: skip
    assert (check_leakage(manifest, protocol).sentences == 0).all()
    assert (check_leakage(manifest, make_protocol(manifest, n_folds=3)).sentences > 0.8).all()


def test_sentences_that_are_unknown_or_too_few_cannot_be_disjoint():
    manifest = leaky_manifest()
    with pytest.raises(GmpError, match="24 of 24 utterances have no text"):
        make_protocol(manifest, n_folds=3, disjoint_sentences=True)
    manifest["text"] = ["one", "two"] * 12
    protocol = make_protocol(manifest, n_folds=3, disjoint_sentences=True)
    with pytest.raises(GmpError, match="fold 3: disjoint_sentences leaves no test utterance"):
        protocol.parts(manifest, 3)
