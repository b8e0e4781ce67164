import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import CLASSIFIER, CONFIGS, FINETUNED, MULTITASK, SMALL, classifier, save_encoder
from pytorch_metric_learning.losses import CosFaceLoss
from torch import nn

from gmp_utils import GmpError
from gmp_utils.evaluation.metrics import class_separation
from gmp_utils.models import classifiers
from gmp_utils.models.heads import (
    POOLINGS,
    ClusterHeads,
    CosineClassifier,
    HeadConfig,
    LayerMix,
    Pooling,
    UtteranceHead,
)
from gmp_utils.models.losses import am_softmax, stream_loss
from gmp_utils.runs import hardware
from gmp_utils.runs.files import read_json


def test_am_softmax_equals_cosface():
    """Its defaults are the paper's s = 30 and m = 0.2."""
    torch.manual_seed(0)
    features = torch.randn(16, 12, requires_grad=True)
    labels = torch.randint(0, 4, (16,))
    ours = CosineClassifier(12, 4)
    theirs = CosFaceLoss(num_classes=4, embedding_size=12, margin=0.2, scale=30)
    theirs.W.data = ours.weight.data.T.clone()
    loss = am_softmax(ours(features), labels)
    gradients = torch.autograd.grad(loss, [features, ours.weight])
    expected = theirs(features, labels)
    expected_gradients = torch.autograd.grad(expected, [features, theirs.W])
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients[0], expected_gradients[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients[1].T, expected_gradients[1], atol=1e-5, rtol=0)


def test_stream_loss_equals_the_sum_in_float64():
    torch.manual_seed(0)
    scales, dim, hidden = [3, 5, 7], 6, 4
    heads = ClusterHeads(dim, scales, hidden)
    frames = torch.randn(2, 9, dim)
    mask = torch.rand(2, 9) < 0.6
    labels = torch.stack([torch.randint(0, k, (2, 9)) for k in scales], dim=-1)
    loss = stream_loss(heads(frames[mask]), labels[mask])
    loss.sum().backward()

    expected, parameters = [], {k: v.double().numpy() for k, v in heads.state_dict().items()}
    for x, targets in zip(frames[mask].double().numpy(), labels[mask]):
        expected.append(0.0)
        for stream, target in enumerate(targets):
            names = ("0.weight", "0.bias", "2.weight", "2.bias")
            w1, b1, w2, b2 = (parameters[f"streams.{stream}.{name}"] for name in names)
            logits = w2 @ np.maximum(w1 @ x + b1, 0) + b2
            expected[-1] += np.log(np.exp(logits).sum()) - logits[target]
    np.testing.assert_allclose(loss.detach(), expected, atol=1e-5)
    assert all(parameter.grad is not None for parameter in heads.parameters())


def test_head_is_a_bidirectional_lstm():
    torch.manual_seed(0)
    head = UtteranceHead(5, HeadConfig(lstm_size=7, projection_size=3))
    reference = nn.LSTM(5, 7, batch_first=True, bidirectional=True)
    forward, backward = (dict(lstm.named_parameters()) for lstm in head.lstm)
    for name, value in forward.items():
        getattr(reference, name).data = value.data
        getattr(reference, f"{name}_reverse").data = backward[name].data
    frames = torch.randn(2, 9, 5)
    lengths = torch.tensor([9, 4])
    valid = torch.arange(9) < lengths[:, None]
    packed = nn.utils.rnn.pack_padded_sequence(frames, lengths, batch_first=True)
    states, _ = nn.utils.rnn.pad_packed_sequence(reference(packed)[0], batch_first=True)
    expected = head.projection(states.sum(dim=1) / lengths[:, None])
    torch.testing.assert_close(head(frames, valid), expected, atol=1e-6, rtol=1e-5)


