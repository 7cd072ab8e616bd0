// The eraser: which pixels of a picture are rubbed out, by pointer or by keys.

const ZOOM = 16;  // of the overlay, so that hatching and ring are fine

export class Easel {
  /** `canvas` lies over the picture; `radius()` is the brush's, in pixels of the picture. */
  constructor(canvas, radius, changed) {
    this.canvas = canvas;
    this.radius = radius;
    this.changed = changed;
    this.at = null;  // where the ring is, in pixels of the picture
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.last = null;
      this.#move(event, true);
    });
    canvas.addEventListener("pointermove", (event) => this.#move(event, event.buttons > 0));
    canvas.addEventListener("pointerleave", () => this.#ring(null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#ring(null));
  }

  resize(width, height) {
    [this.width, this.height] = [width, height];
    [this.canvas.width, this.canvas.height] = [width * ZOOM, height * ZOOM];
    this.erased = new Uint8Array(width * height);
    this.draw();
  }

  get count() {
    return this.erased.reduce((sum, value) => sum + value, 0);
  }

  clear() {
    this.erased.fill(0);
    this.draw();
  }

  invert() {
    this.erased = this.erased.map((value) => 1 - value);
    this.draw();
  }

  /** Rub out (1) or bring back (0) a disc; at least the pixel below its middle. */
  rub(x, y, value = 1) {
    const radius = this.radius();
    for (let i = 0; i < this.height; i++) {
      for (let j = 0; j < this.width; j++) {
        const [dx, dy] = [j + 0.5 - x, i + 0.5 - y];
        const inside = dx * dx + dy * dy <= radius * radius;
        if (inside || (Math.floor(x) === j && Math.floor(y) === i)) this.erased[i * this.width + j] = value;
      }
    }
  }

  #move(event, rubbing) {
    const box = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.width;
    const y = ((event.clientY - box.top) / box.height) * this.height;
    if (rubbing) {
      const [x0, y0] = this.last ?? [x, y];  // a fast pointer leaves no gaps
      const steps = Math.max(1, Math.ceil(2 * Math.hypot(x - x0, y - y0)));
      for (let k = 1; k <= steps; k++) {
        this.rub(x0 + ((x - x0) * k) / steps, y0 + ((y - y0) * k) / steps, event.shiftKey ? 0 : 1);
      }
      this.last = [x, y];
    }
    this.#ring([x, y]);
  }

  #key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const at = this.at ?? [this.width / 2, this.height / 2], way = ways[event.key];
    if (way) {
      const far = event.shiftKey ? 4 : 1;
      at[0] = Math.min(this.width, Math.max(0, at[0] + way[0] * far));
      at[1] = Math.min(this.height, Math.max(0, at[1] + way[1] * far));
    } else if (event.key === " " || event.key === "Backspace") {
      this.rub(...at, event.key === " " ? 1 : 0);
    } else {
      return;
    }
    event.preventDefault();
    this.#ring(at);
  }

  #ring(at) {
    this.at = at;
    this.draw();
  }

  draw() {
    const context = this.canvas.getContext("2d"), { width, height } = this;
    context.clearRect(0, 0, width * ZOOM, height * ZOOM);
    context.save();
    context.beginPath();
    this.erased.forEach((value, i) => {
      if (value) context.rect((i % width) * ZOOM, Math.floor(i / width) * ZOOM, ZOOM, ZOOM);
    });
    context.clip();
    context.fillStyle = "#fbfaf8";
    context.fillRect(0, 0, width * ZOOM, height * ZOOM);
    context.strokeStyle = "#c9a38f";
    context.lineWidth = 3;
    context.beginPath();
    for (let k = -height; k < width; k++) {  // hatching
      context.moveTo(k * ZOOM, 0);
      context.lineTo((k + height) * ZOOM, height * ZOOM);
    }
    context.stroke();
    context.restore();
    if (this.at) {
      const [x, y] = this.at.map((value) => value * ZOOM), radius = Math.max(0.6, this.radius()) * ZOOM;
      for (const [colour, thick] of [["#ffffff", 7], ["#a8552f", 3]]) {
        context.beginPath();
        context.arc(x, y, radius, 0, 2 * Math.PI);
        context.strokeStyle = colour;
        context.lineWidth = thick;
        context.stroke();
      }
    }
    this.changed();
  }
}
