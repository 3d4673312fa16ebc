// The inpaint dialog of a finished picture: paint a mask, and change the prompt if you like.

import { MaskEditor, updateSliderFill } from "/static/mask_editor.js";
import { sendRequest } from "/static/sse.js";

const dialog = document.getElementById("edit-dialog");
const part = (name) => dialog.querySelector(`.${name}`);
const [form, promptField, notice, strength] = ["edit", "prompt-field", "notice", "strength"].map(part);
const editor = new MaskEditor(dialog);
let target = null; // the job and the picture

export function openEditor(job, picture) {
  target = { job, picture };
  showError("");
  promptField.value = job.prompt_text;
  editor.show(picture.url, picture.width, picture.height);
  dialog.showModal();
  editor.focus();
}

function showStrength() {
  part("strength-value").value = `${strength.value} %`;
  updateSliderFill(strength);
}

function showError(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

async function submitEdit() {
  if (editor.brush.isEmpty) return showError("Paint the area to redraw first.");
  const { job, picture } = target;
  const request = { strength: Number(strength.value) / 100 };
  if (promptField.value.trim() !== job.prompt_text.trim()) request.prompt = promptField.value.trim();
  const body = new FormData();
  body.append("request", new Blob([JSON.stringify(request)], { type: "application/json" }));
  body.append("mask", await editor.brush.renderMask(), "mask.png");
  part("imagine").disabled = true;
  try {
    await sendRequest("POST", `/api/jobs/${job.id}/edit/${picture.n}`, body);
    dialog.close();
  } catch (error) {
    showError(error.message);
  } finally {
    part("imagine").disabled = false;
  }
}

form.addEventListener("submit", (event) => (event.preventDefault(), submitEdit()));
strength.addEventListener("input", showStrength);
part("close").addEventListener("click", () => dialog.close());
editor.canvas.addEventListener("pointerdown", () => showError(""));
showStrength();
