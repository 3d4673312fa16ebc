// The connection to the server: one event stream for the page, and requests. A refused request throws the server's sentence.

export class RequestError extends Error {}

// `body`: a FormData, which sets its own content type, or a value to send as JSON.
export async function sendRequest(method, address, body) {
  const isForm = body instanceof FormData;
  const headers = { "Idempotency-Key": createKey(), ...(isForm ? {} : { "Content-Type": "application/json" }) };
  let response;
  try {
    response = await fetch(address, { method, headers, body: isForm || !body ? body : JSON.stringify(body) });
  } catch {
    throw new RequestError("Darkroom cannot be reached. The page reconnects automatically; send again then.");
  }
  const value = await response.json().catch(() => ({}));
  if (!response.ok) throw new RequestError(value.error ?? `Darkroom answered with status ${response.status}.`);
  return value;
}

// The JSON at an address, or null if it can't be fetched.
export async function fetchJson(address) {
  try {
    const response = await fetch(address);
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

// Not crypto.randomUUID: browsers offer that only at secure addresses.
function createKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const HIDDEN_CLOSE_MS = 60_000; // after this time in the background, the page closes its stream
const MIN_RETRY_MS = 500;
const MAX_RETRY_MS = 8000;

// Follows /api/events while the page is visible. Calls `eventHandlers[event](value)` for each event, `onDisconnect()` when the
// stream breaks, and `onRefused(sentence)` if the server refuses this visitor.
export function subscribe(eventHandlers, onDisconnect, onRefused) {
  let stream = null;
  let retryDelay = MIN_RETRY_MS;
  let closeTimer = 0;

  function connect() {
    if (stream && stream.readyState !== EventSource.CLOSED) return;
    stream = new EventSource("/api/events");
    for (const [name, handler] of Object.entries(eventHandlers)) {
      stream.addEventListener(name, (event) => {
        retryDelay = MIN_RETRY_MS;
        handler(JSON.parse(event.data));
      });
    }
    stream.onerror = reconnect;
  }

  async function reconnect() {
    stream.close();
    onDisconnect();
    const refusal = await fetchRefusal();
    if (refusal) return onRefused(refusal);
    setTimeout(connect, retryDelay);
    retryDelay = Math.min(retryDelay * 2, MAX_RETRY_MS);
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(closeTimer);
    if (document.hidden) closeTimer = setTimeout(() => stream.close(), HIDDEN_CLOSE_MS);
    else connect();
  });
  connect();
}

// The sentence with which the server refuses this visitor, or null.
async function fetchRefusal() {
  try {
    const response = await fetch("/api/workers");
    return response.status === 403 ? (await response.json()).error : null;
  } catch {
    return null;
  }
}
