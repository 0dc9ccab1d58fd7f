// The page: its rooms, and what its parts tell each other.
import { Compare } from "./compare.js";
import { Composer } from "./composer.js";
import { byId } from "./dom.js";
import { listenForPictures } from "./drop.js";
import { History } from "./history.js";
import { JobCard } from "./job_card.js";
import { Jobs, isActive } from "./jobs.js";
import { announce, banner } from "./say.js";
import { get } from "./server.js";
import { models } from "./start_picture.js";
import { explain } from "./tips.js";
import { Training } from "./training.js";
import { Viewer } from "./viewer.js";
import { counted } from "./words.js";

const TITLE = document.title;
const cards = new Map();

const composer = new Composer((job) => jobs.take(job));
const history = new History((id) => open(id));
const jobs = new Jobs(changed);
const actions = {
  open,
  keepSeed: (seed) => { composer.keepSeed(seed); byId("seed").focus(); },
  likeThis: (picture, strength) => composer.likeThis(picture, strength),
  restore: (picture) => composer.restore({ ...picture.request, ...picture }).catch((error) => composer.complain(error)),
  startFrom: (picture) => {
    composer.write(picture.prompt);
    composer.start.use(picture.id).then(() => byId("start").scrollIntoView({ block: "center" })).catch((error) => composer.complain(error));
  },
  deleted: (id) => {
    for (const image of document.querySelectorAll(`.tile img[src="/v1/pictures/${id}"]`)) image.closest(".tile").hidden = true;
    refresh();
  },
  again: (job) => composer.repeat(job),
};
const viewer = new Viewer(actions);
const rooms = { create: { open() {}, close() {} }, compare: new Compare(), training: new Training() };

/** Opens a picture of the history, in which also the newest ones are. */
async function open(id) {
  if (!history.find(id)) await history.look();
  const picture = history.find(id);
  if (picture) viewer.open(picture, history.pictures);
}

async function refresh() {
  await Promise.all([jobs.look(), history.look()]);
}

/** Shows the jobs: those that are active, or else the newest one. */
function changed(all, ended) {
  const active = all.filter(isActive);
  const shown = active.length ? active : all.slice(0, 1);
  for (const [id, card] of cards) {
    if (shown.some((job) => job.id === id)) continue;
    card.element.remove();
    cards.delete(id);
  }
  for (const job of [...shown].reverse()) {
    if (cards.has(job.id)) cards.get(job.id).update(job);
    else {
      cards.set(job.id, new JobCard(job, actions));
      byId("stage").prepend(cards.get(job.id).element);
    }
  }
  history.without(shown.map((job) => job.id));
  title(active[0]);
  for (const id of ended) say(all.find((job) => job.id === id));
  if (ended.length) history.look().catch((error) => banner(error.message));
}

function title(job) {
  document.title = job?.steps ? `${Math.round((100 * job.step) / job.steps)} % · ${TITLE}` : TITLE;
}

function say(job) {
  const made = job.pictures?.filter(Boolean).length ?? 0;
  announce(job.state === "failed" ? `The pictures failed: ${job.error}` : `${counted(made, "picture")} ${job.state === "stopped" ? "finished before the stop" : "finished"}.`);
}

function route() {
  const name = Object.hasOwn(rooms, location.hash.slice(1)) ? location.hash.slice(1) : "create";
  for (const [each, room] of Object.entries(rooms)) {
    byId(each).hidden = each !== name;
    if (each === name) room.open();
    else room.close();
  }
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

async function greet() {
  const health = await get("/health").catch(() => null);
  const well = health?.worker === "alive";
  byId("server").dataset.state = well ? "well" : "away";
  byId("server-words").textContent = well ? "Ready" : health ? "Restarting the model" : "Not connected";
}

explain();
listenForPictures(composer);
addEventListener("hashchange", route);
route();
greet();
setInterval(() => { if (!document.hidden) greet(); }, 10000);
models().then((known) => {
  composer.offer(known);
  rooms.compare.offer(known);
}).catch((error) => banner(error.message));
refresh().catch((error) => banner(error.message));
byId("prompt").focus({ preventScroll: true });
