// Run an ONNX file in WebAssembly: node infer.mjs FILE IMAGES.f32 LOGITS.f32 N C H W
import { readFileSync, writeFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const [file, images, logits, ...shape] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(file), { executionProviders: ["wasm"] });
const values = new Float32Array(new Uint8Array(readFileSync(images)).buffer);
const found = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", values, shape.map(Number)) });
writeFileSync(logits, Buffer.from(found[session.outputNames[0]].data.buffer));
