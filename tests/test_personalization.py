"""Ratings, who speaks, and what calibration does: by hand, against a reference, and on planted shifts."""

import audmetric
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, seal_again, write_noise_corpus
from scipy import stats

from gmp_utils import GmpError
from gmp_utils.data import rated_fold, speakers
from gmp_utils.data.corpora import synthetic_speakers
from gmp_utils.evaluation import ratings
from gmp_utils.evaluation.metrics import ccc
from gmp_utils.models import losses, regression
from gmp_utils.models.encoder import SPEAKER_POSITIONS, SpeechModel
from gmp_utils.models.masked_prediction import MaskedPredictionModel
from gmp_utils.models.regression import RatingModelConfig
from gmp_utils.runs.files import read_json, write_json
from gmp_utils.stages import generate_gmps, personalize
from gmp_utils.training.batching import Masking
from gmp_utils.training.trainer import TrainingConfig

RATED = ["valence", "arousal"]
PREDICTING = {
    "scales": [4], "projection_size": 8, "loss_on": "masked", "combine": "sum", "activation": "relu",
}  # fmt: skip


# Concordance


def test_concordance_is_audmetrics():
    rng = np.random.default_rng(0)
    true = rng.normal(4, 1, (50, 2)).astype(np.float32)
    predicted = (0.5 * true + rng.normal(1, 0.5, true.shape)).astype(np.float32)
    expected = [audmetric.concordance_cc(t, p) for t, p in zip(true.T, predicted.T)]
    found = [ccc(t, p) for t, p in zip(true.T, predicted.T)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    tensors = torch.from_numpy(predicted), torch.from_numpy(true), torch.ones(50)
    loss = losses.concordance_loss(*tensors)
    assert loss.item() == pytest.approx(1 - np.mean(expected), abs=1e-6)


def test_weights_of_concordance_are_repetitions():
    torch.manual_seed(0)
    predicted, rated = torch.randn(4, 1), torch.randn(4, 1)
    times = torch.tensor([1, 3, 2, 1])
    repeated = (one.repeat_interleave(times, dim=0) for one in (predicted, rated))
    expected = losses.concordance_loss(*repeated, torch.ones(7))
    found = losses.concordance_loss(predicted, rated, times.float())
    torch.testing.assert_close(found, expected)


def test_concordance_of_what_does_not_vary_is_none():
    """A loss of 1, whose gradient is finite."""
    predicted = torch.full((3, 1), 2.0, requires_grad=True)
    loss = losses.concordance_loss(predicted, torch.full((3, 1), 2.0), torch.ones(3))
    loss.backward()
    assert loss.item() == 1
    assert predicted.grad.isfinite().all()


def test_the_interval_of_o_ccc_is_the_bootstrap_of_speakers():
    """The same draws, with every utterance put together again."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=60)
    table = pd.DataFrame({"speaker": np.repeat(list("abcdef"), 10), "true": true})
    table["predicted"] = true + rng.normal(size=60)
    groups = [own for _, own in table.groupby("speaker")]
    drawn = np.random.default_rng(3).integers(6, size=(1000, 6))
    samples = (pd.concat([groups[speaker] for speaker in row]) for row in drawn)
    scores = [ccc(own.true, own.predicted) for own in samples]
    found = ratings.o_ccc_interval(table, 3)
    np.testing.assert_allclose(found, np.percentile(scores, [2.5, 97.5]))
    few = table[table.speaker < "d"]
    assert np.isnan(ratings.o_ccc_interval(few, 3)).all()


# Interpreters


@pytest.mark.parametrize("kind", [regression.MlpInterpreter, regression.TransformerInterpreter])
def test_padding_changes_no_rating(kind):
    torch.manual_seed(0)
    model = kind(6, 2).eval()
    frames, vector = torch.randn(1, 5, 6), torch.randn(1, 6)
    alone = model(frames, torch.ones(1, 5, dtype=torch.bool), vector)
    padded = torch.cat([frames, torch.full((1, 3, 6), 9.0)], dim=1)
    valid = torch.arange(8)[None] < 5
    torch.testing.assert_close(model(padded, valid, vector), alone)
    assert not torch.allclose(model(frames, valid[:, :5]), alone)  # the vector is heard


def test_a_batch_of_one_has_no_statistics():
    norm = regression.BatchNorm(3).train()
    norm(torch.randn(20, 3))
    before = norm.running_mean.clone()
    found = norm(torch.ones(1, 3))
    torch.testing.assert_close(found, (1 - before) / (norm.running_var + norm.eps).sqrt()[None])
    assert torch.equal(norm.running_mean, before)
    theirs = torch.nn.BatchNorm1d(3)
    ours, batch = regression.BatchNorm(3), torch.randn(7, 3)
    torch.testing.assert_close(ours(batch), theirs(batch))
    torch.testing.assert_close(ours.state_dict() | {"num_batches_tracked": 0},
                               theirs.state_dict() | {"num_batches_tracked": 0})  # fmt: skip


# Vectors of speakers


@pytest.mark.parametrize("position", SPEAKER_POSITIONS[1:])
def test_without_differences_papt_is_plain_masked_prediction(position, tiny_encoder):
    """All vectors zero: the same loss. With a prefix the others attend to one frame more, so not there."""
    torch.manual_seed(0)
    plain = MaskedPredictionModel.load(str(tiny_encoder), **PREDICTING).eval()
    told = MaskedPredictionModel.load(
        str(tiny_encoder), **PREDICTING, n_speakers=3, speaker_position=position
    ).eval()
    told.streams.load_state_dict(plain.streams.state_dict())
    waveforms, n_samples = torch.randn(2, 8000), torch.tensor([8000, 6000])
    mask, labels = torch.zeros(2, 24, dtype=torch.bool), torch.zeros(2, 24, 1, dtype=torch.int64)
    mask[:, 3:9] = True
    speaker = torch.eye(3)[:2]
    batch = waveforms, n_samples, labels, mask
    expected, found = plain(*batch)["loss"], told(*batch, speaker)["loss"]
    assert torch.equal(found, expected) == (position != "prefix")
    told.speakers.weight.data.normal_()
    moved = told(*batch, speaker)["loss"]
    assert not torch.allclose(moved, found)
    moved.backward()
    assert told.speakers.weight.grad[:2].abs().sum() > 0
    assert not told.speakers.weight.grad[2].any()


def test_a_prefix_is_no_frame_of_the_utterance(tiny_encoder):
    settings = {"n_speakers": 2, "speaker_position": "prefix"}
    model = SpeechModel.load(str(tiny_encoder), **settings).eval()
    model.speakers.weight.data.normal_()
    given = torch.randn(2, 8000), torch.tensor([8000, 4000])
    states, valid = model.hidden_states(*given, layers=[0, 1, -1], speaker=torch.eye(2))
    assert valid.sum(dim=1).tolist() == [24, 12]
    assert [state.shape[1] for state in states] == [24, 24, 24]
    alone = model.hidden_states(given[0][1:, :4000], given[1][1:], speaker=torch.eye(2)[1:])[0][0]
    torch.testing.assert_close(states[2][1:, :12], alone, atol=1e-4, rtol=1e-4)


def test_unseen_speakers_are_made_of_the_nearest():
    index, known = ["new", "a"], ["a", "b", "c"]
    alike = pd.DataFrame([[0.2, 0.9, 0.8], [1.0, 0.1, 0.0]], index, known)
    assert speakers.nearest_speakers(alike, 2) == {"new": ["b", "c"], "a": ["a", "b"]}
    found = speakers.speaker_weights(alike, 2)
    assert found.to_numpy().tolist() == [[0, 0.5, 0.5], [1, 0, 0]]
    assert speakers.speaker_weights(alike, 9).loc["new"].tolist() == pytest.approx([1 / 3] * 3)
    with pytest.raises(GmpError, match="neighbours: found 0, expected 1 or more"):
        speakers.nearest_speakers(alike, 0)


def test_cosines_by_hand():
    table = speakers.by_speaker(np.array([[1, 0], [3, 0], [0, 2], [2, 2]]), ["a", "a", "b", "c"])
    found = speakers.cosines(table, table.loc[["a"]])
    assert found.a.tolist() == pytest.approx([1, 0, np.sqrt(0.5)])
    assert speakers.by_speaker(np.array([[1, 5], [3, 0]]), ["a", "a"], "max").loc["a"].tolist() == [
        3,
        5,
    ]


def test_divergences_are_those_of_gaussians():
    """In one dimension: log(s2 / s1) + (s1² + d²) / (2 s2²) − 1/2; two Gaussians fit one's tails roughly."""
    rng = np.random.default_rng(0)
    own = {"near": rng.normal(0, 1, (4000, 1)), "far": rng.normal(1, 1.5, (4000, 1))}
    vectors, names = np.concatenate(list(own.values())), np.repeat(list(own), 4000)
    found = speakers.divergences(vectors, names, list(own), list(own), 0)
    assert found.loc["near", "near"] == found.loc["far", "far"] == 0
    assert found.loc["near", "far"] == pytest.approx(np.log(1.5) + 2 / 4.5 - 0.5, abs=0.15)
    assert found.loc["far", "near"] == pytest.approx(-np.log(1.5) + 3.25 / 2 - 0.5, abs=0.15)


def test_who_is_chosen_how_often():
    alike = pd.DataFrame([[3, 2, 1], [1, 3, 2]], ["x", "y"], ["a", "b", "c"])
    assert speakers.adaptation_set(alike, 2).to_dict() == {"a": 1, "b": 2, "c": 1}
    assert speakers.adaptation_set(alike, 1).to_dict() == {"a": 1, "b": 1, "c": 0}


def test_shift_is_the_divergence_of_gaussians():
    rng = np.random.default_rng(0)
    values, reference = rng.normal(1, 2, (500, 1)), rng.normal(0, 1, (500, 1))
    mean, variance = values.mean() - reference.mean(), values.var() / reference.var()
    expected = (variance + mean**2 / reference.var() - 1 - np.log(variance)) / 2
    assert speakers.shift(values, reference) == pytest.approx(expected, rel=0.01)  # FLOOR
    assert speakers.shift(values, values) == 0


# PLDC


def test_pldc_by_hand():
    """Predictions 1, 3 (μ 2, σ 1); neighbours a: 4, 8 (6, 2) and b: 1, 1, 4, 4 (2.5, 1.5)."""
    predicted = np.array([1.0, 3.0])
    assert ratings.calibrate(predicted, 6, 2, "mean").tolist() == [5, 7]
    assert ratings.calibrate(predicted, 6, 2, "scale").tolist() == [0, 4]
    assert ratings.calibrate(predicted, 6, 2, "both").tolist() == [4, 8]
    labels = pd.Series([4.0, 8, 1, 1, 4, 4, 9])
    names = pd.Series(list("aabbbbc"))
    assert ratings.statistics(labels, names, ["a", "b"], pooled=False) == (4.25, 1.75)
    pooled = ratings.statistics(labels, names, ["a", "b"], pooled=True)
    assert pooled == (pytest.approx(22 / 6), pytest.approx(np.std([4, 8, 1, 1, 4, 4])))


def test_pldc_leaves_alone_what_it_cannot_know():
    assert ratings.calibrate(np.array([3.0]), 6, 2).tolist() == [3]
    assert ratings.calibrate(np.array([3.0, 3.0]), 6, 2, "both").tolist() == [6, 6]
    assert ratings.calibrate(np.array([3.0, 3.0]), 6, 2, "scale").tolist() == [3, 3]
    table = pd.DataFrame({"speaker": ["x", "x"], "predicted": [1.0, 3.0]})
    training = pd.DataFrame({"speaker": ["a", "a"], "true": [4.0, 8.0]})
    alike = pd.DataFrame([[0.7]], ["x"], ["a"])
    given = (table, training, alike, {"x": ["a"]})
    assert ratings.pldc(*given, gate=0.8).tolist() == [1, 3]
    assert ratings.pldc(*given, gate=0.6).tolist() == [4, 8]
    with pytest.raises(GmpError, match="variant 'sigma': expected one of mean, scale, both"):
        ratings.calibrate(np.array([1.0, 2.0]), 6, 2, "sigma")


def simulated(mean: float, scale: float, seed: int = 0, by_voice: bool = True) -> dict[str, float]:
    """A-CCC of a rater that hears what is felt, and not the speaker, plain and by each variant of PLDC.

    60 speakers, of whom 15 are tested; their labels are shifted by a voice that neighbours share.
    """
    rng = np.random.default_rng(seed)
    voice = rng.uniform(-1, 1, 60)
    shifted = voice if by_voice else rng.permutation(voice)
    felt = rng.normal(size=(60, 20))
    true = mean * shifted[:, None] + np.exp(scale * shifted)[:, None] * felt
    predicted = felt + rng.normal(0, 0.5, felt.shape)
    names = np.array([f"{number:02d}" for number in range(60)])
    rows = pd.DataFrame(
        {"speaker": names.repeat(20), "true": true.ravel(), "predicted": predicted.ravel()}
    )
    tested, learnt = names[::4], np.setdiff1d(names, names[::4])
    near = -np.abs(voice[:, None] - voice)
    alike = pd.DataFrame(near, names, names).loc[tested, learnt]
    own, training = (rows[rows.speaker.isin(part)] for part in (tested, learnt))
    found = {"none": own.predicted}
    for variant in ratings.VARIANTS:
        neighbours = speakers.nearest_speakers(alike, 5)
        found[variant] = ratings.pldc(own, training, alike, neighbours, variant, gate=-9)

    def mean_ccc(values: pd.Series) -> float:
        groups = own.assign(predicted=values).groupby("speaker")
        return np.mean([ccc(one.true, one.predicted) for _, one in groups])

    return {name: mean_ccc(values) for name, values in found.items()}


def test_a_planted_shift_is_half_recovered():
    """What it cost: the same rater's A-CCC without the shift, less that with it."""
    unshifted = simulated(0, 0)["none"]
    by_mean, by_scale = simulated(1.2, 0), simulated(0, 0.7)
    assert unshifted - by_mean["none"] > 0.1
    assert by_mean["mean"] - by_mean["none"] > 0.5 * (unshifted - by_mean["none"])
    assert unshifted - by_scale["none"] > 0.02
    assert by_scale["scale"] - by_scale["none"] > 0.5 * (unshifted - by_scale["none"])


def test_without_a_shift_there_is_no_harm_beyond_noise():
    """Twenty corpora. A speaker's twenty feelings have a mean of their own (deviation 0.22), which is moved
    away with the rest: that costs about 0.025 of CCC.
    """
    changes = [simulated(0, 0, seed) for seed in range(20)]
    for variant in ratings.VARIANTS:
        mean = np.mean([one[variant] - one["none"] for one in changes])
        assert mean > -0.03, variant


def test_a_shift_that_is_not_in_the_voice_is_not_recovered():
    changes = [simulated(1.2, 0, seed, by_voice=False) for seed in range(20)]
    gains = [one["mean"] - one["none"] for one in changes]
    assert stats.ttest_1samp(gains, 0).statistic < 2


# The synthetic corpus


def test_ratings_follow_the_rule():
    felt = np.array([[1.0, 1.0, 1.0], [-1.0, 0.5, 0.0]])
    found = synthetic_speakers.rate(felt, np.array([0.0, 1.0]))
    assert found[0].tolist() == [6.2, 5, 5]  # cos 0 = 1, cos π = −1
    np.testing.assert_allclose(found[1], [4 - 1.2 - 1, 4 + 0.5 * np.exp(0.7), 4])


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """The same voices and feelings, rated by the voice and by chance."""
    found = {}
    for shifts in synthetic_speakers.SHIFTS:
        folder = tmp_path_factory.mktemp(shifts)
        synthetic_speakers.make(folder, shifts=shifts)
        found[shifts] = folder
    return found


def test_sixty_speakers_are_rated_by_their_voices(spoken):
    tables = {name: synthetic_speakers.load(folder) for name, folder in spoken.items()}
    height = synthetic_speakers.speakers().height
    related = {}
    for name, table in tables.items():
        assert table.groupby("speaker").size().tolist() == [20] * 60
        of = table.groupby("speaker")
        related[name] = [
            np.corrcoef(of.valence.mean(), np.cos(np.pi * height))[0, 1],
            np.corrcoef(np.log(of.arousal.std()), height)[0, 1],
            np.corrcoef(of.dominance.mean(), height)[0, 1],
        ]
    assert related["voice"][0] > 0.95
    assert related["voice"][1] > 0.9
    # 60 speakers: a correlation by chance has a deviation of 0.13
    assert max(map(abs, [related["voice"][2], *related["chance"]])) < 0.4
    names = sorted(path.name for path in (spoken["voice"] / "wav").iterdir())
    assert len(names) == 1200
    for name in names[::100]:
        assert len({(folder / "wav" / name).read_bytes() for folder in spoken.values()}) == 1
    with pytest.raises(GmpError, match="shifts 'none': expected one of voice, chance"):
        synthetic_speakers.make(spoken["voice"], shifts="none")


# The stage


@pytest.fixture(scope="module")
def rated(tmp_path_factory, tiny_encoder):
    """Noise of six speakers with ratings, two of whom are tested; a few passes of every system."""
    run = write_noise_corpus(tmp_path_factory.mktemp("rated") / "run", ratings=RATED)
    generate_gmps.generate_gmps(str(run), 1, -1, [4], "encoder", encoder=str(tiny_encoder))
    personalize.summarize_utterances(str(run), str(tiny_encoder))
    return rated_fold.RatingTask(str(run), 1, str(tiny_encoder), RATED, neighbours=2)


UPDATES = TrainingConfig(1e-3, max_steps=2, batch_seconds=10)
EVERY = regression.rating_model_configs(
    regression.REPRESENTATIONS, regression.INTERPRETERS, SPEAKER_POSITIONS
)

SOME = [
    RatingModelConfig(),
    RatingModelConfig("max", "transformer"),
    RatingModelConfig("learned"),
    RatingModelConfig("papt", "mlp", "none"),
]
SOME += [
    RatingModelConfig("papt", "mlp", "input"),
    RatingModelConfig("papt", "transformer", "output"),
    RatingModelConfig("papt"),
]


def test_every_system_there_is():
    names = [system.name for system in EVERY]
    assert len(set(names)) == len(names) == 4 * 2 + 4 + 1
    assert {"none-mlp", "papt-prefix-mlp", "papt-output-transformer"} < set(names)
    with pytest.raises(GmpError, match="position 'middle': expected one of none, input, prefix"):
        RatingModelConfig("papt", "mlp", "middle")


def test_every_system_rates(rated):
    for position in ("none", "input", "output"):
        personalize.adapt(rated, position, UPDATES, Masking(0.8, 10))
    manifest = rated_fold.open_fold(rated).corpus.manifest
    for system in SOME:
        stage = personalize.train_and_predict(rated, system, QUICK)
        found = pd.read_parquet(stage / "predictions.parquet")
        assert set(found.attribute) == set(RATED)
        assert found.predicted.notna().all()
        true = manifest.loc[found.utterance, "valence"].to_numpy()
        own = (found.attribute == "valence").to_numpy()
        np.testing.assert_array_equal(found.true[own], true[own])
    costs = ratings.rating_costs(rated, SOME)
    n_training, dim = 2, 32
    assert costs.parameters["learnt-mlp"] - costs.parameters["none-mlp"] == n_training * dim
    assert costs.seconds["papt-output-mlp"] > 0
    table = pd.concat([ratings.calibrated(rated, system.name) for system in SOME[:3:2]])
    results = ratings.results_table(table)
    assert len(results) == 2 * 4 * 2
    assert results.speakers.eq(2).all()
    assert results.o_low.isna().all()  # two speakers give no interval
    stage = personalize.write_results(rated.run_dir, [rated], SOME[:3:2], table, results)
    summary = (stage / "summary.md").read_text()
    assert "no statement from 2 speakers" in summary
    assert "come from all that test speakers say, without labels" in summary


def test_test_labels_change_nothing_but_scores(rated, tmp_path, tiny_encoder):
    """Other ratings of the test speakers: the same predictions, plain, calibrated and adapted."""
    run = write_noise_corpus(tmp_path / "run", ratings=RATED, test_ratings=5.0)
    generate_gmps.generate_gmps(str(run), 1, -1, [4], "encoder", encoder=str(tiny_encoder))
    personalize.summarize_utterances(str(run), str(tiny_encoder))
    other = rated_fold.RatingTask(str(run), 1, str(tiny_encoder), RATED, neighbours=2)
    systems = [
        RatingModelConfig(),
        RatingModelConfig("mean"),
        RatingModelConfig("learned"),
        RatingModelConfig("papt"),
    ]
    for task in (rated, other):
        personalize.adapt(task, "output", UPDATES, Masking(0.8, 10))
        for system in systems:
            personalize.train_and_predict(task, system, QUICK)
        personalize.adapt_unsupervised(task, "oversampling", 1, QUICK)
    for name in [*(system.name for system in systems), "none-mlp-oversampling"]:
        one, two = (ratings.calibrated(task, name) for task in (rated, other))
        assert not np.array_equal(one.true, two.true)
        np.testing.assert_array_equal(one.predicted, two.predicted)


def test_adapting_to_test_speakers_hears_and_does_not_look(rated):
    personalize.train_and_predict(rated, RatingModelConfig(), QUICK)
    for how in personalize.ADAPTATIONS:
        stage = personalize.adapt_unsupervised(rated, how, 1, QUICK)
        assert pd.read_parquet(stage / "predictions.parquet").predicted.notna().all()
    with pytest.raises(
        GmpError, match="adaptation 'none': expected one of all, unique, oversampling"
    ):
        personalize.adapt_unsupervised(rated, "none", 1, QUICK)


def test_known_people_are_told_from_new_ones(rated):
    stage = personalize.with_fewer_speakers(rated, 1, QUICK)
    found = pd.read_parquet(stage / "predictions.parquet")
    who = found.groupby("part").speaker.unique().map(set)
    assert who["known"] == who["train"] and len(who["train"]) == 1
    heard, kept = (set(found.utterance[found.part == part]) for part in ("train", "known"))
    assert len(heard) == len(kept) == 6 and not heard & kept  # halves of twelve
    gaps = ratings.gap(rated, {1: stage.name})
    np.testing.assert_allclose(gaps.gap, gaps.known - gaps.unknown)


def test_the_encoder_may_be_trained_too(rated):
    from dataclasses import replace

    task = replace(rated, train_encoder=True)
    personalize.train_and_predict(rated, RatingModelConfig(), QUICK)
    for position in ("input", "output"):
        personalize.adapt(task, position, UPDATES, Masking(0.8, 10))
        system = RatingModelConfig("papt", "mlp", position)
        stage = personalize.train_and_predict(task, system, QUICK)
        metrics = read_json(stage / "metrics.json")
        before = personalize.train_and_predict(rated, RatingModelConfig(), QUICK)
        assert metrics["parameters"] > read_json(before / "metrics.json")["parameters"]


def test_what_cannot_be_rated_is_said(rated, noise_corpus, tiny_encoder):
    task = rated_fold.RatingTask(str(noise_corpus), 1, str(tiny_encoder), ["valence"])
    with pytest.raises(GmpError, match=r"attributes \['valence'\]: expected some of none"):
        rated_fold.open_fold(task)


def test_papt_asks_for_clusters_of_the_untouched_encoder(tmp_path, tiny_encoder):
    run = write_noise_corpus(tmp_path / "run", ratings=RATED)
    personalize.summarize_utterances(str(run), str(tiny_encoder))
    task = rated_fold.RatingTask(str(run), 1, str(tiny_encoder), RATED)
    with pytest.raises(GmpError, match=r"04_generate_gmps\.ipynb"):
        personalize.adapt(task, "output", UPDATES, Masking(0.8, 10))
    stage = generate_gmps.generate_gmps(str(run), 1, -1, [4], "encoder", encoder=str(tiny_encoder))
    write_json(
        stage / "params.json",
        read_json(stage / "params.json") | {"clustered_model": "multitask"},
    )
    seal_again(stage)
    with pytest.raises(GmpError, match="clustered_model 'multitask', expected 'encoder'"):
        personalize.adapt(task, "output", UPDATES, Masking(0.8, 10))


def test_what_is_compared_differs_in_one_thing():
    names = [system.name for system in EVERY] + ["none-mlp-all", "none-mlp-unique"]
    found = ratings.groups(names)
    assert set(found) == {"none-mlp", "none-transformer", "papt-none-mlp", "none-mlp-all"}
    assert found["none-transformer"] == [
        "mean-transformer", "max-transformer", "learnt-transformer", "papt-output-transformer",
    ]  # fmt: skip
    assert found["papt-none-mlp"] == ["papt-input-mlp", "papt-prefix-mlp", "papt-output-mlp"]
    assert found["none-mlp-all"] == ["none-mlp-unique"]
    assert ratings.groups(["mean-mlp"]) == {}


def test_few_utterances_make_no_score():
    rows = [("a", 5), ("b", 4)]
    table = pd.concat(
        pd.DataFrame({"speaker": name, "true": np.arange(n), "predicted": np.arange(n) + 1.0})
        for name, n in rows
    ).assign(system="s", calibration="none", attribute="valence")
    found = ratings.by_speaker(table)
    assert found.speaker.tolist() == ["a"]
    assert found.ccc.item() == pytest.approx(2 * 2 / (2 + 2 + 1))