def test_plain_heads_by_hand():
    """V-FT has a ReLU after the mean, SUPERB a linear layer. Neither has an LSTM, and padding is ignored."""
    frames = torch.tensor([[[1.0, -4.0], [3.0, 2.0], [100.0, 100.0]]])
    valid = torch.tensor([[True, True, False]])
    mean = UtteranceHead(2, HeadConfig(head="mean"))
    assert mean.size == 2
    assert mean(frames, valid).tolist() == [[2.0, 0.0]]
    linear = UtteranceHead(2, HeadConfig(projection_size=1, head="linear"))
    nn.init.constant_(linear.projection.weight, 1.0)
    nn.init.zeros_(linear.projection.bias)
    assert linear(frames, valid).tolist() == [[1.0]]
    head = UtteranceHead(2, HeadConfig(lstm_size=0, projection_size=3))
    torch.testing.assert_close(head(frames, valid), head.projection(torch.tensor([[2.0, -1.0]])))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_of_a_padded_batch_equals_numpy_on_each_utterance(pooling):
    """Attention follows Okabe's equations 1 to 6 in float64. The padding is larger than all frames."""
    torch.manual_seed(0)
    layer, frames = Pooling(5, pooling), torch.randn(2, 9, 5)
    lengths = torch.tensor([9, 4])
    frames[1, 4:] = 1e3
    pooled = layer(frames, torch.arange(9) < lengths[:, None]).detach()
    assert pooled.shape == (2, layer.size)
    parameters = [value.double().numpy() for value in layer.state_dict().values()]
    for vector, x, length in zip(pooled, frames.double().numpy(), lengths):
        x, weights = x[:length], np.full(length, 1 / length)
        if pooling == "attentive":
            w1, b1, w2, b2 = parameters
            weights = np.exp(np.tanh(x @ w1.T + b1) @ w2[0] + b2)
            weights /= weights.sum()
        mean = weights @ x
        std = np.sqrt(weights @ x**2 - mean**2)
        expected = mean if pooling == "mean" else np.concatenate([mean, std])
        np.testing.assert_allclose(vector, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("head", ["bilstm", "mean", "linear"])
def test_gradients_of_constant_frames_are_finite(pooling, head):
    """The square root has an infinite gradient at zero: silence, and an utterance of one frame."""
    head = UtteranceHead(4, HeadConfig(lstm_size=0, projection_size=3, head=head, pooling=pooling))
    frames = torch.full((2, 6, 4), 0.3, requires_grad=True)
    valid = torch.arange(6) < torch.tensor([[6], [1]])
    features = head(frames, valid)
    assert features.shape == (2, head.size)
    features.sum().backward()
    gradients = [frames.grad, *(parameter.grad for parameter in head.parameters())]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert frames.grad[0].abs().sum() > 0


def test_features_have_dropout_only_in_training():
    torch.manual_seed(0)
    head = UtteranceHead(4, HeadConfig(lstm_size=0, projection_size=1000, dropout=0.25))
    frames, valid = torch.randn(1, 6, 4), torch.ones(1, 6, dtype=torch.bool)
    feature, dropped = head.eval()(frames, valid), head.train()(frames, valid)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], feature[kept] / 0.75)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.06)  # four standard deviations


def test_layer_mix_by_hand():
    """A softmax over weights, initially uniform, as in `_weighted_sum` of s3prl's Featurizer."""
    mix = LayerMix(2)
    states = [torch.full((1, 2, 3), value) for value in (1.0, 2.0, 6.0)]
    torch.testing.assert_close(mix(states), torch.full((1, 2, 3), 3.0))
    mix.weight.data = torch.log(torch.tensor([1.0, 2.0, 5.0]))
    torch.testing.assert_close(mix(states), torch.full((1, 2, 3), (1 + 4 + 30) / 8))


