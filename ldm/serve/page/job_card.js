// One job on the page: its progress, its pictures as they come, Stop and Skip, and its end in words.
import { button, el } from "./dom.js";
import { isActive } from "./jobs.js";
import { Refused, post, remove } from "./server.js";
import { PictureTile } from "./picture_tile.js";
import { capital, counted, duration } from "./words.js";

const ENDS = {
  finished: () => "",
  stopped: (job) => `Stopped. ${job.pictures?.some(Boolean) ? "What was finished is kept." : "Nothing was finished."}`,
  failed: (job) => job.error ?? "The pictures could not be made. Try again; if it happens again, look at the server's own output.",
  interrupted: () => "The server was closed before these pictures were finished. Press Again to make them now.",
};

export class JobCard {
  constructor(job, actions) {
    this.actions = actions;
    this.tiles = [];
    this.title = el("h2", { class: "job-title", tabindex: -1 });
    this.state = el("p", { class: "job-state" });
    this.bar = el("div", { class: "meter", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "Progress" }, el("i"));
    this.stop = button("Stop", () => this.ask(() => remove(`/v1/jobs/${job.id}`)), { title: "Ends this job within one step; finished pictures are kept" });
    this.skip = button("Skip", () => this.ask(() => post(`/v1/jobs/${job.id}/skip`)), { title: "Leaves out the pictures now being made and continues with the rest" });
    this.again = button("Again", () => actions.again(this.job));
    this.grid = el("ul", { class: "tiles" });
    this.element = el("article", { class: "job", id: `job-${job.id}`, "aria-label": `Pictures of: ${job.request?.prompts?.[0] ?? ""}` },
      el("div", { class: "row" }, this.title, el("div", { class: "row tight" }, this.skip, this.stop, this.again)), this.state, this.bar, this.grid);
    this.update(job);
  }

  async ask(act) {
    try {
      await act();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.state.textContent = error.message;
    }
  }

  /** Shows a job as it now is; only what differs is touched, so that no focus is lost. */
  update(job) {
    this.job = job;
    const active = isActive(job);
    const [prompt, ...others] = [...new Set(job.request?.prompts ?? [])];
    this.title.textContent = others.length ? `${prompt} and ${counted(others.length, "other text")}` : prompt;
    const said = active ? progress(job) : ENDS[job.state](job);
    this.state.textContent = [said, capital(job.note ?? "")].filter(Boolean).join(" · ");
    this.state.hidden = this.state.textContent === "";
    this.element.dataset.state = job.state;
    const share = job.steps ? job.step / job.steps : 0;
    this.bar.hidden = !active;
    this.bar.classList.toggle("unknown", job.state === "running" && !job.steps); // a system that shows no steps
    this.bar.firstChild.style.width = `${100 * share}%`;
    this.bar.setAttribute("aria-valuenow", Math.round(100 * share));
    this.stop.hidden = !active;
    this.skip.hidden = job.state !== "running";
    this.again.hidden = active || job.state === "finished";
    if (document.activeElement?.hidden && this.element.contains(document.activeElement)) this.title.focus();
    const count = job.seeds?.length ?? job.pictures?.length ?? 0;
    while (this.tiles.length < count) {
      this.tiles.push(new PictureTile(this.actions));
      this.grid.append(this.tiles.at(-1).element);
    }
    const several = job.request?.prompts?.length > 1;
    this.tiles.forEach((tile, place) => tile.update({
      id: job.pictures?.[place] ?? null,
      preview: active ? job.previews?.[place] ?? null : null,
      seed: job.seeds?.[place],
      prompt: job.request?.prompts?.[several ? Math.floor((place * job.request.prompts.length) / count) : 0],
      active,
    }));
  }
}

/** What an active job is doing, in words. */
function progress(job) {
  if (job.state === "queued") return job.position ? `Waiting: ${counted(job.position, "job")} before it` : "Waiting for its turn";
  const done = job.pictures?.filter(Boolean).length ?? 0;
  const parts = [job.steps ? `${Math.round((100 * job.step) / job.steps)} %` : "Being made"];
  if (done) parts.push(`${counted(done, "picture")} finished`);
  if (job.seconds_left !== null && job.seconds_left !== undefined) parts.push(`${duration(job.seconds_left)} left`);
  return parts.join(" · ");
}
