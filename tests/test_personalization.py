"""Ratings, speaker embeddings and calibration: by hand, against references, and with known shifts."""

import shutil
from dataclasses import replace
from pathlib import Path

import audmetric
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PREDICTOR, QUICK, seal_again, write_noise_corpus
from scipy import stats

from gmp_utils import GmpError
from gmp_utils.data import speakers
from gmp_utils.data.corpora import synthetic, synthetic_speakers
from gmp_utils.data.rated_fold import RatingTask, open_fold
from gmp_utils.evaluation import comparison, ratings
from gmp_utils.evaluation.metrics import ccc
from gmp_utils.models import losses, regression
from gmp_utils.models.masked_prediction import MaskedPredictionModel
from gmp_utils.models.regression import SPEAKER_POSITIONS, RatingModelConfig
from gmp_utils.runs.files import read_json, write_json
from gmp_utils.runs.paths import GENERATE_GMPS, PERSONALIZE
from gmp_utils.stages import generate_gmps, personalize
from gmp_utils.training.batching import Masking
from gmp_utils.training.trainer import TrainingConfig

RATED = ["valence", "arousal"]
PREDICTING = PREDICTOR | {"scales": [4]}


def test_concordance_is_audmetrics():
    rng = np.random.default_rng(0)
    true = rng.normal(4, 1, (50, 2)).astype(np.float32)
    predicted = (0.5 * true + rng.normal(1, 0.5, true.shape)).astype(np.float32)
    expected = [audmetric.concordance_cc(t, p) for t, p in zip(true.T, predicted.T)]
    computed = [ccc(t, p) for t, p in zip(true.T, predicted.T)]
    np.testing.assert_allclose(computed, expected, atol=1e-6)
    tensors = torch.from_numpy(predicted), torch.from_numpy(true), torch.ones(50)
    loss = losses.concordance_loss(*tensors)
    assert loss.item() == pytest.approx(1 - np.mean(expected), abs=1e-6)


def test_weights_of_concordance_are_repetitions():
    torch.manual_seed(0)
    predicted, rated = torch.randn(4, 1), torch.randn(4, 1)
    times = torch.tensor([1, 3, 2, 1])
    repeated = (values.repeat_interleave(times, dim=0) for values in (predicted, rated))
    expected = losses.concordance_loss(*repeated, torch.ones(7))
    torch.testing.assert_close(losses.concordance_loss(predicted, rated, times.float()), expected)
    constant = torch.full((3, 1), 2.0, requires_grad=True)
    loss = losses.concordance_loss(constant, torch.full((3, 1), 2.0), torch.ones(3))
    loss.backward()
    assert loss.item() == 1
    assert constant.grad.isfinite().all()


