// The page: what is asked for goes to the worker, what it draws is shown.

import { toPixels, toPlanes } from "./draw.js";
import { Easel } from "./easel.js";

const TABS = ["draw", "repaint", "vary", "between"];
const GO = { draw: "Draw", repaint: "Repaint", vary: "Vary", between: "Walk from A to B" };
const FRAMES = 9;  // of the way between two seeds
const VARIANTS = 4;
const AGAIN = 2;  // how often repainting goes back up at each level

const $ = (id) => document.getElementById(id);
const worker = new Worker("worker.js", { type: "module" });
const walls = { draw: [], vary: [], between: [] };  // pictures: {pixels, label, name}
let card, tab = "draw", easel, chosen = null, current = null, history = [];
let jobs = 0, running = null;

// --- the worker ---------------------------------------------------------------------------------

/** Have the worker do a job; `onStep(pictures)` sees each step. Resolves to pictures, RGBA bytes. */
function run(job, onStep = () => {}) {
  const id = ++jobs, began = performance.now();
  running = { id, onStep, began };
  busy(true);
  return new Promise((resolve, reject) => Object.assign(running, { resolve, reject })).finally(() => {
    running = null;
    busy(false);
  }, worker.postMessage({ id, ...job }));
}

worker.onmessage = ({ data }) => {
  if (data.ready) begin(data.ready);
  else if (data.failed) fail(`The network could not be loaded: ${data.failed}`);
  else if (running?.id !== data.id) return;
  else if (data.step) {
    say(`Step ${data.step} of ${data.of}`, data.step / data.of);
    running.onStep(data.pictures);
  } else if (data.done) {
    running.seconds = (performance.now() - running.began) / 1000;
    window.underpaint.seconds = running.seconds;
    running.resolve(data.done);
  } else if (data.error === "stopped") running.reject(null);
  else running.reject(new Error(data.error));
};
worker.onerror = (event) => fail(`The network could not be started: ${event.message ?? "no modules here"}`);

// --- words --------------------------------------------------------------------------------------

function say(text, share = 0) {
  $("status").textContent = text;
  $("progress").value = share;
  $("error").hidden = true;
}

function fail(text) {
  $("status").textContent = "";
  $("progress").value = 0;
  $("error").textContent = text;
  $("error").hidden = false;
}

function busy(is) {
  $("go").textContent = is ? "Stop" : GO[tab];
  document.body.classList.toggle("busy", is);
  for (const id of ["to-repaint", "to-vary", "clear", "invert"]) $(id).disabled = is;
  $("back").disabled = is || !history.length;
}

const seconds = () => `${window.underpaint.seconds.toFixed(1)} s`;

// --- pictures on the page -----------------------------------------------------------------------

function paint(canvas, pixels) {
  if (canvas.width !== card.width || canvas.height !== card.height) {
    [canvas.width, canvas.height] = [card.width, card.height];
  }
  canvas.getContext("2d").putImageData(new ImageData(pixels, card.width, card.height), 0, 0);
}

/** Empty places in a wall for these names; returns what paints them. */
function hang(name, names, columns) {
  const wall = document.querySelector(`[data-wall="${name}"]`);
  wall.style.setProperty("--columns", columns);
  const old = [...wall.querySelectorAll("canvas")];
  const cells = names.map((text, i) => {
    const cell = document.createElement("button"), canvas = document.createElement("canvas");
    cell.type = "button";
    cell.className = "cell";
    cell.title = text;
    cell.setAttribute("aria-label", `Image ${i + 1}: ${text}`);
    cell.setAttribute("aria-pressed", "false");
    [canvas.width, canvas.height] = [card.width, card.height];
    if (old[i] && old.length === names.length) canvas.getContext("2d").drawImage(old[i], 0, 0);
    cell.append(canvas);
    cell.onclick = () => choose(name, i);
    return cell;
  });
  wall.replaceChildren(...cells);
  walls[name] = [];
  choose(name, null);
  return (pictures) => pictures.forEach((pixels, i) => paint(cells[i].firstChild, pixels));
}

function choose(name, i) {
  chosen = i === null || !walls[name][i] ? null : { wall: name, i, ...walls[name][i] };
  document.querySelectorAll(".cell").forEach((cell) => cell.setAttribute("aria-pressed", "false"));
  const wall = document.querySelector(`[data-wall="${name}"]`);
  if (chosen) wall.children[i].setAttribute("aria-pressed", "true");
  if (chosen && name === "between") {
    $("walk").value = i;
    paint($("walker"), chosen.pixels);
  }
  offer();
}

