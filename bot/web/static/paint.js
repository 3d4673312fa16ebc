// The mask dialog of an init image: painted areas are redrawn.

import { MaskEditor } from "/static/mask_editor.js";

const dialog = document.getElementById("mask-dialog");
const part = (name) => dialog.querySelector(`.${name}`);
const editor = new MaskEditor(dialog);
let finish = null; // called with the result

// `picture`: { address, width, height }. `earlierMask`: the earlier result, or null. Resolves to { mask, strokes }, to null if
// nothing is painted, or to `earlierMask` itself if the dialog was closed.
export function paintMask(picture, earlierMask) {
  editor.show(picture.address, picture.width, picture.height, earlierMask?.strokes);
  dialog.showModal();
  editor.focus();
  return new Promise((resolve) => {
    finish = (result) => ((finish = null), resolve(result));
    dialog.addEventListener("close", () => finish?.(earlierMask), { once: true });
  });
}

async function submitMask() {
  const { brush } = editor;
  const strokes = [...brush.strokes];
  finish?.(brush.isEmpty ? null : { mask: await brush.renderMask(), strokes });
  dialog.close();
}

part("edit").addEventListener("submit", (event) => (event.preventDefault(), submitMask()));
part("close").addEventListener("click", () => dialog.close());
