"""A live look at recordings: upload one or speak, and see and hear what is recognised."""

import html
import io
import json

import anywidget
import ipywidgets as widgets
import numpy as np
import pandas as pd
import soundfile
import traitlets
from IPython.display import display

from gmp_utils import GmpError
from gmp_utils.data.audio import SAMPLE_RATE, wav
from gmp_utils.figures import timeline
from gmp_utils.stages import recognize
from gmp_utils.stages.publish import open_recognizer

# Browsers give a microphone to pages of this machine and of https only, once they have asked.
JAVASCRIPT = """
function render({ model, el }) {
  const button = document.createElement("button");
  button.className = "jupyter-button widget-button";
  const says = document.createElement("span");
  el.append(button, says);
  let stop = null;
  const idle = (text) => { stop = null; button.textContent = "● record"; says.textContent = " " + text; };
  idle(navigator.mediaDevices ? "" : "this browser gives no microphone to this page");
  button.disabled = !navigator.mediaDevices;
  button.onclick = async () => {
    if (stop) return stop();
    let stream;
    try {
      const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
      stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
    } catch (error) {
      return idle("no microphone: " + error.message);
    }
    const context = new AudioContext();
    const source = context.createMediaStreamSource(stream);
    const reader = context.createScriptProcessor(4096, 1, 1);
    const pieces = [];
    reader.onaudioprocess = (event) => {
      pieces.push(new Float32Array(event.inputBuffer.getChannelData(0)));
      says.textContent = " " + (pieces.length * 4096 / context.sampleRate).toFixed(1) + " s";
    };
    source.connect(reader);
    reader.connect(context.destination);
    button.textContent = "■ stop";
    stop = () => {
      reader.disconnect();
      stream.getTracks().forEach((track) => track.stop());
      const samples = new Float32Array(pieces.length * 4096);
      pieces.forEach((piece, index) => samples.set(piece, index * 4096));
      model.set("sample_rate", context.sampleRate);
      model.set("samples", new DataView(samples.buffer));
      model.save_changes();
      context.close();
      idle("");
    };
  };
  return () => stop && stop();
}
export default { render };
"""
DRAWN = 60.0  # seconds that are drawn at once
HINT = "Upload a recording (wav, flac, ogg, mp3), or speak. It stays in this notebook's memory."


class Microphone(anywidget.AnyWidget):
    """Records from the first press of its button to the second.

    Attributes
    ----------
    samples : bytes or memoryview
        float32, little-endian, one channel; observe it.
    sample_rate : int
        Hz.
    """

    _esm = JAVASCRIPT
    samples = traitlets.Any(b"").tag(sync=True)
    sample_rate = traitlets.Int(0).tag(sync=True)

    @property
    def waveform(self) -> np.ndarray:
        """What was recorded last, (n_samples,) float32."""
        return np.frombuffer(self.samples, "<f4")


class Listener:
    """What a model hears in a recording that is uploaded or spoken.

    Parameters
    ----------
    model : str
        See `gmp_utils.stages.publish.open_recognizer`.

    Attributes
    ----------
    widget : VBox
        What `listen` shows.
    table : DataFrame
        Of the last recording, as `gmp_utils.recognize` returns it.
    waveform : (n_samples,) float32
        The last recording, at 16 kHz.
    """

    def __init__(self, model: str):
        self.recognizer = open_recognizer(model)
        self.table, self.waveform, self._name = pd.DataFrame(), np.zeros(0, np.float32), ""
        self.upload = widgets.FileUpload(description="a recording", multiple=False)
        self.microphone = Microphone()
        self.stretch = widgets.FloatRangeSlider(
            description="seconds", min=0, max=1, step=0.1, continuous_update=False, disabled=True
        )
        self.player = widgets.Audio(format="wav", loop=False, autoplay=False)
        self.drawn, self.says = widgets.Output(), widgets.HTML(HINT)
        given = widgets.HBox([self.upload, self.microphone])
        self.shown = widgets.VBox()  # the player, once there is something to play
        self.widget = widgets.VBox([given, self.says, self.stretch, self.shown, self.drawn])
        self.upload.observe(self._uploaded, "value")
        self.microphone.observe(self._spoken, "samples")
        self.stretch.observe(self._draw, "value")

    def _uploaded(self, _change) -> None:
        if not self.upload.value:
            return
        given = self.upload.value[0]
        try:
            samples, rate = soundfile.read(io.BytesIO(given["content"]), dtype="float32")
        except (RuntimeError, TypeError) as error:
            self.says.value = html.escape(f"{given['name']}: cannot be decoded ({error}).")
            return
        self.hear(samples, rate, given["name"])

    def _spoken(self, _change) -> None:
        self.hear(self.microphone.waveform, self.microphone.sample_rate, "spoken")

    def hear(self, samples: np.ndarray, sample_rate: int, name: str) -> None:
        """Recognise what is given, draw it and let it be heard; or say why not.

        Parameters
        ----------
        samples : (n_samples,) or (n_samples, channels) ndarray
        sample_rate : int
            Hz.
        name : str
        """
        self.says.value = f"{html.escape(name)}: listening …"
        try:
            waveform = recognize.from_memory(samples, sample_rate)
            table = recognize.recognize(waveform, self.recognizer, SAMPLE_RATE)
        except GmpError as error:
            self.says.value = html.escape(str(error))
            return
        self.waveform, self.table, self._name = waveform, table, name
        seconds = len(waveform) / SAMPLE_RATE
        self.stretch.unobserve(self._draw, "value")  # else what is drawn below is drawn twice
        with self.stretch.hold_trait_notifications():
            self.stretch.max, self.stretch.value = seconds, (0, min(DRAWN, seconds))
        self.stretch.observe(self._draw, "value")
        self.stretch.disabled = False
        self.says.value = self._summary()
        self._draw()

    def _summary(self) -> str:
        """The last recording in a sentence."""
        speech = self.table[self.table.speech > 0.5]
        if speech.empty:
            return f"{html.escape(self._name)}: no speech is heard."
        scores = speech[list(self.recognizer.config.label2id)].mean()
        told = ", ".join(
            f"{name} {score:.2f}" for name, score in scores.sort_values()[::-1].items()
        )
        return (
            f"{html.escape(self._name)}: {told}, on average over {len(speech)} windows of speech."
        )

    def _draw(self, _change=None) -> None:
        start, end = self.stretch.value
        part = self.waveform[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
        if len(part) < SAMPLE_RATE // 10:
            self.shown.children = self.drawn.outputs = ()
            return
        self.player.value = wav(np.round(part.clip(-1, 1) * 32767).astype(np.int16))
        self.shown.children = (self.player,)
        figure = timeline.of_recording(self.recognizer, part, self._name)
        data = {"application/vnd.plotly.v1+json": json.loads(figure.to_json())}
        self.drawn.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)


def listen(model: str = "runs/demo") -> Listener:
    """Upload a recording or speak, and see what a model hears.

    Parameters
    ----------
    model : str
        See `gmp_utils.stages.publish.open_recognizer`.

    Returns
    -------
    listener : Listener
        Shown; its `table` holds what was recognised last.
    """
    listener = Listener(model)
    display(listener.widget)
    return listener
