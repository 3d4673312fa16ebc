// The actions on a finished job: the rows of buttons beside its pictures.

import { compare } from "/static/compare.js";
import { PictureActions } from "/static/picture_actions.js";
import { createButton, createDownload, createRow } from "/static/rows.js";

const COMPARABLE_ACTIONS = new Set(["branch", "edit", "vary", "remix", "finish", "upscale"]); // their result can be compared with its source

export function showActions(card) {
  const { job } = card;
  const actions = card.part("actions");
  const isGenerated = job.kind === "generate";
  if (isGenerated) actions.append(buildPictureRow(card, "U", "upscale", "Upscale"), buildPictureRow(card, "V", "vary", "Vary"));
  const shownPictures = job.pictures.filter((picture) => !picture.held);
  if (shownPictures.length) actions.append(...new PictureActions(card, shownPictures).rows);
  if (job.film) actions.append(buildFilmRow("Film", "Download the film", "film", job.films, job.id));
  if (job.walk_films?.webp) actions.append(buildFilmRow("Walk", "Download the film of the interpolation", "walk", job.walk_films, `${job.id}-walk`));
  actions.append(buildMoreRow(card, isGenerated));
  const heldPictures = job.pictures.filter((picture) => picture.held);
  if (job.can_review) actions.append(...heldPictures.map((picture) => buildReviewRow(card, picture)));
  actions.hidden = false;
}

function buildPictureRow(card, letter, verb, title) {
  const row = createRow(title, `${title} a picture`);
  for (const { n } of card.job.pictures) {
    const button = card.createRequestButton(`${letter}${n}`, `${title} picture ${n}`, `${card.address}/${verb}/${n}`);
    card.highlightOnHover(n, button);
    row.append(button);
  }
  return row;
}

// `addresses`: film format → its address.
function buildFilmRow(title, label, kind, addresses, fileName) {
  const row = createRow(title, label);
  row.classList.add("line");
  for (const [format, address] of Object.entries(addresses)) {
    row.append(createDownload(format === "webp" ? "WebP" : format.toUpperCase(), `${kind} as ${format}`, address, `${fileName}.${format}`));
  }
  return row;
}

function buildMoreRow(card, isGenerated) {
  const { job } = card;
  const row = createRow("", "Actions on this job");
  if (isGenerated) row.append(card.createRequestButton("Re-roll", "Re-roll: the same prompt with another seed", `${card.address}/reroll`));
  if (job.is_draft) row.append(card.createRequestButton("Finish it", "Finish it: the same noise with an evaluation at every step", `${card.address}/finish`));
  if (job.can_interpolate) row.append(card.createRequestButton("Walk", "Walk: interpolate from each picture to the next, as a film", `${card.address}/walk`));
  if (job.parent && COMPARABLE_ACTIONS.has(job.action)) {
    const button = createButton("Compare", "Compare with the source picture");
    button.addEventListener("click", () => compare(job));
    row.append(button);
  }
  const isSingle = job.pictures.length === 1;
  const address = isSingle && !job.pictures[0].held ? job.pictures[0].url : job.grid;
  row.append(createDownload(isSingle ? "↓ Picture" : "↓ Pictures", isSingle ? "picture" : "pictures", address, `${job.id}.png`));
  return row;
}

// For the operator: view a held picture, show it to all, or keep it hidden.
function buildReviewRow(card, picture) {
  const row = createRow(`Held ${picture.n}`, `Decide about held picture ${picture.n}`);
  const address = `${card.address}/pictures/${picture.n}`;
  const link = Object.assign(document.createElement("a"), { href: `${address}/held.png`, textContent: "View" });
  link.target = "_blank";
  const onAccepted = (verb) => () => {
    row.remove();
    if (verb === "show") card.showPicture({ ...picture, held: "" }, card.job);
  };
  const createDecision = (text, verb) => card.createRequestButton(text, `${text}: picture ${picture.n}`, `${address}/${verb}`, { onAccepted: onAccepted(verb) });
  row.append(link, createDecision("Show", "show"), createDecision("Keep hidden", "hide"));
  return row;
}
