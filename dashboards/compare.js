// Studies over one another: fronts, hypervolume, and which point matches which.
import { all, get } from "./api.js";
import { byId, fill, h, table } from "./dom.js";
import { asTable, nameLosses, paint } from "./figures.js";
import * as format from "./format.js";
import { problemBox } from "./page.js";

const wanted = document.body.dataset.studies.split(" ").filter(Boolean);
const query = wanted.map((id) => `study=${encodeURIComponent(id)}`).join("&");

async function showChoices() {
  const items = (await all("/studies")).filter((study) => study.hypervolume !== null);
  const boxes = items.map((study) => {
    const box = h("input", { type: "checkbox", name: "study", value: study.id, checked: wanted.includes(study.id) });
    return h("label", {}, box, ` ${study.study} `, h("small", {}, `${study.device}, ${format.duration(study.budget_s)}, hypervolume ${format.hypervolume(study.hypervolume)}`));
  });
  fill("choices", ...(boxes.length > 1 ? boxes : [h("p", { class: "none" }, "Two studies with a dense model are needed; start another search first.")]));
  const enable = () => { const count = document.querySelectorAll('[name="study"]:checked').length; byId("show").disabled = count < 2 || count > 6; };
  byId("choices").addEventListener("change", enable);
  enable();
}

const signed = (value, digits) => (value === null ? "–" : `${value > 0 ? "+" : ""}${value.toFixed(digits)}`);

function pointText(point, direction) {
  return `${format.bytes(point.size_bytes)}, ${format.ms(point.latency_ms)}, ${format.drop(point.drop, direction)} lost`;
}

function trialLink(study, point) {
  return h("a", { href: `/studies/${study.id}/trials/${point.trial}` }, `trial ${point.trial}`);
}

function showSummary(found) {
  const columns = [
    ["Study", (s) => [h("a", { href: `/studies/${s.id}` }, s.study), h("small", {}, `${s.state}; ${s.device.name}, ${s.device.runtime}, ${format.count(s.device.threads, "thread")}${s.sampler ? `; sampler ${s.sampler}` : ""}`)], "text"],
    ["Time", (s) => [format.duration(s.spent_s), h("small", {}, `of ${format.duration(s.budget_s)}`)]],
    ["Trials", (s) => [s.trials.toLocaleString("en"), h("small", {}, `${s.front} on the front`)]],
    ["Hypervolume, validation", (s) => [format.hypervolume(s.hypervolume.val), s === found.studies[0] ? null : h("small", {}, signed(s.hypervolume_difference.val, 3))]],
    ["Hypervolume, test", (s) => [format.hypervolume(s.hypervolume.test), s === found.studies[0] ? null : h("small", {}, signed(s.hypervolume_difference.test, 3))]],
    ["Best balance", (s) => (s.knee ? [trialLink(s, s.knee), `: ${s.words}`] : "–"), "text"],
  ];
  fill("summary", table(columns, found.studies, { caption: `Differences are told against ${found.studies[0].study}` }));
  const values = found.studies.map((s) => s.hypervolume.val);
  const top = values.indexOf(Math.max(...values.map((v) => v ?? -1)));
  const gap = found.studies.length === 2 && values.every((v) => v !== null) ? Math.abs(values[0] - values[1]) : null;
  byId("headline").textContent = gap === null ? `${found.studies.length} studies compared` : gap < 0.005 ? `${found.studies[0].study} and ${found.studies[1].study} cover the same` : `${found.studies[top].study} covers ${gap.toFixed(3)} more of the hypervolume`;
}

function showLevels(found) {
  const cell = (which) => (row, i) => { const p = row.studies[i][which]; return p ? [trialLink(found.studies[i], p), ": ", which === "small" ? format.bytes(p.size_bytes) : format.ms(p.latency_ms)] : "–"; };
  const columns = [["At most", (row) => format.drop(row.max_drop, found.direction), "text"], ...found.studies.flatMap((study, i) => [
    [`${study.study}: smallest`, (row) => cell("small")(row, i)], [`${study.study}: fastest`, (row) => cell("fast")(row, i)]])];
  fill("levels", table(columns, found.levels, { label: "The smallest and the fastest within a loss" }));
}

function showMatched(found) {
  const [first, ...others] = found.studies;
  byId("matched-note").textContent = `Every point of ${first.study}, with the nearest of the others: ${found.direction === "maximize" ? "5 points of loss" : `5 % more ${found.metric_name}`} count as much as the whole size and the whole latency.`;
  const verdicts = { first: `${first.study} is better in all`, equal: "equal", neither: "neither is better in all" };
  const match = (row, i) => {
    const p = row.others[i];
    return p ? [trialLink(others[i], p), `: ${pointText(p, found.direction)}`, h("small", {}, `${p.better === "other" ? `${others[i].study} is better in all` : verdicts[p.better]}; distance ${p.distance.toFixed(2)}`)] : "–";
  };
  const columns = [[first.study, (row) => [trialLink(first, row.point), `: ${pointText(row.point, found.direction)}`], "text"],
    ...others.map((study, i) => [study.study, (row) => match(row, i), "text"])];
  fill("matched", found.matched.length ? table(columns, found.matched, { label: "Table of matched points" }) : h("p", { class: "none" }, `${first.study} has found no point yet.`));
}

byId("pick").addEventListener("submit", (event) => {
  event.preventDefault();
  const ids = [...document.querySelectorAll('[name="study"]:checked')].map((box) => box.value);
  location.assign(`/compare?${ids.map((id) => `study=${id}`).join("&")}`);
});

try {
  await showChoices();
  if (wanted.length > 1) {
    const found = await get(`/compare?${query}`);
    byId("comparison").hidden = false;
    nameLosses(found);
    showSummary(found);
    showLevels(found);
    showMatched(found);
    fill("notes", ...found.notes.map((note) => h("li", {}, note)));
    const figures = await Promise.all(["accuracy_size", "accuracy_latency", "hypervolume"].map(async (name) => [name, await get(`/compare/figures/${name}?${query}`)]));
    for (const [name, figure] of figures) await paint(name, figure);
    asTable("table-hypervolume", figures[2][1], ["Budget spent, s", "Hypervolume"], { name: "Study" });
  }
  document.body.dataset.ready = "yes";
} catch (error) {
  fill("problem", problemBox(error));
}
