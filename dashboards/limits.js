// The sliders of a study: how much may be lost, how large and how slow a file may be. Moving one tells the listener.
import { h } from "./dom.js";
import { RULES } from "./facts.js";
import * as format from "./format.js";

const STEPS = 100; // the last step is "no limit"

export class Limits {
  constructor(place, onChange) {
    this.place = place;
    this.onChange = onChange;
    this.kinds = null;
  }

  // Ranges come from what was measured; limits stay, those of the study and what the reader has set.
  update(points, rows) {
    const measured = rows.filter((row) => row.size_bytes !== null);
    const sizes = measured.map((row) => row.size_bytes), times = measured.map((row) => row.latency_ms);
    const low = (values, top) => values.reduce((a, b) => Math.min(a, b), top);
    const { baseline, direction } = points;
    // The study's own limit lies before the last step, which is none.
    const most = Math.max(points.reference.drop, ((points.limits.max_drop ?? 0) * STEPS) / (STEPS - 1));
    this.kinds = {
      maxDrop: { label: "Lose at most", text: (v) => format.drop(v, direction), value: (step) => (step / STEPS) * most, given: points.limits.max_drop },
      maxSize: { label: "File at most", text: format.bytes, value: logarithmic(low(sizes, baseline.size_bytes), baseline.size_bytes), given: points.limits.max_size },
      maxLatency: { label: "Run at most", text: format.ms, value: linear(low(times, baseline.latency_ms), baseline.latency_ms), given: points.limits.max_latency },
    };
    if (!this.inputs) this.build();
    else for (const name of Object.keys(this.kinds)) this.show(name);
  }

  build() {
    this.inputs = {};
    this.outputs = {};
    this.chosen = Object.fromEntries(Object.entries(this.kinds).map(([name, kind]) => [name, kind.given ?? null]));
    const fields = Object.entries(this.kinds).map(([name, kind]) => {
      const output = h("output", { for: `limit-${name}` });
      const input = h("input", { type: "range", id: `limit-${name}`, min: "0", max: String(STEPS), step: "1", oninput: () => this.move(name) });
      this.inputs[name] = input;
      this.outputs[name] = output;
      return h("div", { class: "slider" }, h("label", { for: `limit-${name}` }, kind.label), output, input);
    });
    this.rule = h("select", { id: "limit-rule", onchange: this.onChange }, Object.entries(RULES).map(([value, label]) => h("option", { value }, label)));
    this.answer = h("p", { class: "answer", role: "status" });
    this.links = h("p", { class: "actions" });
    const clear = h("button", { type: "button", class: "quiet-dark", onclick: () => this.clear() }, "No limits");
    this.place.replaceChildren(
      h("div", { class: "slider-row" }, fields, h("div", { class: "slider" }, h("label", { for: "limit-rule" }, "Then take"), this.rule, clear)),
      h("div", { class: "answer-row" }, this.answer, this.links));
    for (const name of Object.keys(this.kinds)) this.show(name);
  }

  clear() {
    for (const name of Object.keys(this.kinds)) { this.chosen[name] = null; this.show(name); }
    this.onChange();
  }

  // To where the reader has put the slider.
  move(name) {
    const step = Number(this.inputs[name].value);
    this.chosen[name] = step < STEPS ? this.kinds[name].value(step) : null;
    this.tell(name);
    this.onChange();
  }

  // Puts the slider where its limit lies, at the lowest step that allows as much; what all keep is no limit.
  show(name) {
    const chosen = this.chosen[name], { value } = this.kinds[name];
    let step = chosen === null || chosen >= value(STEPS) ? STEPS : 0;
    while (step < STEPS - 1 && value(step) < chosen * (1 - 1e-9)) step += 1;
    this.inputs[name].value = String(step);
    this.tell(name);
  }

  limit(name) {
    return Number(this.inputs[name].value) < STEPS ? this.chosen[name] : null;
  }

  get values() {
    return Object.fromEntries(Object.keys(this.kinds).map((name) => [name, this.limit(name)]));
  }

  get any() {
    return Object.values(this.values).some((value) => value !== null);
  }

  tell(name) {
    const value = this.limit(name), text = value === null ? "no limit" : this.kinds[name].text(value);
    this.outputs[name].textContent = text;
    this.inputs[name].setAttribute("aria-valuetext", text);
  }
}

function linear(low, high) {
  return (step) => low + ((high - low) * step) / STEPS;
}

function logarithmic(low, high) {
  const from = Math.log(Math.max(low, 1)), to = Math.log(Math.max(high, low + 1));
  return (step) => Math.exp(from + ((to - from) * step) / STEPS);
}
