// The pictures of a prompt: dropped, pasted, chosen, or finished pictures of this page. They are sent with the prompt:
// one init image with an optional mask, several with weights; and pictures that a control or a reference adapter of the
// model follows. The server decides what is a picture and what is allowed.

import { updateSliderFill } from "/static/mask_editor.js";
import { paintMask } from "/static/paint.js";
import { RequestError } from "/static/sse.js";
import { DEFAULT_WEIGHT, Thumb, loadPicture } from "/static/thumb.js";

const MAX_IMAGES = 5;
const MAX_BYTES = 16 * 1024 * 1024;
const PICTURE_URL = /\/api\/jobs\/([0-9A-HJKMNP-TV-Z]{26})\/pictures\/([1-4])\.png$/;
const DEFAULT_STRENGTHS = { one: "60", several: "50", masked: "90" }; // in percent
const START = "start"; // the role of an init image; other roles are "control:NAME" and "reference:NAME"
const PARTS = [["start", "init_images", "picture"], ["control", "control_images", "control"], ["reference", "reference_images", "reference"]]; // role, field, form part
const TITLES = { one: "Strength", masked: "Strength inside the mask" };
const MASK_NEEDS_ONE_IMAGE = "A mask works with one init image only; a blend ignores it.";

export class InitImages {
  // `showError(sentence)` shows what was left out.
  constructor(form, showError) {
    this.showError = showError;
    this.items = [];
    this.roles = [[START, "Init image"]];
    const find = (name) => form.querySelector(name);
    [this.box, this.list, this.slider, this.percent] = [".init-images", ".thumbs", ".strength", ".strength-value"].map(find);
    [this.title, this.openButton, this.fileChooser, this.maskButton, this.weightsLabel] = [".strength-title", ".choose-images", ".file-chooser", ".paint", ".weights-label"].map(find);
    this.maskButton.addEventListener("click", () => this.paintMask());
    this.openButton.addEventListener("click", () => this.fileChooser.click());
    this.fileChooser.addEventListener("change", () => {
      this.addFiles(this.fileChooser.files);
      this.fileChooser.value = "";
    });
    this.strengthRow = this.slider.closest(".strength-row");
    this.slider.addEventListener("input", () => {
      this.hasChosenStrength = true;
      this.showStrength();
    });
    this.listen();
  }

  get hasImages() {
    return this.items.length > 0;
  }

  // The items of a role, "start", "control" or "reference".
  listItems(role) {
    return this.items.filter((item) => item.role.split(":")[0] === role);
  }

  get starts() {
    return this.listItems(START);
  }

  // What a picture may be: an init image, and what the live models follow. Pictures of a role that has gone begin again.
  offerRoles({ workers }) {
    const models = workers.flatMap((worker) => worker.models);
    const list = (kind, title, names) => [...new Set(names)].map((name) => [`${kind}:${name}`, `${title}: ${name}`]);
    this.roles = [
      [START, "Init image"],
      ...list("control", "Control", models.flatMap((model) => model.controls ?? [])),
      ...list("reference", "Reference", models.flatMap((model) => model.references ?? [])),
    ];
    const values = new Set(this.roles.map(([value]) => value));
    const isStale = this.items.some((item) => !values.has(item.role));
    for (const item of this.items) if (!values.has(item.role)) item.role = START;
    const isNew = this.shownRoles !== [...values].join();
    this.shownRoles = [...values].join();
    if (this.hasImages && (isStale || isNew)) this.show();
  }

