// What the page knows. Changes come in, views are derived; no I/O, no clock: both come in.
import { type Change, type Info, type Job, type JobState, type Pilot, type Resource, hasEnded, isWaiting } from "./model";

export type Live =
  | { state: "connecting" }
  | { state: "live" }
  | { state: "reconnecting"; sinceMs: number }
  | { state: "refused"; message: string };      // a person has to do something

export interface Counters {
  waiting: number; running: number; finished: number; failed: number; canceled: number; workers: number;
}

// The last minutes of one worker, a sample a second.
export interface Rates { at: number[]; calls: number[]; out: number[]; in: number[] }
export const samplesKept = 300;

// As many as a snapshot brings; a page that stays open does not keep more of those that have ended.
export const endedJobsKept = 20_000;

// The counters come every few seconds at the most: between two of them the rate is what it was, and it is set right when
// the next ones are there. Without any for `heldSamples` the worker is idle.
const heldSamples = 6;
interface Meter { rates: Rates; calls: number; out: number; in: number; atMs: number; held: number }

export type JobGroup = "all" | "waiting" | "running" | "finished" | "failed" | "canceled";
export const jobGroups: JobGroup[] = ["all", "waiting", "running", "finished", "failed", "canceled"];
export type SortKey = "id" | "name" | "state" | "where" | "time";
export interface View { group: JobGroup; text: string; sort: SortKey; down: boolean }

export function groupOf(state: JobState): Exclude<JobGroup, "all"> {
  return isWaiting(state) ? "waiting" : (state as Exclude<JobGroup, "all">);
}

class State {
  resources = new Map<string, Resource>();
  pilots = new Map<number, Pilot>();
  jobs = new Map<number, Job>();

  apply(change: Change): void {
    switch (change.kind) {
      case "resource": this.resources.set(change.value.name, change.value); break;
      case "pilot": this.pilots.set(change.value.id, change.value); break;
      case "job": this.jobs.set(change.value.id, change.value); break;
      case "resource_removed": this.resources.delete(change.name); break;
      case "pilot_removed": this.pilots.delete(change.id); break;
    }
  }
}

export class Store {
  info: Info | null = null;
  live: Live = { state: "connecting" };
  omittedJobs = 0;
  version = 0;                     // grows with every change of what is shown
  ready = false;                   // a complete state is there

  private state = new State();
  private dropAt = endedJobsKept;
  private coming: State | null = null;      // a snapshot on its way; shown when it is complete
  private meters = new Map<number, Meter>();
  private listeners = new Set<() => void>();

  get resources(): ReadonlyMap<string, Resource> { return this.state.resources; }
  get pilots(): ReadonlyMap<number, Pilot> { return this.state.pilots; }
  get jobs(): ReadonlyMap<number, Job> { return this.state.jobs; }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  beginSnapshot(info: Info, omittedJobs: number): void {
    this.info = info;
    this.omittedJobs = omittedJobs;
    this.coming = new State();
    this.touch();
  }
  endSnapshot(): void {
    if (this.coming) this.state = this.coming;
    this.coming = null;
    this.dropOldest();
    this.ready = true;
    this.touch();
  }
  resumed(info: Info): void {
    this.info = info;
    this.touch();
  }
  apply(changes: Change[]): void {
    const state = this.coming ?? this.state;
    for (const change of changes) state.apply(change);
    if (this.coming) return;
    this.dropOldest();
    this.touch();
  }
  // Looks at all jobs only now and then: a tenth above the limit is let in first.
  private dropOldest(): void {
    const { jobs } = this.state;
    if (jobs.size < this.dropAt) return;
    const ended = [...jobs.values()].filter((job) => hasEnded(job.state)).map((job) => job.id).sort((a, b) => a - b);
    const over = Math.max(0, ended.length - endedJobsKept);
    for (const id of ended.slice(0, over)) jobs.delete(id);
    this.omittedJobs += over;
    this.dropAt = jobs.size + endedJobsKept / 10;
  }
  setLive(live: Live): void {
    // Since the first moment; and a refusal stands until it is live again.
    if (live.state === "reconnecting" && (this.live.state === "reconnecting" || this.live.state === "refused")) return;
    this.live = live;
    this.touch();
  }

