import numpy as np
import pytest
import torch
from conftest import TINY, write_noise_corpus
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

from gmp_utils import GmpError
from gmp_utils.models.contrastive import ContrastiveModel, draw_negatives
from gmp_utils.models.heads import HeadConfig
from gmp_utils.runs import weights
from gmp_utils.runs.files import read_json
from gmp_utils.stages import finetune, retrain
from gmp_utils.training.batching import Masking
from gmp_utils.training.trainer import TrainingConfig

HEADS = {"codevector_dim": 16, "proj_codevector_dim": 12, "num_negatives": 20}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A tiny wav2vec 2.0 with the heads of its pre-training, as the hub has it; few codes, often the same."""
    folder = tmp_path_factory.mktemp("wav2vec2")
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        **TINY, **HEADS, num_codevectors_per_group=3, feat_quantizer_dropout=0.0
    )
    Wav2Vec2ForPreTraining(config).save_pretrained(folder)
    return folder


def masks(*rows):
    return torch.tensor([[one == "x" for one in row] for row in rows])


def test_negatives_are_others_of_the_same_utterance():
    mask = masks("x.xx....", "........", "..x.....", "xx......")
    negatives = draw_negatives(mask, 500, torch.Generator().manual_seed(0))
    others = [{1, 2}, {0, 2}, {0, 1}, {3}, {5}, {4}]  # the only one of its utterance has itself
    assert [set(row.tolist()) for row in negatives] == others
    share = (negatives[0] == 1).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.1)  # 500 draws: a deviation of 0.02


def test_loss_and_gradients_are_transformers(published):
    """The same negatives, evaluation's certain codes; float32 sums in another order."""
    ours = ContrastiveModel.load(str(published)).eval()
    theirs = Wav2Vec2ForPreTraining.from_pretrained(published).eval()
    theirs.freeze_feature_encoder()
    torch.manual_seed(1)
    waveforms, n_samples = torch.randn(2, 8000), torch.tensor([8000, 8000])
    mask = masks("xxxxx.....xxxxx.........", "...xxxxxxxxxxxx.......xx")
    outputs = ours(waveforms, n_samples, mask)
    negatives = draw_negatives(mask, 20, torch.Generator().manual_seed(0))
    indices = torch.zeros(2, 24, 20, dtype=torch.int64)
    indices[mask] = mask.flatten().nonzero()[:, 0][negatives]
    expected = theirs(waveforms, mask_time_indices=mask, sampled_negative_indices=indices)
    count = mask.sum()
    torch.testing.assert_close(outputs["loss"], expected.loss / count, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs["ce"].sum(), expected.contrastive_loss, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(outputs["codes"][0], expected.codevector_perplexity)
    outputs["loss"].backward()
    (expected.loss / count).backward()
    compared = 0
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            own = ours.get_parameter(name).grad
            torch.testing.assert_close(own, parameter.grad, atol=1e-5, rtol=1e-3)
            compared += 1
    assert compared > 60


def test_heads_start_where_an_encoder_has_none(published, tmp_path):
    Wav2Vec2ForPreTraining.from_pretrained(published).wav2vec2.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = ContrastiveModel.load(str(tmp_path))
    assert model.quantizer.weight_proj.weight.std().item() == pytest.approx(1, abs=0.2)
    vectors = model.quantizer.codevectors
    assert 0 <= vectors.min() < vectors.max() < 1


def test_codes_are_chosen_less_and_less_at_random(published):
    model = ContrastiveModel.load(str(published))
    temperatures = []
    for share in (0.0, 0.5, 1.0):
        model.on_step_begin(share)
        temperatures.append(model.quantizer.temperature)
    assert temperatures == pytest.approx([2.0, 1.0, 0.5])


def test_task_adaptive_pre_training_needs_no_clusters(tmp_path, published, tiny_encoder):
    """Clips shorter than a mask among them; then V-FT's head on what came of it."""
    run = str(write_noise_corpus(tmp_path / "run"))
    schedule = TrainingConfig(1e-3, max_steps=4, batch_seconds=10)
    where = (run, 1, str(published), schedule)
    stage = retrain.retrain(*where, masking=Masking(0.65, 30), objective="own")
    assert read_json(stage / "params.json")["objective"] == "contrastive"
    metrics = read_json(stage / "metrics.json")
    assert 0 < metrics["masked_loss"] < 2 * np.log(21)
    assert {"contrastive_loss", "diversity_loss", "accuracy", "chance", "codes"} < set(metrics)
    foretold = retrain.accuracies(run, 1)
    assert 0 < foretold.chance.item() < 1
    network = HeadConfig(head="relu", spec_augment=True, class_weights=True)
    quick = TrainingConfig(1e-3, epochs=1, batch_seconds=10)
    found = finetune.finetune(run, 1, str(published), "ce", quick, network=network)
    assert (found / "predictions.parquet").is_file()
    with pytest.raises(GmpError, match=r"with a hubert encoder: it is wav2vec 2\.0's own"):
        retrain.retrain(run, 1, str(tiny_encoder), schedule, objective="contrastive")
    with pytest.raises(GmpError, match="mask_probability above 0"):
        retrain.retrain(*where, masking=Masking(0.0, 10), objective="own")


def test_an_encoders_own_objective(published, tiny_encoder):
    found = [
        weights.own_objective(name) for name in ("embedded", str(tiny_encoder), str(published))
    ]
    assert found == ["clusters", "clusters", "contrastive"]
    assert weights.own_objective("facebook/wav2vec2-base") == "contrastive"
    assert weights.own_objective("microsoft/wavlm-base-plus") == "clusters"
