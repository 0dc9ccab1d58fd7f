// One picture, large: its words and settings, what can be done with it, and the look inside.
import { button, byId, el, fill, tip } from "./dom.js";
import { inside } from "./inside.js";
import { announce, confirmed, problem } from "./say.js";
import { remove } from "./server.js";
import { STRONG, SUBTLE } from "./start_picture.js";
import { ago, method, short } from "./words.js";

export class Viewer {
  constructor(actions) {
    this.actions = actions;
    this.dialog = byId("viewer");
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
  }

  /** Shows a picture of the history; `others` are its neighbours, for the arrow keys. */
  open(picture, others = []) {
    const place = others.findIndex((each) => each.id === picture.id);
    const step = (by) => {
      const next = others[place + by];
      if (!next) return;
      this.open(next, others);
      (this.dialog.querySelector(`[data-by="${by}"]:enabled`) ?? this.dialog.querySelector(".close")).focus();
    };
    this.dialog.onkeydown = (event) => {
      if (event.target.closest("input, textarea, select, canvas, summary")) return;
      if (event.key === "ArrowRight") step(1);
      if (event.key === "ArrowLeft") step(-1);
    };
    const words = el("p", { class: "problem", role: "alert", hidden: true });
    fill(
      this.dialog,
      button("×", () => this.dialog.close(), { class: "close", "aria-label": "Close" }),
      el("div", { class: "viewer-picture" },
        el("img", { src: `/v1/pictures/${picture.id}`, alt: `${picture.prompt}, seed ${picture.seed}`, width: 64, height: 64 })),
      el("div", { class: "viewer-side" },
        el("h2", { id: "viewer-title" }, picture.prompt),
        settings(picture),
        el("div", { class: "row wrap" },
          el("a", { class: "quiet", href: `/v1/pictures/${picture.id}`, download: `${picture.id}.png` }, "Download"),
          button("Keep this seed", () => this.then(() => this.actions.keepSeed(String(picture.seed)))),
          button("Use all its settings", () => this.then(() => this.actions.restore(picture)))),
        el("p", { class: "row wrap" }, el("span", {}, "More like this"),
          button("subtle", () => this.then(() => this.actions.likeThis(picture, SUBTLE)), { class: "link" }),
          button("strong", () => this.then(() => this.actions.likeThis(picture, STRONG)), { class: "link" }),
          button("paint what changes", () => this.then(() => this.actions.startFrom(picture)), { class: "link" }),
          tip("more like this", "New pictures that start from this one. Subtle keeps most of it; strong keeps only its layout; or paint the part that may change.")),
        words,
        inside(picture),
        el("p", { class: "row" },
          el("span", { class: "row tight" },
            button("Newer", () => step(-1), { "data-by": -1, disabled: !others[place - 1] }),
            button("Older", () => step(1), { "data-by": 1, disabled: !others[place + 1] })),
          button("Delete this picture", () => this.delete(picture, words), { class: "link danger" }))),
    );
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.scrollTop = 0;
  }

  then(act) {
    this.dialog.close();
    act();
  }

  async delete(picture, words) {
    if (!(await confirmed(`Delete the picture of "${picture.prompt}"? It can't be brought back.`, "Delete"))) return;
    try {
      await remove(`/v1/pictures/${picture.id}`);
      this.dialog.close();
      announce("The picture is deleted.");
      this.actions.deleted(picture.id);
    } catch (error) {
      problem(words, error);
    }
  }
}

/** Seed, model and options of a picture as a list. */
function settings(picture) {
  const chosen = picture.settings ?? {};
  const rows = [
    ["Seed", picture.seed],
    ["Model", picture.model],
    ["Sampler", method(chosen.sampler)],
    ["Steps", chosen.steps ?? chosen.sampler?.steps],
    ["Guidance scale", chosen.scale ?? chosen.guidance?.scale],
    ["Not in it", chosen.negative],
    ["Made", ago(picture.created)],
  ];
  const shown = rows.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return el("dl", { class: "facts" }, shown.map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, typeof value === "number" && name !== "Seed" ? short(value) : String(value)))));
}
