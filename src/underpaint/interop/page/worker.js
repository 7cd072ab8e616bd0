// The network runs here, beside the page: onnxruntime-web on WebAssembly, one thread.
// Messages in: {id, job, …}, {stop: id}. Out: {ready}, {id, step, of, pictures}, {id, done}, {id, error}.

import { denoiser, noises, repaint, sample, slerp, toPixels } from "./draw.js";
import * as ort from "./ort/ort.wasm.bundle.min.js";

let card, session, stopped = null;

async function load() {
  const found = await Promise.all(
    ["model.json", "model.onnx", "ort/ort-wasm-simd-threaded.wasm.gz"].map(async (name) => {
      const answer = await fetch(name);
      if (!answer.ok) throw new Error(`${name} could not be read (${answer.status})`);
      return name.endsWith(".json") ? answer.json() : answer.arrayBuffer();
    }),
  );
  card = found[0];
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await unpacked(found[2]);
  session = await ort.InferenceSession.create(found[1], { executionProviders: ["wasm"] });
}

/** Bytes without gzip; some servers take it off already. */
async function unpacked(data) {
  const [a, b] = new Uint8Array(data, 0, 2);
  if (a !== 0x1f || b !== 0x8b) return data;
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** Noisy planes of some pictures at one level → clean ones. */
async function network(x, sigma, labels) {
  const { channels, height, width } = card, n = labels.length;
  const inputs = {
    x: new ort.Tensor("float32", x, [n, channels, height, width]),
    sigma: new ort.Tensor("float32", new Float32Array(n).fill(sigma), [n]),
  };
  if (card.labels.length) {
    inputs.labels = new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [n]);
  }
  return Float32Array.from((await session.run(inputs)).x0.data);
}

async function run({ id, job, seeds, labels, steps, guidance, ...rest }) {
  const size = card.channels * card.height * card.width, levels = card.levels[steps];
  const D = denoiser(network, card, labels, guidance), draw = noises(seeds, size);
  const onStep = async (step, of, x0) => {
    postMessage({ id, step, of, pictures: toPixels(x0, card) });
    await new Promise((resume) => setTimeout(resume));  // so that `stop` can be heard
    if (stopped === id) throw new Error("stopped");
  };
  if (job === "repaint") {
    return repaint(D, rest.x0, rest.keep, draw, levels, card.sampler, rest.again, onStep);
  }
  let noise = rest.noise ?? draw(), begin = null;
  if (job === "between") {
    const [a, b] = [noise.subarray(0, size), noise.subarray(size)];
    noise = new Float32Array(labels.length * size);
    labels.forEach((_, k) => noise.set(slerp(a, b, k / (labels.length - 1)), k * size));
  }
  if (job === "vary") {
    const x0 = new Float32Array(noise.length), N = levels.length - 1;
    seeds.forEach((_, k) => x0.set(rest.x0, k * size));
    begin = { x0, at: N - Math.max(1, Math.min(N, Math.round(rest.strength * N))) };
  }
  return sample(D, noise, levels, card.sampler, onStep, begin);
}

let queue = load().then(
  () => postMessage({ ready: card }),
  (error) => postMessage({ failed: String(error.message ?? error) }),
);

onmessage = ({ data }) => {
  if (data.stop) {
    stopped = data.stop;
    return;
  }
  queue = queue.then(() => run(data)).then(
    (x) => postMessage({ id: data.id, done: toPixels(x, card) }),
    (error) => postMessage({ id: data.id, error: String(error.message ?? error) }),
  );
};
