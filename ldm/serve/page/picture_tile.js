// A picture of a job: its preview while it is made, then itself with what can be done next.
import { button, el, tip } from "./dom.js";
import { announce } from "./say.js";
import { STRONG, SUBTLE } from "./start_picture.js";

export class PictureTile {
  constructor(actions) {
    this.actions = actions;
    // a picture that was deleted leaves no hole
    this.image = el("img", { alt: "", width: 64, height: 64, onerror: () => { this.element.hidden = this.picture.id !== null; } });
    this.frame = el("button", { type: "button", class: "frame", disabled: true, onclick: () => actions.open(this.picture.id) }, this.image);
    this.seed = el("span", { class: "seed" });
    this.keep = button("keep this seed", () => {
      actions.keepSeed(String(this.picture.seed));
      announce(`Seed ${this.picture.seed} is kept for the next pictures.`);
    }, { class: "link" });
    this.doing = el("div", { class: "doing", hidden: true },
      el("p", { class: "row tight" }, this.seed, this.keep),
      el("p", { class: "row tight" }, el("span", {}, "More like this"),
        button("subtle", () => actions.likeThis(this.picture, SUBTLE), { class: "link", "aria-label": "More like this, subtly changed" }),
        button("strong", () => actions.likeThis(this.picture, STRONG), { class: "link", "aria-label": "More like this, strongly changed" }),
        tip("more like this", "New pictures that start from this one. Subtle keeps most of it; strong keeps only its layout.")));
    this.element = el("li", { class: "tile" }, this.frame, this.doing);
  }

  update(picture) {
    const finished = picture.id !== null;
    const source = finished ? `/v1/pictures/${picture.id}` : picture.preview;
    this.picture = picture;
    this.element.className = `tile ${finished ? "finished" : picture.active ? "making" : "none"}`;
    this.frame.disabled = !finished;
    this.doing.hidden = !finished;
    this.seed.textContent = `Seed ${picture.seed}`;
    this.keep.setAttribute("aria-label", `Keep seed ${picture.seed}`);
    this.keep.hidden = picture.seed === undefined;
    if (source && this.image.getAttribute("src") !== source) this.image.src = source;
    const words = finished ? `${picture.prompt}, seed ${picture.seed}` : source ? `Preview of: ${picture.prompt}` : "";
    this.image.alt = words;
    this.image.hidden = !source;
    this.frame.setAttribute("aria-label", finished ? `Open: ${words}` : picture.active ? "A picture that is not finished yet" : "No picture");
  }
}
