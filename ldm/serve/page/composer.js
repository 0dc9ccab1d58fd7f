// The form: words and choices become a request, and a picture's settings become choices again.
import { byId, el, fill, tip } from "./dom.js";
import { announce, problem } from "./say.js";
import { post } from "./server.js";
import { StartPicture } from "./start_picture.js";
import { capital } from "./words.js";

const DRAFT = "ldm-draft"; // the words being written, so that a reload loses none of them
const MOST = 64; // pictures of a job

/** A seed as the server takes it: a text of digits where a number would round it. */
const sent = (seed) => (seed < 10n ** 15n ? Number(seed) : String(seed));
const FIELDS = [
  ["steps", "Sampling steps", "number", { min: 1, max: 1000, step: 1 }, "How often the picture is denoised. Empty: what the quality asks for."],
  ["scale", "Guidance scale", "number", { step: "any" }, "How closely the picture follows the words; too much makes it harsh. Empty: the model's own."],
  ["negative", "Not in the picture", "text", { maxlength: 2000 }, "Words that the picture moves away from."],
];
const SAMPLER = "The method that denoises. The model's own is a good choice; others make slightly different pictures.";

export class Composer {
  constructor(started) {
    this.started = started;
    this.start = new StartPicture((error) => this.complain(error));
    byId("unfold").addEventListener("click", () => this.unfold(byId("option-grid").hidden));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    });
    byId("prompt").value = localStorage.getItem(DRAFT) ?? "";
    byId("prompt").addEventListener("input", () => localStorage.setItem(DRAFT, byId("prompt").value));
  }

  unfold(open) {
    byId("option-grid").hidden = !open;
    byId("unfold").setAttribute("aria-expanded", String(open));
  }

  /** Offers the models: options, examples and defaults follow the chosen one. */
  offer(models) {
    this.models = models;
    this.choose(models[0]);
  }

  choose(model) {
    this.model = model;
    const options = new Set(model.options ?? []);
    const own = model.default ?? {};
    const rows = [];
    if (this.models.length > 1) {
      rows.push(this.select("model", "Model", this.models.map((each) => [each.id, each.id]), model.id,
        "Which trained network makes the picture.", (id) => this.choose(this.models.find((each) => each.id === id))));
    }
    if (options.has("sampler") && model.choices?.sampler) {
      const named = [["", `the model's own (${own.sampler})`]];
      rows.push(this.select("sampler", "Sampler", [...named, ...model.choices.sampler.map((name) => [name, name])], "", SAMPLER));
    }
    for (const [name, words, type, limits, sentence] of FIELDS) {
      if (!options.has(name)) continue;
      rows.push(labelled(name, words, sentence, el("input", { id: `option-${name}`, type, ...limits, placeholder: own[name] ?? "" })));
    }
    for (const name of [...options].filter((each) => typeof own[each] === "number" && !FIELDS.some(([known]) => known === each))) {
      const words = capital(name).replaceAll("_", " ");
      rows.push(labelled(name, words, `A number of this system's own. Empty: ${own[name]}, the model's.`,
        el("input", { id: `option-${name}`, type: "number", step: "any", placeholder: own[name] })));
    }
    rows.push(el("p", { class: "option" }, el("span", {}, "Size"),
      el("span", { class: "value" }, `${model.size} × ${model.size} pixels, the one size of this model`)));
    fill(byId("option-grid"), rows);
    byId("choose").disabled = model.starts_from_pictures === false;
    byId("examples").hidden = !model.examples?.length;
    fill(byId("example-list"), (model.examples ?? []).map((words) =>
      el("li", {}, el("button", { type: "button", class: "chip", onclick: () => this.example(words) }, words))));
  }

  example(words) {
    this.write(words);
    byId("go").focus();
    announce(`The words are now: ${words}. Press Generate.`);
  }

  write(words) {
    byId("prompt").value = words;
    localStorage.setItem(DRAFT, words);
  }

  select(name, words, choices, chosen, sentence, change = () => {}) {
    const list = el("select", { id: `option-${name}`, onchange: () => change(list.value) },
      choices.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
    return labelled(name, words, sentence, list);
  }

  get fields() {
    const named = { prompt: byId("prompt"), prompts: byId("prompt"), seed: byId("seed"), seeds: byId("seed"), count: byId("count") };
    for (const field of byId("option-grid").querySelectorAll("input, select")) named[field.id.replace("option-", "")] = field;
    return named;
  }

  complain(error) {
    const named = error && { message: error.message, field: error.field?.replace("options.", "") };
    if (named && this.fields[named.field]?.id.startsWith("option-")) this.unfold(true);
    problem(byId("problem"), named, this.fields);
  }

  /** Says what has happened to the form, where a problem would stand. */
  note(sentence) {
    this.complain(null);
    byId("note").textContent = sentence;
    byId("note").hidden = !sentence;
  }

  /** The options that differ from the model's own. */
  get options() {
    const chosen = {};
    for (const [name, field] of Object.entries(this.fields)) {
      if (!field.id.startsWith("option-") || name === "model" || field.value.trim() === "") continue;
      chosen[name] = field.type === "number" ? Number(field.value) : field.value;
    }
    return chosen;
  }

  /** Keeps a seed for the next pictures, or with "" none. */
  keepSeed(seed) {
    byId("seed").value = seed;
    byId("seed").classList.toggle("kept", seed !== "");
  }

  /** Sends what the form says. */
  async submit() {
    const wrong = this.wrong();
    if (wrong) this.complain(wrong);
    else await this.send(async () => ({ ...this.asked, source: await this.start.request() }));
  }

  /** What is wrong with the form, in words; nothing where the server may decide. */
  wrong() {
    const [prompt, seed] = [byId("prompt").value, byId("seed").value].map((text) => text.trim());
    if (!prompt) return { message: "Write a few words first: they say what the picture shows.", field: "prompt" };
    if (seed && !(/^\d+$/.test(seed) && BigInt(seed) + BigInt(MOST) < 2n ** 63n)) {
      return { message: `The seed "${seed}" is no whole number below 2^63: write digits, or leave it empty for a random one.`, field: "seed" };
    }
    return null;
  }

  /** The request of the form, without a picture to start from. */
  get asked() {
    const [count, seed] = [Number(byId("count").value), byId("seed").value.trim()];
    return {
      model: this.model?.id,
      prompts: [byId("prompt").value.trim()],
      count,
      quality: byId("composer").elements.quality.value,
      options: this.options,
      seeds: seed ? Array.from({ length: count }, (_, number) => sent(BigInt(seed) + BigInt(number))) : undefined,
    };
  }

  /** Sends a request; what is wrong is said at the form. */
  async send(make) {
    byId("go").disabled = true;
    try {
      const job = await post("/v1/generate", await make());
      this.note("");
      this.started(job);
    } catch (error) {
      this.complain(error);
    } finally {
      byId("go").disabled = false;
    }
  }

  /** Pictures like one made here: it is started from, with the same words and new seeds. */
  async likeThis(picture, strength) {
    this.write(picture.prompt);
    await this.send(() => ({ ...this.asked, seeds: undefined, source: { picture: picture.id, strength } }));
  }

  /** The request of a job once more, with its seeds. */
  async repeat(job) {
    await this.send(() => ({ ...job.request, seeds: job.seeds }));
  }

  /** Takes the settings of a picture over: of its request, and the picture and the mask that it started from. */
  async restore({ prompt, seed, model, quality, options, source }) {
    this.write(prompt);
    const known = this.models.find((each) => each.id === model);
    if (known) this.choose(known);
    this.keepSeed(String(seed ?? ""));
    byId("count").value = "1";
    if (quality) byId("composer").elements.quality.value = quality;
    for (const [name, value] of Object.entries(options ?? {})) {
      if (this.fields[name]) this.fields[name].value = value;
    }
    this.unfold(Object.keys(options ?? {}).length > 0);
    this.start.drop();
    byId("prompt").focus();
    if (source) await this.start.use(source.picture, source);
  }
}

function labelled(name, words, sentence, field) {
  return el("p", { class: "option" }, el("label", { for: field.id }, words), tip(words.toLowerCase(), sentence), field);
}
