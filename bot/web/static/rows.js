// Rows of buttons and links for cards and dialogs.

export function createButton(text, label) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: text, title: label });
  button.setAttribute("aria-label", label);
  return button;
}

export function createRow(title, label) {
  const row = document.createElement("div");
  row.className = title ? "row titled" : "row";
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", label);
  if (title) row.append(Object.assign(document.createElement("span"), { className: "title", textContent: title }));
  return row;
}

export function createDownload(text, label, address, name) {
  const link = document.createElement("a");
  Object.assign(link, { href: address, download: `darkroom-${name}`, textContent: text, title: label });
  link.setAttribute("aria-label", `Download: ${label}`);
  return link;
}
