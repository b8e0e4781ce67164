// Buttons to upload a file, and to record from the first press to the second. Both are sent in pieces,
// because Jupyter's servers drop the connection at a message above 10 MiB. Browsers allow only pages from
// this machine or over https to use the microphone, and ask the user first.
const PIECE = 2 ** 20; // bytes of a file
const WORKLET = `
registerProcessor("recorder", class extends AudioWorkletProcessor {
  process([channels]) {
    if (channels.length) this.port.postMessage(channels[0].slice());
    return true;
  }
});`;

function toInt16(blocks) {
  const samples = blocks.flatMap((block) => Array.from(block));
  return Int16Array.from(samples, (x) => 32767 * Math.max(-1, Math.min(1, x)));
}

// `onSecond` is called with each second as int16. The returned function stops, and calls it with the rest.
async function record(onSecond) {
  const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio });
  const context = new AudioContext();
  const module = URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" }));
  await context.audioWorklet.addModule(module);
  URL.revokeObjectURL(module);
  const recorder = new AudioWorkletNode(context, "recorder", { channelCount: 1, channelCountMode: "explicit" });
  let blocks = [];
  const flush = (last) => {
    onSecond(toInt16(blocks), context.sampleRate, last);
    blocks = [];
  };
  recorder.port.onmessage = ({ data }) => {
    blocks.push(data);
    if (blocks.length * data.length >= context.sampleRate) flush(false);
  };
  context.createMediaStreamSource(stream).connect(recorder).connect(context.destination);
  return () => {
    recorder.port.onmessage = null;
    recorder.disconnect();
    stream.getTracks().forEach((track) => track.stop());
    context.close();
    flush(true);
  };
}

function render({ model, el }) {
  const add = (tag, properties) => {
    const element = Object.assign(document.createElement(tag), properties);
    el.append(element);
    return element;
  };
  const button = { className: "jupyter-button widget-button" };
  const uploads = add("button", { ...button, textContent: "a recording" });
  const records = add("button", button);
  const status = add("span");
  const file = add("input", { type: "file", hidden: true });
  let stop = null;
  let onReceived = null;
  const send = (content, piece) => model.send(content, undefined, [piece]);
  const acknowledge = () => onReceived?.();
  model.on("msg:custom", acknowledge);

  uploads.onclick = () => file.click();
  file.onchange = async () => {
    const [chosen] = file.files;
    uploads.disabled = records.disabled = true;
    let start = 0;
    do {
      const piece = await chosen.slice(start, start + PIECE).arrayBuffer();
      const received = new Promise((resolve) => (onReceived = resolve));
      const end = start + PIECE;
      send({ name: chosen.name, first: start === 0, last: end >= chosen.size, sample_rate: 0 }, piece);
      await received;
      status.textContent = ` ${Math.min(100, Math.round((100 * end) / chosen.size))}%`;
      start = end;
    } while (start < chosen.size);
    file.value = status.textContent = "";
    uploads.disabled = false;
    records.disabled = !navigator.mediaDevices;
  };

  const reset = (text) => {
    stop = null;
    records.textContent = "● record";
    status.textContent = " " + text;
    uploads.disabled = false;
  };
  reset(navigator.mediaDevices ? "" : "the browser does not let this page use a microphone");
  records.disabled = !navigator.mediaDevices;
  records.onclick = async () => {
    if (stop) {
      stop();
      return reset("");
    }
    uploads.disabled = records.disabled = true;
    let seconds = 0;
    const onSecond = (samples, rate, last) => {
      send({ name: "recorded", first: seconds === 0, last, sample_rate: rate }, samples.buffer);
      seconds += samples.length / rate;
      status.textContent = ` ${seconds.toFixed(1)} s`;
    };
    try {
      stop = await record(onSecond);
      records.textContent = "■ stop";
    } catch (error) {
      reset("no microphone: " + error.message);
    }
    records.disabled = false;
  };
  return () => {
    model.off("msg:custom", acknowledge);
    if (stop) stop();
  };
}

export default { render };
