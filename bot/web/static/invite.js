// Fills the application's id into the invitation's address. Sends nothing.

const field = document.getElementById("application");
const link = document.getElementById("invitation");

function invitation(id, permissions) {
  const query = `client_id=${id}&scope=bot+applications.commands&permissions=${permissions}`;
  return `https://discord.com/oauth2/authorize?${query}`;
}

function show() {
  const id = field.value.trim();
  const complete = /^[0-9]{15,22}$/.test(id);
  field.setCustomValidity(id && !complete ? "An application ID has 15 to 22 digits." : "");
  link.textContent = invitation(complete ? id : "APPLICATION_ID", field.dataset.permissions);
  if (complete) link.href = link.textContent;
  else link.removeAttribute("href");
}

field.addEventListener("input", show);
document.getElementById("inviting").addEventListener("submit", (event) => {
  event.preventDefault();
  if (link.href) link.focus();
});
