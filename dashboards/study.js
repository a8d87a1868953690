// The page of one study, live: figures, limits, trials, and what happened to the search.
import { download, get, listen, post, remove } from "./api.js";
import { announce, ask, busy, byId, confirmed, emptyBox, fill, h, notice, refill, table } from "./dom.js";
import { best, judgedSplit, keeps, lossOf, rowsOf } from "./facts.js";
import { asTable, dimmed, filtered, nameLosses, paint, show, tint } from "./figures.js";
import * as format from "./format.js";
import { Limits } from "./limits.js";
import { Countdown, Refresher } from "./live.js";
import { problemBox, showLink } from "./page.js";
import { color } from "./plots.js";
import { TrialTable } from "./trials.js";

const id = document.body.dataset.study;
const path = `/studies/${id}`;
const ACTIVE = ["queued", "running", "finalising"];
const ENDED = { cancelled: "was cancelled", interrupted: "was interrupted", failed: "failed" };
const SKIPPED = { prune: "pruned", quantize: "quantized", integers: "in integers", factor: "factored" };
const TRADE_OFFS = ["accuracy_size", "accuracy_latency"];
const figures = new Map(); // name -> as the server gave it, undimmed
const state = { summary: null, points: null, rows: [], split: "val", kept: null, chosen: null, selected: null };

const REST_MS = 120; // after the last movement of a slider
let judging = false, resting;
let gone = false; // the study was deleted: nothing more is asked of it
const limits = new Limits(byId("sliders"), () => { // once per frame, however fast a slider moves
  if (judging) return;
  judging = true;
  requestAnimationFrame(() => { judging = false; follow(); });
});
const trials = new TrialTable(byId("trials"), id);
const refresher = new Refresher(() => refresh().catch((error) => {
  if (error.status !== 404) throw error; // deleted while it was read: the event that says so is on its way
}));
const countdown = new Countdown((left) => {
  const running = state.summary && state.summary.state !== "queued";
  byId("left").textContent = running ? `${format.clock(left)} of ${format.duration(state.summary.budget_s)} left` : "";
});

// -- reading

async function refresh() {
  if (gone) return;
  const detail = await get(path);
  showSummary(detail);
  showOrigin(detail);
  if (!detail.record) { // it waits, or ended before anything was worth keeping
    fill("tiles");
    fill("empty", ACTIVE.includes(detail.state) ? emptyBox("Waiting", "Nothing was measured yet. The figures appear with the first trials.") : emptyBox("Nothing was kept", "The search ended before the dense model was measured, so there is nothing to show."));
    return;
  }
  const points = await get(`${path}/table`);
  state.points = points;
  state.rows = rowsOf(points);
  state.split = judgedSplit(state.rows, points.baseline);
  const hasFront = points.baseline !== null && points.counts.complete > 0;
  byId("front-part").hidden = !hasFront;
  byId("course").hidden = state.rows.length === 0;
  fill("empty", ...(hasFront ? [] : [nothingYet(detail, points)]));
  showTiles(points);
  if (state.rows.length) await course();
  if (!hasFront) return;
  nameLosses(points);
  limits.update(points, state.rows);
  await Promise.all([...TRADE_OFFS, ...opened()].map((name) => fetchFigure(name)));
  judge();
}

function opened() {
  return [...document.querySelectorAll("details[data-lazy][open]")].map((place) => place.dataset.lazy).filter((name) => name !== "importance");
}

async function fetchFigure(name) {
  const target = name === "importance" ? `?target=${byId("target").value}` : "";
  const figure = await show(name, `${path}/figures/${name}${target}`, (made) => altered(name, made));
  if (!figure) return;
  figures.set(name, figure);
  if (name === TRADE_OFFS[0]) tellBeyond(figure.layout.yaxis.range[1]);
  if (name === "importance") {
    const swapped = { data: figure.data.map((trace) => ({ ...trace, x: trace.y, y: trace.x })) };
    asTable("table-importance", swapped, ["Choice", "Variance explained alone, %"], { number: (v) => v.toFixed(1) });
  }
  wire(name);
}