/** What can be done with the picture that is chosen, or that lies on the easel. */
function offer() {
  const wall = walls[tab] ?? [], one = tab === "repaint" ? current : chosen;
  $("chosen").hidden = !one && !wall.length;
  $("chosen-name").textContent = one ? one.name : "Choose one to go on with it.";
  $("save").hidden = !one;
  $("to-vary").hidden = !one || tab === "vary";
  $("to-repaint").hidden = !one || tab === "repaint";
  $("save-all").hidden = wall.length < 2;
}

/** The picture to repaint and to vary. */
function take(picture, keepHistory = false) {
  current = picture;
  if (!keepHistory) history = [];
  for (const id of ["easel-picture", "source"]) paint($(id), picture.pixels);
  easel.clear();
  $("back").disabled = !history.length;
  offer();
}

// --- what is asked for --------------------------------------------------------------------------

function seedOf(id) {
  const value = $(id).valueAsNumber;
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** 32) {
    throw new Error("Seeds are whole numbers from 0 to 4,294,967,295.");
  }
  return value;
}

/** mixed, none or the number of a label. */
function asked() {
  if (!card.labels.length) return "none";
  return document.querySelector('input[name="label"]:checked').value;
}

/** Labels of n pictures; `own`: what "mixed" is for a single picture. */
function labelsOf(n, own = null) {
  const value = asked();
  if (value === "none") return Array(n).fill(-1);
  if (value !== "mixed") return Array(n).fill(Number(value));
  return Array.from({ length: n }, (_, i) => (own === null ? i % card.labels.length : own));
}

const labelName = (label) => (label < 0 ? "" : ` · ${card.labels[label]}`);

function settings(labels, seeds) {
  return { labels, seeds, steps: $("steps").value, guidance: Number($("guidance").value) };
}

const actions = {
  async draw() {
    const n = Number(document.querySelector('input[name="count"]:checked').value), seed = seedOf("seed");
    const labels = labelsOf(n), seeds = labels.map((_, i) => (seed + i) % 2 ** 32);
    const names = seeds.map((s, i) => `seed ${s}${labelName(labels[i])}`);
    const show = hang("draw", names, Math.sqrt(n));
    const pictures = await run({ job: "draw", ...settings(labels, seeds) }, show);
    show(pictures);
    walls.draw = pictures.map((pixels, i) => ({ pixels, label: labels[i], name: names[i] }));
    if (!current) take(walls.draw[0]);
    if (n === 1) choose("draw", 0);
    offer();
    say(`${n === 1 ? "An image" : `${n} images`} in ${seconds()}.`, 1);
  },

  async repaint() {
    const count = easel.count, all = easel.erased.length;
    if (!count) throw new Error("Nothing is rubbed out yet: drag over the image first.");
    if (count === all) throw new Error("Everything is rubbed out: leave something for the new part to fit, or use Draw.");
    const erased = Uint8Array.from(easel.erased), before = current;
    const planes = toPlanes(before.pixels, card);
    const keep = Float32Array.from(planes, (_, i) => 1 - erased[i % all]);
    const labels = labelsOf(1, before.label), seed = seedOf("seed");
    const merged = (pixels) => pixels.map((value, i) => (erased[i >> 2] ? value : before.pixels[i]));
    easel.clear();
    try {
      const job = { job: "repaint", x0: planes, keep, again: AGAIN, ...settings(labels, [seed]) };
      const [pixels] = await run(job, ([p]) => paint($("easel-picture"), merged(p)));
      history.push({ ...before, erased });
      take({ pixels: merged(pixels), label: before.label, name: "repainted" }, true);
      $("seed").value = (seed + 1) % 2 ** 32;  // again gives another one
      say(`Repainted in ${seconds()}. All other pixels are what they were.`, 1);
    } catch (error) {
      take(before, true);
      easel.erased = erased;
      easel.draw();
      throw error;
    }
  },

  async vary() {
    const strength = Number($("strength").value), seed = seedOf("seed");
    const labels = labelsOf(VARIANTS, current.label), seeds = labels.map((_, i) => (seed + i) % 2 ** 32);
    const names = seeds.map((s, i) => `seed ${s}${labelName(labels[i])}`);
    const show = hang("vary", names, 2);
    const job = { job: "vary", x0: toPlanes(current.pixels, card), strength };
    const pictures = await run({ ...job, ...settings(labels, seeds) }, show);
    show(pictures);
    walls.vary = pictures.map((pixels, i) => ({ pixels, label: labels[i], name: names[i] }));
    offer();
    say(`${VARIANTS} variations in ${seconds()}.`, 1);
  },

  async between() {
    const seeds = [seedOf("seed"), seedOf("seed-b")], labels = labelsOf(FRAMES, -1);
    const names = labels.map((_, i) => `${Math.round((100 * i) / (FRAMES - 1))} % of the way`);
    const show = hang("between", names, FRAMES);
    const pictures = await run({ job: "between", ...settings(labels, seeds) }, (found) => {
      show(found);
      paint($("walker"), found[$("walk").value]);
    });
    show(pictures);
    walls.between = pictures.map((pixels, i) => ({ pixels, label: labels[i], name: names[i] }));
    choose("between", Number($("walk").value));
    say(`The way in ${FRAMES} images, in ${seconds()}. Move the slider.`, 1);
  },
};