def test_unknown_heads_and_half_frozen_encoders_are_rejected():
    with pytest.raises(GmpError, match="head 'attention': expected one of bilstm, mean, linear"):
        replace(SMALL, head="attention")
    with pytest.raises(
        GmpError, match=r"pooling 'max': expected one of mean, mean\+std, attentive"
    ):
        replace(SMALL, pooling="max")
    for settings in ({"train_encoder": False}, {"frozen_layers": 1}, {"lora_rank": 1}):
        with pytest.raises(GmpError, match="train_cnn: expected train_encoder, and no frozen"):
            replace(SMALL, train_cnn=True, **settings)
    with pytest.raises(GmpError, match="lora_rank: expected train_encoder"):
        replace(SMALL, train_encoder=False, lora_rank=1)
    with pytest.raises(GmpError, match="frozen_layers and lora_rank: expected 0 or more"):
        replace(SMALL, frozen_layers=-1)


def test_class_weights_by_hand(tiny_encoder):
    """Uniform logits cost log 3 each. Classes with weights 3, 1 and 0.5 occur once, once and twice."""
    settings = FINETUNED | {"loss": "ce", "emotion_weights": [3.0, 1.0, 0.5]}
    model = classifiers.EmotionClassifier.load(str(tiny_encoder), **settings)
    loss = model.emotion_loss(torch.zeros(4, 3), torch.tensor([0, 1, 2, 2]))
    assert loss.item() == pytest.approx(math.log(3) * (3 + 1 + 0.5 + 0.5) / 4)


def test_frame_loss_by_hand(tiny_encoder):
    """Frames are averaged by utterance, then utterances are: log 3, and 0 for a certain prediction."""
    settings = MULTITASK | {"frame_weight": 0.5, "alpha": 1.0}
    model = classifiers.MultitaskModel.load(str(tiny_encoder), **settings).train()
    logits = torch.zeros(2, 3, 3)
    logits[1, 0] = torch.tensor([0.0, 100.0, 0.0])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    emotion = torch.tensor([2, 1])
    assert model.emotion_loss(logits, emotion, valid).item() == pytest.approx(math.log(3) / 2)
    outputs = model(torch.randn(2, 8000), torch.tensor([8000, 8000]), emotion, torch.tensor([0, 1]))
    parts = outputs["emotion_loss"] + 0.5 * outputs["frame_loss"]
    torch.testing.assert_close(outputs["loss"], parts)


def test_a_frozen_encoder_has_no_gradients_and_no_dropout(tiny_encoder):
    settings = CLASSIFIER | {"train_encoder": False, "mix_layers": True, "head": "linear"}
    settings |= {"loss": "ce", "hidden_dropout": 0.5}
    model = classifiers.EmotionClassifier.load(str(tiny_encoder), **settings).train()
    batch = torch.randn(1, 8000), torch.tensor([8000]), torch.tensor([0])
    first = model(*batch)
    assert torch.equal(first["logits"], model(*batch)["logits"])
    first["loss"].backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"mix", "head", "classifier"}


def trained_parameters(model) -> set[str]:
    names = [name for name, p in model.base_model.named_parameters() if p.requires_grad]
    return {name.removeprefix("encoder.layers.") for name in names}


def test_the_lowest_layers_can_be_frozen(tiny_encoder):
    settings = FINETUNED | {"frozen_layers": 3}
    model = classifiers.EmotionClassifier.load(str(tiny_encoder), **settings)
    layer = model.base_model.encoder.layers[3]
    assert trained_parameters(model) == {f"3.{name}" for name, _ in layer.named_parameters()}
    assert all(p.requires_grad for p in model.head.parameters())
    with pytest.raises(GmpError, match="frozen_layers: found 4, expected at most 3; set train_enc"):
        classifiers.EmotionClassifier.load(str(tiny_encoder), **settings | {"frozen_layers": 4})


