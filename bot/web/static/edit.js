// The dialog in which a part of a finished picture is painted over, to be drawn anew, with other words if one likes.

import { Brush } from "/static/brush.js";
import { ask } from "/static/wire.js";

const dialog = document.getElementById("editing");
const part = (name) => dialog.querySelector(`.${name}`);
const [form, image, words, said] = ["edit", "easel img", "words", "notice"].map(part);
const brush = new Brush(part("easel canvas"), part("ring"), told);
let now = null; // the job and the picture

export function edit(job, picture) {
  now = { job, picture };
  complain("");
  words.value = job.words;
  image.src = picture.url;
  part("easel").style.setProperty("--aspect", `${picture.width} / ${picture.height}`);
  part("easel").style.setProperty("--tall", String(picture.width / picture.height));
  rub(false);
  brush.lay(picture.width, picture.height);
  grow();
  dialog.showModal();
  part("easel canvas").focus();
}

function told() {
  part("undo").disabled = part("clear").disabled = !brush.strokes.length;
}

function grow() {
  brush.resize(Number(part("size").value) / 100);
  share(part("size"));
}

function share(slider) {
  slider.style.setProperty("--share", `${(100 * (slider.value - slider.min)) / (slider.max - slider.min)}%`);
}

function rub(on) {
  brush.rubbing = on;
  part("rub").setAttribute("aria-pressed", String(on));
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
  if (brush.empty) return complain("Paint over what shall be drawn anew.");
  const { job, picture } = now;
  const order = { strength: Number(part("strength").value) / 100 };
  if (words.value.trim() !== job.words.trim()) order.prompt = words.value.trim();
  const body = new FormData();
  body.append("order", new Blob([JSON.stringify(order)], { type: "application/json" }));
  body.append("mask", await brush.mask(), "mask.png");
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
part("size").addEventListener("input", grow);
part("strength").addEventListener("input", strength);
part("undo").addEventListener("click", () => brush.undo());
part("clear").addEventListener("click", () => brush.clear());
part("rub").addEventListener("click", () => rub(!brush.rubbing));
part("close").addEventListener("click", () => dialog.close());
part("easel canvas").addEventListener("pointerdown", () => complain(""));
strength();
