// Earlier pictures, as the server keeps them: thumbnails, newest first.
import { byId, el } from "./dom.js";
import { get } from "./server.js";

const AT_ONCE = 48;

export class History {
  constructor(open) {
    this.open = open;
    this.pictures = [];
    this.hidden = new Set(); // jobs that stand on the stage
    byId("more").addEventListener("click", () => this.more());
  }

  /** Reads the newest pictures again, as many as are shown. */
  async look() {
    this.pictures = await get(`/v1/history?limit=${Math.max(AT_ONCE, this.pictures.length)}`);
    this.whole = this.pictures.length < AT_ONCE;
    this.show();
  }

  async more() {
    const older = await get(`/v1/history?limit=${AT_ONCE}&before=${this.pictures.at(-1).created}`);
    this.whole = older.length < AT_ONCE;
    this.pictures.push(...older);
    this.show();
  }

  /** Leaves out the pictures of jobs that are shown above. */
  without(jobs) {
    this.hidden = new Set(jobs);
    this.show();
  }

  /** A picture's entry; asks the server for one that is not listed. */
  find = (id) => this.pictures.find((picture) => picture.id === id);

  show() {
    const shown = this.pictures.filter((picture) => !this.hidden.has(picture.job));
    const there = new Map([...byId("thumbs").children].map((item) => [item.dataset.id, item]));
    byId("thumbs").replaceChildren(...shown.map((picture) => there.get(picture.id) ?? this.thumb(picture)));
    byId("history").hidden = shown.length === 0;
    byId("more").hidden = this.whole !== false;
  }

  thumb(picture) {
    const words = `${picture.prompt}, seed ${picture.seed}`;
    return el("li", { "data-id": picture.id },
      el("button", { type: "button", class: "thumb", title: picture.prompt, "aria-label": `Open: ${words}`, onclick: () => this.open(picture.id) },
        el("img", { src: `/v1/pictures/${picture.id}/thumbnail`, alt: words, loading: "lazy", width: 64, height: 64, onerror: (event) => { event.target.closest("li").hidden = true; } })));
  }
}
