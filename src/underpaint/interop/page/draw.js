// From noise to pictures: the samplers, and what can be done with a picture. No page, no network
// library: `D(x, sigma)` gives the expected clean images, and all runs in the frame of the model,
// x = x0 + sigma·n, in [-1, 1]. Pictures are planes [n, C, H, W] in one Float32Array.

// --- seeds: our own, the same on every machine (and not those of Python) ------------------------

/** Standard normal numbers of a seed: sfc32, then Box and Muller. */
export function normals(seed) {
  let [a, b, c, d] = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0, 0x9e3779b9, 1];
  const next = () => {
    const t = (a + b + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + t | 0;
    return (t >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 20; i++) next();
  let spare = null;
  return () => {
    if (spare !== null) {
      const value = spare;
      spare = null;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - next())), angle = 2 * Math.PI * next();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}

/** One generator a picture, so that each depends on its own seed alone. */
export function noises(seeds, size) {
  const draw = seeds.map(normals);
  return () => {
    const noise = new Float32Array(seeds.length * size);
    draw.forEach((normal, k) => {
      for (let i = k * size; i < (k + 1) * size; i++) noise[i] = normal();
    });
    return noise;
  };
}

/** From a to b on the sphere that noise lies on (Shoemake 1985). */
export function slerp(a, b, t) {
  let dot = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  const angle = Math.acos(Math.min(1, Math.max(-1, dot / Math.sqrt(aa * bb))));
  if (angle < 1e-4) return Float32Array.from(a);
  const [p, q] = [Math.sin((1 - t) * angle) / Math.sin(angle), Math.sin(t * angle) / Math.sin(angle)];
  return a.map((value, i) => p * value + q * b[i]);
}

// --- the denoiser: guidance and clipping --------------------------------------------------------

/**
 * `network(x, sigma, labels)` as D(x, sigma), with guidance (Ho and Salimans 2022) and the model's
 * clipping. `labels`: a number each, −1 for none.
 */
export function denoiser(network, card, labels, guidance) {
  const size = card.channels * card.height * card.width;
  const guided = guidance !== 1 && labels.some((label) => label >= 0);
  return async (x, sigma) => {
    const x0 = await network(x, sigma, labels);
    if (guided) {
      const none = await network(x, sigma, labels.map(() => -1));
      for (let i = 0; i < x0.length; i++) x0[i] = none[i] + guidance * (x0[i] - none[i]);
    }
    clip(x0, card.clip, size);
    return x0;
  };
}

function clip(x0, kind, size) {
  if (kind === "none") return;
  for (let start = 0; start < x0.length; start += size) {
    const image = x0.subarray(start, start + size);
    const most = kind === "dynamic" ? Math.max(1, quantile(image.map(Math.abs), 0.995)) : 1;
    for (let i = 0; i < size; i++) image[i] = Math.min(most, Math.max(-most, image[i])) / most;
  }
}

function quantile(values, q) {
  const sorted = values.sort(), place = q * (sorted.length - 1), low = Math.floor(place);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}

// --- samplers: core/samplers.py in JavaScript ---------------------------------------------------

/** One step from level s to r by Heun or Euler: {x, x0}, x0 being what D said at s. */
async function step(D, x, s, r, sampler) {
  const x0 = await D(x, s);
  if (r === 0) return { x: x0, x0 };
  const ahead = x.map((value, i) => x0[i] + (r / s) * (value - x0[i]));
  if (sampler === "euler") return { x: ahead, x0 };
  const then = await D(ahead, r);
  if (s > 3 * Math.max(r, 1)) {  // a long step through almost pure noise: both D held fixed
    const moved = x.map((value, i) => {
      const mean = (x0[i] + then[i]) / 2;
      return mean + (r / s) * (value - mean);
    });
    return { x: moved, x0 };
  }
  const moved = x.map(
    (value, i) => value + ((r - s) * ((value - x0[i]) / s + (ahead[i] - then[i]) / r)) / 2,
  );
  return { x: moved, x0 };
}

/**
 * Noise (standard normal) to pictures. `onStep(i, of, x0)` hears of each step.
 * With `begin` {x0, at}: from noisy x0 at the level of that number instead (SDEdit: Meng et al.
 * 2021, arXiv 2108.01073).
 */
export async function sample(D, noise, levels, sampler, onStep, begin = null) {
  const first = begin ? begin.at : 0, last = levels.length - 1;
  let x = noise.map((n, i) => (begin ? begin.x0[i] : 0) + levels[first] * n);
  for (let i = first; i < last; i++) {
    const found = await step(D, x, levels[i], levels[i + 1], sampler);
    x = found.x;
    await onStep(i + 1 - first, last - first, i + 1 < last ? found.x0 : x);
  }
  return x;
}

/**
 * What is erased painted anew, in harmony with what is kept (RePaint: Lugmayr et al. 2022, arXiv
 * 2201.09865). At each level the kept part is x0 with fresh noise; then back up a level, `again`
 * times. `keep`: 1 or 0 for each number of x0. `noise()` gives new noise.
 */
export async function repaint(D, x0, keep, noise, levels, sampler, again, onStep) {
  const last = levels.length - 1, of = (last - 1) * (again + 1) + 1;
  let x = noise().map((n, i) => keep[i] * x0[i] + levels[0] * n), done = 0;
  for (let i = 0; i < last; i++) {
    const [s, r] = [levels[i], levels[i + 1]];
    for (let turn = 0; turn <= (r > 0 ? again : 0); turn++) {
      const found = await step(D, x, s, r, sampler), fresh = noise();
      x = found.x.map((value, j) => (keep[j] ? x0[j] + r * fresh[j] : value));
      const shown = r > 0 ? found.x0.map((value, j) => (keep[j] ? x0[j] : value)) : x;
      await onStep(++done, of, shown);
      if (r > 0 && turn < again) {
        const up = Math.sqrt(s * s - r * r), more = noise();
        x = x.map((value, j) => value + up * more[j]);
      }
    }
  }
  return x;
}

// --- pixels -------------------------------------------------------------------------------------

/** Planes [n, C, H, W] in [-1, 1] → n pictures as RGBA bytes; premultiplied colours made straight. */
export function toPixels(x, card) {
  const { channels, height, width } = card, area = height * width, size = channels * area;
  const pictures = [];
  for (let start = 0; start < x.length; start += size) {
    const pixels = new Uint8ClampedArray(4 * area);
    const level = (channel, i) => {
      const value = Math.round((x[start + channel * area + i] + 1) * 127.5);
      return Math.min(255, Math.max(0, value));
    };
    for (let i = 0; i < area; i++) {
      const alpha = channels === 4 ? level(3, i) : 255;
      for (let c = 0; c < 3; c++) {
        const colour = level(channels === 1 ? 0 : c, i);
        pixels[4 * i + c] = channels < 4 ? colour : straight(Math.min(colour, alpha), alpha);
      }
      pixels[4 * i + 3] = alpha;
    }
    pictures.push(pixels);
  }
  return pictures;
}

function straight(colour, alpha) {
  return alpha ? Math.floor((colour * 255 + Math.floor(alpha / 2)) / alpha) : 0;
}

/** RGBA bytes of one picture → planes; for a model without transparency over white. */
export function toPlanes(pixels, card) {
  const area = card.height * card.width, planes = new Float32Array(card.channels * area);
  for (let i = 0; i < area; i++) {
    const [r, g, b, alpha] = pixels.subarray(4 * i, 4 * i + 4);
    const over = (colour) => Math.round((colour * alpha) / 255) + (card.channels < 4 ? 255 - alpha : 0);
    const seen = [over(r), over(g), over(b), alpha];
    const grey = Math.round(0.299 * seen[0] + 0.587 * seen[1] + 0.114 * seen[2]);
    for (let c = 0; c < card.channels; c++) {
      planes[c * area + i] = (card.channels === 1 ? grey : seen[c]) / 127.5 - 1;
    }
  }
  return planes;
}
