// What the page asks of the server. A refusal is a sentence that says what to do.

/** The server's answer where it refuses: its sentence, and the field of the request that is wrong, if one is. */
export class Refused extends Error {
  constructor(sentence, { field = null, status = 0 } = {}) {
    super(sentence);
    Object.assign(this, { field, status });
  }
}

const AWAY = "The server does not answer. Pictures that it has begun are not lost; if it was closed, start it again.";

// A text, or a whole number of 16 digits or more, which a number of JavaScript would round.
const LONG = /"(?:[^"\\]|\\.)*"|(?<![\d.eE+-])\d{16,}(?![\d.eE])/g;

/** The value of a json text, with seeds that are too long for a number as texts; the server takes both. */
const parsed = (text) => JSON.parse(text.replace(LONG, (found) => (found[0] === '"' ? found : `"${found}"`)));

async function ask(method, path, body) {
  const form = body instanceof FormData;
  const request = { method, headers: {} };
  if (body !== undefined) {
    request.body = form ? body : JSON.stringify(body);
    if (!form) request.headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, request);
  } catch {
    throw new Refused(AWAY);
  }
  const json = answer.status !== 204 && answer.headers.get("Content-Type")?.includes("json");
  const value = json ? parsed(await answer.text()) : null;
  if (answer.ok) return value;
  const wait = answer.headers.get("Retry-After");
  const words = typeof value?.error === "string" ? value.error : `The server refused this (${answer.status}).`;
  throw new Refused(wait ? `${words} Try again in ${wait} s.` : words, { field: value?.field, status: answer.status });
}

export const get = (path) => ask("GET", path);
export const post = (path, body = {}) => ask("POST", path, body);
export const remove = (path) => ask("DELETE", path);

/** Sends one file; the server decodes it within its limits. */
export function send(path, file, name = "picture.png") {
  const form = new FormData();
  form.append("file", file, name);
  return ask("POST", path, form);
}

/** Calls `change` with a job at each of its changes until it ends; returns what stops listening. */
export function follow(id, change) {
  const source = new EventSource(`/v1/jobs/${id}/events`);
  source.addEventListener("job", (event) => change(parsed(event.data)));
  source.addEventListener("end", () => source.close());
  return () => source.close();
}
