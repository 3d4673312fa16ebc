// Fills the application's id into the invitation's address. Sends nothing.

const field = document.getElementById("application");
const link = document.getElementById("invitation");

function buildInvitation(id, permissions) {
  const query = `client_id=${id}&scope=bot+applications.commands&permissions=${permissions}`;
  return `https://discord.com/oauth2/authorize?${query}`;
}

function showInvitation() {
  const id = field.value.trim();
  const isComplete = /^[0-9]{15,22}$/.test(id);
  field.setCustomValidity(id && !isComplete ? "An application ID has 15 to 22 digits." : "");
  link.textContent = buildInvitation(isComplete ? id : "APPLICATION_ID", field.dataset.permissions);
  if (isComplete) link.href = link.textContent;
  else link.removeAttribute("href");
}

field.addEventListener("input", showInvitation);
document.getElementById("invite-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (link.href) link.focus();
});
