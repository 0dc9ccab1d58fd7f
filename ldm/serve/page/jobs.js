// The jobs as the server has them. The page keeps none of its own: a reload shows the same.
import { banner } from "./say.js";
import { follow, get } from "./server.js";

const EVERY = 2000; // ms between two looks at all jobs, which others may have started, too
export const isActive = (job) => job.state === "queued" || job.state === "running";

export class Jobs {
  /** `changed` is called with all jobs, newest first, and the ids of those that have just ended. */
  constructor(changed) {
    this.changed = changed;
    this.byId = new Map();
    this.followed = null; // the job whose every step is listened to
    document.addEventListener("visibilitychange", () => (document.hidden ? this.listen(null) : this.look()));
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
    const ended = jobs.filter((job) => this.ends(job)).map((job) => job.id);
    this.byId = new Map(jobs.map((job) => [job.id, job]));
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
    const newest = [...this.byId.values()].sort((one, other) => other.created - one.created);
    this.listen(newest.filter(isActive).at(-1) ?? null);
    this.changed(newest, ended);
  }

  /** Listens to one job at a time, the one whose turn it is: a browser holds six connections to a server. */
  listen(job) {
    if (job?.id === this.followed) return;
    this.unfollow?.();
    this.followed = job?.id;
    this.unfollow = job && follow(job.id, (each) => this.take(each));
  }
}
