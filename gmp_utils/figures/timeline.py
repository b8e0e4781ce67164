"""An utterance over time: its waveform, its pseudo-labels, and what a classifier hears in each second."""

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from gmp_utils.data.audio import SAMPLE_RATE, normalize
from gmp_utils.figures.style import TEMPLATE, colors
from gmp_utils.models.classifiers import EmotionClassifier
from gmp_utils.models.recognizer import Recognizer
from gmp_utils.stages.recognize import recognize
from gmp_utils.training.batching import FRAMES_PER_SECOND

WINDOW = 50  # frames that the classifier's head sums up at a time
HOP = 5  # frames from one window to the next
DRAWN_SAMPLES = 2000  # of a waveform, lowest and highest by turns


def scores_over_time(
    model: EmotionClassifier, waveform: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Emotion scores of every second of an utterance.

    The encoder hears the whole utterance, the head one window of its frames after the other.

    Parameters
    ----------
    model : EmotionClassifier
    waveform : (samples,) int16
        Of 16 kHz.

    Returns
    -------
    seconds : (n_windows,) float
        The middle of each window.
    scores : (n_windows, emotions) float32
        Softmax of the logits. An utterance shorter than a window is one window.
    """
    samples = torch.from_numpy(normalize(waveform))[None]
    lengths = torch.tensor([samples.shape[1]])
    model.eval()
    with torch.inference_mode():
        samples, lengths = samples.to(model.device), lengths.to(model.device)
        frames, _ = model.frames(samples, lengths)
        size = min(WINDOW, frames.shape[1])
        windows = frames[0].unfold(0, size, HOP).transpose(1, 2)
        everything = torch.ones(windows.shape[:2], dtype=torch.bool, device=windows.device)
        logits = model.logits(model.head(windows, everything))
    starts = np.arange(len(windows)) * HOP
    return (starts + size / 2) / FRAMES_PER_SECOND, logits.float().softmax(dim=1).cpu().numpy()


def draw_timeline(
    waveform: np.ndarray,
    title: str,
    streams: dict[str, np.ndarray] | None = None,
    scores: tuple[np.ndarray, np.ndarray, list[str]] | None = None,
    around: tuple[float, float] | None = None,
    carries: tuple[float, float] | None = None,
) -> go.Figure:
    """Draw an utterance over time.

    Parameters
    ----------
    waveform : (samples,) int16
    title : str
    streams : dict of str to (frames,) int, optional
        Clusters, by row's name.
    scores : tuple, optional
        As `scores_over_time` returns them, and the emotions' names.
    around : (start, end) of float, optional
        Seconds to mark: what is played.
    carries : (start, end) of float, optional
        Seconds that carry the emotion, where that is known.
    """
    rows = ["waveform"] + ["streams"] * bool(streams) + ["scores"] * (scores is not None)
    figure = make_subplots(len(rows), 1, shared_xaxes=True, vertical_spacing=0.06)
    step = max(1, 2 * len(waveform) // DRAWN_SAMPLES)
    pieces = waveform[: len(waveform) // step * step].reshape(-1, step) / 32768
    drawn = np.stack([pieces.min(axis=1), pieces.max(axis=1)], axis=1).ravel()
    seconds = np.repeat(np.arange(len(pieces)) * step / SAMPLE_RATE, 2)
    line = {"color": "#555555", "width": 1}
    figure.add_scatter(x=seconds, y=drawn, line=line, showlegend=False, row=1, col=1)
    if streams:
        row, labels = rows.index("streams") + 1, np.stack(list(streams.values()))
        shades = labels / labels.max(axis=1, keepdims=True).clip(1)
        at = (np.arange(labels.shape[1]) + 0.5) / FRAMES_PER_SECOND
        figure.add_heatmap(
            x=at, y=list(streams), z=shades, text=labels, showscale=False, colorscale="Turbo",
            hovertemplate="%{y}, cluster %{text}<extra></extra>", row=row, col=1,
        )  # fmt: skip
    if scores is not None:
        middles, values, emotions = scores
        for (emotion, color), score in zip(colors(emotions).items(), values.T):
            figure.add_scatter(
                x=middles, y=score, name=emotion, mode="lines+markers", line={"color": color},
                row=len(rows), col=1,
            )  # fmt: skip
        figure.update_yaxes(title="score", range=[-0.05, 1.05], row=len(rows), col=1)
    for marked, color, text in ((around, "#0072B2", "played"), (carries, "#E69F00", "emotion")):
        if marked:
            figure.add_vrect(
                *marked, fillcolor=color, opacity=0.15, line_width=0, row=1, col=1,
                annotation_text=text, annotation_position="top left",
            )  # fmt: skip
    figure.update_xaxes(title="s", row=len(rows), col=1)
    figure.update_layout(title=title, template=TEMPLATE, height=120 + 110 * len(rows))
    return figure


def of_recording(
    recognizer: Recognizer,
    waveform: np.ndarray,
    name: str,
    streams: dict[str, np.ndarray] | None = None,
) -> go.Figure:
    """Draw what a recognizer hears in a recording, in every two seconds of it.

    Parameters
    ----------
    recognizer : Recognizer
    waveform : (samples,) float32
        Of 16 kHz; half a minute is well to be seen.
    name : str
    streams : dict of str to (frames,) int, optional
        Clusters, by row's name.
    """
    table = recognize(waveform, recognizer, SAMPLE_RATE, window=2.0, hop=0.25)
    emotions, middles = [*recognizer.config.label2id], (table.start + table.end).to_numpy() / 2
    surest = table.confidence.idxmax()
    row = table.loc[surest]
    title = f"{name}: surest of {row.emotion}, at {middles[surest]:.0f} s ({row.confidence:.2f})"
    if not (table.speech > 0.5).any():
        title = f"{name}: no speech is heard"
    samples = np.round(waveform.clip(-1, 1) * 32767).astype(np.int16)
    return draw_timeline(samples, title, streams, (middles, table[emotions].to_numpy(), emotions))
