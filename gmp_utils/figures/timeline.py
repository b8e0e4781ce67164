"""An utterance or recording over time: waveform, pseudo-labels, and emotion scores."""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from gmp_utils.data.audio import SAMPLE_RATE, frame_seconds, normalize, to_float, to_int16
from gmp_utils.figures.style import SEQUENCE, TEMPLATE, colors
from gmp_utils.models.classifiers import EmotionClassifier

WINDOW = 50  # frames of a second
HOP = 5  # frames from one window to the next
POINTS = 2000  # of a drawn waveform, alternately minimum and maximum
GOLDEN = 0.618034  # its multiples give neighboring clusters different colors
PARTS = {"played": SEQUENCE[0], "emotional part": SEQUENCE[1]}  # colors of parts without a label


def scores_over_time(
    model: EmotionClassifier, waveform: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Middles (s) of one-second windows, and their emotion scores, (n_windows, emotions) softmax.

    The encoder runs on the whole utterance, (samples,) int16, and the head on windows of its frames.
    An utterance shorter than a window is one window.
    """
    samples = torch.from_numpy(normalize(waveform))[None].to(model.device)
    lengths = torch.tensor([samples.shape[1]], device=model.device)
    model.eval()
    with torch.inference_mode():
        frames, _ = model.frames(samples, lengths)
        size = min(WINDOW, frames.shape[1])
        windows = frames[0].unfold(0, size, HOP).transpose(1, 2)
        mask = torch.ones(windows.shape[:2], dtype=torch.bool, device=windows.device)
        logits = model.logits(model.head(windows, mask))
    middles = np.arange(len(windows)) * HOP + (size - 1) / 2
    return frame_seconds(middles), logits.float().softmax(dim=1).cpu().numpy()


def draw_timeline(
    waveform: np.ndarray,
    title: str,
    *,
    scores: tuple[np.ndarray, np.ndarray, list[str]] | None = None,
    streams: dict[str, np.ndarray] | None = None,
    labels: Sequence[tuple[str, float, float]] = (),
    chance: bool = True,
) -> go.Figure:
    """Draw an utterance, (samples,) int16, over time.

    Parameters
    ----------
    scores : tuple, optional
        Output of `scores_over_time`, and the names of the emotions. NaN leaves a gap.
    streams : dict of str to (frames,) int, optional
        Pseudo-labels by the name of their row.
    labels : sequence of (name, start, end)
        Parts to shade, in seconds, with labels or names of `PARTS`.
    chance : bool
        Draw the chance level of a classifier's scores.
    """
    n_rows = 1 + bool(streams) + bool(scores)
    figure = make_subplots(n_rows, 1, shared_xaxes=True, vertical_spacing=0.06)
    step = max(1, 2 * len(waveform) // POINTS)
    pieces = to_float(waveform[: len(waveform) // step * step]).reshape(-1, step)
    extremes = np.stack([pieces.min(axis=1), pieces.max(axis=1)], axis=1).ravel()
    seconds = np.repeat(np.arange(len(pieces)) * step / SAMPLE_RATE, 2)
    line = {"color": "#555555", "width": 1}
    figure.add_scatter(x=seconds, y=extremes, line=line, showlegend=False, row=1, col=1)
    figure.update_yaxes(title="amplitude", row=1, col=1)
    if streams:
        clusters = np.stack(list(streams.values()))
        figure.add_heatmap(
            x=frame_seconds(np.arange(clusters.shape[1])), y=list(streams), z=clusters * GOLDEN % 1,
            text=clusters, showscale=False, colorscale="HSV",
            hovertemplate="%{y}, cluster %{text}<extra></extra>", row=2, col=1,
        )  # fmt: skip
    if scores:
        last, (middles, values, emotions) = {"row": n_rows, "col": 1}, scores
        for (emotion, color), score in zip(colors(emotions).items(), values.T):
            line, mode = {"color": color}, "lines+markers"
            figure.add_scatter(x=middles, y=score, name=emotion, mode=mode, line=line, **last)
        if chance:
            figure.add_hline(1 / len(emotions), line={"dash": "dot", "width": 1}, **last)
        figure.update_yaxes(title="score", range=[-0.05, 1.05], **last)
    shades = colors([name for name, *_ in labels]) | PARTS
    for name, start, end in labels:
        shade = {"fillcolor": shades[name], "opacity": 0.15, "line_width": 0, "col": 1}
        note = {"annotation_text": name, "annotation_position": "top left"}
        figure.add_vrect(start, end, row=1, **note, **shade)
        if scores:
            figure.add_vrect(start, end, row=n_rows, **shade)
    figure.update_xaxes(title="time (s)", row=n_rows, col=1)
    return figure.update_layout(title=title, template=TEMPLATE, height=120 + 110 * n_rows)


def draw_recording(
    waveform: np.ndarray, table: pd.DataFrame, emotions: list[str], name: str, **timeline
) -> go.Figure:
    """Draw a recording, (samples,) float32, and its `gmp_utils.recognize` table; see `draw_timeline`."""
    middles = ((table.start + table.end) / 2).to_numpy()
    title = f"{name}: no speech detected"
    if table.confidence.notna().any():
        peak = table.confidence.idxmax()
        emotion, confidence = table.emotion[peak], table.confidence[peak]
        title = f"{name}: most confident about {emotion}, at {middles[peak]:.0f} s"
        title += f" ({confidence:.2f})"
    scores = middles, table[emotions].to_numpy(), emotions
    return draw_timeline(to_int16(waveform), title, scores=scores, **timeline)


def widget_output(figure: go.Figure) -> tuple[dict]:
    """A figure as the `outputs` of an Output widget."""
    data = {"application/vnd.plotly.v1+json": json.loads(figure.to_json())}
    return ({"output_type": "display_data", "data": data, "metadata": {}},)
