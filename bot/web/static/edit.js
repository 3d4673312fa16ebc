// The inpaint dialog of a finished picture: paint a mask, and change the prompt if you like.

import { MaskEditor, share } from "/static/mask_editor.js";
import { ask } from "/static/sse.js";

const dialog = document.getElementById("editing");
const part = (name) => dialog.querySelector(`.${name}`);
const [form, words, said] = ["edit", "words", "notice"].map(part);
const editor = new MaskEditor(dialog);
let now = null; // the job and the picture

export function edit(job, picture) {
  now = { job, picture };
  complain("");
  words.value = job.prompt_text;
  editor.lay(picture.url, picture.width, picture.height);
  dialog.showModal();
  editor.focus();
}

function strength() {
  part("strength-said").value = `${part("strength").value} %`;
  share(part("strength"));
}

function complain(text) {
  said.textContent = text;
  said.hidden = !text;
}

async function send() {
  if (editor.brush.empty) return complain("Paint over what shall be drawn anew.");
  const { job, picture } = now;
  const request = { strength: Number(part("strength").value) / 100 };
  if (words.value.trim() !== job.prompt_text.trim()) request.prompt = words.value.trim();
  const body = new FormData();
  body.append("request", new Blob([JSON.stringify(request)], { type: "application/json" }));
  body.append("mask", await editor.brush.mask(), "mask.png");
  part("imagine").disabled = true;
  try {
    await ask("POST", `/api/jobs/${job.id}/edit/${picture.n}`, body);
    dialog.close();
  } catch (error) {
    complain(error.message);
  } finally {
    part("imagine").disabled = false;
  }
}

form.addEventListener("submit", (event) => (event.preventDefault(), send()));
part("strength").addEventListener("input", strength);
part("close").addEventListener("click", () => dialog.close());
editor.canvas.addEventListener("pointerdown", () => complain(""));
strength();
