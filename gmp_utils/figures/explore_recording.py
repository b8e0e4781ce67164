"""A live view of recordings: upload or record, and see and hear which emotions are recognized."""

import html
import io
from pathlib import Path

import anywidget
import ipywidgets as widgets
import numpy as np
import pandas as pd
import soundfile
import traitlets
from IPython.display import display

from gmp_utils import GmpError
from gmp_utils.data import audio
from gmp_utils.data.audio import MIN_SECONDS, SAMPLE_RATE
from gmp_utils.figures.help import help_text
from gmp_utils.figures.timeline import draw_recording, widget_output
from gmp_utils.models.recognizer import load_recognizer
from gmp_utils.stages.publish import find_or_publish
from gmp_utils.stages.recognize import recognize

MAX_DRAWN = 60.0  # seconds selected at first
HINT = "Upload a recording (wav, mp3, m4a, …), or record one. It stays in the notebook's memory."
HELP = {
    "a recording, record": "uploads a file, records from the microphone until you press stop",
    "seconds": "the part that is drawn and played. Tab moves to an end, and the arrow keys move it",
}


class Microphone(anywidget.AnyWidget):
    """A button that records from its first press to its second: `samples`, `sample_rate` (Hz)."""

    _esm = Path(__file__).with_name("microphone.js")
    samples = traitlets.Any(b"").tag(sync=True)  # float32, little-endian, one channel
    sample_rate = traitlets.Int(0).tag(sync=True)


class RecordingExplorer:
    """Upload or record, recognize, draw and play.

    Of the last recording, `waveform` is (n_samples,) float32 at 16 kHz, `table` what
    `gmp_utils.recognize` returns.
    """

    def __init__(self, model: str):
        self.recognizer = load_recognizer(find_or_publish(model))
        self.emotions = list(self.recognizer.config.label2id)
        self.table, self.waveform, self.name = pd.DataFrame(), np.zeros(0, np.float32), ""
        self.upload = widgets.FileUpload(description="a recording", multiple=False)
        self.microphone = Microphone()
        self.selection = widgets.FloatRangeSlider(
            description="seconds", min=0, max=1, step=0.1, continuous_update=False, disabled=True
        )
        self.audio = widgets.Audio(format="wav", loop=False, autoplay=False)
        self.player = widgets.VBox()  # empty until there is something to play
        self.figure, self.status = widgets.Output(), widgets.HTML(HINT)
        inputs = widgets.HBox([self.upload, self.microphone])
        rows = [inputs, self.status, self.selection, self.player, self.figure]
        self.widget = widgets.VBox([help_text(HELP), *rows])
        self.upload.observe(self._on_upload, "value")
        self.microphone.observe(self._on_record, "samples")
        self.selection.observe(self._draw, "value")

    def _on_upload(self, _change) -> None:
        for file in self.upload.value:
            try:
                recording = soundfile.read(io.BytesIO(file["content"]), dtype="float32")
            except (RuntimeError, TypeError) as error:
                self.status.value = html.escape(f"{file['name']}: cannot be decoded ({error}).")
            else:
                self.recognize(*recording, file["name"])

    def _on_record(self, _change) -> None:
        samples = np.frombuffer(self.microphone.samples, "<f4")
        self.recognize(samples, self.microphone.sample_rate, "recorded")

    def recognize(self, samples: np.ndarray, sample_rate: int, name: str) -> None:
        """Recognize, draw and play a recording, (n_samples,) or (n_samples, channels), or show the error."""
        self.status.value = html.escape(f"{name}: recognizing …")
        try:
            waveform = audio.from_array(samples, sample_rate)
            table = recognize(waveform, self.recognizer, SAMPLE_RATE)
        except GmpError as error:
            self.status.value = html.escape(str(error))
            return
        self.waveform, self.table, self.name = waveform, table, name
        n_spoken, summary = table.confidence.count(), "no speech detected"
        if n_spoken:
            means = table[self.emotions].mean().sort_values(ascending=False)
            scores = ", ".join(f"{emotion} {score:.2f}" for emotion, score in means.items())
            summary = f"{scores}, mean of {n_spoken} windows with speech"
        self.status.value = html.escape(f"{name}: {summary}.")
        seconds = len(waveform) / SAMPLE_RATE
        self.selection.value = 0, 0  # so that a recording of the same length is drawn, too
        self.selection.max, self.selection.disabled = seconds, False
        self.selection.value = 0, min(MAX_DRAWN, seconds)

    def _draw(self, _change) -> None:
        start, end = (int(seconds * SAMPLE_RATE) for seconds in self.selection.value)
        waveform = self.waveform[start:end]
        if len(waveform) < MIN_SECONDS * SAMPLE_RATE:
            self.player.children = self.figure.outputs = ()
            return
        self.audio.value = audio.wav(audio.to_int16(waveform))
        self.player.children = (self.audio,)
        table = recognize(waveform, self.recognizer, SAMPLE_RATE, window=2.0, hop=0.25)
        figure = draw_recording(waveform, table, self.emotions, self.name)
        self.figure.outputs = widget_output(figure)


def explore_recording(model: str = "runs/demo") -> RecordingExplorer:
    """Display the explorer of a model, for which see `gmp_utils.stages.publish.find_or_publish`."""
    explorer = RecordingExplorer(model)
    display(explorer.widget)
    return explorer
