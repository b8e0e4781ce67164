// A button that records from its first press to its second. Browsers give a microphone only to pages
// of this machine or of https, and ask the user first.
const WORKLET = `
registerProcessor("recorder", class extends AudioWorkletProcessor {
  process([channels]) {
    if (channels.length) this.port.postMessage(channels[0].slice());
    return true;
  }
});`;

async function record(onProgress) {
  const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio });
  const context = new AudioContext();
  const module = URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" }));
  await context.audioWorklet.addModule(module);
  URL.revokeObjectURL(module);
  const recorder = new AudioWorkletNode(context, "recorder", { channelCount: 1, channelCountMode: "explicit" });
  const blocks = [];
  let length = 0;
  recorder.port.onmessage = ({ data }) => {
    blocks.push(data);
    length += data.length;
    if (blocks.length % 32 === 0) onProgress(length / context.sampleRate);
  };
  context.createMediaStreamSource(stream).connect(recorder).connect(context.destination);
  return () => {
    recorder.disconnect();
    stream.getTracks().forEach((track) => track.stop());
    context.close();
    const samples = new Float32Array(length);
    let start = 0;
    for (const block of blocks) {
      samples.set(block, start);
      start += block.length;
    }
    return { samples, sampleRate: context.sampleRate };
  };
}

function render({ model, el }) {
  const button = document.createElement("button");
  button.className = "jupyter-button widget-button";
  const status = document.createElement("span");
  el.append(button, status);
  let stop = null;
  const reset = (text) => {
    stop = null;
    button.textContent = "● record";
    status.textContent = " " + text;
  };
  const finish = () => {
    const { samples, sampleRate } = stop();
    model.set("sample_rate", sampleRate);
    model.set("samples", new DataView(samples.buffer));
    model.save_changes();
    reset("");
  };
  reset(navigator.mediaDevices ? "" : "this browser gives no microphone to this page");
  button.disabled = !navigator.mediaDevices;
  button.onclick = async () => {
    if (stop) return finish();
    button.disabled = true;
    try {
      stop = await record((seconds) => (status.textContent = ` ${seconds.toFixed(1)} s`));
      button.textContent = "■ stop";
    } catch (error) {
      reset("no microphone: " + error.message);
    }
    button.disabled = false;
  };
  return () => stop && stop();
}

export default { render };