// Points of the front that lose more than the figures show, `top` points at most.
function tellBeyond(top) {
  const beyond = state.rows.filter((row) => row.on_front && row.origin !== "baseline" && 100 * lossOf(row, "val") > top).length;
  byId("beyond").hidden = beyond === 0;
  byId("beyond").textContent = `${format.count(beyond, "point")} of the front ${beyond === 1 ? "loses" : "lose"} more than the figures show; the table has ${beyond === 1 ? "it" : "them"}, and a double click on a figure shows everything.`;
}

async function course() {
  const [grown, spent] = await Promise.all([show("hypervolume", `${path}/figures/hypervolume`), show("time", `${path}/figures/time`)]);
  if (grown) asTable("table-hypervolume", grown, ["Budget spent, s", "Hypervolume"]);
  if (spent) {
    const rows = spent.data.map((trace) => ({ of: trace.y[0], stage: trace.name, seconds: trace.x[0] }));
    fill("table-time", rows.length ? table([["Stage", (r) => r.stage, "text"], ["Of", (r) => r.of, "text"], ["Seconds", (r) => r.seconds.toFixed(1)]], rows, { label: "Where the time went" }) : null);
  }
}

// -- the limits

// Applies the limits: what fails is dimmed, and the best that remains is named.
function judge() {
  clearTimeout(resting);
  decide();
  const { points, rows, split, kept, chosen } = state;
  trials.update({ points, rows, limits: limits.values, kept, split, chosen });
  for (const [name, figure] of figures) if (name !== "importance") paint(name, altered(name, figure));
}

// While a slider moves: the crowd and the sentence follow at once, what takes plotly or the table its time waits for rest.
function follow() {
  decide();
  for (const name of TRADE_OFFS) if (figures.has(name)) tint(name, dimmed(figures.get(name), state.kept));
  clearTimeout(resting);
  resting = setTimeout(judge, REST_MS);
}

function decide() {
  const { points, rows, split } = state, values = limits.values;
  state.kept = limits.any ? new Set(rows.filter((row) => row.val !== null && keeps(row, values, split)).map((row) => row.trial)) : null;
  state.chosen = best(rows, values, limits.rule.value, points);
  tellBest();
}

function altered(name, figure) {
  if (name === "parallel") return filtered(figure, state.kept);
  const shown = dimmed(figure, state.kept);
  if (!TRADE_OFFS.includes(name)) return shown;
  return { ...shown, data: [...shown.data, ...rings(name)], layout: { ...shown.layout, showlegend: false, margin: { ...shown.layout.margin, t: 16 }, shapes: lines(name) } };
}

// The chosen point, and the one the reader looks at, in the ink of the page.
function rings(name) {
  const ring = (row, symbol, label, size) => (row && row.drop !== null ? [{
    type: "scatter", mode: "markers", name: label, x: [at(name, row)], y: [row.drop * 100], hoverinfo: "skip",
    marker: { symbol, size, color: color("--ink"), line: { width: 2, color: color("--ink") } },
  }] : []);
  const looked = state.rows.find((row) => row.trial === state.selected);
  return [...ring(state.chosen, "circle-open", "best that remains", 20), ...ring(looked, "cross-thin", "looked at", 24)];
}

const at = (name, row) => (name === "accuracy_size" ? row.size_bytes / 1000 : row.latency_ms);

function lines(name) {
  const { maxDrop, maxSize, maxLatency } = limits.values;
  const x = name === "accuracy_size" ? (maxSize === null ? null : maxSize / 1000) : maxLatency;
  const line = { color: color("--warn"), width: 1.5, dash: "dot" };
  const shapes = [];
  if (maxDrop !== null) shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: maxDrop * 100, y1: maxDrop * 100, line });
  if (x !== null) shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line });
  return shapes;
}

