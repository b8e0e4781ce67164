"""An explorer of recordings: upload or record, and see and hear which emotions are recognized."""

import html
from collections.abc import Callable
from pathlib import Path

import anywidget
import ipywidgets as widgets
import numpy as np
import pandas as pd
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
    "a recording, record": "upload a file, or record from the microphone until you press stop",
    "seconds": "the part that is drawn and played. Tab moves to an end, and the arrow keys move it",
}


class RecordingInput(anywidget.AnyWidget):
    """Buttons to upload a file and to record, and a function that is called with the recording and its name.

    A recording is the bytes of a file, or (sample_rate, samples) from the microphone.
    """

    _esm = Path(__file__).with_name("recording_input.js")

    def __init__(self, on_recording: Callable[[bytes | tuple[int, np.ndarray], str], None]):
        super().__init__()
        self.content, self.on_recording = bytearray(), on_recording
        self.on_msg(self._receive)

    def _receive(self, _widget, message: dict, buffers: list) -> None:
        """Append a piece of a file, or of int16 samples if there is a sample rate, and acknowledge it."""
        if message["first"]:
            self.content = bytearray()
        self.content += buffers[0]
        self.send("received")
        if message["last"]:
            recording, rate = bytes(self.content), message["sample_rate"]
            if rate:
                recording = rate, np.frombuffer(recording, "<i2")
            self.on_recording(recording, message["name"])


class RecordingExplorer:
    """Upload or record, recognize, draw and play.

    `waveform`, (n_samples,) float32 at 16 kHz, and `table`, from `gmp_utils.recognize`, are of the last
    recording.
    """

    def __init__(self, model: str):
        self.recognizer = load_recognizer(find_or_publish(model))
        self.emotions = list(self.recognizer.config.label2id)
        self.table, self.waveform, self.name = pd.DataFrame(), np.zeros(0, np.float32), ""
        self.input = RecordingInput(self.recognize)
        self.selection = widgets.FloatRangeSlider(
            description="seconds", min=0, max=1, step=0.1, continuous_update=False, disabled=True
        )
        self.audio = widgets.Audio(format="wav", loop=False, autoplay=False)
        self.player = widgets.VBox()  # empty without a recording
        self.figure, self.status = widgets.Output(), widgets.HTML(HINT)
        rows = [self.input, self.status, self.selection, self.player, self.figure]
        self.widget = widgets.VBox([help_text(HELP), *rows])
        self.selection.observe(self._draw, "value")

    def recognize(self, recording: bytes | tuple[int, np.ndarray], name: str) -> None:
        """Recognize, draw and play a recording (see `gmp_utils.data.audio.load`), or show the error."""
        self.status.value = html.escape(f"{name}: recognizing …")
        try:
            waveform = audio.load(recording)
            table = recognize(waveform, self.recognizer, SAMPLE_RATE)
        except GmpError as error:
            self.status.value = html.escape(f"{name}: {str(error).removeprefix('audio: ')}")
            return
        self.waveform, self.table, self.name = waveform, table, name
        n_spoken, summary = table.confidence.count(), "no speech detected"
        if n_spoken:
            means = table[self.emotions].mean().sort_values(ascending=False)
            scores = ", ".join(f"{emotion} {score:.2f}" for emotion, score in means.items())
            summary = f"{scores}, mean of the windows with speech ({n_spoken})"
        self.status.value = html.escape(f"{name}: {summary}.")
        seconds = len(waveform) / SAMPLE_RATE
        self.selection.value = 0, 0  # so that a recording of the same length is drawn too
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
        first = self.selection.value[0]
        name = f"{self.name}, from {first:.1f} s" if first else self.name
        figure = draw_recording(waveform, table, self.emotions, name)
        self.figure.outputs = widget_output(figure)


def explore_recording(model: str = "runs/demo") -> RecordingExplorer:
    """Display the explorer of a model; see `gmp_utils.stages.publish.find_or_publish`."""
    explorer = RecordingExplorer(model)
    display(explorer.widget)
    return explorer
