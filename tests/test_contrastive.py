import numpy as np
import pytest
import torch
from conftest import write_noise_corpus
from transformers import Wav2Vec2ForPreTraining

from gmp_utils import GmpError
from gmp_utils.models.contrastive import ContrastiveModel, contrastive_metrics, draw_negatives
from gmp_utils.models.heads import HeadConfig
from gmp_utils.runs import weights
from gmp_utils.runs.files import read_json
from gmp_utils.stages import finetune, retrain
from gmp_utils.training.batching import Masking
from gmp_utils.training.trainer import TrainingConfig


def masks(*rows):
    return torch.tensor([[frame == "x" for frame in row] for row in rows])


def test_negatives_are_other_frames_of_the_same_utterance():
    mask = masks("x.xx....", "........", "..x.....", "xx......")
    negatives = draw_negatives(mask, 500, torch.Generator().manual_seed(0))
    others = [{1, 2}, {0, 2}, {0, 1}, {3}, {5}, {4}]  # the only frame of its utterance has itself
    assert [set(row.tolist()) for row in negatives] == others
    share = (negatives[0] == 1).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.1)  # 500 draws: a standard deviation of 0.02


def test_loss_and_gradients_equal_transformers(tiny_wav2vec2):
    """With the same negatives. Float32 sums are in another order."""
    ours = ContrastiveModel.load(str(tiny_wav2vec2)).eval()
    theirs = Wav2Vec2ForPreTraining.from_pretrained(tiny_wav2vec2).eval()
    theirs.freeze_feature_encoder()
    torch.manual_seed(1)
    waveforms, n_samples = torch.randn(2, 8000), torch.tensor([8000, 8000])
    mask = masks("xxxxx.....xxxxx.........", "...xxxxxxxxxxxx.......xx")
    outputs = ours(waveforms, n_samples, mask)
    negatives = draw_negatives(mask, 20, torch.Generator().manual_seed(0))
    indices = torch.zeros(2, 24, 20, dtype=torch.int64)
    indices[mask] = mask.flatten().nonzero()[:, 0][negatives]
    expected = theirs(waveforms, mask_time_indices=mask, sampled_negative_indices=indices)
    loss = expected.loss / mask.sum()
    torch.testing.assert_close(outputs["loss"], loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs["ce"].sum(), expected.contrastive_loss, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(outputs["perplexity"][0], expected.codevector_perplexity)
    outputs["loss"].backward()
    loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert len(gradients) > 60
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours.get_parameter(name).grad, gradient, atol=1e-5, rtol=1e-3)


def test_heads_are_initialized_if_an_encoder_has_none(tiny_wav2vec2, tmp_path):
    Wav2Vec2ForPreTraining.from_pretrained(tiny_wav2vec2).wav2vec2.save_pretrained(tmp_path)
    torch.manual_seed(0)
    quantizer = ContrastiveModel.load(str(tmp_path)).quantizer
    assert quantizer.weight_proj.weight.std().item() == pytest.approx(1, abs=0.2)
    assert 0 <= quantizer.codevectors.min() < quantizer.codevectors.max() < 1


def test_the_temperature_is_annealed(tiny_wav2vec2):
    model = ContrastiveModel.load(str(tiny_wav2vec2))
    temperatures = []
    for progress in (0.0, 0.5, 1.0):
        model.on_step_begin(progress)
        temperatures.append(model.quantizer.temperature)
    assert temperatures == pytest.approx([2.0, 1.0, 0.5])


def test_metrics_by_hand():
    """Two utterances of 1 and 3 frames, and then no frame with distractors."""
    sums = [np.array(x, float) for x in ([1, 3], [[2], [6]], [[1], [1]], [[0.1], [0.7]], [4, 8])]
    metrics = contrastive_metrics(type("Prediction", (), {"predictions": sums}))
    assert metrics == pytest.approx(
        {"validation_loss": 2, "accuracy": 0.5, "chance": 0.2, "perplexity": 7}
    )
    sums[0] = np.zeros(2)
    metrics = contrastive_metrics(type("Prediction", (), {"predictions": sums}))
    assert (metrics["validation_loss"], metrics["accuracy"]) == (pytest.approx(np.log(101)), 0)


def test_task_adaptive_pre_training_needs_no_clusters(tmp_path, tiny_wav2vec2, tiny_encoder):
    """With utterances shorter than a mask, and then V-FT's head on the retrained model."""
    run, encoder = str(write_noise_corpus(tmp_path / "run")), str(tiny_wav2vec2)
    training = TrainingConfig(1e-3, max_steps=4, batch_seconds=10)
    masking = Masking(0.65, 30)
    stage = retrain.retrain(run, 1, encoder, training, masking=masking, objective="own")
    assert read_json(stage / "params.json")["objective"] == "contrastive"
    metrics = read_json(stage / "metrics.json")
    assert 0 < metrics["validation_loss"] < 2 * np.log(21)
    assert {"contrastive_loss", "diversity_loss", "accuracy", "chance", "perplexity"} < set(metrics)
    assert 0 < retrain.accuracies(run, 1).chance.item() < 1
    network = HeadConfig(head="mean", spec_augment=True, class_weights=True)
    epoch = TrainingConfig(1e-3, epochs=1, batch_seconds=10)
    tuned = finetune.finetune(run, 1, encoder, "ce", epoch, network=network)
    assert (tuned / "predictions.parquet").is_file()
    with pytest.raises(GmpError, match=r"with a hubert encoder: expected wav2vec 2\.0"):
        retrain.retrain(run, 1, str(tiny_encoder), training, objective="contrastive")


def test_own_objective(tiny_wav2vec2, tiny_encoder):
    encoders = ["embedded", str(tiny_encoder), str(tiny_wav2vec2)]
    objectives = [weights.pretraining_objective(encoder) for encoder in encoders]
    assert objectives == ["clusters", "clusters", "contrastive"]
    assert weights.pretraining_objective("facebook/wav2vec2-base") == "contrastive"
    assert weights.pretraining_objective("microsoft/wavlm-base-plus") == "clusters"