function tellBest() {
  const { chosen, split, kept, rows } = state;
  const left = kept ? rows.filter((row) => row.on_front && kept.has(row.trial)).length : rows.filter((row) => row.on_front).length;
  if (!chosen) {
    limits.answer.textContent = "No point of the front keeps these limits. Loosen one, or give the search more time.";
    limits.links.replaceChildren();
    return;
  }
  limits.answer.replaceChildren(
    h("b", {}, `Trial ${chosen.trial}: ${chosen.words}.`), ` ${format.bytes(chosen.size_bytes)} and ${format.ms(chosen.latency_ms)}.`,
    ` ${format.count(left, "point")} of the front ${left === 1 ? "remains" : "remain"}; limits on the loss are kept on ${split === "test" ? "test" : "validation"} data.`);
  if (limits.links.dataset.trial === String(chosen.trial) && limits.links.childElementCount) return;
  limits.links.dataset.trial = String(chosen.trial);
  limits.links.replaceChildren(
    h("a", { class: "button secondary", href: `/studies/${id}/trials/${chosen.trial}` }, "Look at it"),
    h("button", { type: "button", class: "primary", onclick: (event) => exported(event.currentTarget, chosen.trial) }, "Export bundle"));
}

// -- the reader's choice of a point

function wire(name) {
  const place = byId(`figure-${name}`);
  if (place.dataset.wired || !place.on) return;
  place.dataset.wired = "yes";
  place.addEventListener("cloudclick", (event) => select(event.detail));
  place.on("plotly_click", (event) => {
    const trial = event.points.map((point) => point.customdata).find((value) => value !== undefined);
    if (trial !== undefined) select(Array.isArray(trial) ? trial[0] : trial);
  });
}

function select(trial) {
  const row = state.rows.find((found) => found.trial === trial);
  if (!row) return;
  state.selected = trial;
  const { points } = state;
  const measured = row.val !== null && row.state === "complete";
  const place = fill("chosen",
    h("p", { class: "chosen-text" }, h("b", {}, `Trial ${trial}`), ` (${measured ? row.origin : row.state}): `,
      measured ? `${format.metric(row.val, points.is_share)} ${points.metric_name} on validation data, ${format.change(row.drop, points.direction)}` : `no ${points.metric_name}: it ended early`,
      row.size_bytes === null ? "" : `; ${format.bytes(row.size_bytes)}, ${format.ms(row.latency_ms)}`, row.on_front ? "; on the front" : ""),
    h("p", { class: "actions" }, h("a", { class: "button primary", href: `/studies/${id}/trials/${trial}` }, `Open trial ${trial}`),
      h("button", { type: "button", class: "secondary", onclick: () => { state.selected = null; place.hidden = true; judge(); } }, "Close")));
  place.hidden = false;
  judge();
}

// -- words and numbers

function showSummary(summary) {
  state.summary = summary;
  const badge = byId("state");
  badge.textContent = summary.state;
  badge.className = `badge badge-${summary.state}`;
  badge.hidden = false;
  countdown.set(summary);
  if (summary.state === "queued") byId("left").textContent = summary.job?.position ? `place ${summary.job.position} in the queue` : "";
  else if (!summary.deadline) byId("left").textContent = !summary.spent_s ? "" : `${format.duration(summary.spent_s)} of ${format.duration(summary.budget_s)} spent`;
  byId("headline").textContent = summary.best.length ? `${format.capital(summary.best[0].replace(/ \(trial \d+\)$/, ""))}.` : headline(summary);
  byId("lead").textContent = summary.best.length ? `That is ${/trial \d+/.exec(summary.best[0])[0]}, the best balance so far. Every number here was measured on the file that ships.` : lead(summary);
  const message = summary.error || summary.message;
  byId("message").hidden = !message;
  byId("message").textContent = format.capital(message ?? "");
  showActions(summary);
}

function headline(summary) {
  if (summary.state === "queued") return `${summary.study} waits for its device`;
  if (ACTIVE.includes(summary.state)) return `${summary.study} has begun`;
  return `${summary.study} has found nothing yet`;
}

function lead(summary) {
  if (summary.state === "queued") return "It starts by itself when the searches before it are done; its budget has not begun.";
  if (ACTIVE.includes(summary.state)) return "The dense model comes first: it is trained if no weights were given, then measured. Points appear here as they come.";
  return "Resume it if some of its budget is left, or start it again with a larger one.";
}

