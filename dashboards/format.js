// Numbers as people read them, with their units. The same rules as autocompress/front/explain.py; a test holds them equal.

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const [unit, factor] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (value >= factor * 0.9995) {
      const scaled = value / factor;
      return `${scaled.toFixed(scaled < 9.995 ? 2 : scaled < 99.95 ? 1 : 0)} ${unit}`;
    }
  }
  return `${value.toFixed(0)} B`;
}

export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (!(Number.isFinite(value) && value > 0)) return `${value} ms`;
  return `${value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(value))))} ms`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 120) return seconds < 10 ? `${seconds.toFixed(1)} s` : `${seconds.toFixed(0)} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// What is left of a budget, as a clock that counts down: 1:05, 12:00, 1:02:00.
export function clock(seconds) {
  const whole = Math.max(0, Math.ceil(seconds)), h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60;
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(whole % 60)}` : `${m}:${two(whole % 60)}`;
}

export function drop(value, direction = "maximize") {
  if (value === null || value === undefined) return "–";
  const unit = direction === "maximize" ? "points" : "%";
  if (Math.abs(value) < 5e-5) return `0 ${unit}`;
  return `${(value * 100).toFixed(Math.abs(value) < 0.0095 ? 2 : 1)} ${unit}`;
}

export function change(value, direction = "maximize") {
  if (value === null || value === undefined) return "–";
  return `${drop(Math.abs(value), direction)} ${value < 0 ? "gained" : "lost"}`;
}

export function metric(value, isShare) {
  if (value === null || value === undefined) return "–";
  return isShare ? `${(value * 100).toFixed(1)}%` : String(Number(value.toPrecision(4)));
}

export function count(number, what) {
  return number === 1 ? `1 ${what}` : `${number.toLocaleString("en")} ${what}s`;
}

export function capital(text) {
  return text ? text[0].toUpperCase() + text.slice(1) : "";
}

export function hypervolume(value) {
  return value === null || value === undefined ? "–" : value.toFixed(3);
}

// A moment of the server's clock, in the reader's own time zone.
export function moment(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return iso ?? "–";
  return date.toLocaleString(undefined, { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
}
