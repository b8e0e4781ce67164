"""A button in JupyterLab that records from the microphone, where the browser gives it."""

import anywidget
import numpy as np
import traitlets

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
