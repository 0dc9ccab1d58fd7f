// The picture that new ones start from, how much of it may change, and where: a mask painted on it.
import { button, byId, el, fill, tip } from "./dom.js";
import { announce } from "./say.js";
import { Refused, get, send } from "./server.js";

const SHOWN = 288; // side of the canvas on the page
const PAINT = [18, 102, 90]; // red, green, blue
export const SUBTLE = 0.35;
export const STRONG = 0.7;

/** What the composer starts from; `null` picture means: from noise alone. */
export class StartPicture {
  constructor(changed) {
    this.room = byId("start");
    this.changed = changed;
    this.picture = null; // its id on the server
    this.strength = 0.6;
    byId("choose").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", () => {
      const [file] = byId("file").files;
      byId("file").value = "";
      if (file) this.take(file).catch(this.changed);
    });
  }

  /** Starts from a file of the person's own. */
  async take(file) {
    const known = await send("/v1/uploads", file, file.name);
    this.show(known.id, await createImageBitmap(file), known.width, known.height);
    announce("The picture is there: choose how much of it may change.");
  }

  /** Starts from a picture of the server, with a strength and a mask if they are known; refused where it is gone. */
  async use(id, { strength, mask } = {}) {
    const image = await loaded(id);
    this.strength = strength ?? this.strength;
    this.show(id, image, image.naturalWidth, image.naturalHeight);
    if (mask) this.repaint(await loaded(mask));
    if (strength) this.set(strength);
  }

  /** Paints where a mask is white, as it was painted once. */
  repaint(mask) {
    const context = this.paint.getContext("2d");
    context.drawImage(mask, 0, 0, this.paint.width, this.paint.height);
    const pixels = context.getImageData(0, 0, this.paint.width, this.paint.height);
    for (let at = 0; at < pixels.data.length; at += 4) pixels.data.set([...PAINT, pixels.data[at] > 127 ? 255 : 0], at);
    context.putImageData(pixels, 0, 0);
    this.painted = true;
  }

  /** Starts from noise again. */
  drop() {
    this.picture = null;
    this.room.hidden = true;
    fill(this.room);
    byId("choose").parentElement.hidden = false;
    this.changed();
  }

  /** The part of a request that says this; uploads the mask, if there is one. */
  async request() {
    if (this.picture === null) return undefined;
    const source = { picture: this.picture, strength: this.strength };
    if (this.painted) source.mask = (await send("/v1/uploads", await this.mask(), "mask.png")).id;
    return source;
  }

  show(id, image, width, height) {
    Object.assign(this, { picture: id, width, height, painted: false });
    byId("choose").parentElement.hidden = true;
    const scale = SHOWN / Math.max(width, height);
    const size = { width: Math.round(width * scale), height: Math.round(height * scale) };
    const below = el("canvas", { ...size, role: "img", "aria-label": "The picture to start from" });
    below.getContext("2d").drawImage(image, 0, 0, size.width, size.height);
    this.paint = el("canvas", {
      ...size, tabindex: 0, role: "img", class: "mask",
      "aria-label": "What may change: paint with the pointer, or move with the arrow keys and paint with the space bar",
    });
    this.brush = el("input", { type: "range", id: "brush", min: 8, max: 96, value: 36 });
    const strength = el("input", {
      type: "range", id: "strength", min: 0.05, max: 1, step: 0.05,
      oninput: () => { this.touched = true; this.set(Number(strength.value)); },
    });
    const said = el("output", { for: "strength" });
    this.touched = false;
    this.set = (value) => {
      this.strength = strength.value = value;
      said.textContent = inWords(value);
    };
    this.set(this.strength);
    fill(
      this.room,
      el("div", { class: "easel" }, below, this.paint),
      el("div", { class: "start-settings" },
        el("p", { class: "label-row" }, el("label", { for: "strength" }, "How much may change"), said,
          tip("how much may change", "Little keeps the picture almost as it is; everything ignores it.")),
        strength,
        el("p", { class: "label-row" }, el("label", { for: "brush" }, "Brush"),
          tip("the brush", "Paint on the picture what may change. What is not painted stays as it is, to the last pixel.")),
        this.brush,
        el("p", { class: "hint" }, "Paint on the picture to change only that part."),
        el("div", { class: "row" },
          button("Clear the paint", () => this.clear()),
          button("Start without it", () => { this.drop(); byId("prompt").focus(); }))),
    );
    this.room.hidden = false;
    this.listen();
    this.changed();
  }

  listen() {
    const at = (event) => {
      const box = this.paint.getBoundingClientRect();
      return [(event.clientX - box.left) * (this.paint.width / box.width),
        (event.clientY - box.top) * (this.paint.height / box.height)];
    };
    let last = null;
    this.paint.onpointerdown = (event) => {
      this.paint.setPointerCapture(event.pointerId);
      last = at(event);
      this.stroke(last, last);
    };
    this.paint.onpointermove = (event) => {
      if (last === null) return;
      this.stroke(last, at(event));
      last = at(event);
    };
    this.paint.onpointerup = this.paint.onpointercancel = () => { last = null; };
    let place = [this.paint.width / 2, this.paint.height / 2];
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    this.paint.onkeydown = (event) => {
      const move = moves[event.key];
      if (!move && event.key !== " ") return;
      event.preventDefault();
      if (move) {
        const inside = (value, most) => Math.min(Math.max(value, 0), most);
        place = [inside(place[0] + 12 * move[0], this.paint.width), inside(place[1] + 12 * move[1], this.paint.height)];
        announce(`Brush at ${Math.round((100 * place[0]) / this.paint.width)} % across, ${Math.round((100 * place[1]) / this.paint.height)} % down`);
      } else {
        this.stroke(place, place);
        announce("Painted");
      }
    };
  }

  stroke(from, to) {
    const context = this.paint.getContext("2d");
    Object.assign(context, { lineCap: "round", lineWidth: Number(this.brush.value), strokeStyle: `rgb(${PAINT})` });
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(to[0] + 0.01, to[1]);
    context.stroke();
    if (!this.painted && !this.touched) this.set(1); // what is painted is to go as a whole
    this.painted = true;
  }

  clear() {
    this.paint.getContext("2d").clearRect(0, 0, this.paint.width, this.paint.height);
    this.painted = false;
    announce("Nothing is painted: all of the picture may change.");
  }

  /** The paint as a picture of the source's own size: white where it may change, else black. */
  async mask() {
    const canvas = el("canvas", { width: this.width, height: this.height });
    const context = canvas.getContext("2d");
    context.drawImage(this.paint, 0, 0, this.width, this.height);
    const pixels = context.getImageData(0, 0, this.width, this.height);
    for (let at = 0; at < pixels.data.length; at += 4) {
      pixels.data.fill(pixels.data[at + 3] > 127 ? 255 : 0, at, at + 3);
      pixels.data[at + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
    return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
  }
}

async function loaded(id) {
  const image = new Image();
  image.src = `/v1/pictures/${id}`;
  try {
    await image.decode();
  } catch {
    throw new Refused("The picture that it started from, or its mask, is no longer here: start from another one.");
  }
  return image;
}

function inWords(strength) {
  const words = [[0.2, "a little"], [0.45, "subtly"], [0.75, "strongly"], [0.95, "almost everything"], [1, "everything"]];
  return words.find(([most]) => strength <= most)[1];
}

/** The settings of a picture made here that was dropped on the page; refused with a sentence if it has none. */
export const settingsIn = (file) => send("/v1/settings", file, file.name);

/** The models that the server offers. */
export const models = () => get("/v1/models");
