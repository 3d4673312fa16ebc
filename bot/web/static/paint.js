// The mask dialog of an init image: what is painted is drawn anew.

import { MaskEditor } from "/static/mask_editor.js";

const dialog = document.getElementById("painting");
const part = (name) => dialog.querySelector(`.${name}`);
const editor = new MaskEditor(dialog);
let done = null; // called with the result

// `seen`: { address, width, height }. `painted`: the earlier result, or null. Resolves to { mask, strokes }, to null if
// nothing is painted, or to `painted` itself if the dialog was closed.
export function paint(seen, painted) {
  editor.lay(seen.address, seen.width, seen.height, painted?.strokes);
  dialog.showModal();
  editor.focus();
  return new Promise((told) => {
    done = (made) => ((done = null), told(made));
    dialog.addEventListener("close", () => done?.(painted), { once: true });
  });
}

async function keep() {
  const { brush } = editor;
  const strokes = [...brush.strokes];
  done?.(brush.empty ? null : { mask: await brush.mask(), strokes });
  dialog.close();
}

part("edit").addEventListener("submit", (event) => (event.preventDefault(), keep()));
part("close").addEventListener("click", () => dialog.close());
