import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import CosFaceLoss
from torch import nn
from torch.nn import functional as F

from gmp_utils import finetuning, hardware
from gmp_utils.finetuning import separation
from gmp_utils.heads import CosineClassifier, StreamHeads, UtteranceHead, mean_over_time
from gmp_utils.losses import am_softmax, stream_loss


def test_am_softmax_equals_cosface():
    torch.manual_seed(0)
    features = torch.randn(16, 12, requires_grad=True)
    labels = torch.randint(0, 4, (16,))
    ours = CosineClassifier(12, 4)
    theirs = CosFaceLoss(num_classes=4, embedding_size=12, margin=0.2, scale=30)
    theirs.W.data = ours.weight.data.T.clone()
    loss = am_softmax(ours(features), labels, scale=30, margin=0.2)
    gradients = torch.autograd.grad(loss, [features, ours.weight])
    expected = theirs(features, labels)
    expected_gradients = torch.autograd.grad(expected, [features, theirs.W])
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients[0], expected_gradients[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients[1].T, expected_gradients[1], atol=1e-5, rtol=0)


def test_am_softmax_by_hand():
    """Orthogonal feature: all cosines 0, so log(1 + 3 e^6) with s = 30 and m = 0.2."""
    loss = am_softmax(torch.zeros(1, 4), torch.tensor([2]))
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(6)), abs=1e-5)


def test_stream_loss_equals_the_written_out_sum_in_float64():
    torch.manual_seed(0)
    scales, dim, hidden = [3, 5, 7], 6, 4
    heads = StreamHeads(dim, scales, hidden)
    frames = torch.randn(2, 9, dim)
    mask = torch.rand(2, 9) < 0.6
    labels = torch.stack([torch.randint(0, k, (2, 9)) for k in scales], dim=-1)
    loss = stream_loss(heads(frames[mask]), labels, mask)
    loss.backward()

    total, count = 0.0, 0
    weights = {name: value.double().numpy() for name, value in heads.state_dict().items()}
    for b in range(2):
        for t in range(9):
            if not mask[b, t]:
                continue
            count += 1
            x = frames[b, t].double().numpy()
            for stream in range(len(scales)):
                w1, b1, w2, b2 = (
                    weights[f"streams.{stream}.{layer}.{part}"]
                    for layer in (0, 2)
                    for part in ("weight", "bias")
                )
                logits = w2 @ np.maximum(w1 @ x + b1, 0) + b2
                total += np.log(np.exp(logits).sum()) - logits[labels[b, t, stream]]
    assert loss.item() == pytest.approx(total / count, abs=1e-5)
    mean = stream_loss(heads(frames[mask]), labels, mask, "mean")
    assert mean.item() == pytest.approx(total / count / 3, abs=1e-5)
    assert all(parameter.grad is not None for parameter in heads.parameters())


def test_stream_loss_of_no_frames_is_zero():
    heads = StreamHeads(4, [2, 3], 4)
    mask = torch.zeros(1, 5, dtype=torch.bool)
    labels = torch.zeros(1, 5, 2, dtype=torch.int64)
    loss = stream_loss(heads(torch.randn(1, 5, 4)[mask]), labels, mask)
    assert loss.item() == 0


def test_mean_over_time_by_hand():
    frames = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [6.0]]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    assert mean_over_time(frames, valid).flatten().tolist() == [2.0, 4.0]


def test_head_is_a_bidirectional_lstm():
    torch.manual_seed(0)
    head = UtteranceHead(5, lstm_size=7, projection_size=3)
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


def test_head_without_lstm_is_the_projected_mean():
    head = UtteranceHead(5, lstm_size=0, projection_size=3)
    frames = torch.randn(2, 4, 5)
    expected = head.projection(frames.mean(dim=1))
    torch.testing.assert_close(head(frames, torch.ones(2, 4, dtype=torch.bool)), expected)


def test_cosines_ignore_length():
    classifier = CosineClassifier(6, 3)
    features = torch.randn(4, 6)
    cosines = classifier(features)
    torch.testing.assert_close(classifier(7 * features), cosines)
    expected = F.cosine_similarity(features[:, None], classifier.weight[None], dim=-1)
    torch.testing.assert_close(cosines, expected)


def test_separation_by_hand():
    """Two classes at right angles; one holds its centre, the other lies 60 degrees around it."""
    side = np.sqrt(3) / 2
    vectors = np.array([[2.0, 0, 0], [1, 0, 0], [0, 0.5, side], [0, 5, -10 * side]])
    found = separation(vectors, np.array([0, 0, 1, 1]))
    assert found["between"] == pytest.approx(1)
    assert found["within"] == pytest.approx((0 + 0 + 0.5 + 0.5) / 4)
    assert found["ratio"] == pytest.approx(4)


def test_heads_and_losses_are_single_precision(tiny_encoder, monkeypatch):
    """Encoders run in bfloat16, whose eight bits in a cosine times a scale of 30 would be off by 0.1."""
    monkeypatch.setattr(hardware, "bfloat16", lambda: True)
    settings = {"loss": "ams", "scale": 30.0, "margin": 0.2, "emotions": list("abcd")}
    head = {"lstm_size": 8, "projection_size": 8, "head_layer": -1}
    model = finetuning.EmotionClassifier.load(str(tiny_encoder), **settings, **head)
    computed = []
    for part in (model.head, model.classifier):
        part.register_forward_hook(lambda _module, args, output: computed.extend([args[0], output]))
    batch = torch.randn(2, 8000), torch.tensor([8000, 8000])
    outputs = model(*batch, torch.tensor([0, 1]))
    assert len(computed) == 4
    assert {tensor.dtype for tensor in (*computed, *outputs.values())} == {torch.float32}
