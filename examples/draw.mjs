// Draws a picture over the HTTP API with JavaScript: asks, follows the job's event stream, saves the picture.
// Usage: node examples/draw.mjs [PROMPT]. DARKROOM_URL is the address, DARKROOM_API_KEY a key; an open chatroom needs none.
import { writeFile } from "node:fs/promises";

const url = process.env.DARKROOM_URL ?? "http://127.0.0.1:8189";
const key = process.env.DARKROOM_API_KEY;
const headers = key ? { Authorization: `Bearer ${key}` } : {};
const ends = ["finished", "failed", "cancelled", "deleted"];

async function ask(path, options = {}) {
  const answer = await fetch(url + path, { ...options, headers: { ...headers, ...options.headers } });
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

/** Yields the events of a stream as [name, value]. */
async function* readEvents(path) {
  const answer = await ask(path);
  let text = "";
  for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    const blocks = text.split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block)?.[1];
      if (name) yield [name, JSON.parse(/^data: (.*)$/m.exec(block)[1])];
    }
  }
}

const body = JSON.stringify({ prompt: process.argv[2] ?? "a lighthouse at dusk", count: 1 });
const request = { method: "POST", body, headers: { "Content-Type": "application/json" } };
const job = await (await ask("/api/jobs", request)).json();
for await (const [name, value] of readEvents(`/api/jobs/${job.id}/events`)) {
  if (name === "frame") console.error(`${value.percent} % drawn`); // value.frames has previews, JPEG as base64
  if (!ends.includes(name)) continue;
  if (name !== "finished") throw new Error(value.reason || `the job is ${name}`);
  const picture = await ask(value.pictures[0].url);
  await writeFile(`${job.id}-1.png`, Buffer.from(await picture.arrayBuffer()));
  console.log(`${job.id}-1.png`);
  break;
}
