// Uses up the one-time address at the press of a button: opening it, as link previews do, uses nothing up.

import { ask } from "/static/sse.js";

const button = document.getElementById("come-in");
const notice = document.getElementById("notice");

async function enter() {
  button.disabled = true;
  notice.hidden = true;
  try {
    await ask("POST", "/api/entrance", { token: new URLSearchParams(location.search).get("token") });
    location.replace("/");
  } catch (refusal) {
    notice.textContent = refusal.message;
    notice.hidden = false;
    button.disabled = false;
  }
}

button.addEventListener("click", enter);
button.disabled = false;
button.focus();
