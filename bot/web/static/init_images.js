// The init images of a prompt: dropped, pasted, chosen, or finished pictures of this room. They are sent with the prompt:
// one with an optional mask, several with weights. The server decides what is a picture and what is allowed.

import { share } from "/static/mask_editor.js";
import { paint } from "/static/paint.js";
import { EVEN, Thumb, whole } from "/static/thumb.js";
import { Refused } from "/static/sse.js";

const MOST = 5;
const LARGEST = 16 * 1024 * 1024; // bytes
const OURS = /\/api\/jobs\/([0-9A-HJKMNP-TV-Z]{26})\/pictures\/([1-4])\.png$/;
const USUAL = { one: "60", several: "50", painted: "90" }; // strength in percent
const TITLES = { one: "How much is drawn anew", painted: "How much of what is painted over is drawn anew" };
const ALONE = "A part is painted over in one picture alone. With several, the whole of their blend is a start.";

export class InitImages {
  // `complain(sentence)` shows what was left out.
  constructor(form, complain) {
    this.complain = complain;
    this.items = [];
    const at = (name) => form.querySelector(name);
    [this.box, this.list, this.slider, this.percent] = [".init-images", ".thumbs", ".strength", ".strength-said"].map(at);
    [this.title, this.opener, this.chooser, this.painter, this.counts] = [".drawn-title", ".choose", ".chooser", ".paint", ".counts"].map(at);
    this.painter.addEventListener("click", () => this.paint());
    this.opener.addEventListener("click", () => this.chooser.click());
    this.chooser.addEventListener("change", () => {
      this.add(this.chooser.files);
      this.chooser.value = "";
    });
    this.slider.addEventListener("input", () => {
      this.chosen = true;
      this.tell();
    });
    this.listen();
  }

  get any() {
    return this.items.length > 0;
  }

  listen() {
    const brings = ({ dataTransfer }) => ["Files", "text/uri-list"].some((kind) => dataTransfer?.types.includes(kind));
    const aim = (on) => document.body.classList.toggle("aimed", on);
    document.addEventListener("dragover", (event) => {
      if (!brings(event)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "copy";
      aim(true);
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget || aim(false));
    document.addEventListener("drop", (event) => {
      aim(false);
      if (brings(event) && this.take(event.dataTransfer, event.target)) event.preventDefault();
    });
    document.addEventListener("paste", ({ clipboardData, target }) => {
      if (!clipboardData?.files.length || target.closest?.("dialog")) return;
      this.add(clipboardData.files);
    });
  }

  // Take dropped files, or a picture of this page. False for an address that belongs in the prompt.
  take(dropped, target) {
    if (dropped.files.length) return this.add(dropped.files), true;
    const url = dropped.getData("text/uri-list").split(/\r?\n/)[0];
    const [, job, n] = (url.startsWith(`${location.origin}/`) && OURS.exec(url)) || [];
    if (job) this.use({ name: `${job}/${n}`, url });
    else if (target.matches?.("textarea, input")) return false;
    else this.complain("Drop picture files, or pictures of this page; from elsewhere, save them first.");
    return true;
  }

  add(files) {
    for (const file of files) {
      if (file.type && !file.type.startsWith("image/")) this.complain(`“${file.name}” is no picture.`);
      else if (file.size > LARGEST) this.complain(`“${file.name}” is too large: up to 16 MB are taken.`);
      else this.put({ file, name: file.name || "picture" });
    }
  }

  // Add a finished picture, by its job and number.
  use({ name, url }) {
    if (!this.items.some((item) => item.ref === name)) this.put({ ref: name, url, name: `picture ${name.split("/")[1]} of a job` });
  }

  put(item) {
    if (this.items.length >= MOST) return this.complain(`Up to ${MOST} pictures can begin a job.`);
    this.items.push({ weight: EVEN, painted: null, ...item });
    this.show();
    if (this.items.length > 1 && this.items.some(({ painted }) => painted)) this.complain(ALONE);
  }

  // The default strength depends on whether there is a mask.
  async paint() {
    const [item] = this.items;
    const seen = await whole(item).catch(() => null);
    if (!seen) return this.complain(`“${item.name}” can’t be shown in this browser, so it can’t be painted over here.`);
    this.complain("");
    item.painted = await paint(seen, item.painted);
    this.show();
    this.painter.focus();
  }

  get kind() {
    if (this.items.length > 1) return "several";
    return this.items[0]?.painted ? "painted" : "one";
  }

  remove(item) {
    const place = this.items.indexOf(item);
    this.items.splice(place, 1);
    this.complain("");
    this.show();
    (this.list.children[Math.min(place, this.items.length - 1)]?.querySelector("button") ?? this.opener).focus();
  }

  clear() {
    this.items = [];
    this.chosen = false;
    this.show();
  }

  show() {
    this.thumbs = this.items.map((item, index) => new Thumb(item, index, { remove: () => this.remove(item), weighed: () => this.weigh() }));
    this.list.replaceChildren(...this.thumbs.map(({ element }) => element));
    this.box.hidden = !this.any;
    this.painter.hidden = this.items.length !== 1;
    this.counts.hidden = this.items.length < 2;
    this.painter.textContent = this.kind === "painted" ? "Change what is painted …" : "Paint over a part …";
    if (this.items.length === 1) this.thumbs[0].mark(this.items[0].painted);
    this.box.dispatchEvent(new Event("change-images"));
    if (!this.chosen) this.slider.value = USUAL[this.kind];
    this.weigh();
    this.tell();
  }

  weigh() {
    const total = this.items.length > 1 ? this.items.reduce((sum, { weight }) => sum + weight, 0) : 0;
    for (const thumb of this.thumbs) thumb.weigh(total);
  }

  tell() {
    this.title.textContent = TITLES[this.kind] ?? `${this.items.length} pictures, blended. How much is drawn anew`;
    this.percent.value = `${this.slider.value} %`;
    this.slider.setAttribute("aria-valuetext", this.percent.value);
    share(this.slider);
  }

  // The body of `POST /api/jobs`. Finished pictures beside others are sent as files: the server takes one kind.
  async buildRequest(prompt) {
    const request = { prompt };
    if (!this.any) return request;
    if (this.chosen) request.strength = Number(this.slider.value) / 100;
    if (this.items.some(({ weight }) => weight !== this.items[0].weight)) request.weights = this.items.map(({ weight }) => weight);
    const ours = this.items.every((item) => item.ref);
    if (ours) request.init_images = this.items.map((item) => item.ref);
    const mask = this.kind === "painted" && this.items[0].painted.mask;
    if (ours && !mask) return request;
    const form = new FormData();
    form.append("request", new Blob([JSON.stringify(request)], { type: "application/json" }));
    for (const item of ours ? [] : this.items) form.append("picture", await this.content(item), item.name);
    if (mask) form.append("mask", mask, "mask.png");
    return form;
  }

  // A picture as a file.
  async content(item) {
    return item.file ?? fetched(item.url);
  }
}

async function fetched(url) {
  const answer = await fetch(url).catch(() => null);
  if (!answer?.ok) throw new Refused("A picture that it begins with can’t be fetched just now.");
  return answer.blob();
}