  // Once a second: what workers have done since the last time.
  sample(nowMs: number): void {
    let any = false;
    for (const job of this.state.jobs.values()) {
      if (job.channel === null || job.state !== "running") continue;
      any = true;
      const { calls, bytesOut, bytesIn } = job.channel;
      let meter = this.meters.get(job.id);
      if (!meter) {
        meter = { rates: { at: [], calls: [], out: [], in: [] }, calls, out: bytesOut, in: bytesIn, atMs: nowMs, held: 0 };
        this.meters.set(job.id, meter);
        continue;
      }
      const { rates } = meter;
      const series = [rates.calls, rates.out, rates.in];
      const moved = calls !== meter.calls || bytesOut !== meter.out || bytesIn !== meter.in;
      let now = series.map((one) => (meter.held < heldSamples ? one.at(-1) ?? 0 : 0));
      if (moved) {
        // Of a long silence only the last moments count: the rest was idle.
        const seconds = Math.max(0.001, Math.min((nowMs - meter.atMs) / 1000, heldSamples));
        now = [calls - meter.calls, bytesOut - meter.out, bytesIn - meter.in].map((more) => Math.max(0, more) / seconds);
        correct(series, Math.min(meter.held, heldSamples - 1), now);
        Object.assign(meter, { calls, out: bytesOut, in: bytesIn, atMs: nowMs, held: 0 });
      } else {
        meter.held += 1;
        if (meter.held === heldSamples) {
          now = [0, 0, 0];
          correct(series, heldSamples - 1, now);
        }
      }
      rates.at.push(nowMs / 1000);
      series.forEach((one, i) => one.push(now[i] ?? 0));
      if (rates.at.length > samplesKept) for (const one of [rates.at, ...series]) one.shift();
    }
    for (const id of this.meters.keys()) if (!this.state.jobs.has(id)) this.meters.delete(id);
    if (any) this.touch();
  }
  rates(id: number): Rates | null { return this.meters.get(id)?.rates ?? null; }

  counters(): Counters { return this.once("counters", () => countJobs(this.state.jobs.values())); }
  workers(): Job[] {
    return this.once("workers", () => {
      const workers = [...this.state.jobs.values()].filter((job) => job.kind === "worker");
      // Those at work first, then what ended last.
      return workers.sort((a, b) => Number(hasEnded(a.state)) - Number(hasEnded(b.state)) || b.id - a.id);
    });
  }
  listJobs(view: View): Job[] {
    return this.once(`jobs ${JSON.stringify(view)}`, () => selectJobs(this.state.jobs.values(), view));
  }
  slots(): { used: number; all: number; pilots: number } {
    let used = 0, all = 0, pilots = 0;
    for (const pilot of this.state.pilots.values()) {
      if (pilot.state !== "running" && pilot.state !== "draining") continue;
      used += pilot.used;
      all += pilot.slots;
      pilots += 1;
    }
    return { used, all, pilots };
  }

  // Derived views are kept until something changes.
  private derived = new Map<string, unknown>();
  private derivedAt = -1;
  private once<T>(key: string, make: () => T): T {
    if (this.derivedAt !== this.version) {
      this.derived.clear();
      this.derivedAt = this.version;
    }
    if (!this.derived.has(key)) this.derived.set(key, make());
    return this.derived.get(key) as T;
  }

  private touch(): void {
    this.version += 1;
    for (const listener of this.listeners) listener();
  }
}

// Sets the last `count` values of each series.
function correct(series: number[][], count: number, values: number[]): void {
  series.forEach((one, i) => {
    for (let at = Math.max(0, one.length - count); at < one.length; ++at) one[at] = values[i] ?? 0;
  });
}

export function countJobs(jobs: Iterable<Job>): Counters {
  const counters: Counters = { waiting: 0, running: 0, finished: 0, failed: 0, canceled: 0, workers: 0 };
  for (const job of jobs) {
    counters[groupOf(job.state)] += 1;
    if (job.kind === "worker" && job.state === "running") counters.workers += 1;
  }
  return counters;
}

// Every word must be somewhere; "#12" is the job with that number.
export function matcher(text: string): (job: Job) => boolean {
  const words = text.toLowerCase().split(/\s+/).filter((word) => word !== "");
  return (job) => words.every((word) => /^#\d+$/.test(word) ? job.id === Number(word.slice(1)) : job.search.includes(word));
}

export function selectJobs(jobs: Iterable<Job>, view: View): Job[] {
  const fits = matcher(view.text);
  const chosen: Job[] = [];
  for (const job of jobs) if ((view.group === "all" || groupOf(job.state) === view.group) && fits(job)) chosen.push(job);
  const order = orders[view.sort];
  const sign = view.down ? -1 : 1;
  return chosen.sort((a, b) => sign * (order(a, b) || a.id - b.id));
}

const stateOrder: JobState[] = ["failed", "running", "dispatched", "queued", "submitted", "canceled", "finished"];
// Those that still run count as longer than all that ended, the earliest as the longest.
const runTime = (job: Job): number =>
  job.runningMs === 0 ? -1 : job.endedMs === 0 ? Number.MAX_SAFE_INTEGER - job.runningMs : job.endedMs - job.runningMs;
const orders: Record<SortKey, (a: Job, b: Job) => number> = {
  id: (a, b) => a.id - b.id,
  name: (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0),
  state: (a, b) => stateOrder.indexOf(b.state) - stateOrder.indexOf(a.state),
  where: (a, b) => (a.host < b.host ? -1 : a.host > b.host ? 1 : 0),
  time: (a, b) => runTime(a) - runTime(b),
};
