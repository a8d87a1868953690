// What follows from the columns of all trials: rows, who keeps the limits, and the best that remains. Nothing is drawn here.
// The rules are those of autocompress/front/choose.py; a test holds them equal.
const SLACK = 1e-9;
export const RULES = { knee: "the best balance", small: "the smallest", fast: "the fastest", accurate: "the most accurate" };

export function rowsOf(points) {
  const names = Object.keys(points.columns);
  return points.columns.trial.map((_, i) => Object.fromEntries(names.map((name) => [name, points.columns[name][i]])));
}

// Losses are judged on test data if the dense model and every point of the front were looked at, else on validation data.
export function judgedSplit(rows, baseline) {
  const front = rows.filter((row) => row.on_front);
  const onTest = front.length > 0 && baseline?.test != null && front.every((row) => row.test !== null);
  return onTest ? "test" : "val";
}

export function lossOf(row, split) {
  return split === "test" ? row.test_drop : row.drop;
}

// Which limits a row breaks. limits: { maxDrop, maxSize, maxLatency }, null for none; shares, bytes, milliseconds.
export function broken(row, limits, split) {
  const pairs = [["maxDrop", lossOf(row, row.on_front ? split : "val")], ["maxSize", row.size_bytes], ["maxLatency", row.latency_ms]];
  return pairs.filter(([name, value]) => {
    const limit = limits[name];
    return limit !== null && limit !== undefined && (value === null || value > limit + SLACK * Math.max(1, Math.abs(limit)));
  }).map(([name]) => name);
}

export const keeps = (row, limits, split) => broken(row, limits, split).length === 0;

// The point of the front to take under the limits, or null. The dense model is taken only if nothing else is left.
export function best(rows, limits, rule, points) {
  const split = judgedSplit(rows, points.baseline);
  const met = rows.filter((row) => row.on_front && keeps(row, limits, split));
  const compressed = met.filter((row) => row.origin !== "baseline");
  const candidates = compressed.length ? compressed : met;
  if (!candidates.length) return null;
  const order = ordering(rule, candidates, split, points);
  return candidates.reduce((kept, row) => (before(order(row), order(kept)) ? row : kept));
}

// What is no objective of the study counts as 0; where "compressed" is one, the bytes that count are those zipped.
function ordering(rule, rows, split, points) {
  const wanted = (name) => points.objectives.includes(name);
  const zipped = wanted("compressed") && points.columns.compressed_bytes !== undefined;
  const bytes = (row) => (zipped ? row.compressed_bytes : row.size_bytes);
  const whole = Math.max(1, bytes(points.baseline));
  const size = (row) => (wanted("size") || wanted("compressed") ? bytes(row) / whole : 0);
  const time = (row) => (wanted("latency") ? row.ratio : 0);
  const span = (row) => Math.max(0, 1 - Math.max(lossOf(row, split), 0) / points.reference.drop)
    * Math.max(0, 1 - size(row)) * Math.max(0, 1 - time(row));
  const axes = (row) => [Math.min(lossOf(row, split), 1e6), size(row), time(row)];
  const columns = [0, 1, 2].map((k) => rows.map((row) => axes(row)[k]));
  const low = columns.map((c) => Math.min(...c)), high = columns.map((c) => Math.max(...c));
  const distance = (row) => Math.hypot(...axes(row).map((v, k) => (high[k] > low[k] ? (v - low[k]) / (high[k] - low[k]) : 0)));
  const nothingSpans = Math.max(...rows.map(span)) <= 0;
  const first = {
    accurate: (row) => lossOf(row, split),
    small: bytes,
    fast: (row) => row.ratio,
    knee: (row) => (nothingSpans ? distance(row) : -span(row)),
  }[rule];
  return (row) => [first(row), lossOf(row, split), bytes(row), row.ratio, row.trial];
}

function before(left, right) {
  for (let i = 0; i < left.length; i += 1) if (left[i] !== right[i]) return left[i] < right[i];
  return false;
}

// Rows in the order of a column, those without a value last.
export function sorted(rows, key, descending) {
  const sign = descending ? -1 : 1;
  return [...rows].sort((a, b) => {
    const left = a[key], right = b[key];
    if (left === right) return a.trial - b.trial;
    if (left === null) return 1;
    if (right === null) return -1;
    return (left < right ? -1 : 1) * sign;
  });
}
