"use strict";
/* Runs a decoder's layers, one image at a time. Maps lie as [row][column][channel], so that the channels of a pixel,
   which every product sums over, are neighbours. All memory is taken once, before the first image. */
const pyvaeNetwork = (() => {
  const ARRAYS = { single: Float32Array, short: Int16Array, byte: Int8Array };
  const BLOCK = 4; // outputs that are summed side by side

  /** Numbers as Float32Array, of rows of integers each times its scale. */
  function numbers(held) {
    const array = new ARRAYS[held.kind](bytes(held.data));
    if (!held.scale) return array;
    const scale = new Float32Array(bytes(held.scale));
    const values = new Float32Array(array.length);
    const row = array.length / scale.length;
    for (let i = 0, r = 0; r < scale.length; r++) {
      for (const end = i + row; i < end; i++) values[i] = array[i] * scale[r];
    }
    return values;
  }

  function bytes(text) {
    const found = atob(text);
    const array = new Uint8Array(found.length);
    for (let i = 0; i < found.length; i++) array[i] = found.charCodeAt(i);
    return array.buffer;
  }

  /** Of each output row (or column): the input rows that reach it, each with that of the kernel, two numbers a pair. */
  function taps(layer, axis) {
    const [reads, gives] = [layer.reads[axis], layer.gives[axis]];
    const [stride, padding, dilation] = [layer.stride[axis], layer.padding[axis], layer.dilation[axis]];
    return Array.from({ length: gives }, (_, y) => {
      const found = [];
      for (let k = 0; k < layer.kernel[axis]; k++) {
        const at = layer.transposed ? (y + padding - k * dilation) / stride : y * stride - padding + k * dilation;
        if (Number.isInteger(at) && at >= 0 && at < reads) found.push(at, k);
      }
      return Int32Array.from(found);
    });
  }

  /** A linear layer or a convolution: an output is a sum over the taps that reach it, and over the channels of each. */
  function product(layer) {
    const { inputs, outputs } = layer;
    const [height, width] = layer.kernel;
    const across = layer.reads[1];
    const [rows, columns] = [taps(layer, 0), taps(layer, 1)];
    const block = outputs < BLOCK - 1 ? 1 : BLOCK;
    const blocks = Math.ceil(outputs / block);
    const bias = new Float32Array(blocks * block);
    bias.set(numbers(layer.bias));
    // from [output][input][tap] to [block][tap][input][output in block], the order in which they are read
    const given = numbers(layer.weight);
    const area = height * width;
    const weight = new Float32Array(blocks * block * inputs * area);
    for (let o = 0, from = 0; o < outputs; o++) {
      const first = Math.floor(o / block) * area * inputs * block + (o % block);
      for (let i = 0; i < inputs; i++) {
        for (let tap = 0; tap < area; tap++) weight[first + (tap * inputs + i) * block] = given[from++];
      }
    }
    const y = new Float32Array(rows.length * columns.length * outputs);
    const sums = block === 1 ? sumsOfOne : sumsOfFour;
    return (x) => {
      for (let r = 0, at = 0; r < rows.length; r++) {
        for (let c = 0; c < columns.length; c++, at += outputs) {
          sums(x, y, at, weight, bias, rows[r], columns[c], across, width, area, inputs, outputs);
        }
      }
      return y;
    };
  }

  function sumsOfOne(x, y, at, weight, bias, rows, columns, across, width, area, inputs, outputs) {
    for (let o = 0; o < outputs; o++) {
      let sum = bias[o];
      for (let r = 0; r < rows.length; r += 2) {
        for (let c = 0; c < columns.length; c += 2) {
          let i = (rows[r] * across + columns[c]) * inputs;
          let w = (o * area + rows[r + 1] * width + columns[c + 1]) * inputs;
          for (const end = i + inputs; i < end; i++, w++) sum += x[i] * weight[w];
        }
      }
      y[at + o] = sum;
    }
  }

  function sumsOfFour(x, y, at, weight, bias, rows, columns, across, width, area, inputs, outputs) {
    for (let o = 0; o < outputs; o += BLOCK) {
      let a = bias[o];
      let b = bias[o + 1];
      let c = bias[o + 2];
      let d = bias[o + 3];
      for (let r = 0; r < rows.length; r += 2) {
        for (let s = 0; s < columns.length; s += 2) {
          let i = (rows[r] * across + columns[s]) * inputs;
          let w = (o * area + (rows[r + 1] * width + columns[s + 1]) * BLOCK) * inputs;
          for (const end = i + inputs; i < end; i++, w += BLOCK) {
            const value = x[i];
            a += value * weight[w];
            b += value * weight[w + 1];
            c += value * weight[w + 2];
            d += value * weight[w + 3];
          }
        }
      }
      y[at + o] = a;
      if (o + 1 < outputs) y[at + o + 1] = b;
      if (o + 2 < outputs) y[at + o + 2] = c;
      if (o + 3 < outputs) y[at + o + 3] = d;
    }
  }

  /** A scale and a shift of each channel, in place. */
  function affine(layer) {
    const [scale, shift] = [numbers(layer.scale), numbers(layer.shift)];
    return (x) => {
      for (let i = 0; i < x.length; ) {
        for (let c = 0; c < scale.length; c++, i++) x[i] = x[i] * scale[c] + shift[c];
      }
      return x;
    };
  }

  /** The error function to 1.5e-7 (Abramowitz & Stegun 7.1.26). */
  function erf(x) {
    const t = 1 / (1 + 0.3275911 * Math.abs(x));
    const series =
      t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return Math.sign(x) * (1 - series * Math.exp(-x * x));
  }

  const sigmoid = (x) => 1 / (1 + Math.exp(-x));
  const FUNCTIONS = {
    relu: () => (x) => (x > 0 ? x : 0),
    leaky: (slope) => (x) => (x > 0 ? x : slope * x),
    elu: (alpha) => (x) => (x > 0 ? x : alpha * Math.expm1(x)),
    silu: () => (x) => x * sigmoid(x),
    gelu: () => (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
    gelu_tanh: () => (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x))),
    tanh: () => Math.tanh,
    sigmoid: () => sigmoid,
    softplus: (beta, threshold) => (x) => (x * beta > threshold ? x : Math.log1p(Math.exp(x * beta)) / beta),
  };

  /** A function of each number, in place. */
  function activation(layer) {
    const f = FUNCTIONS[layer.name](...layer.parameters);
    return (x) => {
      for (let i = 0; i < x.length; i++) x[i] = f(x[i]);
      return x;
    };
  }

  /** Maps of another size: each pixel is a weighted sum of those at some rows and columns. */
  function resample(layer) {
    const { channels, rows, columns, width } = layer;
    const y = new Float32Array(rows.length * columns.length * channels);
    return (x) => {
      y.fill(0);
      for (let r = 0, at = 0; r < rows.length; r++) {
        for (let c = 0; c < columns.length; c++, at += channels) {
          for (let a = 0; a < rows[r].length; a += 2) {
            for (let b = 0; b < columns[c].length; b += 2) {
              const from = (rows[r][a] * width + columns[c][b]) * channels;
              const share = rows[r][a + 1] * columns[c][b + 1];
              for (let k = 0; k < channels; k++) y[at + k] += share * x[from + k];
            }
          }
        }
      }
      return y;
    };
  }

  /** Rows of torch, [channel][pixel], as maps, or back. */
  function reorder(layer) {
    const outer = layer.to_maps ? layer.channels : layer.pixels;
    const inner = layer.to_maps ? layer.pixels : layer.channels;
    const y = new Float32Array(outer * inner);
    return (x) => {
      for (let i = 0, k = 0; i < outer; i++) {
        for (let j = 0; j < inner; j++, k++) y[j * outer + i] = x[k];
      }
      return y;
    };
  }

  const KINDS = { product, affine, activation, resample, reorder };

  /** A function from a code to pixels in [0, 1], [row][column][channel], which it writes over at its next call. */
  return (layers) => {
    const steps = layers.map((layer) => KINDS[layer.kind](layer));
    let input = null;
    let pixels = null;
    return (code) => {
      input = input || new Float32Array(code.length); // layers in place must not write to the code
      input.set(code);
      const logits = steps.reduce((x, step) => step(x), input);
      pixels = pixels || new Float32Array(logits.length);
      for (let i = 0; i < logits.length; i++) pixels[i] = sigmoid(logits[i]);
      return pixels;
    };
  };
})();