def test_ccc_of_sums_over_speakers():
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(3, 1, (2, 4, 10))
    sums = ratings.moments(true, predicted)
    expected = audmetric.concordance_cc(true[1:].ravel(), predicted[1:].ravel())
    assert ratings.ccc_of_sums(sums[1:].sum(axis=0)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", [regression.MlpInterpreter, regression.TransformerInterpreter])
def test_padding_changes_no_rating(kind):
    torch.manual_seed(0)
    model = kind(6, 2).eval()
    frames, embedding = torch.randn(1, 5, 6), torch.randn(1, 6)
    unpadded = model(frames, torch.ones(1, 5, dtype=torch.bool), embedding)
    padded = torch.cat([frames, torch.full((1, 3, 6), 9.0)], dim=1)
    mask = torch.arange(8)[None] < 5
    torch.testing.assert_close(model(padded, mask, embedding), unpadded)
    assert not torch.allclose(model(frames, mask[:, :5]), unpadded)  # the embedding matters


def test_a_batch_of_one_uses_running_statistics():
    model, mask = regression.MlpInterpreter(6, 2), torch.ones(4, 5, dtype=torch.bool)
    frames = torch.randn(4, 5, 6)
    model(frames, mask)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.testing.assert_close(model(frames[:1], mask[:1]), model.eval()(frames, mask)[:1])
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    model.train()(frames, mask)
    assert not torch.equal(before["layers.3.running_mean"], model.layers[3].running_mean)


@pytest.mark.parametrize("position", SPEAKER_POSITIONS[1:])
def test_papt_with_zero_embeddings_is_masked_prediction(position, tiny_encoder):
    """The loss is the same, except with a prefix, which is a further frame to attend to."""
    torch.manual_seed(0)
    plain = MaskedPredictionModel.load(str(tiny_encoder), **PREDICTING).eval()
    settings = PREDICTING | {"n_speakers": 3, "speaker_position": position}
    papt = regression.PaptModel.load(str(tiny_encoder), **settings).eval()
    papt.streams.load_state_dict(plain.streams.state_dict())
    waveforms, n_samples = torch.randn(2, 8000), torch.tensor([8000, 6000])
    mask, labels = torch.zeros(2, 24, dtype=torch.bool), torch.zeros(2, 24, 1, dtype=torch.int64)
    mask[:, 3:9] = True
    batch, speaker = (waveforms, n_samples, labels, mask), torch.eye(3)[:2]
    unchanged = papt(*batch, speaker=speaker)["loss"]
    assert torch.equal(unchanged, plain(*batch)["loss"]) == (position != "prefix")
    papt.speakers.weight.data.normal_()
    changed = papt(*batch, speaker=speaker)["loss"]
    assert not torch.allclose(changed, unchanged)
    changed.backward()
    gradient = papt.speakers.weight.grad  # (hidden_size, speakers)
    assert gradient[:, :2].abs().sum() > 0
    assert not gradient[:, 2].any()


def test_a_prefix_is_not_among_the_frames(tiny_encoder):
    settings = {"n_speakers": 2, "speaker_position": "prefix"}
    model = regression.SpeakerConditionedModel.load(str(tiny_encoder), **settings).eval()
    model.speakers.weight.data.normal_()
    waveforms, n_samples = torch.randn(2, 8000), torch.tensor([8000, 4000])
    layers, speaker = [0, 1, -1], torch.eye(2)
    states, mask = model.hidden_states(waveforms, n_samples, layers=layers, speaker=speaker)
    assert mask.sum(dim=1).tolist() == [24, 12]
    assert [state.shape[1] for state in states] == [24, 24, 24]
    second = waveforms[1:, :4000], n_samples[1:]
    (unpadded,), _ = model.hidden_states(*second, speaker=speaker[1:])
    torch.testing.assert_close(states[2][1:, :12], unpadded, atol=1e-4, rtol=1e-4)


def test_unseen_speakers_are_mixtures_of_the_nearest():
    means = pd.DataFrame([[2.0, 0], [0, 2], [2, 2]], list("abc"))
    similarity = speakers.similarities(means, ["a"])
    assert similarity.a.to_dict() == pytest.approx({"a": 1, "b": 0, "c": np.sqrt(0.5)})
    similarity = pd.DataFrame([[0.2, 0.9, 0.8], [1.0, 0.1, 0.0]], ["new", "a"], ["a", "b", "c"])
    near = speakers.nearest_speakers(similarity, 2)
    assert near.to_numpy().tolist() == [[False, True, True], [True, True, False]]
    ties = speakers.nearest_speakers(pd.DataFrame([[0.5, 0.5, 0.5]]), 2)
    assert ties.to_numpy().tolist() == [[True, True, False]]  # the first ones
    weights = speakers.speaker_weights(similarity, 2)
    assert weights.to_numpy().tolist() == [[0, 0.5, 0.5], [1, 0, 0]]
    assert speakers.speaker_weights(similarity, 9).loc["new"].tolist() == pytest.approx([1 / 3] * 3)


def test_divergences_are_those_of_gaussians():
    """In one dimension: log(s2 / s1) + (s1² + d²) / (2 s2²) − 1/2. Two Gaussians fit one's tails roughly."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, (4000, 1)), rng.normal(1, 1.5, (4000, 1))])
    names = ["near", "far"]
    functionals = pd.DataFrame(values, np.repeat(names, 4000))
    table = speakers.divergences(functionals, names, names, seed=0)
    assert table.loc["near", "near"] == table.loc["far", "far"] == 0
    assert table.loc["near", "far"] == pytest.approx(np.log(1.5) + 2 / 4.5 - 0.5, abs=0.15)
    assert table.loc["far", "near"] == pytest.approx(-np.log(1.5) + 3.25 / 2 - 0.5, abs=0.15)
    near, far = (pd.DataFrame({"x": x[:, 0]}) for x in (values[:4000], values[4000:]))
    mean, variance = (far.x.mean() - near.x.mean()), far.x.var(ddof=0) / near.x.var(ddof=0)
    expected = (variance + mean**2 / near.x.var(ddof=0) - 1 - np.log(variance)) / 2
    assert speakers.shift(far, near) == pytest.approx(expected, rel=0.01)  # FLOOR
    assert speakers.shift(far, far) == 0


def test_pldc_by_hand():
    """Predictions 1, 3 (mean 2, std 1); labels of the neighbors a: 4, 8 (mean 6, std 2) and b: 1, 1, 4, 4."""
    predicted = np.array([1.0, 3.0])
    assert ratings.calibrate(predicted, 6, 2, "mean").tolist() == [5, 7]
    assert ratings.calibrate(predicted, 6, 2, "scale").tolist() == [0, 4]
    assert ratings.calibrate(predicted, 6, 2, "both").tolist() == [4, 8]
    labels = pd.DataFrame({"speaker": list("aabbbbc"), "true": [4.0, 8, 1, 1, 4, 4, 9]})
    table = pd.DataFrame({"speaker": ["x", "x"], "predicted": predicted})
    similarity = pd.DataFrame([[0.7, 0.6, 0.1]], ["x"], list("abc"))
    mean, std = 22 / 6, np.std([4, 8, 1, 1, 4, 4])
    values = ratings.pldc(table, labels, similarity=similarity, neighbors=2)
    assert values.tolist() == pytest.approx([mean - std, mean + std])


def test_pldc_without_enough_information():
    """A single prediction, and constant predictions."""
    assert ratings.calibrate(np.array([3.0]), 6, 2).tolist() == [3]
    assert ratings.calibrate(np.array([3.0, 3.0]), 6, 2, "both").tolist() == [6, 6]
    assert ratings.calibrate(np.array([3.0, 3.0]), 6, 2, "scale").tolist() == [3, 3]


def test_the_oracle_matches_the_speakers_labels():
    table = pd.DataFrame({"speaker": list("xxy"), "predicted": [1.0, 3, 5], "true": [4.0, 8, 1]})
    table = table.assign(system="s", calibration="none", attribute="valence")
    oracle = ratings.oracle_calibration(table).groupby("calibration").predicted.agg(list)
    expected = {"oracle mean": [5, 7, 5], "oracle scale": [0, 4, 5], "oracle both": [4, 8, 5]}
    assert oracle.to_dict() == expected


def simulated(mean: float, scale: float, seed: int = 0, by_voice: bool = True) -> dict[str, float]:
    """A-CCC of predictions that do not depend on the speaker, uncalibrated and by each variant of PLDC.

    Of 60 speakers, 15 are test speakers. Labels are shifted by the voice, which neighbors share.
    """
    rng = np.random.default_rng(seed)
    voice = rng.uniform(-1, 1, 60)
    shifted = voice if by_voice else rng.permutation(voice)
    latent = rng.normal(size=(60, 20))
    true = mean * shifted[:, None] + np.exp(scale * shifted)[:, None] * latent
    predicted = latent + rng.normal(0, 0.5, latent.shape)
    names = np.array([f"{number:02d}" for number in range(60)])
    columns = {"speaker": names.repeat(20), "true": true.ravel(), "predicted": predicted.ravel()}
    rows = pd.DataFrame(columns)
    test, learned = names[::4], np.setdiff1d(names, names[::4])
    distance = pd.DataFrame(np.abs(voice[:, None] - voice), names, names).loc[test, learned]
    tested, training = (rows[rows.speaker.isin(part)] for part in (test, learned))
    settings = {"similarity": -distance, "neighbors": 5}
    predictions = {"none": tested.predicted}
    for variant in ratings.VARIANTS:
        predictions[variant] = ratings.pldc(tested, training, variant=variant, **settings)

    def mean_ccc(values: pd.Series) -> float:
        groups = tested.assign(predicted=values).groupby("speaker")
        return np.mean([ccc(group.true, group.predicted) for _, group in groups])

    return {name: mean_ccc(values) for name, values in predictions.items()}


def test_half_of_a_known_shift_is_recovered_and_nothing_without_one():
    """Half of its cost: A-CCC without the shift minus A-CCC with it.

    Without a shift, calibration also removes the mean of a speaker's twenty latent values (standard deviation
    0.22), which costs about 0.025 of CCC, in the mean of twenty corpora.
    """
    unshifted = simulated(0, 0)["none"]
    for variant, shift, least in (("mean", (1.2, 0), 0.1), ("scale", (0, 0.7), 0.02)):
        scores = simulated(*shift)
        cost = unshifted - scores["none"]
        assert cost > least
        assert scores[variant] - scores["none"] > 0.5 * cost
    scores = pd.DataFrame([simulated(0, 0, seed) for seed in range(20)]).mean()
    assert (scores - scores["none"] > -0.03).all()
    by_chance = pd.DataFrame([simulated(1.2, 0, seed, by_voice=False) for seed in range(20)])
    assert stats.ttest_rel(by_chance["mean"], by_chance["none"]).statistic < 2


def test_ratings_follow_the_rule():
    latent = np.array([[1.0, 1.0, 1.0], [-1.0, 0.5, 0.0]])
    rated = synthetic_speakers.rate(latent, np.array([0.0, 1.0]))
    assert rated[0].tolist() == [6.2, 5, 5]  # cos 0 = 1, cos π = −1
    np.testing.assert_allclose(rated[1], [4 - 1.2 - 1, 4 + 0.5 * np.exp(0.7), 4])


@pytest.mark.slow
def test_sixty_speakers_are_rated_by_their_voices(tmp_path):
    """The same voices and latent values, with ratings shifted by the voice and by chance."""
    height = synthetic_speakers.speakers().height
    related = {}
    for shifts in synthetic_speakers.SHIFTS:
        synthetic_speakers.make(tmp_path / shifts, shifts=shifts)
        by_speaker = synthetic.load(tmp_path / shifts).groupby("speaker")
        assert by_speaker.size().tolist() == [20] * 60
        related[shifts] = [
            np.corrcoef(by_speaker.valence.mean(), np.cos(np.pi * height))[0, 1],
            np.corrcoef(np.log(by_speaker.arousal.std()), height)[0, 1],
            np.corrcoef(by_speaker.dominance.mean(), height)[0, 1],
        ]
    assert related["voice"][0] > 0.95
    assert related["voice"][1] > 0.9
    # 60 speakers: a correlation by chance has a standard deviation of 0.13
    assert max(map(abs, [related["voice"][2], *related["chance"]])) < 0.4
    names = sorted(path.name for path in (tmp_path / "voice" / "wav").iterdir())
    assert len(names) == 1200
    for name in names[::100]:
        recordings = {(tmp_path / s / "wav" / name).read_bytes() for s in synthetic_speakers.SHIFTS}
        assert len(recordings) == 1


def prepare(run: Path, encoder: Path, **corpus) -> RatingTask:
    """Noise of six speakers with ratings, two of whom are test speakers, its clusters and features."""
    write_noise_corpus(run, ratings=RATED, **corpus)
    settings = {"layer": -1, "scales": [4], "clustered_model": "encoder", "encoder": str(encoder)}
    generate_gmps.generate_gmps(str(run), 1, **settings)
    task = RatingTask(str(run), 1, str(encoder), RATED, neighbors=2)
    personalize.summarize_utterances(task)
    return task


@pytest.fixture(scope="module")
def rated(tmp_path_factory, tiny_encoder):
    return prepare(tmp_path_factory.mktemp("rated") / "run", tiny_encoder)


TWO_STEPS = TrainingConfig(1e-3, max_steps=2, batch_seconds=10)
PAPT = {"training": TWO_STEPS, "masking": Masking(0.8, 10)}
EVERY = regression.rating_model_configs(
    regression.REPRESENTATIONS, regression.INTERPRETERS, SPEAKER_POSITIONS
)
SOME = [("none",), ("max", "transformer"), ("learned",), ("papt", "mlp", "none")]
SOME += [("papt", "mlp", "input"), ("papt", "transformer", "output"), ("papt",)]
SOME = [RatingModelConfig(*fields) for fields in SOME]


def test_every_system_has_a_name_and_references():
    names = [system.name for system in EVERY]
    assert len(set(names)) == len(names) == 4 * 2 + 4 + 1
    assert {"none-mlp", "papt-prefix-mlp", "papt-output-transformer"} < set(names)
    references = {system.name: system.references for system in EVERY}
    assert references["none-mlp"] == references["papt-none-mlp"] == []
    assert references["learned-transformer"] == ["none-transformer"]
    assert references["papt-input-mlp"] == ["none-mlp", "papt-none-mlp"]
    assert RatingModelConfig(adaptation="unique").references == ["none-mlp-all"]
    assert RatingModelConfig(adaptation="all").references == []


def test_every_system_predicts(rated):
    for position in ("none", "input", "output"):
        personalize.adapt(rated, position, **PAPT)
    manifest = open_fold(rated).corpus.manifest
    for system in SOME:
        stage = personalize.train_and_predict(rated, system, training=QUICK)
        table = pd.read_parquet(stage / "predictions.parquet")
        assert set(table.attribute) == set(RATED)
        assert table.predicted.notna().all()
        valence = table[table.attribute == "valence"]
        np.testing.assert_array_equal(valence.true, manifest.valence[valence.utterance])
    costs = ratings.rating_costs(rated, SOME)
    n_training, dim = 2, 32
    assert costs.parameters["learned-mlp"] - costs.parameters["none-mlp"] == n_training * dim
    assert costs.seconds["papt-output-mlp"] > 0
    systems = SOME[:3:2]
    table = pd.concat([ratings.calibrated(rated, system.name) for system in systems])
    results = ratings.results_table(table)
    assert len(results) == 2 * 4 * 2
    assert results.speakers.eq(2).all()
    assert results[["o_low", "a_high"]].isna().all(axis=None)  # two speakers give no interval
    differences = ratings.compare_systems(table, systems)
    assert differences.compared.tolist() == ["none-mlp → learned-mlp"] * 2
    assert ratings.compare_calibrations(table[table.system == "none-mlp"]).shape[0] == 3 * 2
    stage = personalize.write_results([rated], systems, table)
    summary = (stage / "summary.md").read_text()
    assert "no statement from 2 speakers" in summary
    assert "use all utterances of a test speaker, without labels" in summary


def test_systems_are_compared_over_seeds_and_speakers():
    """CCC of y + c and y is 2 var / (2 var + c²)."""
    y, speakers = np.arange(5.0), ["a", "b", "c", "d"]
    offsets = {
        (seed, name): 1 + seed / 10 + i / 20 for seed in range(3) for i, name in enumerate(speakers)
    }
    tables = []
    for (seed, name), c in offsets.items():
        for system, predicted in (("none-mlp", y), ("mean-mlp", y + c)):
            rows = pd.DataFrame({"speaker": name, "true": y, "predicted": predicted})
            tables.append(
                rows.assign(system=system, seed=seed, attribute="valence", calibration="none")
            )
    table, systems = pd.concat(tables), [RatingModelConfig(), RatingModelConfig("mean")]
    (row,) = ratings.compare_systems(table, systems).itertuples()
    losses = pd.Series({key: 100 - 400 / (4 + c**2) for key, c in offsets.items()})
    assert (row.speakers, row.seeds) == (4, 3)
    assert row.difference == pytest.approx(-losses.mean())
    assert row.seed_deviation == pytest.approx(losses.groupby(level=0).mean().std())
    assert row.finding == f"{losses.mean():.1f} points lower"
    results = ratings.results_table(table).set_index("system")
    assert results.seeds.tolist() == [3, 3]
    assert results["A-CCC"]["mean-mlp"] == pytest.approx(1 - losses.mean() / 100)
    (row,) = ratings.compare_systems(table[table.seed == 0], systems).itertuples()
    assert row.finding.startswith(f"{losses[0].mean():.1f} points lower in these training runs;")


def test_results_of_seeds_are_combined(rated, tmp_path):
    stages = []
    for seed in range(2):
        run = shutil.copytree(rated.run_dir, tmp_path / f"seed{seed}")
        task, system = replace(rated, run_dir=str(run)), RatingModelConfig()
        personalize.train_and_predict(task, system, training=replace(QUICK, seed=seed))
        table = ratings.calibrated(task, system.name)
        stages.append(personalize.write_results([task], [system], table))
    combined = personalize.combine_seeds(stages)
    assert combined == tmp_path / PERSONALIZE / "results"
    table = pd.read_parquet(combined / "ratings.parquet")
    assert table.groupby("seed").predicted.mean().nunique() == 2
    assert "seeds 0, 1." in (combined / "summary.md").read_text()


def test_test_labels_change_nothing_but_scores(rated, tmp_path, tiny_encoder):
    """With other labels of test speakers, predictions are the same: uncalibrated, calibrated and adapted."""
    other = prepare(tmp_path / "run", tiny_encoder, test_ratings=5.0)
    systems = list(map(RatingModelConfig, ("none", "mean", "learned", "papt")))
    for task in (rated, other):
        personalize.adapt(task, "output", **PAPT)
        for system in systems:
            personalize.train_and_predict(task, system, training=QUICK)
        personalize.adapt_unsupervised(task, "oversampling", n_chosen=1, training=QUICK)
    for system in [*systems, RatingModelConfig(adaptation="oversampling")]:
        first, second = (ratings.calibrated(task, system.name) for task in (rated, other))
        assert not np.array_equal(first.true, second.true)
        np.testing.assert_array_equal(first.predicted, second.predicted)


def test_every_adaptation_predicts(rated):
    personalize.train_and_predict(rated, RatingModelConfig(), training=QUICK)
    for name in regression.ADAPTATIONS:
        stage = personalize.adapt_unsupervised(rated, name, n_chosen=1, training=QUICK)
        assert pd.read_parquet(stage / "predictions.parquet").predicted.notna().all()


def test_wrong_choices_are_named(rated, noise_corpus, tiny_encoder):
    task = RatingTask(str(noise_corpus), 1, str(tiny_encoder), ["valence"])
    for function, message in (
        (lambda: speakers.nearest_speakers(pd.DataFrame(), 0), "neighbors: found 0"),
        (lambda: synthetic_speakers.make(Path(), shifts="none"), "shifts 'none'"),
        (lambda: RatingModelConfig("papt", "mlp", "middle"), "position 'middle'"),
        (
            lambda: personalize.adapt_unsupervised(rated, "none", n_chosen=1, training=QUICK),
            "'none'",
        ),
        (lambda: open_fold(task), r"attributes \['valence'\]"),
    ):
        with pytest.raises(GmpError, match=message):
            function()


def test_seen_speakers_are_compared_on_unused_utterances(rated, monkeypatch):
    stage = personalize.train_on_fewer_speakers(rated, 1, training=QUICK)
    parts = dict(list(pd.read_parquet(stage / "predictions.parquet").groupby("part")))
    assert set(parts["seen"].speaker) == set(parts["train"].speaker)
    assert parts["train"].speaker.nunique() == 1
    used, unused = (set(parts[part].utterance) for part in ("train", "seen"))
    assert len(used) == len(unused) == 6 and not used & unused  # halves of twelve
    gaps = ratings.personalization_gap(rated, {1: stage.name})
    seen = parts["seen"].query("attribute == 'valence'")
    row = gaps.query("attribute == 'valence' and `test on` == 'seen speakers'")
    assert row["A-CCC"].item() == pytest.approx(ccc(seen.true, seen.predicted))
    assert gaps.half_width.isna().all()  # one seen, two unseen
    monkeypatch.setattr(comparison, "MIN_SPEAKERS", 2)
    gaps = ratings.personalization_gap(rated, {1: stage.name})
    assert gaps.half_width.notna().tolist() == [False, False, True, True]
    shifts = ratings.shifts(rated, stage.name)
    assert (shifts[["feature", "label"]] > 0).all(axis=None)


def test_the_encoder_may_be_trained_too(rated):
    task = replace(rated, train_encoder=True)
    frozen = personalize.train_and_predict(rated, RatingModelConfig(), training=QUICK)
    for position in ("input", "output"):
        personalize.adapt(task, position, **PAPT)
        system = RatingModelConfig("papt", "mlp", position)
        stage = personalize.train_and_predict(task, system, training=QUICK)
        n_parameters = [read_json(path / "metrics.json")["parameters"] for path in (stage, frozen)]
        assert n_parameters[0] > n_parameters[1]


def test_papt_needs_clusters_of_the_pretrained_encoder(tmp_path, tiny_encoder):
    task = prepare(tmp_path / "run", tiny_encoder)
    stage = task.folder.parent / GENERATE_GMPS
    parameters = read_json(stage / "params.json") | {"clustered_model": "multitask"}
    write_json(stage / "params.json", parameters)
    seal_again(stage)
    with pytest.raises(GmpError, match="clustered_model 'multitask', expected 'encoder'"):
        personalize.adapt(task, "output", **PAPT)
    shutil.rmtree(stage)
    with pytest.raises(GmpError, match=r"04_generate_gmps\.ipynb"):
        personalize.adapt(task, "output", **PAPT)


def test_few_utterances_have_no_score():
    tables = [
        pd.DataFrame({"speaker": name, "true": np.arange(n), "predicted": np.arange(n) + 1.0})
        for name, n in (("a", 5), ("b", 4))
    ]
    table = pd.concat(tables).assign(system="s", calibration="none", attribute="valence", seed=0)
    scores = ratings.speaker_scores(table)
    assert scores.speaker.tolist() == ["a"]
    assert scores.ccc.item() == pytest.approx(2 * 2 / (2 + 2 + 1))
