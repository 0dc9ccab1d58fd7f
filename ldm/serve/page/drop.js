// A picture dropped anywhere on the page: one made here brings its settings back, any other one is started from.
import { byId } from "./dom.js";
import { announce } from "./say.js";
import { settingsIn } from "./start_picture.js";

/** Listens for dropped and pasted files. */
export function listenForPictures(composer) {
  let depth = 0;
  const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const shown = (on) => { byId("drop").hidden = !on; };
  addEventListener("dragenter", (event) => { if (carries(event)) { depth += 1; shown(true); } });
  addEventListener("dragleave", (event) => { if (carries(event)) { depth -= 1; if (depth <= 0) { depth = 0; shown(false); } } });
  addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth = 0;
    shown(false);
    take(event.dataTransfer.files[0], composer);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) take(file, composer);
  });
}

async function take(file, composer) {
  if (!file) return;
  location.hash = "#create";
  try {
    if (file.type === "image/png") {
      const found = await settingsIn(file).catch((error) => { if (error.status !== 400 && error.status !== 422) throw error; return null; });
      if (found) {
        await composer.restore(found);
        const model = found.known === false ? " Its model is not loaded here, so the pictures will differ." : "";
        composer.note(`The settings of that picture are back.${model}`);
        return;
      }
    }
    await composer.start.take(file);
    composer.note("That picture was not made here, so it has no settings. You can start from it.");
    announce("You can start from that picture.");
  } catch (error) {
    composer.complain(error);
  }
}
