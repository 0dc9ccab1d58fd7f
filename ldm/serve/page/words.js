// Numbers and times in words.

/** A number of things: `1 picture`, `4 pictures`. */
export const counted = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

/** A text that begins with a capital. */
export const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);

/** Seconds as a person says them. */
export function duration(seconds) {
  if (seconds < 1) return "less than a second";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/** A moment, as a text or in seconds since 1970, as a distance from now. */
export function ago(moment) {
  const seconds = (Date.now() - new Date(typeof moment === "number" ? 1000 * moment : moment).getTime()) / 1000;
  return seconds < 45 ? "just now" : `${duration(seconds)} ago`;
}

/** A number with a sensible count of digits. */
export function short(value) {
  if (!Number.isFinite(value)) return String(value);
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}

/** The last part of a dotted name: how a config node calls its method. */
export function method(node) {
  const inner = node?.method ?? node;
  return typeof inner === "object" ? String(inner?._target_ ?? "").split(".").pop() : String(inner ?? "");
}
