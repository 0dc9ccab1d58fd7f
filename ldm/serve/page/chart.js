// A curve as a drawing: one line over steps, axes with few numbers, and the value under the pointer.
import { el, svg } from "./dom.js";
import { short } from "./words.js";

const [WIDTH, HEIGHT] = [320, 150];
const EDGE = { left: 46, right: 10, top: 10, bottom: 22 };

/** A figure of `points`, a list of [step, value]; a listener of the pointer shows the nearest one. */
export function chart(name, points) {
  const steps = points.map(([step]) => step);
  const values = points.map(([, value]) => value).filter(Number.isFinite);
  const [first, last] = [points[0], points.at(-1)];
  const x = scale(Math.min(...steps), Math.max(...steps), EDGE.left, WIDTH - EDGE.right);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const y = scale(low, high, HEIGHT - EDGE.bottom, EDGE.top);
  const line = points.filter(([, value]) => Number.isFinite(value))
    .map(([step, value], number) => `${number ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const dot = svg("circle", { r: 3.5, class: "dot-at", visibility: "hidden" });
  const words = `${short(first[1])} at step ${first[0]}, ${short(last[1])} at step ${last[0]}; least ${short(low)}, most ${short(high)}`;
  const said = el("span", { class: "reading" }, short(last[1]));
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${name}: ${words}` },
    svg("line", { x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(low), y2: y(low), class: "axis" }),
    svg("line", { x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(high), y2: y(high), class: "axis" }),
    label(EDGE.left - 6, y(low) + 4, "end", short(low)),
    high > low ? label(EDGE.left - 6, y(high) + 4, "end", short(high)) : null,
    label(EDGE.left, HEIGHT - 5, "start", String(steps[0])),
    steps.length > 1 ? label(WIDTH - EDGE.right, HEIGHT - 5, "end", `step ${last[0]}`) : null,
    svg("path", { d: line, class: "curve" }),
    points.length === 1 ? svg("circle", { cx: x(first[0]), cy: y(first[1]), r: 3, class: "dot-at" }) : null,
    dot);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDTH;
    const nearest = points.reduce((best, each) => (Math.abs(x(each[0]) - at) < Math.abs(x(best[0]) - at) ? each : best));
    dot.setAttribute("cx", x(nearest[0]));
    dot.setAttribute("cy", y(nearest[1]));
    dot.setAttribute("visibility", "visible");
    said.textContent = `${short(nearest[1])} at step ${nearest[0]}`;
  });
  drawing.addEventListener("pointerleave", () => {
    dot.setAttribute("visibility", "hidden");
    said.textContent = short(last[1]);
  });
  return el("figure", { class: "chart" }, el("figcaption", {}, el("span", {}, name), said), drawing);
}

function scale(low, high, from, to) {
  return high > low ? (value) => from + ((value - low) / (high - low)) * (to - from) : () => (from + to) / 2;
}

function label(x, y, anchor, words) {
  return svg("text", { x, y, "text-anchor": anchor }, words);
}
