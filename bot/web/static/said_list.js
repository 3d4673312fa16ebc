// Who said what while a picture developed, the newest first. Once it is finished, each change can be undone: a new
// picture branches off before it.

import { language, texts } from "/static/desk_texts.js";
import { createButton, createRow } from "/static/rows.js";

const SAME_DRAG_SECONDS = 5; // between two values of a drag

export class SaidList {
  constructor(card, steering) {
    Object.assign(this, { card, steering });
    this.box = card.part("said");
    this.box.lang = language;
    this.box.setAttribute("aria-label", texts.said);
    [this.list, this.notice] = [this.box.querySelector("ol"), this.box.querySelector(".notice")];
  }

  showNotice(sentence) {
    this.notice.textContent = sentence;
    this.notice.hidden = !sentence;
    this.render();
  }

  render() {
    const groups = groupDrags(this.steering.list);
    this.box.hidden = !groups.length && this.notice.hidden;
    const isFinished = this.card.job?.state === "finished";
    const content = JSON.stringify([isFinished, groups]);
    if (content === this.content) return;
    this.content = content;
    this.list.replaceChildren(...groups.reverse().map((group) => this.createItem(group, isFinished)));
  }

  createItem({ first, last }, isFinished) {
    const item = document.createElement("li");
    item.dataset.state = last.state;
    const part = (tag, className, textContent) => Object.assign(document.createElement(tag), { className, textContent });
    const when = last.state === "made" ? texts.steps(first.step ?? last.step, last.step)
      : last.state === "waiting" ? texts.waiting
      : `${texts.refused}: ${last.reason}`;
    const sentence = part("p", "", "");
    sentence.append(part("b", "speaker", `${last.author.you ? texts.you : last.author.name}:`), " ", part("span", "words", last.text));
    item.append(sentence, part("span", "when", when));
    if (isFinished && last.state === "made") item.append(...this.createUndo(first.step ?? last.step));
    return item;
  }

  // As it was before `step`: a branch. With several pictures, the visitor chooses which.
  createUndo(step) {
    const pictures = this.card.job.pictures.filter((picture) => picture.branch);
    const options = { body: { step, undo: true } };
    if (pictures.length < 2) return pictures.map(({ branch }) => this.card.createRequestButton(texts.undo, texts.undoLabel(step), branch, options));
    const button = createButton(texts.undo, texts.undoLabel(step));
    button.addEventListener("click", () => {
      const row = createRow(texts.asItWas(step), texts.undoLabel(step));
      for (const { n, branch } of pictures) {
        const choice = this.card.createRequestButton(String(n), texts.branch(n, step), branch, options);
        this.card.highlightOnHover(n, choice);
        row.append(choice);
      }
      button.replaceWith(row);
      row.querySelector("button").focus();
    });
    return [button];
  }
}

// A drag makes several changes of one kind by one person: one line shows its last value.
function groupDrags(views) {
  const groups = [];
  for (const view of views) {
    const group = groups.at(-1);
    if (group && isSameDrag(group.last, view)) group.last = view;
    else groups.push({ first: view, last: view });
  }
  return groups;
}

function isSameDrag(one, next) {
  const isSlider = next.kind === "guidance" || next.kind === "words";
  const [shape, nextShape] = [one, next].map((view) => view.text.replace(/-?\d+(\.\d+)?/g, "#"));
  return isSlider && one.kind === next.kind && shape === nextShape && one.author.name === next.author.name
    && one.state !== "refused" && next.state !== "refused" && next.at - one.at < SAME_DRAG_SECONDS;
}
