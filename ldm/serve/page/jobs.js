// The jobs as the server has them. The page keeps none of its own: a reload shows the same.
import { banner } from "./say.js";
import { follow, get } from "./server.js";

const EVERY = 5000; // ms between two looks at jobs that others may have started
export const isActive = (job) => job.state === "queued" || job.state === "running";

export class Jobs {
  /** `changed` is called with all jobs, newest first, and the ids of those that have just ended. */
  constructor(changed) {
    this.changed = changed;
    this.byId = new Map();
    this.following = new Map();
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.look(); });
    addEventListener("online", () => this.look());
    setInterval(() => { if (!document.hidden) this.look(); }, EVERY);
  }

  /** Takes over what the server has. */
  async look() {
    let jobs;
    try {
      jobs = await get("/v1/jobs?limit=20");
    } catch (error) {
      banner(error.message);
      return;
    }
    banner(null);
    const there = new Set(jobs.map((job) => job.id));
    for (const id of this.byId.keys()) if (!there.has(id)) this.byId.delete(id);
    const ended = jobs.filter((job) => this.ends(job)).map((job) => job.id);
    for (const job of jobs) this.byId.set(job.id, job);
    this.tell(ended);
  }

  /** Takes a job over that was just started or has changed. */
  take(job) {
    const ended = this.ends(job);
    this.byId.set(job.id, job);
    this.tell(ended ? [job.id] : []);
  }

  ends(job) {
    const before = this.byId.get(job.id);
    return before !== undefined && isActive(before) && !isActive(job);
  }

  tell(ended) {
    const newest = [...this.byId.values()].sort((one, other) => (one.created < other.created ? 1 : -1));
    for (const job of newest) this.listen(job);
    this.changed(newest, ended);
  }

  listen(job) {
    if (isActive(job) && !this.following.has(job.id)) {
      this.following.set(job.id, follow(job.id, (each) => this.take(each)));
    } else if (!isActive(job) && this.following.has(job.id)) {
      this.following.get(job.id)();
      this.following.delete(job.id);
    }
  }
}