async function go() {
  if (running) {
    worker.postMessage({ stop: running.id });
    say("Stopping…");
    return;
  }
  try {
    await actions[tab]();
  } catch (error) {
    if (error) fail(error.message);
    else say("Stopped.");
  }
}

// --- a picture of one's own ---------------------------------------------------------------------

async function open(file) {
  if (!file) return;
  try {
    const image = await createImageBitmap(file);
    const scale = Math.max(card.width / image.width, card.height / image.height);
    let [w, h] = [card.width / scale, card.height / scale];  // the middle, of the right shape
    let from = image, [x, y] = [(image.width - w) / 2, (image.height - h) / 2];
    const canvas = (width, height) => Object.assign(document.createElement("canvas"), { width, height });
    while (w > 2 * card.width) {  // halved until it is near: no pixel is left out
      const half = canvas(Math.ceil(w / 2), Math.ceil(h / 2));
      half.getContext("2d").drawImage(from, x, y, w, h, 0, 0, half.width, half.height);
      [from, x, y, w, h] = [half, 0, 0, half.width, half.height];
    }
    const small = canvas(card.width, card.height), context = small.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(from, x, y, w, h, 0, 0, card.width, card.height);
    const pixels = context.getImageData(0, 0, card.width, card.height).data;
    const [seen] = toPixels(toPlanes(pixels, card), card);  // as the network sees it
    take({ pixels: seen, label: -1, name: "your image" });
    if (tab !== "repaint") select("vary");
    say(`Opened, at ${card.width} × ${card.height} pixels as the network draws.`);
  } catch {
    fail(`${file.name ?? "This"} is no image that this browser can open.`);
  }
}

// --- saving -------------------------------------------------------------------------------------

function save(pictures, name) {
  const zoom = Number($("zoom").value), columns = Math.ceil(Math.sqrt(pictures.length));
  const rows = Math.ceil(pictures.length / columns), sheet = document.createElement("canvas");
  sheet.width = columns * card.width * zoom;
  sheet.height = rows * card.height * zoom;
  const context = sheet.getContext("2d"), one = document.createElement("canvas");
  context.imageSmoothingEnabled = false;
  [one.width, one.height] = [card.width, card.height];
  pictures.forEach(({ pixels }, i) => {
    paint(one, pixels);
    const [x, y] = [(i % columns) * card.width * zoom, Math.floor(i / columns) * card.height * zoom];
    context.drawImage(one, x, y, card.width * zoom, card.height * zoom);
  });
  sheet.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${name.replace(/[^\w]+/g, "-")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    say(`Saved as ${link.download}.`);
  });
}

// --- the page begins ----------------------------------------------------------------------------

function select(name, focus = false) {
  if (running) return;
  tab = name;
  for (const other of TABS) {
    const button = $(`tab-${other}`);
    button.setAttribute("aria-selected", String(other === name));
    button.tabIndex = other === name ? 0 : -1;
    $(other).hidden = other !== name;
  }
  if (focus) $(`tab-${name}`).focus();
  for (const field of document.querySelectorAll("[data-for]")) field.hidden = field.dataset.for !== name;
  $("seed-name").textContent = name === "between" ? "Seed A" : "Seed";
  $("go").textContent = GO[name];
  const words = { draw: "mixed", repaint: "as it is", vary: "as it is", between: "any" };
  for (const chip of document.querySelectorAll('[value="mixed"] + span')) chip.textContent = words[name];
  for (const any of document.querySelectorAll('[value="none"]')) any.parentNode.hidden = name === "between";
  if (chosen?.wall !== name) choose(name in walls ? name : "draw", null);
  offer();
  say({ repaint: "Drag over the image.", vary: "", between: "", draw: "" }[name]);
  if (name === "between" && !walls.between.length && card) go();
}

