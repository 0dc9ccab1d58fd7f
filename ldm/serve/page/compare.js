// Blind pairs: which model is better is found out by looking, not by names.
import { button, byId, el, fill, tip } from "./dom.js";
import { announce, problem } from "./say.js";
import { Refused, get, post } from "./server.js";
import { strengthsOf } from "./strengths.js";
import { counted } from "./words.js";

const KEY = "ldm-comparison"; // the comparison that is looked at; a reload shows it again
const EVERY = 1000; // ms, while pictures are made
const CHOICES = [["left", "The left one"], ["tie", "No difference"], ["right", "The right one"]];

export class Compare {
  constructor() {
    this.room = byId("compare-room");
    this.models = [];
    this.asked = Promise.resolve(); // the last request: an old answer must not be shown after a new one
  }

  /** Calls a function that asks the server once all earlier ones have been answered. */
  inOrder(ask) {
    return (this.asked = this.asked.then(ask));
  }

  offer(models) {
    this.models = models;
    if (this.shown) this.open();
  }

  async open() {
    this.shown = true;
    const name = localStorage.getItem(KEY);
    if (name && (await this.look(name))) return;
    this.ask();
  }

  close() {
    this.shown = false;
    clearTimeout(this.timer);
  }

  /** The form of a new comparison, and the strengths so far. */
  ask() {
    localStorage.removeItem(KEY);
    const strengths = el("div", {});
    strengthsOf(strengths);
    if (this.models.length < 2) {
      fill(this.room, el("p", { class: "empty" }, "A comparison needs two models, and the server has one. Start it with two, separated by a comma: ",
        el("code", {}, "python -m ldm.serve 'bundles=[shipped,runs/mine]'")), strengths);
      return;
    }
    const options = () => this.models.map((model) => el("option", { value: model.id }, model.id));
    const fields = {
      a: el("select", { id: "model-a" }, options()),
      b: el("select", { id: "model-b" }, options()),
      prompts: el("textarea", { id: "compare-prompts", rows: 6, class: "line-field" }, (this.models[0].examples ?? []).slice(0, 6).join("\n")),
    };
    fields.b.selectedIndex = 1;
    const words = el("p", { class: "problem", role: "alert", hidden: true });
    const form = el("form", { class: "card compare-form" },
      el("p", { class: "option" }, el("label", { for: "model-a" }, "One model"),
        tip("the models", "Whose pictures are compared. While you vote you don't see which one is which."), fields.a),
      el("p", { class: "option" }, el("label", { for: "model-b" }, "The other model"),
        tip("the other model", "It makes pictures of the same words from the same seeds."), fields.b),
      el("p", { class: "option wide" }, el("label", { for: "compare-prompts" }, "Words, one picture per line"),
        tip("the words", "Both models make a picture of each line, from the same random seed."), fields.prompts),
      words,
      el("p", { class: "row end" }, el("button", { class: "go", type: "submit" }, "Start comparing")));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        const prompts = fields.prompts.value.split("\n").map((line) => line.trim()).filter(Boolean);
        if (!prompts.length) throw new Refused("Write at least one line of words.", { field: "prompts" });
        const made = await post("/v1/comparisons", { a: fields.a.value, b: fields.b.value, prompts });
        localStorage.setItem(KEY, made.id);
        this.show(made);
      } catch (error) {
        problem(words, error, fields);
      }
    });
    fill(this.room, form, strengths);
  }

  /** Reads a comparison; false where the server has it no more. */
  look(name) {
    return this.inOrder(async () => {
      try {
        this.show(await get(`/v1/comparisons/${name}`));
        return true;
      } catch (error) {
        if (error.status === 404) return false;
        fill(this.room, el("p", { class: "problem", role: "alert" }, error.message));
        this.later(name, 3 * EVERY);
        return true;
      }
    });
  }

  later(name, wait = EVERY) {
    clearTimeout(this.timer);
    if (this.shown) this.timer = setTimeout(() => this.look(name), wait);
  }

  show(comparison) {
    this.comparison = comparison;
    const open = comparison.pairs.filter((pair) => pair.left && Object.keys(pair.votes).length < Object.keys(comparison.questions).length);
    if (comparison.state === "finished") this.reveal(comparison);
    else if (comparison.state === "failed") this.failed(comparison);
    else if (open.length) this.pair(comparison, open[0], open.length);
    else this.wait(comparison);
    if (comparison.state === "making") this.later(comparison.id);
  }

  failed(comparison) {
    fill(this.room, el("p", { class: "problem", role: "alert" }, comparison.error ?? "The pictures of this comparison were not finished: start a new one."),
      el("p", { class: "row" }, button("A new comparison", () => this.ask())));
  }

  wait(comparison) {
    const [step, steps] = comparison.steps;
    const share = steps ? Math.round((100 * step) / steps) : 0;
    const bar = el("i");
    bar.style.width = `${share}%`;
    fill(this.room, el("div", { class: "card" }, el("p", { role: "status" }, "The first pictures are being made …"),
      el("div", { class: "meter", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": share }, bar)));
  }

  /** One pair and its questions; it is drawn once, so that neither pictures nor focus jump while others are made. */
  pair(comparison, pair, left) {
    const stamp = `${comparison.id}/${pair.number}`;
    if (this.card?.dataset.stamp !== stamp || !this.card.isConnected) this.draw(comparison, pair, stamp);
    this.left.textContent = `${counted(left, "pair")} left${comparison.state === "making" ? ", more are being made" : ""}`;
    for (const group of this.card.querySelectorAll("[data-question]")) {
      for (const each of group.querySelectorAll("button")) {
        each.setAttribute("aria-pressed", String(pair.votes[group.dataset.question] === each.value));
      }
    }
  }

  draw(comparison, pair, stamp) {
    this.left = el("p", { class: "hint" });
    const words = el("p", { class: "problem", role: "alert", hidden: true });
    const vote = (question, choice) => this.inOrder(async () => {
      try {
        const after = await post(`/v1/comparisons/${comparison.id}/votes`, { pair: pair.number, question, choice });
        announce("Your answer is kept.");
        this.show(after);
      } catch (error) {
        problem(words, error);
      }
    });
    const image = (side) => el("figure", {}, el("img", { src: pair[side], alt: `${side} picture of: ${pair.prompt}`, width: 64, height: 64 }), el("figcaption", {}, side === "left" ? "Left" : "Right"));
    const question = ([name, sentence], number) => el("fieldset", { "data-question": name, class: "question" },
      el("legend", {}, sentence),
      CHOICES.map(([choice, text]) => el("button", { type: "button", class: "chip", value: choice, "aria-pressed": "false", id: `${name}-${choice}`,
        autofocus: number === 0 && choice === "left", onclick: () => vote(name, choice) }, text)));
    this.card = el("div", { class: "card pair", "data-stamp": stamp },
      el("div", { class: "row" }, el("h2", {}, pair.prompt), this.left),
      el("div", { class: "sides" }, image("left"), image("right")),
      Object.entries(comparison.questions).map(question), words,
      el("p", { class: "row end" }, button("Leave this comparison", () => this.ask(), { class: "link" })));
    fill(this.room, this.card);
    this.card.querySelector("#words-left")?.focus({ preventScroll: true });
  }

  /** The end: which side was which model, and the strengths of all votes. */
  reveal(comparison) {
    const strengths = el("div", {});
    strengthsOf(strengths);
    const preferred = (pair, question) => (pair.votes[question] === "tie" ? "no difference" : pair.models[pair.votes[question]].name);
    const heads = ["Words", "Left", "Right", ...Object.values(comparison.questions)];
    fill(this.room, el("div", { class: "card" },
      el("h2", { tabindex: -1 }, `${counted(comparison.pairs.length, "pair")} judged. Now the names:`),
      el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The pairs with their models" }, el("table", {},
        el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
        el("tbody", {}, comparison.pairs.map((pair) => el("tr", {}, el("th", { scope: "row" }, pair.prompt),
          ["left", "right"].map((side) => el("td", {}, el("img", { src: pair[side], alt: "", width: 40, height: 40 }), pair.models[side].name)),
          Object.keys(comparison.questions).map((name) => el("td", {}, preferred(pair, name)))))))),
      el("p", { class: "row end" }, button("Compare again", () => this.ask()))), strengths);
    this.room.querySelector("h2").focus({ preventScroll: true });
    announce("All pairs are judged. The models' names are shown.");
  }
}
