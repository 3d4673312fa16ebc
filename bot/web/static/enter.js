// Uses up the one-time address at the press of a button: opening it, as link previews do, uses nothing up. On this
// computer no preview comes by, and the page needs no press.

import { sendRequest } from "/static/sse.js";

const button = document.getElementById("sign-in");
const notice = document.getElementById("notice");

async function signIn() {
  button.disabled = true;
  notice.hidden = true;
  try {
    await sendRequest("POST", "/api/entrance", { token: new URLSearchParams(location.search).get("token") });
    location.replace("/");
  } catch (error) {
    notice.textContent = error.message;
    notice.hidden = false;
    button.disabled = false;
  }
}

button.addEventListener("click", signIn);
button.disabled = false;
button.focus();
if ("atOnce" in button.dataset) signIn();
