"""Readouts of frozen layers from few labels, and label efficiency."""

import numpy as np
import pandas as pd
import pytest
from conftest import classifier, multitask, write_noise_corpus
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gmp_utils.data.corpus import open_corpus
from gmp_utils.evaluation import readout, tables
from gmp_utils.figures import series
from gmp_utils.models.classifiers import EmotionClassifier, MultitaskModel
from gmp_utils.runs.experiments import Settings, lay_out
from gmp_utils.runs.files import read_json
from gmp_utils.runs.paths import TRAIN_MULTITASK
from gmp_utils.stages import baselines
from gmp_utils.training import features


def test_few_labels_are_drawn_per_class_and_nested(monkeypatch):
    """Classes have 20, 10 and 3 utterances. Layer 2 of 0 to 3 encodes the class; 0 is in the lower half."""
    labels = np.repeat([0, 1, 2], [20, 10, 3])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(33, 4, 6)).astype(np.float32)
    x[:, 2, :3] += 20 * np.eye(3)[labels]
    fitted, fit = [], LogisticRegression.fit
    monkeypatch.setattr(
        LogisticRegression, "fit", lambda self, x, y: fitted.append((x, y)) or fit(self, x, y)
    )
    predicted = readout.read_out(x, labels, x, n_draws=2, seed=0)
    assert set(predicted.index.get_level_values("layer")) == {2, 3}
    assert len(predicted) == len(fitted) == 2 * (1 + 2 * len(readout.N_LABELS))
    drawn = {key: (set(map(tuple, x)), y) for key, (x, y) in zip(predicted.index, fitted)}
    for n in readout.N_LABELS:
        for draw in (0, 1):
            counts = np.bincount(drawn[n, draw, 2][1]).tolist()
            assert counts == [min(n, 20), min(n, 10), min(n, 3)]
            assert drawn[1, draw, 2][0] <= drawn[n, draw, 2][0]
            assert (predicted.loc[n, draw, 2] == labels).mean() > 0.85  # by chance 0.6 at most
    assert drawn[4, 0, 2][0] != drawn[4, 1, 2][0]
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=5000))
    expected = reference.fit(x[:, 3], labels).predict(x[:, 3])
    np.testing.assert_array_equal(predicted.loc[np.inf, 0, 3], expected)


def test_every_stages_encoder_is_probed_and_read_out(tmp_path, tiny_encoder):
    run = write_noise_corpus(tmp_path / "run")
    trained, corpus = multitask(run, tiny_encoder), open_corpus(str(run))
    options = {"encoder": str(tiny_encoder), "finetune_from": "encoder", "readout_draws": 2}
    for baseline in ("probe", "probe-multitask"):
        stage = baselines.classify(str(run), 1, baseline=baseline, **options)
    statistics = np.load(run / "fold1" / "probe" / TRAIN_MULTITASK / "statistics.npy")
    model, names = MultitaskModel.load(str(trained / "model")), list(corpus.manifest.index)
    inputs = features.model_inputs(model, corpus)
    np.testing.assert_array_equal(statistics, features.pooled_layers(model, inputs, names))
    table = readout.readouts(str(run))
    systems = {"probe of the untouched encoder", "probe of the multi-task model"}
    assert set(table.system) == systems and set(table.layer) == {2, 3, 4}
    network = classifier(run, tiny_encoder, "ams")
    baselines.classify(
        str(run), 1, baseline="probe-ams", encoder="embedded", finetune_from="encoder"
    )
    statistics_of_network = np.load(
        run / "fold1" / "probe" / "06_finetune-encoder-ams" / "statistics.npy"
    )
    model = EmotionClassifier.load(str(network / "model"))
    np.testing.assert_array_equal(
        statistics_of_network, features.pooled_layers(model, inputs, names)
    )
    n_conditions = 3 * (1 + 2 * len(readout.N_LABELS))
    assert len(table) == 2 * 24 * n_conditions
    assert table.true.tolist() == corpus.manifest.emotion[table.utterance].tolist()
    everything = table[
        (table.system == "probe of the multi-task model")
        & np.isinf(table.labels)
        & (table.layer == 4)
    ]
    rows = corpus.manifest.index.get_indexer(corpus.partition(1)["train"])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=5000))
    probe.fit(statistics[rows, 4], corpus.manifest.emotion.iloc[rows])
    tested = corpus.manifest.index.get_indexer(everything.utterance)
    assert everything.predicted.tolist() == probe.predict(statistics[tested, 4]).tolist()
    assert read_json(stage / "params.json")["loss"] == "probe-multitask"
    curves = readout.readout_curves(table)
    assert curves.x.unique().tolist() == ["1", "2", "4", "8", "16", "all"]
    assert len(curves) == 2 * 6 * 2  # systems, numbers of labels, speakers
    declaration = {"against": None, "variants": {}, "primary": {}}
    assert len(tables.uar_comparisons(table, declaration)) == 1


def test_a_single_share_has_a_figure():
    """Variants need not name it."""
    columns = ["variant", "system", "speaker", "true", "predicted"]
    rows = [("few", "AMS", speaker, "sad", "sad") for speaker in ("s1", "s2")]
    table = pd.DataFrame(rows, columns=columns)
    curves = readout.label_efficiency(table, {"few": {"labeled_share": 0.1}})
    assert curves[["line", "x"]].drop_duplicates().to_numpy().tolist() == [["few, AMS", "10%"]]
    title = series.label_curves(curves, "share").layout.title.text
    assert title == "Mean UAR for 10% share:<br>100.0 (few, AMS)"


def test_label_efficiency_by_hand():
    """Four speakers and two shares: the recalls of each speaker, and bands by Student's t."""
    variants = {f"{share:.0%}, a": {"labeled_share": share} for share in (1.0, 0.1)}
    rows = [
        (f"{share}, a", "AMS", speaker, true, predicted)
        for share, wrong in (("100%", ""), ("10%", "s2"))
        for speaker in ("s1", "s2", "s3", "s4")
        for true in ("angry", "sad")
        for predicted in ["angry" if speaker == wrong else true]
    ]
    columns = ["variant", "system", "speaker", "true", "predicted"]
    predictions = pd.DataFrame([*rows, ("other", "AMS", "s1", "sad", "sad")], columns=columns)
    table = readout.label_efficiency(predictions, variants | {"other": {}})
    assert table.set_index(["line", "x", "speaker"]).UAR.to_dict() == {
        ("a, AMS", share, speaker): 50 if (share, speaker) == ("10%", "s2") else 100
        for share in ("10%", "100%")
        for speaker in ("s1", "s2", "s3", "s4")
    }
    band, line = series.label_curves(table, "share").data
    assert (list(line.x), list(line.y)) == (["10%", "100%"], [87.5, 100])
    half = stats.t.ppf(0.975, 3) * 12.5  # standard error of 50 and three times 100
    assert list(band.y) == pytest.approx([87.5 + half, 100, 100, 87.5 - half])
    assert readout.label_efficiency(predictions, {"other": {}}).empty


def test_every_seed_of_an_experiment_draws_its_own_labels():
    runs = lay_out(Settings(experiment="label_efficiency", seeds=[0, 4])).runs
    draws = {(run.seed, run.parameters["label_draw"]) for run in runs}
    assert len(runs) == 62 and draws == {(0, 0), (4, 4)}
