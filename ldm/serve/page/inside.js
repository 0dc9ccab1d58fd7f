// A look inside a picture: its nearest training pictures, which word moved which part, how it came about.
import { button, el, fill, tip } from "./dom.js";
import { problem } from "./say.js";
import { get } from "./server.js";
import { short } from "./words.js";

const PANELS = [
  ["Nearest training pictures", "nearest", nearest,
    "The pictures that the model learned from and that are most like this one. One that is nearly the same means that it was learned by heart."],
  ["Which word moved which part", "attention", attention,
    "How much each part of the picture read each word while it was made: averaged over the network's cross-attentions and all steps."],
  ["How it came about", "filmstrip", filmstrip,
    "The picture at each step, from noise to what you see. Early steps are a rough estimate of the final picture."],
];

/** The three folded panels of a picture; each asks the server when it is opened for the first time. */
export function inside(picture) {
  return el("div", { class: "inside" }, PANELS.map(([title, name, show, sentence]) => {
    const room = el("div", { class: "panel" });
    const load = async () => {
      fill(room, el("p", { class: "hint", role: "status" }, "One moment …"));
      try {
        show(room, await get(`/v1/pictures/${picture.id}/${name}`), picture);
      } catch (error) {
        const words = el("p", { class: "problem", role: "alert" });
        problem(words, error);
        fill(room, words);
      }
    };
    return el("details", { ontoggle: (event) => { if (event.target.open && !room.hasChildNodes()) load(); } },
      el("summary", {}, title), el("p", { class: "hint" }, sentence), room);
  }));
}

function nearest(room, found) {
  fill(room, el("p", {}, found.sentence), el("ul", { class: "strip" }, (found.neighbours ?? []).map((each) =>
    el("li", {}, el("figure", {}, el("img", { src: each.url, alt: `Training picture: ${each.caption}`, width: 64, height: 64 }),
      el("figcaption", {}, each.caption, el("small", {}, `distance ${short(each.distance)}${each.mirrored ? ", mirrored" : ""}`)))))));
}

function attention(room, found, picture) {
  if (!found.words?.length) {
    fill(room, el("p", {}, found.sentence));
    return;
  }
  const canvas = el("canvas", { width: 256, height: 256, class: "heat", role: "img" });
  const image = new Image();
  const buttons = found.words.map((each, number) => button(each.word, () => show(number), { class: "chip" }));
  const show = (number) => {
    buttons.forEach((each, place) => each.setAttribute("aria-pressed", place === number));
    canvas.setAttribute("aria-label", `Where the picture read "${found.words[number].word}": ${found.words[number].place}`);
    heat(canvas, image, found.words[number].map);
  };
  image.onload = () => show(0);
  image.src = `/v1/pictures/${picture.id}`;
  fill(room, el("p", {}, found.sentence), el("div", { class: "row wrap", role: "group", "aria-label": "Words" }, buttons), canvas);
}

/** A picture dimmed where a map is low; maps are small, so the canvas smooths them. */
function heat(canvas, image, map) {
  const small = el("canvas", { width: map[0].length, height: map.length });
  const pixels = small.getContext("2d").createImageData(small.width, small.height);
  map.flat().forEach((value, at) => pixels.data.set([14, 34, 30, 225 * (1 - value)], 4 * at));
  small.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  Object.assign(context, { imageSmoothingEnabled: true, imageSmoothingQuality: "high" });
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function filmstrip(room, found, picture) {
  if (!found.count) {
    fill(room, el("p", {}, found.sentence));
    return;
  }
  const strip = new Image();
  const canvas = (side) => el("canvas", { width: side, height: side, role: "img" });
  const draw = (onto, number) => {
    const side = strip.naturalHeight;
    onto.getContext("2d").drawImage(strip, number * side, 0, side, side, 0, 0, onto.width, onto.height);
  };
  const large = canvas(256);
  const said = el("output", { for: "film" });
  const last = found.count - 1;
  const slider = el("input", { type: "range", id: "film", min: 0, max: last, value: last, "aria-label": "Step", oninput: () => show(Number(slider.value)) });
  const show = (number) => {
    draw(large, number);
    large.setAttribute("aria-label", `${picture.prompt}, frame ${number + 1} of ${found.count}`);
    said.textContent = `Frame ${number + 1} of ${found.count}`;
  };
  strip.onload = () => {
    const ribbon = Array.from({ length: found.count }, (_, number) => {
      const small = canvas(64);
      draw(small, number);
      small.setAttribute("aria-label", `Frame ${number + 1}`);
      return el("li", {}, el("button", { type: "button", class: "thumb", onclick: () => { slider.value = number; show(number); } }, small));
    });
    fill(room, el("div", { class: "film" }, large, el("div", {}, said, slider)), el("ul", { class: "ribbon" }, ribbon));
    show(last);
  };
  strip.src = found.url;
}
