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

  // Ranges come from what was measured, and the study's own limits are found in them anew; what the reader has set stays.
  update(points, rows) {
    const measured = rows.filter((row) => row.size_bytes !== null);
    const sizes = measured.map((row) => row.size_bytes), times = measured.map((row) => row.latency_ms);
    const low = (values, top) => values.reduce((a, b) => Math.min(a, b), top);
    const { baseline, direction } = points;
    this.kinds = {
      maxDrop: { label: "Lose at most", text: (v) => format.drop(v, direction), value: (step) => (step / STEPS) * points.reference.drop, given: points.limits.max_drop },
      maxSize: { label: "File at most", text: format.bytes, value: logarithmic(low(sizes, baseline.size_bytes), baseline.size_bytes), given: points.limits.max_size },
      maxLatency: { label: "Run at most", text: format.ms, value: linear(low(times, baseline.latency_ms), baseline.latency_ms), given: points.limits.max_latency },
    };
    if (!this.inputs) this.build();
    else for (const [name, kind] of Object.entries(this.kinds)) {
      if (!this.moved.has(name)) this.inputs[name].value = String(this.stepOf(name, kind.given));
      this.tell(name);
    }
  }

  build() {
    this.inputs = {};
    this.outputs = {};
    this.moved = new Set(); // by the reader
    const fields = Object.entries(this.kinds).map(([name, kind]) => {
      const output = h("output", { for: `limit-${name}` });
      const input = h("input", { type: "range", id: `limit-${name}`, min: "0", max: String(STEPS), step: "1", oninput: () => { this.moved.add(name); this.tell(name); this.onChange(); } });
      input.value = String(this.stepOf(name, kind.given));
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
    for (const name of Object.keys(this.kinds)) this.tell(name);
  }

  clear() {
    for (const name of Object.keys(this.kinds)) { this.moved.add(name); this.inputs[name].value = String(STEPS); this.tell(name); }
    this.onChange();
  }

  // The lowest step that allows at least the limit of the study.
  stepOf(name, given) {
    if (given === null || given === undefined) return STEPS;
    for (let step = 0; step < STEPS; step += 1) if (this.kinds[name].value(step) >= given * (1 - 1e-9)) return step;
    return STEPS;
  }

  limit(name) {
    const step = Number(this.inputs[name].value);
    return step >= STEPS ? null : this.kinds[name].value(step);
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
