// When to look again: soon after something happened, but never so often that looking is all that happens.
const SOONEST_MS = 1500, SHARE = 6; // a look that took 1 s is followed by 6 s of rest

export class Refresher {
  constructor(look) {
    this.look = look;
    this.timer = null;
    this.busy = false;
    this.again = false;
    this.rest = 0;
    document.addEventListener("visibilitychange", () => { if (!document.hidden && this.again) this.ask(); });
  }

  // Something changed. Nothing is read while nobody looks.
  ask() {
    this.again = true;
    if (document.hidden || this.busy || this.timer) return;
    this.timer = setTimeout(() => this.run(), this.rest);
  }

  // Something ended: look without waiting out the rest.
  hurry() {
    this.rest = 0;
    clearTimeout(this.timer);
    this.timer = null;
    this.ask();
  }

  async run() {
    this.timer = null;
    this.again = false;
    this.busy = true;
    this.rest = null;
    const start = performance.now();
    try {
      await this.look();
    } finally {
      this.busy = false;
      this.rest ??= Math.max(SOONEST_MS, SHARE * (performance.now() - start)); // unless hurried meanwhile
    }
    if (this.again) this.ask();
  }
}

// Counts a budget down by the server's clock. summary: as the server gives it; tell(seconds left) every second.
export class Countdown {
  constructor(tell) {
    this.tell = tell;
    this.ends = null;
    setInterval(() => this.tick(), 1000);
  }

  set(summary) {
    const skew = Date.parse(summary.now) - Date.now();
    this.ends = summary.deadline ? Date.parse(summary.deadline) - skew : null;
    this.tick();
  }

  tick() {
    if (this.ends !== null) this.tell(Math.max(0, (this.ends - Date.now()) / 1000));
  }
}
