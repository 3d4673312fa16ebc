// The connection to the server: one event stream for the page, and requests, which a refusal answers with a sentence.

export class Refused extends Error {}

// `body`: a FormData, which sets its own content type, or a value to send as JSON.
export async function ask(method, address, body) {
  const form = body instanceof FormData;
  const headers = { "Idempotency-Key": key(), ...(form ? {} : { "Content-Type": "application/json" }) };
  let answer;
  try {
    answer = await fetch(address, { method, headers, body: form || !body ? body : JSON.stringify(body) });
  } catch {
    throw new Refused("The darkroom can’t be reached just now. It will be tried again by itself; send once it is back.");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(said.error ?? `The darkroom answered with ${answer.status}.`);
  return said;
}

// The JSON at an address, or null if it can't be fetched.
export async function look(address) {
  try {
    const answer = await fetch(address);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

// Not crypto.randomUUID: browsers offer that only at secure addresses.
function key() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const FORGOTTEN = 60_000; // milliseconds in the background, after which the page closes its stream

// Follows /api/events while the page is in sight. Calls `heard[event](value)`; `lost()` and `shut(sentence)` report why not.
export function follow(heard, lost, shut) {
  let stream = null;
  let pause = 500;
  let leaving = 0;

  function open() {
    if (stream && stream.readyState !== EventSource.CLOSED) return;
    stream = new EventSource("/api/events");
    for (const [name, hear] of Object.entries(heard)) {
      stream.addEventListener(name, (event) => {
        pause = 500;
        hear(JSON.parse(event.data));
      });
    }
    stream.onerror = mend;
  }

  async function mend() {
    stream.close();
    lost();
    const refusal = await whyNot();
    if (refusal) return shut(refusal);
    setTimeout(open, pause);
    pause = Math.min(pause * 2, 8000);
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(leaving);
    if (document.hidden) leaving = setTimeout(() => stream.close(), FORGOTTEN);
    else open();
  });
  open();
}

async function whyNot() {
  try {
    const answer = await fetch("/api/workers");
    return answer.status === 403 ? (await answer.json()).error : null;
  } catch {
    return null;
  }
}
