// Draws the avatar data sets: node make.mjs [--size 32] [--count 10000] [--style NAME] [--out FOLDER]
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { createAvatar } from "@dicebear/core";
import { Resvg } from "@resvg/resvg-js";
import { strToU8, zipSync } from "fflate";
import { png } from "./png.mjs";
import { HAIR, STYLES } from "./styles.mjs";

const sha256 = (text) => createHash("sha256").update(text).digest("hex");

// Opaque RGB pixels, each channel rounded to a multiple of 17 (only antialiased edges change).
function draw(svg, size) {
  const { pixels } = new Resvg(svg, { fitTo: { mode: "width", value: size }, font: { loadSystemFonts: false } }).render();
  const rgb = Buffer.alloc(size * size * 3);
  for (let i = 0; i < size * size; i++) {
    if (pixels[i * 4 + 3] !== 255) throw new Error("the picture is not opaque");
    for (let channel = 0; channel < 3; channel++) rgb[i * 3 + channel] = Math.round(pixels[i * 4 + channel] / 17) * 17;
  }
  return rgb;
}

function licence(meta) {
  const { title, creator, source, license } = meta;
  return [
    `Style:    ${title}`,
    `Designer: ${creator}`,
    `Source:   ${source}`,
    `Licence:  ${license.name} (${license.url})`,
    "",
    "Drawn with DiceBear (https://www.dicebear.com), from random choices among the style's parts,",
    "with a colour palette of this data set's own. The pictures are under the licence above.",
    "",
  ].join("\n");
}

function make(name, { size, count }) {
  const { style, options, attributes } = STYLES[name];
  const hairNames = Object.keys(HAIR);
  const rows = [["filename", "label", "hair_colour", "skin_colour", "background", ...attributes, "seed"]];
  const files = {};
  const seen = new Set();
  let duplicates = 0;
  for (let i = 0; seen.size < count; i++) {
    const avatar = createAvatar(style, { ...options, seed: sha256(`${name}/${i}`) });
    const { svg, extra } = avatar.toJson();
    const rgb = draw(svg, size);
    const digest = sha256(rgb);
    if (seen.has(digest)) {
      duplicates++;
      continue;
    }
    const filename = `${String(seen.size).padStart(5, "0")}.png`;
    seen.add(digest);
    files[filename] = png(rgb, size);
    const label = options.hairColor.indexOf(extra.hairColor.slice(1));
    const colours = [hairNames[label], extra.skinColor, extra.primaryBackgroundColor];
    rows.push([filename, label, ...colours, ...attributes.map((key) => extra[key] ?? "none"), i]);
  }
  files["labels.csv"] = [strToU8(rows.map((row) => row.join(",") + "\n").join("")), { level: 9 }];
  files["LICENSE.txt"] = [strToU8(licence(style.meta)), { level: 9 }];
  console.log(`${name}: ${count} pictures, ${duplicates} duplicates left out`);
  return zipSync(files, { level: 0, mtime: new Date(1980, 0, 1) });
}

const { values } = parseArgs({
  options: {
    size: { type: "string", default: "32" },
    count: { type: "string", default: "10000" },
    style: { type: "string", multiple: true, default: Object.keys(STYLES) },
    out: { type: "string", default: join(import.meta.dirname, "../../src/underpaint/data/avatars") },
  },
});
const size = Number(values.size);
for (const name of values.style)
  writeFileSync(join(values.out, `${name}-${size}.zip`), make(name, { size, count: Number(values.count) }));
