// Compares a picture with its source picture: by a movable divider, or by both films at the same step.

import { Filmstrip } from "/static/filmstrip.js";
import { fetchJson } from "/static/sse.js";

const dialog = document.getElementById("compare-dialog");
const part = (name) => dialog.querySelector(`.${name}`);
const [stage, divider, pictureChoice, filmsView, slider, positionLabel] = ["stage", "divider", "picture-choice", "films-view", "step", "film-position"].map(part);
let createFilmstrips = null; // returns the two filmstrips of the chosen picture

export async function compare(job) {
  const parent = await fetchJson(`/api/jobs/${job.parent.id}`);
  const before = parent?.pictures.find(({ n, held }) => n === job.parent.picture && !held);
  const shownPictures = job.pictures.filter(({ held }) => !held);
  part("no-source").hidden = Boolean(before);
  part("comparison").hidden = !before;
  dialog.showModal();
  if (!before) return;
  createFilmstrips = null;
  showComparison(parent, before, job, shownPictures);
  part("films-mode").hidden = !(parent.keyframes && job.keyframes && job.action === "branch");
  showMode(false);
}

function showComparison(parent, before, job, shownPictures) {
  const showPicture = (picture) => {
    part("before").src = before.url;
    part("after").src = picture.url;
    stage.style.setProperty("--aspect", `${picture.width} / ${picture.height}`);
    part("divider-view").style.setProperty("--aspect-number", String(picture.width / picture.height));
    createFilmstrips = () => [new Filmstrip(part("film-before"), parent, before.n), new Filmstrip(part("film-after"), job, picture.n, parent.steps)];
    if (!filmsView.hidden) loadFilms();
  };
  part("before-caption").textContent = `Picture ${before.n}: ${parent.prompt_text}`;
  part("after-caption").textContent = job.prompt_text;
  pictureChoice.hidden = shownPictures.length < 2;
  pictureChoice.replaceChildren(
    ...shownPictures.map((picture) => {
      const label = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: "compared", checked: picture === shownPictures[0] });
      radio.addEventListener("change", () => showPicture(picture));
      label.append(radio, ` ${picture.n}`);
      return label;
    }),
  );
  filmsView.hidden = true;
  showPicture(shownPictures[0]);
  setDivider(50);
}

function setDivider(percent) {
  divider.value = String(percent);
  stage.style.setProperty("--divider-position", `${divider.value}%`);
  divider.style.setProperty("--fill", `${divider.value}%`);
  divider.setAttribute("aria-valuetext", `${divider.value} % of the earlier picture`);
}

function showMode(hasFilms) {
  filmsView.hidden = !hasFilms;
  part("divider-view").hidden = hasFilms;
  part("divider-mode").setAttribute("aria-pressed", String(!hasFilms));
  part("films-mode").setAttribute("aria-pressed", String(hasFilms));
  if (hasFilms) loadFilms();
}

// The slider has the steps of both films. Before a branch's first step, both show the parent's.
async function loadFilms() {
  const [before, after] = createFilmstrips();
  slider.disabled = true;
  positionLabel.value = "Loading both films …";
  if (!(await before.load()) || !(await after.load())) return (positionLabel.value = "The films could not be loaded. Try again.");
  after.parent = before;
  const steps = [...new Set([...before.steps, ...after.steps])].sort((a, b) => a - b);
  slider.max = String(steps.length - 1);
  slider.value = slider.max;
  slider.disabled = false;
  slider.oninput = () => {
    const step = steps[Number(slider.value)];
    before.show(step);
    after.show(step);
    positionLabel.value = `step ${step} of ${before.totalSteps}`;
    slider.setAttribute("aria-valuetext", positionLabel.value);
    slider.style.setProperty("--fill", `${(100 * slider.value) / Math.max(1, slider.max)}%`);
  };
  slider.oninput();
}

function dragDivider(event) {
  if (event.type === "pointerdown") stage.setPointerCapture(event.pointerId);
  if (!stage.hasPointerCapture(event.pointerId)) return;
  const { left, width } = stage.getBoundingClientRect();
  setDivider(Math.round(Math.min(100, Math.max(0, (100 * (event.clientX - left)) / width))));
}

for (const kind of ["pointerdown", "pointermove"]) stage.addEventListener(kind, dragDivider);
divider.addEventListener("input", () => setDivider(divider.value));
part("divider-mode").addEventListener("click", () => showMode(false));
part("films-mode").addEventListener("click", () => showMode(true));
part("close").addEventListener("click", () => dialog.close());
