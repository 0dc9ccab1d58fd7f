// What all votes say together: for each question a row per model, its share of votes with its interval.
import { el, fill, svg, tip } from "./dom.js";
import { get } from "./server.js";
import { counted } from "./words.js";

const SENTENCE = "How likely a model is to be preferred to the average of the others (Bradley and Terry), and the interval that holds the true value in 95 of 100 cases. Intervals that overlap much tell no difference.";
const [WIDTH, HEIGHT] = [260, 24];
const percent = (share) => `${Math.round(100 * share)} %`;

/** Fills an element with the strengths; without any vote it stays empty. */
export async function strengthsOf(element) {
  const { questions } = await get("/v1/comparisons/strengths");
  if (!questions.some((each) => each.votes)) return;
  fill(element, el("section", { class: "card strengths", "aria-labelledby": "strengths-title" },
    el("div", { class: "row" }, el("p", { class: "label-row" }, el("h2", { id: "strengths-title" }, "All votes so far"), tip("these numbers", SENTENCE)),
      el("a", { class: "quiet", href: "/v1/votes.jsonl", download: "votes.jsonl" }, "Download the votes")),
    questions.map((each) => el("div", {},
      el("h3", {}, each.question),
      el("p", { class: "hint" }, `${counted(each.votes, "vote")}, ${counted(each.ties, "tie")}`),
      each.groups.map((group) => el("table", { class: "strength" },
        el("caption", { class: "sr" }, each.question),
        el("thead", { class: "sr" }, el("tr", {}, ["Model", "Interval", "Share"].map((head) => el("th", { scope: "col" }, head)))),
        el("tbody", {}, group.map(row))))))));
}

function row(model) {
  const [low, high] = model.share_interval;
  const words = `${percent(model.share)}, between ${percent(low)} and ${percent(high)}`;
  const x = (share) => 4 + share * (WIDTH - 8);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words },
    svg("line", { x1: x(0), x2: x(1), y1: 12, y2: 12, class: "axis" }),
    svg("line", { x1: x(0.5), x2: x(0.5), y1: 3, y2: 21, class: "axis" }),
    svg("line", { x1: x(low), x2: x(high), y1: 12, y2: 12, class: "whisker" }),
    svg("circle", { cx: x(model.share), cy: 12, r: 5, class: "dot-at" }));
  return el("tr", {}, el("th", { scope: "row" }, model.name), el("td", {}, drawing),
    el("td", {}, el("b", {}, percent(model.share)), ` (${percent(low)} to ${percent(high)}), ${counted(model.votes, "vote")}`));
}
