// What is said to the person: in the live region for those who listen, and on the page for those who look.
import { byId, button, el, fill } from "./dom.js";

/** Says a sentence to screen readers without moving the focus. */
export function announce(sentence) {
  byId("live").textContent = sentence;
}

/** Shows a sentence above the page; without one the banner goes. */
export function banner(sentence) {
  byId("banner").textContent = sentence ?? "";
  byId("banner").hidden = !sentence;
}

/** Shows what is wrong in an element of role alert, and puts the focus on the field that is. */
export function problem(element, error, fields = {}) {
  element.textContent = error ? error.message : "";
  element.hidden = !error;
  const field = error && fields[error.field];
  for (const each of Object.values(fields)) each.removeAttribute("aria-invalid");
  if (field) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
}

/** Asks before something is lost; resolves to whether the person agreed. */
export function confirmed(question, yes) {
  const dialog = byId("ask");
  return new Promise((resolve) => {
    fill(
      dialog,
      el("p", { id: "ask-words" }, question),
      el("div", { class: "row end" },
        button("Keep it", () => dialog.close("")),
        button(yes, () => dialog.close("yes"), { class: "quiet danger" })),
    );
    dialog.returnValue = "";
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
    dialog.showModal();
  });
}
