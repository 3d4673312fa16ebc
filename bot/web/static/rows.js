// Rows of buttons and links for cards and dialogs.

export function button(text, label) {
  const made = document.createElement("button");
  Object.assign(made, { type: "button", textContent: text, title: label });
  made.setAttribute("aria-label", label);
  return made;
}

export function group(title, label) {
  const row = document.createElement("div");
  row.className = title ? "row titled" : "row";
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", label);
  if (title) row.append(Object.assign(document.createElement("span"), { className: "title", textContent: title }));
  return row;
}

export function download(text, label, address, name) {
  const link = document.createElement("a");
  Object.assign(link, { href: address, download: `darkroom-${name}`, textContent: text, title: label });
  link.setAttribute("aria-label", `Download: ${label}`);
  return link;
}