function showActions(summary) {
  const key = `${summary.state} ${summary.best.length > 0}`;
  const place = byId("actions");
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  const items = [];
  if (ACTIVE.includes(summary.state)) items.push(confirmed("Cancel the search", "Really? Press again to end it", async () => { showSummary({ ...summary, ...(await post(`${path}/cancel`)) }); notice("The search was asked to end. What it found stays."); }, { id: "cancel" }));
  if (["interrupted", "cancelled", "failed"].includes(summary.state)) items.push(h("button", { type: "button", class: "primary", id: "resume", onclick: (event) => busy(event.currentTarget, async () => { showSummary({ ...summary, ...(await post(`${path}/resume`)) }); notice("The search goes on with what is left of its budget."); }) }, "Resume"));
  if (summary.best.length) items.push(h("a", { class: "button secondary", href: `/compare?study=${id}` }, "Compare with another"));
  if (!ACTIVE.includes(summary.state)) items.push(h("button", { type: "button", class: "secondary", id: "delete", onclick: (event) => offerDeletion(event.currentTarget) }, "Delete …"));
  place.replaceChildren(...items);
}

async function offerDeletion(button) {
  const { study, trials: counted } = state.summary;
  const text = `Its ${format.count(counted.total, "trial")}, with every file, log and bundle of it, are removed from the server. This cannot be undone. Bundles that you have downloaded stay with you.`;
  if (!(await ask(`Delete ${study}?`, text, "Delete it for good"))) return;
  await busy(button, async () => {
    gone = true;
    try {
      await remove(path);
    } catch (error) {
      gone = false;
      throw error;
    }
    location.assign("/");
  });
}

async function exported(button, trial) {
  button.textContent = "Making the bundle …";
  const made = await busy(button, () => download(id, { pick: `trial:${trial}` }));
  if (made) notice(`The bundle of trial ${trial} is in your downloads: the model, its card, its plan, and run.py.`, "good");
}

function showTiles(points) {
  const { baseline } = points;
  if (!baseline) { fill("tiles"); return; } // there is nothing to tell but zeros
  const { max_drop: maxDrop, max_size: maxSize, max_latency: maxLatency } = points.limits;
  const chosen = best(state.rows, { maxDrop, maxSize, maxLatency }, "knee", points); // the headline tells of the same one
  const shown = chosen && chosen.origin !== "baseline" ? chosen : null;
  const trialsOf = (kind) => points.counts[kind] ?? 0;
  const tiles = [];
  tiles.push(["File", format.bytes((shown ?? baseline).size_bytes), shown ? `dense: ${format.bytes(baseline.size_bytes)}` : "the dense model"]);
  tiles.push(["Latency", format.ms((shown ?? baseline).latency_ms), shown ? `dense: ${format.ms(baseline.latency_ms)}${shown.origin === "cascade" ? "; the mean over samples" : ""}` : "the dense model"]);
  for (const [split, label] of [["val", "validation"], ["test", "test"]]) {
    const value = (shown ?? baseline)[split];
    tiles.push([`${format.capital(points.metric_name)}, ${label}`, format.metric(value, points.is_share), value === null || baseline[split] === null ? "not looked at" : shown ? `dense: ${format.metric(baseline[split], points.is_share)}` : "the dense model"]);
  }
  const { val, test } = points.hypervolume;
  tiles.push(["Hypervolume", format.hypervolume(val), test === null ? "1 would be perfect" : `on test: ${format.hypervolume(test)}`]);
  const ended = ["stopped", "infeasible", "failed"].filter(trialsOf).map((kind) => `${trialsOf(kind).toLocaleString("en")} ${kind}`);
  tiles.push(["Trials", state.rows.length.toLocaleString("en"), ended.join(", ") || `${trialsOf("complete")} measured`]);
  fill("tiles", ...tiles.map(([name, value, was]) => h("div", {}, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "was" }, was))));
}