  listen() {
    const hasPictures = ({ dataTransfer }) => ["Files", "text/uri-list"].some((kind) => dataTransfer?.types.includes(kind));
    const setDropTarget = (isOn) => document.body.classList.toggle("drop-target", isOn);
    document.addEventListener("dragover", (event) => {
      if (!hasPictures(event)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "copy";
      setDropTarget(true);
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget || setDropTarget(false));
    document.addEventListener("drop", (event) => {
      setDropTarget(false);
      if (hasPictures(event) && this.handleDrop(event.dataTransfer, event.target)) event.preventDefault();
    });
    document.addEventListener("paste", ({ clipboardData, target }) => {
      if (!clipboardData?.files.length || target.closest?.("dialog")) return;
      this.addFiles(clipboardData.files);
    });
  }

  // Add dropped files, or a picture of this page. False for an address that belongs in the prompt.
  handleDrop(dropped, target) {
    if (dropped.files.length) return this.addFiles(dropped.files), true;
    const url = dropped.getData("text/uri-list").split(/\r?\n/)[0];
    const [, job, n] = (url.startsWith(`${location.origin}/`) && PICTURE_URL.exec(url)) || [];
    if (job) this.addFinished({ name: `${job}/${n}`, url });
    else if (target.matches?.("textarea, input")) return false;
    else this.showError("Drop picture files or pictures of this page. Save pictures of other sites first.");
    return true;
  }

  addFiles(files) {
    for (const file of files) {
      if (file.type && !file.type.startsWith("image/")) this.showError(`“${file.name}” is not a picture.`);
      else if (file.size > MAX_BYTES) this.showError(`“${file.name}” is too large: the limit is 16 MB.`);
      else this.addItem({ file, name: file.name || "picture" });
    }
  }

  // Add a finished picture, by its job and number.
  addFinished({ name, url }) {
    if (!this.items.some((item) => item.ref === name)) this.addItem({ ref: name, url, name: `picture ${name.split("/")[1]} of a job` });
  }

  addItem(item) {
    if (this.starts.length >= MAX_IMAGES) return this.showError(`A job takes up to ${MAX_IMAGES} init images.`);
    this.items.push({ role: START, weight: DEFAULT_WEIGHT, painted: null, ...item });
    this.show();
    if (this.starts.length > 1 && this.starts.some(({ painted }) => painted)) this.showError(MASK_NEEDS_ONE_IMAGE);
  }

  // The default strength depends on whether there is a mask.
  async paintMask() {
    const [item] = this.starts;
    const picture = await loadPicture(item).catch(() => null);
    if (!picture) return this.showError(`This browser cannot show “${item.name}”, so you cannot paint a mask on it.`);
    this.showError("");
    item.painted = await paintMask(picture, item.painted);
    this.show();
    this.maskButton.focus();
  }

  get kind() {
    if (this.starts.length > 1) return "several";
    return this.starts[0]?.painted ? "masked" : "one";
  }

  remove(item) {
    const index = this.items.indexOf(item);
    this.items.splice(index, 1);
    this.showError("");
    this.show();
    (this.list.children[Math.min(index, this.items.length - 1)]?.querySelector("button") ?? this.openButton).focus();
  }

  clear() {
    this.items = [];
    this.hasChosenStrength = false;
    this.show();
  }

  show() {
    this.thumbs = this.items.map((item, index) => new Thumb(item, index, {
      roles: this.roles,
      onRemove: () => this.remove(item),
      onWeight: () => this.showShares(),
      onRole: () => this.changeRole(index),
    }));
    this.list.replaceChildren(...this.thumbs.map(({ element }) => element));
    this.box.hidden = !this.hasImages;
    this.maskButton.hidden = this.starts.length !== 1;
    this.strengthRow.hidden = !this.starts.length;
    this.weightsLabel.hidden = this.starts.length < 2;
    this.maskButton.textContent = this.kind === "masked" ? "Change the mask …" : "Paint a mask …";
    for (const [index, item] of this.items.entries()) this.thumbs[index].showMask(this.starts.length === 1 && item.role === START ? item.painted : null);
    this.box.dispatchEvent(new Event("change-images"));
    if (!this.hasChosenStrength) this.slider.value = DEFAULT_STRENGTHS[this.kind];
    this.showShares();
    this.showStrength();
  }

  changeRole(index) {
    this.showError("");
    this.show();
    this.thumbs[index].roleSelect.focus();
  }

  showShares() {
    const total = this.starts.length > 1 ? this.starts.reduce((sum, { weight }) => sum + weight, 0) : 0;
    for (const thumb of this.thumbs) thumb.showShare(thumb.item.role === START ? total : 0);
  }

  showStrength() {
    this.title.textContent = TITLES[this.kind] ?? `Strength (${this.starts.length} init images, blended)`;
    this.percent.value = `${this.slider.value} %`;
    this.slider.setAttribute("aria-valuetext", this.percent.value);
    updateSliderFill(this.slider);
  }

  // The body of `POST /api/jobs`. Finished pictures beside others are sent as files: the server takes one kind.
  async buildRequest(prompt) {
    const request = { prompt };
    if (!this.hasImages) return request;
    const { starts } = this;
    if (starts.length && this.hasChosenStrength) request.strength = Number(this.slider.value) / 100;
    if (starts.some(({ weight }) => weight !== starts[0].weight)) request.weights = starts.map(({ weight }) => weight);
    const uploads = [];
    for (const [role, field, part] of PARTS) {
      const items = this.listItems(role);
      if (role !== START && items.length) request[role] = items.map((item) => item.role.slice(role.length + 1));
      if (!items.every((item) => item.ref)) uploads.push(...items.map((item) => [part, item]));
      else if (items.length) request[field] = items.map((item) => item.ref);
    }
    const mask = this.kind === "masked" && starts[0].painted.mask;
    if (!uploads.length && !mask) return request;
    const form = new FormData();
    form.append("request", new Blob([JSON.stringify(request)], { type: "application/json" }));
    for (const [part, item] of uploads) form.append(part, await this.loadContent(item), item.name);
    if (mask) form.append("mask", mask, "mask.png");
    return form;
  }

  // A picture as a file.
  async loadContent(item) {
    return item.file ?? fetchBlob(item.url);
  }
}

async function fetchBlob(url) {
  const response = await fetch(url).catch(() => null);
  if (!response?.ok) throw new RequestError("An init image could not be fetched. Try again.");
  return response.blob();
}
