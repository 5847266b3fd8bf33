// Prepare images as the page does: node prepare.mjs PREPROCESS.js CASES.json FOLDER
import { readFileSync, writeFileSync } from "node:fs";

const [module, cases, folder] = process.argv.slice(2);
const { prepare } = await import(module);
for (const { name, width, height, config } of JSON.parse(readFileSync(cases))) {
  const data = new Uint8ClampedArray(readFileSync(`${folder}/${name}.rgba`));
  writeFileSync(`${folder}/${name}.f32`, Buffer.from(prepare({ data, width, height }, config).buffer));
}
