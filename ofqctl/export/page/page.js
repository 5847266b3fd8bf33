// The page: it loads the model, takes a picture, and shows the most probable classes.
import { prepare, ranked } from "./preprocess.js";

const SHOWN = 5; // classes
const element = (name) => document.getElementById(name);
const megabytes = (bytes) => `${(bytes / 1e6).toPrecision(3)} MB`;
const milliseconds = (time) => `${time < 10 ? time.toFixed(1) : Math.round(time)} ms`;

let about, ort, session;
let stream = null; // of the camera, while it runs

function say(words, isFault = false) {
  element("status").textContent = words;
  element("status").classList.toggle("fault", isFault);
}

/** The reason of a failure; the runtime may throw a number. */
function reason(error) {
  return error instanceof Error ? error.message : `error ${error}`;
}

/** A file beside the page, as it is now: an exported folder may have been replaced since it was cached. */
async function fetched(name) {
  const answer = await fetch(new URL(name, document.baseURI), { cache: "no-cache" });
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  return answer;
}

/** The content of the model's file, with its progress shown. */
async function modelBytes() {
  const answer = await fetched(about.model);
  const bytes = new Uint8Array(about.bytes);
  let done = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { value } = await reader.read();
    if (!value) break;
    if (done + value.length > bytes.length) throw new Error(`${about.model}: larger than model.json says`);
    bytes.set(value, done);
    done += value.length;
    say(`Loading the model: ${megabytes(done)} of ${megabytes(about.bytes)}`);
  }
  if (done !== bytes.length) throw new Error(`${about.model}: ends after ${done} of ${bytes.length} bytes`);
  return bytes;
}

async function loadRuntime() {
  const folder = new URL(about.runtime.folder, document.baseURI).href;
  say("Loading onnxruntime-web");
  try {
    ort = await import(new URL("ort.wasm.min.mjs", folder).href);
  } catch (error) {
    throw new Error(
      `onnxruntime-web cannot be loaded from ${folder} (${reason(error)}). Without a network, put it beside this page: ` +
        "ofqctl export RUN --web DIR --ort-web node_modules/onnxruntime-web/dist",
    );
  }
  ort.env.wasm.wasmPaths = folder;
  if (!crossOriginIsolated) ort.env.wasm.numThreads = 1; // threads share memory, which browsers allow to isolated pages
}

async function start() {
  about = await (await fetched("model.json")).json();
  document.title = element("title").textContent = about.title;
  const [, height, width] = about.preprocessing.input_size;
  const words = [about.recipe, `${about.labels.length} classes`, `${width} x ${height} pixels`, megabytes(about.bytes)];
  element("about").textContent = words.filter(Boolean).join(" · ");
  await loadRuntime();
  const bytes = await modelBytes();
  say("Preparing the model");
  const begun = performance.now();
  try {
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 3 });
    await logits(new Float32Array(about.preprocessing.input_size.reduce((a, b) => a * b))); // the first pass is slow
  } catch (error) {
    throw new Error(`onnxruntime-web ${version()} cannot load the model, which needs ${about.runtime.oldest} or newer: ${reason(error)}`);
  }
  const threads = ort.env.wasm.numThreads;
  const loaded = `model loaded in ${milliseconds(performance.now() - begun)}`;
  element("runtime").textContent = `onnxruntime-web ${version()} (WebAssembly, threads: ${threads || "all"}), ${loaded}`;
  element("file").disabled = false;
  element("camera").disabled = !navigator.mediaDevices;
  say("Ready");
}

function version() {
  return ort.env.versions?.web ?? ort.env.versions?.common ?? "";
}

async function logits(values) {
  const input = new ort.Tensor("float32", values, [1, ...about.preprocessing.input_size]);
  const outputs = await session.run({ [session.inputNames[0]]: input });
  return outputs[session.outputNames[0]].data;
}

/** Draw something that has a size, and show its classes. */
async function classify(source, width, height) {
  const canvas = element("picture");
  Object.assign(canvas, { width, height, hidden: false });
  element("invitation").hidden = true;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  const begun = performance.now();
  const values = prepare(context.getImageData(0, 0, width, height), about.preprocessing);
  const prepared = performance.now();
  const found = await logits(values);
  const ended = performance.now();
  show(ranked(found, SHOWN));
  const times = [`model ${milliseconds(ended - prepared)}`, `resizing ${milliseconds(prepared - begun)}`];
  element("times").textContent = times.join(" · ");
}

function show(classes) {
  const items = classes.map(({ label, probability }) => {
    const item = document.createElement("li");
    const percent = `${(100 * probability).toFixed(1)} %`;
    item.style.setProperty("--share", `${100 * probability}%`);
    Object.assign(item.dataset, { label, probability });
    for (const words of [about.labels[label], percent]) {
      item.append(Object.assign(document.createElement("span"), { textContent: words }));
    }
    return item;
  });
  element("classes").replaceChildren(...items);
}

/** Classify a picture, turned upright as its EXIF orientation says, in the colours that the file holds. */
async function open(file) {
  if (!session || !file) return;
  stopCamera();
  say(`Looking at ${file.name}`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    say(`${file.name}: not a picture that this browser can draw`, true);
    return;
  }
  try {
    await classify(bitmap, bitmap.width, bitmap.height);
    say(file.name);
  } catch (error) {
    say(`${file.name}: ${reason(error)}`, true);
  } finally {
    bitmap.close();
  }
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  element("camera").textContent = "Camera";
}

/** Classify what the camera sees, one frame after another, until it is stopped. */
async function watch() {
  if (stream) {
    stopCamera();
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    element("camera").textContent = "Stop";
    say("What the camera sees");
    const video = Object.assign(element("video"), { srcObject: stream, hidden: false });
    await video.play();
    while (stream) {
      if (video.videoWidth) await classify(video, video.videoWidth, video.videoHeight);
      await new Promise(requestAnimationFrame);
    }
    video.hidden = true;
  } catch (error) {
    stopCamera();
    say(`The camera cannot be used: ${reason(error)}`, true);
  }
}

element("file").addEventListener("change", ({ target }) => open(target.files[0]).finally(() => (target.value = "")));
element("camera").addEventListener("click", watch);
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(type, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", type === "dragenter" || type === "dragover");
    if (type === "drop") open(event.dataTransfer.files[0]);
  });
}
start().catch((error) => say(reason(error), true));