function chips() {
  const choices = [["mixed", "mixed"], ["none", "any"], ...card.labels.map((text, i) => [i, text])];
  $("chips").replaceChildren(
    ...choices.map(([value, text], i) => {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "radio", name: "label", value, checked: i === 0 });
      const span = document.createElement("span");
      span.textContent = text;
      label.append(input, span);
      return label;
    }),
  );
  $("labels").hidden = $("guidance-field").hidden = !card.labels.length;
}

function begin(found) {
  card = found;
  const { width, height, channels, labels } = card, size = `${width} × ${height}`;
  const kind = { 1: "grey ", 4: "see-through " }[channels] ?? "";
  $("about").textContent = `A network that learned ${kind}images of ${size} pixels${
    labels.length ? ` in ${labels.length} kinds` : ""
  } draws new ones here: from pure noise, step by step, in this page alone.`;
  $("made").textContent = `Made with underpaint ${card.underpaint}; it runs on ONNX Runtime Web.`;
  document.body.style.setProperty("--aspect", `${width} / ${height}`);
  document.body.classList.toggle("pixelated", Math.max(width, height) <= 64);
  document.body.classList.toggle("clear", channels === 4);
  chips();
  for (const steps of Object.keys(card.levels)) $("steps").add(new Option(steps, steps));
  $("steps").value = card.steps;
  $("guidance").value = card.guidance;
  const large = Math.max(1, Math.round(512 / Math.max(width, height)));
  for (const zoom of new Set([large, 1])) {
    $("zoom").add(new Option(`${width * zoom} × ${height * zoom} pixels`, zoom));
  }
  $("brush").max = Math.max(width, height) / 4;
  $("brush").value = Math.max(width, height) / 10;
  $("seed-b").value = 7;
  $("walk").max = FRAMES - 1;
  easel = new Easel($("easel"), () => Number($("brush").value), () => {});
  easel.resize(width, height);
  if (matchMedia("(max-width: 52rem)").matches) document.querySelector('[name="count"][value="4"]').checked = true;
  said();
  window.underpaint.card = card;
  $("go").disabled = false;
  select("draw");
  go();
}

function said() {
  $("strength-said").textContent = `${Math.round(100 * $("strength").value)} %`;
  const guidance = Number($("guidance").value);
  $("guidance-said").textContent = guidance === 1 ? "none" : `× ${guidance}`;
}

const another = (id) => () => ($(id).value = crypto.getRandomValues(new Uint32Array(1))[0] % 1000000);

window.underpaint = { run, get busy() { return running !== null; } };  // for the console, and tests
$("panel").onsubmit = (event) => (event.preventDefault(), go());
$("panel").oninput = said;
$("dice").onclick = another("seed");
$("dice-b").onclick = another("seed-b");
$("clear").onclick = () => easel.clear();
$("invert").onclick = () => easel.invert();
$("back").onclick = () => {
  const before = history.pop();
  take(before, true);
  easel.erased = Uint8Array.from(before.erased);
  easel.draw();
};
$("walk").oninput = () => choose("between", Number($("walk").value));
$("to-repaint").onclick = () => (take(chosen), select("repaint"));
$("to-vary").onclick = () => (take(tab === "repaint" ? current : chosen), select("vary"));
$("save").onclick = () => {
  const one = tab === "repaint" ? current : chosen;
  save([one], `underpaint ${one.name}`);
};
$("save-all").onclick = () => save(walls[tab], `underpaint ${tab}`);
for (const button of document.querySelectorAll("[data-open]")) button.onclick = () => $("file").click();
$("file").onchange = () => (open($("file").files[0]), ($("file").value = ""));
TABS.forEach((name, i) => {
  const button = $(`tab-${name}`);
  button.onclick = () => select(name);
  button.onkeydown = ({ key }) => {
    const far = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (far) select(TABS[(i + far + TABS.length) % TABS.length], true);
  };
});
document.ondragover = (event) => (event.preventDefault(), document.body.classList.add("dropping"));
document.ondragleave = () => document.body.classList.remove("dropping");
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (card) open(event.dataTransfer.files[0]);
};
