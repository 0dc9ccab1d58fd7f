// The trainings on this machine, read only: states, curves and sheets of samples, live while the room is open.
import { chart } from "./chart.js";
import { byId, el, fill, tip } from "./dom.js";
import { get } from "./server.js";
import { ago, capital } from "./words.js";

const EVERY = 4000; // ms
const STATES = "Running: a process holds the run. Finished: its model is written. Stopped: it ended, and nothing is lost. Died: it ended without saving its last steps.";

export class Training {
  constructor() {
    this.room = byId("training-room");
    this.list = el("ul", { class: "runs", "aria-label": "Trainings" });
    this.detail = el("div", { class: "run-detail", "aria-live": "off" });
    this.chosen = null;
  }

  open() {
    if (this.timer) return;
    this.timer = setInterval(() => { if (!document.hidden) this.look(); }, EVERY);
    this.look();
  }

  close() {
    clearInterval(this.timer);
    this.timer = null;
  }

  async look() {
    try {
      const found = await get("/v1/runs");
      if (found.runs.length === 0) {
        fill(this.room, el("p", { class: "empty" }, `There is no training in ${found.folder} yet. "make demo" starts one that takes some minutes, and it appears here at once.`));
        return;
      }
      if (!found.runs.some((run) => run.id === this.chosen)) this.chosen = found.runs[0].id;
      this.show(found);
      await this.read();
    } catch (error) {
      fill(this.room, el("p", { class: "problem", role: "alert" }, error.message));
    }
  }

  show(found) {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    fill(this.list, found.runs.map((run) => this.row(run)));
    if (focused) this.list.querySelector(`[data-id="${focused}"]`)?.focus();
    if (!this.list.isConnected) {
      this.reports = el("ul", { class: "reports" });
      fill(this.room, el("div", { class: "trainings" }, el("div", {}, el("p", { class: "label-row" }, "Newest first", tip("the states", STATES)), this.list), this.detail), this.reports);
    }
    fill(this.reports, found.evaluations.length ? el("li", {}, "Evaluations:") : null,
      found.evaluations.map((each) => el("li", {}, el("a", { href: each.url, target: "_blank", rel: "noopener" }, each.title))));
  }

  row(run) {
    const share = run.steps ? Math.min(1, run.step / run.steps) : 0;
    const bar = el("i");
    bar.style.width = `${100 * share}%`;
    const [experiment, ...rest] = run.name.split("/");
    return el("li", {}, el("button", {
      type: "button", class: "run", "data-id": run.id, "aria-pressed": String(run.id === this.chosen),
      onclick: () => { this.chosen = run.id; this.detail.dataset.id = ""; this.look(); },
    },
    el("span", { class: "run-name" }, experiment), state(run),
    el("span", { class: "run-when", title: rest.join("/") }, run.touched ? ago(run.touched) : "nothing written yet"),
    el("span", { class: "run-step" }, run.steps ? `${run.step} of ${run.steps} steps` : `${run.step} steps`),
    el("span", { class: "meter" }, bar)));
  }

  async read() {
    const run = await get(`/v1/runs/${this.chosen}`);
    if (run.id !== this.chosen) return; // another was chosen meanwhile
    const stamp = `${run.id} ${run.state} ${run.step}`;
    if (this.detail.dataset.id === stamp) return; // nothing new: what is being looked at stays
    this.detail.dataset.id = stamp;
    const curves = Object.entries(run.curves).sort(([one], [other]) => rank(one) - rank(other) || one.localeCompare(other));
    fill(
      this.detail,
      el("div", { class: "row wrap" }, el("h2", {}, run.name), state(run)),
      el("p", { class: "hint" }, `${capital(run.sentence)}.`),
      run.links.length ? el("p", { class: "row wrap" }, run.links.map((link) => el("a", { class: "quiet", href: link.url, target: "_blank", rel: "noopener" }, capital(link.title)))) : null,
      this.sheets(run),
      curves.length ? el("div", { class: "charts" }, curves.map(([name, points]) => chart(name, points)))
        : el("p", { class: "empty" }, "It has logged no number yet."),
      run.command ? el("details", {}, el("summary", {}, "How it was started"), el("pre", {}, run.command),
        el("p", { class: "hint" }, `${run.host ?? ""} ${run.started ? ago(run.started) : ""}${run.commit ? `, commit ${run.commit.slice(0, 12)}` : ""}`)) : null,
    );
  }

  sheets(run) {
    if (!run.sheets.length) return null;
    const last = run.sheets.length - 1;
    const image = el("img", { alt: "", class: "sheet" });
    const said = el("output", { for: "sheet-step" });
    const show = (number) => {
      image.src = run.sheets[number].url;
      image.alt = `Samples at step ${run.sheets[number].step}`;
      said.textContent = `Samples at step ${run.sheets[number].step}`;
    };
    const slider = el("input", { type: "range", id: "sheet-step", min: 0, max: last, value: last, "aria-label": "Which sheet of samples", oninput: () => show(Number(slider.value)) });
    show(last);
    return el("div", { class: "sheets" }, el("p", { class: "label-row" }, said), last ? slider : null, image);
  }
}

function state(run) {
  return el("span", { class: "state", "data-state": run.state }, run.state);
}

/** Losses and measures first, clocks and machines last. */
function rank(name) {
  if (/seconds|memory|samples_per|lr$|grad/.test(name)) return 2;
  return name.startsWith("val/") ? 0 : 1;
}
