// The sentences of the page.

export function duration(seconds) {
  const whole = Math.max(1, Math.ceil(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  const minutes = Math.ceil(whole / 60);
  return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
}

export function waiting(jobsAhead, eta, hasWorker, yours, startupNotice = "") {
  if (startupNotice) return startupNotice;
  if (!hasWorker) return "No worker is online yet: it starts when one comes.";
  const ahead = jobsAhead > 0 ? `${jobsAhead} ahead of ${yours ? "you" : "it"}` : "Next in line";
  return eta == null ? ahead : `${ahead}, about ${duration(eta)}`;
}

export function left(seconds) {
  return seconds > 0 ? `about ${duration(seconds)} left` : "almost there";
}

export function describeAction(job) {
  const one = job.parent?.picture;
  const began = job.start?.step ? ` at step ${job.start.step}` : "";
  const made = {
    vary: `varied picture ${one}`,
    upscale: `enlarged picture ${one}`,
    reroll: "once more",
    remix: `remixed picture ${one}`,
    reproduce: "made once more",
    edit: `changed a part of picture ${one}`,
    zoom: `zoomed out of picture ${one}`,
    pan: `went beyond picture ${one}`,
    walk: "walked from picture to picture",
    branch: `branched from picture ${one}${began}`,
  };
  return made[job.action] ?? (job.start?.pictures ? describeInitImages(job.start) : "");
}

function describeInitImages({ pictures, strength, mask }) {
  const what = pictures > 1 ? `blended ${pictures} pictures` : mask ? "began with a part of a picture" : "began with a picture";
  return `${what}, ${Math.round(100 * strength)} % drawn anew`;
}

export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

export function status(room) {
  if (room.warming) return room.sentence;
  if (!room.online) return "No worker is online yet. Prompts wait here until one comes.";
  const devices = [...new Set(room.workers.map((one) => one.device))];
  const crew = room.workers.length > 1 ? `${room.workers.length} workers · ` : "";
  const others = room.models.length - room.loaded.length;
  const more = others ? ` · ${others} more model${others > 1 ? "s" : ""} when asked for` : "";
  return `${crew}${room.loaded.join(", ") || "no model yet"} on ${devices.join(", ")}${more}`;
}
