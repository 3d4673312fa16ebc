// Compares a picture with the one that it was made from: by a movable divider, or by both films in step.

import { Filmstrip } from "/static/filmstrip.js";
import { look } from "/static/sse.js";

const dialog = document.getElementById("comparing");
const part = (name) => dialog.querySelector(`.${name}`);
const [stage, divider, choice, films, slider, where] = ["stage", "divider", "which", "films", "step", "where"].map(part);
let filmstrips = null;

export async function compare(job) {
  const parent = await look(`/api/jobs/${job.parent.id}`);
  const before = parent?.pictures.find(({ n, held }) => n === job.parent.picture && !held);
  const after = job.pictures.filter(({ held }) => !held);
  part("missing").hidden = Boolean(before);
  part("both").hidden = !before;
  dialog.showModal();
  if (!before) return;
  filmstrips = null;
  choose(parent, before, job, after);
  part("film-mode").hidden = !(parent.keyframes && job.keyframes && job.action === "branch");
  mode(false);
}

function choose(parent, before, job, after) {
  const show = (picture) => {
    part("before").src = before.url;
    part("after").src = picture.url;
    stage.style.setProperty("--aspect", `${picture.width} / ${picture.height}`);
    part("still").style.setProperty("--tall", String(picture.width / picture.height));
    filmstrips = () => [new Filmstrip(part("film-before"), parent, before.n), new Filmstrip(part("film-after"), job, picture.n, parent.steps)];
    if (!films.hidden) play();
  };
  part("before-said").textContent = `Picture ${before.n}: ${parent.prompt_text}`;
  part("after-said").textContent = job.prompt_text;
  choice.hidden = after.length < 2;
  choice.replaceChildren(
    ...after.map((picture) => {
      const label = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: "compared", checked: picture === after[0] });
      radio.addEventListener("change", () => show(picture));
      label.append(radio, ` ${picture.n}`);
      return label;
    }),
  );
  films.hidden = true;
  show(after[0]);
  divide(50);
}

function divide(percent) {
  divider.value = String(percent);
  stage.style.setProperty("--at", `${divider.value}%`);
  divider.style.setProperty("--share", `${divider.value}%`);
  divider.setAttribute("aria-valuetext", `${divider.value} % of the earlier picture`);
}

function mode(filmed) {
  films.hidden = !filmed;
  part("still").hidden = filmed;
  part("still-mode").setAttribute("aria-pressed", String(!filmed));
  part("film-mode").setAttribute("aria-pressed", String(filmed));
  if (filmed) play();
}

// Both films at the steps of either. Before a branch's first step, both show the parent's.
async function play() {
  const [before, after] = filmstrips();
  slider.disabled = true;
  where.value = "Loading both films …";
  if (!(await before.load()) || !(await after.load())) return (where.value = "The films can’t be read just now.");
  after.before = before;
  const steps = [...new Set([...before.steps, ...after.steps])].sort((a, b) => a - b);
  slider.max = String(steps.length - 1);
  slider.value = slider.max;
  slider.disabled = false;
  slider.oninput = () => {
    const step = steps[Number(slider.value)];
    before.show(step);
    after.show(step);
    where.value = `step ${step} of ${before.of}`;
    slider.setAttribute("aria-valuetext", where.value);
    slider.style.setProperty("--share", `${(100 * slider.value) / Math.max(1, slider.max)}%`);
  };
  slider.oninput();
}

function drag(event) {
  if (event.type === "pointerdown") stage.setPointerCapture(event.pointerId);
  if (!stage.hasPointerCapture(event.pointerId)) return;
  const { left, width } = stage.getBoundingClientRect();
  divide(Math.round(Math.min(100, Math.max(0, (100 * (event.clientX - left)) / width))));
}

for (const kind of ["pointerdown", "pointermove"]) stage.addEventListener(kind, drag);
divider.addEventListener("input", () => divide(divider.value));
part("still-mode").addEventListener("click", () => mode(false));
part("film-mode").addEventListener("click", () => mode(true));
part("close").addEventListener("click", () => dialog.close());
