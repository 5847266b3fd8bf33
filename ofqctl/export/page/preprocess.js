// What timm's transform for evaluation does with an image, integer by integer as Pillow resizes and float by float as
// torch normalizes: the same pixels give the same numbers.

const BITS = 22; // of the fraction of Pillow's fixed-point weights

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
const HAMMING = [0.54, 0.46].map(Math.fround);

// Support and weight of each of Pillow's filters.
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) >= 1 ? 0 : sinc(x) * (HAMMING[0] + HAMMING[1] * Math.cos(x * Math.PI)))],
  bicubic: [2, (x) => cubic(Math.abs(x))],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function cubic(x) {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function roundHalfEven(x) {
  const below = Math.floor(x);
  const odd = below % 2 !== 0;
  return x - below > 0.5 || (x - below === 0.5 && odd) ? below + 1 : below;
}

/**
 * Size to resize to, and the place of the crop in it, which may lie outside where the image is padded.
 * @param {number} width of the image
 * @param {number} height of the image
 * @param {object} config timm's data config: input_size, crop_pct, crop_mode
 */
export function geometry(width, height, config) {
  const [, cropHeight, cropWidth] = config.input_size;
  const scaled = [cropHeight, cropWidth].map((length) => Math.floor(length / config.crop_pct));
  const [toHeight, toWidth] = resized(width, height, scaled, config.crop_mode);
  if (!toWidth || !toHeight) throw new Error(`${width} x ${height} pixels: too narrow to be resized`);
  const start = (length, crop) => (crop > length ? -Math.floor((crop - length) / 2) : roundHalfEven((length - crop) / 2));
  return { toWidth, toHeight, left: start(toWidth, cropWidth), top: start(toHeight, cropHeight), cropWidth, cropHeight };
}

function resized(width, height, scaled, mode) {
  if (mode === "squash") return scaled;
  const ratios = [height / scaled[0], width / scaled[1]];
  if (mode === "border") return [height, width].map((length) => roundHalfEven(length / Math.max(...ratios)));
  if (scaled[0] !== scaled[1]) return [height, width].map((length) => roundHalfEven(length / Math.min(...ratios)));
  const long = Math.trunc((scaled[0] * Math.max(width, height)) / Math.min(width, height));
  return width <= height ? [long, scaled[0]] : [scaled[0], long];
}

/** First pixel and fixed-point weights for the outputs `from` to `to` of a line that is resized. */
function weights(length, toLength, from, to, [support, filter]) {
  const scale = length / toLength;
  const stretch = Math.max(scale, 1);
  const reach = support * stretch;
  const lines = [];
  for (let out = from; out < to; out++) {
    const center = (out + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const last = Math.min(length, Math.trunc(center + reach + 0.5));
    const line = new Float64Array(last - first);
    let sum = 0;
    for (let i = 0; i < line.length; i++) sum += line[i] = filter((i + first - center + 0.5) * (1 / stretch));
    const fixed = Int32Array.from(line, (weight) => {
      const value = (sum === 0 ? weight : weight / sum) * 2 ** BITS;
      return Math.trunc(value < 0 ? value - 0.5 : value + 0.5);
    });
    lines.push({ first, fixed });
  }
  return lines;
}

/** Pixels that are copied for the outputs `from` to `to` of a line; Pillow adds up the positions. */
function nearest(length, toLength, from, to) {
  const scale = length / toLength;
  const lines = [];
  let position = scale * 0.5;
  for (let out = 0; out < to; out++, position += scale) {
    if (out >= from) lines.push({ first: Math.trunc(position), fixed: Int32Array.of(2 ** BITS) });
  }
  return lines;
}

/** Resize along one direction; `step` is the distance of pixels along it, `across` that of lines, in numbers. */
function pass(source, lines, count, step, across, channels, target, toStep, toAcross) {
  const half = 1 << (BITS - 1);
  for (let line = 0; line < count; line++) {
    for (let out = 0; out < lines.length; out++) {
      const { first, fixed } = lines[out];
      const base = line * across + first * step;
      const at = line * toAcross + out * toStep;
      for (let channel = 0; channel < channels; channel++) {
        let sum = half;
        for (let i = 0, from = base + channel; i < fixed.length; i++, from += step) sum += source[from] * fixed[i];
        const value = sum >> BITS;
        target[at + channel] = value < 0 ? 0 : value > 255 ? 255 : value;
      }
    }
  }
}

/** Whether Pillow (13 and newer) resizes columns before rows: where the height shrinks far more than the width. */
function verticalFirst(width, height, toWidth, toHeight) {
  return height > toHeight && height - toHeight > 2 * (width - toWidth);
}

/** Rows (`count`, `width`) of pixels, `stride` numbers apart -> (`count`, `columns`), `channels` apart. */
function alongRows(pixels, width, count, columns, channels, stride) {
  const line = columns.length * channels;
  const target = new Uint8Array(count * line);
  pass(pixels, columns, count, stride, width * stride, channels, target, channels, line);
  return target;
}

/** Columns of pixels (height, `width`), `stride` numbers apart -> (`rows`, `width`), `channels` apart. */
function alongColumns(pixels, width, rows, channels, stride) {
  const line = width * channels;
  const target = new Uint8Array(rows.length * line);
  pass(pixels, rows, width, width * stride, stride, channels, target, line, channels);
  return target;
}

/** Rows first, of those alone that the columns need. */
function horizontalFirst(pixels, width, columns, rows, channels, stride) {
  const first = rows[0].first;
  const count = rows.at(-1).first + rows.at(-1).fixed.length - first;
  const narrow = alongRows(pixels.subarray(first * width * stride), width, count, columns, channels, stride);
  const within = rows.map((row) => ({ first: row.first - first, fixed: row.fixed }));
  return alongColumns(narrow, columns.length, within, channels, channels);
}

/** RGBA -> grey as Pillow makes it. */
function grey(rgba) {
  const pixels = new Uint8Array(rgba.length / 4);
  for (let i = 0; i < pixels.length; i++) {
    pixels[i] = (rgba[4 * i] * 19595 + rgba[4 * i + 1] * 38470 + rgba[4 * i + 2] * 7471 + 0x8000) >> 16;
  }
  return pixels;
}

/**
 * The input of a model, float32 (C, H, W), for an image.
 * @param {{data: Uint8ClampedArray, width: number, height: number}} image RGBA
 * @param {object} config timm's data config: input_size, interpolation, crop_pct, crop_mode, mean, std
 */
export function prepare({ data, width, height }, config) {
  const [channels] = config.input_size;
  const place = geometry(width, height, config);
  const { toWidth, toHeight, left, top, cropWidth, cropHeight } = place;
  const [fromX, toX] = [Math.max(0, left), Math.min(toWidth, left + cropWidth)];
  const [fromY, toY] = [Math.max(0, top), Math.min(toHeight, top + cropHeight)];
  const along = (length, toLength, from, to) =>
    config.interpolation === "nearest"
      ? nearest(length, toLength, from, to)
      : weights(length, toLength, from, to, FILTERS[config.interpolation]);
  const columns = along(width, toWidth, fromX, toX);
  const rows = along(height, toHeight, fromY, toY);

  const [pixels, stride] = channels === 1 ? [grey(data), 1] : [data, 4];
  const small = verticalFirst(width, height, toWidth, toHeight)
    ? alongRows(alongColumns(pixels, width, rows, channels, stride), width, rows.length, columns, channels, channels)
    : horizontalFirst(pixels, width, columns, rows, channels, stride);
  return normalized(small, { ...place, fromX, fromY, columns: columns.length, rows: rows.length }, config);
}

function normalized(pixels, { left, top, fromX, fromY, columns, rows, cropWidth, cropHeight }, config) {
  const [channels] = config.input_size;
  const values = new Float32Array(channels * cropHeight * cropWidth);
  for (let channel = 0; channel < channels; channel++) {
    const [mean, std] = [config.mean[channel], config.std[channel]].map(Math.fround);
    const table = Float32Array.from({ length: 256 }, (_, byte) =>
      Math.fround(Math.fround(Math.fround(byte / 255) - mean) / std),
    );
    const border = config.crop_mode === "border" ? roundHalfEven(255 * config.mean[channel]) : 0;
    const plane = values.subarray(channel * cropHeight * cropWidth, (channel + 1) * cropHeight * cropWidth);
    plane.fill(table[border]);
    for (let row = 0; row < rows; row++) {
      const at = (row + fromY - top) * cropWidth + fromX - left;
      for (let column = 0; column < columns; column++) {
        plane[at + column] = table[pixels[(row * columns + column) * channels + channel]];
      }
    }
  }
  return values;
}

/**
 * The most probable classes.
 * @param {Float32Array} logits
 * @param {number} count how many
 * @returns {{label: number, probability: number}[]} the most probable first
 */
export function ranked(logits, count) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  const order = powers.map((_, label) => label).sort((a, b) => logits[b] - logits[a] || a - b);
  return order.slice(0, count).map((label) => ({ label, probability: powers[label] / sum }));
}