function nothingYet(detail, points) {
  if (!points.baseline) return emptyBox("No dense model yet", ACTIVE.includes(detail.state) ? "Everything here is told against the dense model, which is loaded, trained if no weights were given, and measured now." : "Everything here is told against the dense model, and it was not measured before the search ended.");
  return emptyBox("No front yet", "The dense model is measured; no trial has been trained to its end so far.");
}

function showOrigin(detail) {
  const record = detail.record;
  byId("origin").hidden = !record;
  if (!record) return;
  const { device, data_sizes: sizes, versions, baseline } = record;
  const pairs = [
    ["Device", `${device.name}, ${device.runtime}, ${format.count(device.threads, "thread")}, batch ${device.batch}${device.description ? `; ${device.description}` : ""}`],
    ["Data", Object.entries(sizes).map(([split, count]) => `${split} ${count.toLocaleString("en")}`).join(", ") || (ACTIVE.includes(detail.state) ? "not read yet" : "sizes were not recorded")],
    baseline && ["Dense model", `${baseline.params.toLocaleString("en")} parameters, ${baseline.macs.toLocaleString("en")} multiply-accumulates, ${baseline.size_bytes.toLocaleString("en")} bytes`],
    ["Objectives", record.objectives.join(", ")],
    ["Seed", String(record.seed)],
    ["Configuration", h("code", {}, record.config_hash)],
    ["Versions", Object.entries(versions).sort().map(([name, version]) => `${name} ${version}`).join(", ") || "were not recorded"],
    ["Started", format.moment(record.created)],
    ["The same on the command line", h("code", {}, `autocompress front ${record.name}`)],
  ];
  fill("facts", ...pairs.filter(Boolean).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  fill("notes", ...(detail.facts?.notes ?? []).map((note) => h("li", {}, note)));
  const skips = detail.facts?.skips ?? [];
  refill("skips", skips, () => [skips.length ? h("details", {}, h("summary", {}, `${format.count(skips.length, "layer")} left as ${skips.length === 1 ? "it is" : "they are"}`),
    table([["Layer", (skip) => skip.name, "text"], ["Not", (skip) => SKIPPED[skip.what] ?? skip.what, "text"], ["Because", (skip) => skip.reason, "text"]], skips, { label: "What was left as it is" })) : null]);
  const told = detail.beliefs?.lines ?? [];
  refill("beliefs", told, () => [told.length ? h("div", { class: "panel" }, h("h3", {}, "What the search believed, against what came out"), h("ul", { class: "notes" }, told.map((line) => h("li", {}, line)))) : null]);
}

// -- the page

for (const place of document.querySelectorAll("details[data-lazy]")) {
  place.addEventListener("toggle", () => { if (place.open) fetchFigure(place.dataset.lazy); });
}
byId("target").addEventListener("change", () => fetchFigure("importance"));

let told = 0;
function tell(summary) {
  if (Date.now() - told < 20000) return;
  told = Date.now();
  announce(`${format.count(summary.trials.total, "trial")}, hypervolume ${format.hypervolume(summary.hypervolume)}`);
}

try {
  await refresh();
  document.body.dataset.ready = "yes";
  listen(`${path}/events`, {
    trial: () => refresher.ask(),
    front: () => refresher.ask(),
    state: (summary) => {
      const ended = state.summary && ACTIVE.includes(state.summary.state) && !ACTIVE.includes(summary.state);
      showSummary({ ...state.summary, ...summary });
      if (ended) notice(summary.state === "finished" ? "The search is finished. The most promising points were trained longer, timed afresh, and looked at on test data." : `The search ${ENDED[summary.state] ?? "has ended"}.${summary.best.length ? " What it found stays." : ""}`);
      tell(summary);
      if (ended) refresher.hurry(); // the final stage has changed the front: a link to a point that left it leads nowhere useful
      else refresher.ask();
    },
    deleted: () => {
      gone = true;
      fill("actions", h("a", { class: "button secondary", href: "/" }, "All studies"));
      notice("This study was deleted. What this page still shows is gone from the server.", "error");
    },
  }, showLink);
} catch (error) {
  fill("tiles");
  byId("tiles").hidden = true;
  fill("empty", problemBox(error));
}
