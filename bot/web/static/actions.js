// The actions on a finished job: the rows of buttons beside its pictures.

import { compare } from "/static/compare.js";
import { PictureActions } from "/static/picture_actions.js";
import { button, download, group } from "/static/rows.js";

const COMPARED = new Set(["branch", "edit", "vary", "remix", "upscale"]); // actions whose result can be compared with its source

export function showActions(card) {
  const { job } = card;
  const actions = card.part("actions");
  const drawn = job.task === "develop";
  if (drawn) actions.append(row(card, "U", "upscale", "Enlarge"), row(card, "V", "vary", "Vary"));
  const free = job.pictures.filter((picture) => !picture.held);
  if (free.length) actions.append(...new PictureActions(card, free).rows);
  if (job.film) actions.append(films("Film", "film", job.films, job));
  if (job.walk_films?.webp) actions.append(films("Walk", "walk", job.walk_films, job));
  actions.append(more(card, drawn));
  const held = job.pictures.filter((picture) => picture.held);
  if (job.can_review) actions.append(...held.map((picture) => decision(card, picture)));
  actions.hidden = false;
}

function row(card, letter, verb, title) {
  const made = group(title, `${title} a picture`);
  for (const { n } of card.job.pictures) {
    const one = card.button(`${letter}${n}`, `${title} picture ${n}`, `${card.address}/${verb}/${n}`);
    card.light(n, one);
    made.append(one);
  }
  return made;
}

function films(title, what, addresses, job) {
  const made = group(title, what === "walk" ? "The whole walk, as a film" : "How it developed, as a film");
  made.classList.add("line");
  const name = what === "walk" ? `${job.id}-walk` : job.id;
  for (const [kind, address] of Object.entries(addresses)) {
    made.append(download(kind === "webp" ? "WebP" : kind.toUpperCase(), `${what} as ${kind}`, address, `${name}.${kind}`));
  }
  return made;
}

function more(card, drawn) {
  const { job } = card;
  const made = group("", "More");
  if (drawn) made.append(card.button("Re-roll", "Re-roll: the same prompt with another seed", `${card.address}/reroll`));
  if (job.walkable) made.append(card.button("Walk", "Walk from each of these pictures to the next, as a film", `${card.address}/walk`));
  if (job.parent && COMPARED.has(job.action)) {
    const one = button("Compare", "Compare with the picture that it was made from");
    one.addEventListener("click", () => compare(job));
    made.append(one);
  }
  const single = job.pictures.length === 1;
  const address = single && !job.pictures[0].held ? job.pictures[0].url : job.grid;
  const what = single ? "picture" : "pictures";
  made.append(download(`↓ ${single ? "Picture" : "Pictures"}`, what, address, `${job.id}.png`));
  return made;
}

// For the room's owner: look at a held picture, show it or keep it hidden.
function decision(card, picture) {
  const made = group(`Held ${picture.n}`, `What becomes of picture ${picture.n}, which is held`);
  const address = `${card.address}/pictures/${picture.n}`;
  const look = Object.assign(document.createElement("a"), { href: `${address}/held.png`, textContent: "Look" });
  look.target = "_blank";
  const then = (verb) => () => {
    made.remove();
    if (verb === "show") card.hang({ ...picture, held: "" }, card.job);
  };
  const decide = (text, verb) => card.button(text, `${text}: picture ${picture.n}`, `${address}/${verb}`, { then: then(verb) });
  made.append(look, decide("Show", "show"), decide("Keep hidden", "hide"));
  return made;
}
