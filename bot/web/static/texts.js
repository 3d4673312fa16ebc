// The sentences of the page.

export function formatDuration(seconds) {
  const rounded = Math.max(1, Math.ceil(seconds));
  if (rounded < 60) return `${rounded} s`;
  if (rounded < 3600) return `${Math.floor(rounded / 60)} min${rounded % 60 ? ` ${rounded % 60} s` : ""}`;
  const minutes = Math.ceil(rounded / 60);
  return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
}

export function formatWait(jobsAhead, eta, hasWorker, isOwn, startupNotice = "") {
  if (startupNotice) return startupNotice;
  if (!hasWorker) return "No worker is online yet. The job starts when one connects.";
  const place = jobsAhead > 0 ? `${jobsAhead} ahead of ${isOwn ? "you" : "it"}` : "Next in line";
  return eta == null ? place : `${place}, about ${formatDuration(eta)}`;
}

export function formatTimeLeft(seconds) {
  return seconds > 0 ? `about ${formatDuration(seconds)} left` : "almost done";
}

export function describeAction(job) {
  const picture = `picture ${job.parent?.picture}`;
  const step = job.start?.step ? ` at step ${job.start.step}` : "";
  const phrases = {
    vary: `varied ${picture}`,
    upscale: `upscaled ${picture}`,
    reroll: "re-rolled",
    remix: `remixed ${picture}`,
    reproduce: "reproduced",
    finish: "finished a draft",
    edit: `edited a part of ${picture}`,
    zoom: `zoomed out of ${picture}`,
    pan: `panned from ${picture}`,
    walk: "interpolated between pictures",
    branch: `branched from ${picture}${step}`,
  };
  const pictures = job.start?.pictures ? describeInitImages(job.start) : "";
  return phrases[job.action] ?? [pictures, describeFollowedPictures(job)].filter(Boolean).join(", ");
}

function describeFollowedPictures({ controls = [], references = [] }) {
  const names = [...new Set([...controls, ...references].map(({ name }) => name))];
  return names.length ? `followed pictures by ${names.join(", ")}` : "";
}

function describeInitImages({ pictures, strength, mask }) {
  const source = pictures > 1 ? `${strength < 1 ? "blended" : "used"} ${pictures} init images` : mask ? "used an init image with a mask" : "used an init image";
  return `${source}, strength ${Math.round(100 * strength)} %`;
}

export function formatClock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

export function describeWorkers({ online, engine_loading, sentence, workers, models, loaded }) {
  if (engine_loading) return sentence;
  if (!online) return "No worker is online yet. Prompts wait here until one connects.";
  const devices = [...new Set(workers.map((worker) => worker.device))];
  const workerCount = workers.length > 1 ? `${workers.length} workers · ` : "";
  const unloaded = models.length - loaded.length;
  const unloadedCount = unloaded ? ` · ${unloaded} more model${unloaded > 1 ? "s" : ""} on demand` : "";
  return `${workerCount}${loaded.join(", ") || "no model loaded"} on ${devices.join(", ")}${unloadedCount}`;
}