@pytest.mark.parametrize("kind", CONFIGS)
def test_lora_by_hand(tmp_path, kind):
    """W + up · down in the queries and values of the upper layers, in sums of another order."""
    encoder = str(save_encoder(tmp_path, kind, "group"))
    plain, adapted = (
        classifiers.EmotionClassifier.load(encoder, **FINETUNED | settings).eval()
        for settings in ({}, {"frozen_layers": 2, "lora_rank": 2})
    )
    updates = [
        f"{layer}.attention.{name}_proj.parametrizations.weight.0.{matrix}"
        for layer in (2, 3)
        for name in "qv"
        for matrix in ("down", "up")
    ]
    assert trained_parameters(adapted) == set(updates)
    batch = torch.randn(2, 8000), torch.tensor([8000, 6000])
    initial = plain.hidden_states(*batch)[0][0]
    close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)
    close(adapted.hidden_states(*batch)[0][0], initial)
    layers = plain.base_model.encoder.layers, adapted.base_model.encoder.layers
    with torch.no_grad():
        for expected, layer in list(zip(*layers))[2:]:
            for name in ("q_proj", "v_proj"):
                update = getattr(layer.attention, name).parametrizations.weight[0]
                assert update.down.shape == (2, 32)
                update.up.normal_()
                getattr(expected.attention, name).weight += update.up @ update.down
        changed = plain.hidden_states(*batch)[0][0]
        assert (changed - initial).abs().max() > 0.1
        close(adapted.hidden_states(*batch)[0][0], changed)
        adapted.merge_updates()
        close(adapted.hidden_states(*batch)[0][0], changed)
    assert adapted.state_dict().keys() == plain.state_dict().keys()


def test_a_model_trained_by_lora_is_like_any_other(noise_corpus, tiny_encoder):
    """Its weights differ from the encoder's in the queries and values only."""
    network = replace(SMALL, lora_rank=2, frozen_layers=1)
    stage = classifier(noise_corpus, tiny_encoder, network=network)
    initial, model = (
        classifiers.EmotionClassifier.load(str(folder), **settings).base_model.state_dict()
        for folder, settings in ((tiny_encoder, FINETUNED), (stage / "model", {}))
    )
    changed = {name for name, value in initial.items() if not torch.equal(value, model[name])}
    assert {name.split(".", 4)[-1] for name in changed} == {"q_proj.weight", "v_proj.weight"}
    assert len(changed) == 2 * 3
    loaded = classifiers.EmotionClassifier.load(str(stage / "model"))
    head = loaded.num_parameters() - sum(value.numel() for value in model.values())
    expected = head + 3 * 2 * 2 * (2 * 32)  # layers, queries and values, matrices, their sizes
    assert read_json(stage / "metrics.json")["parameters"] == expected
    layers = loaded.base_model.encoder.layers  # a training that starts from it trains all
    assert all(parameter.requires_grad for parameter in layers.parameters())


def test_separation_by_hand():
    """Two orthogonal classes: one lies at its center, the other 60 degrees around it."""
    side = np.sqrt(3) / 2
    vectors = np.array([[2.0, 0, 0], [1, 0, 0], [0, 0.5, side], [0, 5, -10 * side]])
    separation = class_separation(vectors, np.array([0, 0, 1, 1]))
    assert separation["inter_class"] == pytest.approx(1)
    assert separation["intra_class"] == pytest.approx((0 + 0 + 0.5 + 0.5) / 4)
    assert separation["ratio"] == pytest.approx(4)


def test_heads_and_losses_are_single_precision(tiny_encoder, monkeypatch):
    """The encoder runs in bfloat16: 8 bits of a cosine, times the scale of 30, are an error of 0.1."""
    monkeypatch.setattr(hardware, "bfloat16", lambda: True)
    model = classifiers.EmotionClassifier.load(str(tiny_encoder), **FINETUNED)
    computed = []
    for part in (model.head, model.classifier):
        part.register_forward_hook(lambda _module, args, output: computed.extend([args[0], output]))
    batch = torch.randn(2, 8000), torch.tensor([8000, 8000])
    outputs = model(*batch, torch.tensor([0, 1]))
    assert len(computed) == 4
    assert {tensor.dtype for tensor in (*computed, *outputs.values())} == {torch.float32}
