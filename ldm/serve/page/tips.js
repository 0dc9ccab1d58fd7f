// The `?` beside a control: one bubble, shown by pointer, focus or press, and closed by Escape.
import { byId } from "./dom.js";

/** Lets every `.tip` on the page, now and later, explain its neighbour. */
export function explain() {
  const bubble = byId("bubble");
  const find = (event) => event.target.closest?.(".tip");
  const hide = () => {
    bubble.hidden = true;
    document.querySelector(".tip[aria-describedby]")?.removeAttribute("aria-describedby");
  };
  const show = (tip) => {
    hide();
    bubble.textContent = tip.dataset.tip;
    (tip.closest("dialog") ?? document.body).append(bubble); // a dialog lies above the page
    tip.setAttribute("aria-describedby", "bubble");
    bubble.hidden = false;
    const [box, own] = [tip.getBoundingClientRect(), bubble.getBoundingClientRect()];
    const left = Math.min(Math.max(8, box.left + box.width / 2 - own.width / 2), innerWidth - own.width - 8);
    const below = box.bottom + own.height + 12 < innerHeight;
    bubble.style.left = `${left}px`;
    bubble.style.top = `${below ? box.bottom + 8 : box.top - own.height - 8}px`;
  };
  const label = (root) => {
    for (const tip of root.querySelectorAll(".tip:not([aria-label])")) {
      tip.setAttribute("aria-label", `About ${tip.dataset.about}`);
    }
  };
  label(document);
  new MutationObserver(() => label(document)).observe(document.body, { childList: true, subtree: true });
  document.addEventListener("pointerover", (event) => { const tip = find(event); if (tip) show(tip); });
  document.addEventListener("pointerout", (event) => { if (find(event)) hide(); });
  document.addEventListener("focusin", (event) => { const tip = find(event); if (tip) show(tip); else hide(); });
  document.addEventListener("click", (event) => { const tip = find(event); if (tip) show(tip); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", hide, { passive: true });
}
