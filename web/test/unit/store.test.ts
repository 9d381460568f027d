import { describe, expect, it } from "vitest";
import { type Change, readInfo, readJob, readPilot, readResource } from "../../src/model";
import { Store, type View, endedJobsKept, matcher, samplesKept, selectJobs } from "../../src/store";

const job = (id: number, more: object = {}): Change => ({ kind: "job", value: readJob({ id: String(id), spec: { command: { argv: ["true"] } }, ...more }) });
const all: View = { group: "all", text: "", sort: "id", down: true };

function filled(...changes: Change[]): Store {
  const store = new Store();
  store.beginSnapshot(readInfo({ host: "laptop" }), 0);
  store.apply(changes);
  store.endSnapshot();
  return store;
}

describe("the store", () => {
  it("shows a snapshot only when it is complete, and in the place of what was", () => {
    const store = filled(job(1), job(2));
    expect([...store.jobs.keys()]).toEqual([1, 2]);
    store.beginSnapshot(readInfo({ host: "laptop" }), 5);
    store.apply([job(3)]);
    expect([...store.jobs.keys()]).toEqual([1, 2]);
    store.endSnapshot();
    expect([...store.jobs.keys()]).toEqual([3]);
    expect(store.omittedJobs).toBe(5);
  });
  it("a snapshot that was cut leaves nothing behind", () => {
    const store = filled(job(1));
    store.beginSnapshot(readInfo({}), 0);
    store.apply([job(7)]);
    store.beginSnapshot(readInfo({}), 0);
    store.apply([job(8)]);
    store.endSnapshot();
    expect([...store.jobs.keys()]).toEqual([8]);
  });
  it("takes changes and removals, and tells its listeners", () => {
    const store = filled(job(1), { kind: "resource", value: readResource({ spec: { name: "desk" } }) });
    let told = 0;
    const stop = store.subscribe(() => told++);
    store.apply([job(1, { state: "JOB_FAILED" }), { kind: "resource_removed", name: "desk" }]);
    expect(store.jobs.get(1)?.state).toBe("failed");
    expect(store.resources.has("desk")).toBe(false);
    expect(told).toBe(1);
    stop();
    store.apply([job(3)]);
    expect(told).toBe(1);
  });
  it("keeps no more ended jobs than a snapshot brings, the newest, and counts the others", () => {
    const store = filled(job(1, { state: "JOB_RUNNING" }));
    const more = 3000;
    for (let id = 2; id < endedJobsKept + more; ++id) store.apply([job(id, { state: "JOB_FINISHED" })]);
    expect(store.jobs.has(1)).toBe(true);
    expect(store.jobs.has(2)).toBe(false);
    expect(store.jobs.has(endedJobsKept + more - 1)).toBe(true);
    expect(store.jobs.size).toBeLessThanOrEqual(endedJobsKept * 1.1 + 1);
    expect(store.jobs.size + store.omittedJobs).toBe(endedJobsKept + more - 1);
  });
  it("counts", () => {
    const store = filled(job(1, { state: "JOB_QUEUED" }), job(2, { state: "JOB_DISPATCHED" }), job(3, { state: "JOB_RUNNING", spec: { worker: {} } }),
      job(4, { state: "JOB_FAILED" }), { kind: "pilot", value: readPilot({ id: "1", state: "PILOT_RUNNING", slots: 8, slots_used: 3 }) },
      { kind: "pilot", value: readPilot({ id: "2", state: "PILOT_FAILED", slots: 8 }) });
    expect(store.counters()).toEqual({ waiting: 2, running: 1, finished: 0, failed: 1, canceled: 0, workers: 1 });
    expect(store.slots()).toEqual({ used: 3, all: 8, pilots: 1 });
  });
  it("a refusal stands, and the first moment of a cut", () => {
    const store = new Store();
    store.setLive({ state: "reconnecting", sinceMs: 1 });
    store.setLive({ state: "reconnecting", sinceMs: 2 });
    expect(store.live).toEqual({ state: "reconnecting", sinceMs: 1 });
    store.setLive({ state: "refused", message: "no" });
    store.setLive({ state: "reconnecting", sinceMs: 3 });
    expect(store.live.state).toBe("refused");
    store.setLive({ state: "live" });
    expect(store.live.state).toBe("live");
  });
  it("derived lists are made once for each state of things", () => {
    const store = filled(job(1));
    const first = store.listJobs(all);
    expect(store.listJobs({ ...all })).toBe(first);
    store.apply([job(2)]);
    expect(store.listJobs(all)).not.toBe(first);
  });
});

describe("rates", () => {
  const worker = (calls: number, out: number): Change => job(1, { state: "JOB_RUNNING", spec: { worker: { executable: "w" } },
    channel: { calls: String(calls), bytes_to_worker: String(out), bytes_from_worker: "0" } });
  it("come from the counters and the time between two looks", () => {
    const store = filled(worker(100, 1000));
    store.sample(10_000);
    expect(store.rates(1)?.calls).toEqual([]);
    store.apply([worker(300, 3000)]);
    store.sample(12_000);
    expect(store.rates(1)?.calls).toEqual([100]);
    expect(store.rates(1)?.out).toEqual([1000]);
    expect(store.rates(1)?.at).toEqual([12]);
  });
  it("between two counters the rate is held, and set right by the next", () => {
    const store = filled(worker(0, 0));
    store.sample(0);
    store.apply([worker(100, 0)]);
    store.sample(1000);
    store.sample(2000);
    store.sample(3000);
    expect(store.rates(1)?.calls).toEqual([100, 100, 100]);
    store.apply([worker(160, 0)]);
    store.sample(4000);
    expect(store.rates(1)?.calls).toEqual([100, 20, 20, 20]);
    expect(store.rates(1)?.at).toEqual([1, 2, 3, 4]);
  });
  it("without counters for some seconds the worker is idle, and its next calls are of late", () => {
    const store = filled(worker(0, 0));
    store.sample(0);
    store.apply([worker(100, 0)]);
    for (let second = 1; second <= 31; ++second) store.sample(second * 1000);
    expect(store.rates(1)?.calls[0]).toBe(100);
    expect(Math.max(...(store.rates(1)?.calls.slice(1) ?? [1]))).toBe(0);
    store.apply([worker(700, 0)]);
    store.sample(32_000);
    expect(store.rates(1)?.calls.at(-1)).toBe(100);
    expect(store.rates(1)?.calls.length).toBe(32);
  });
  it("a counter that starts over is no negative rate; the history is bounded; what is gone is forgotten", () => {
    const store = filled(worker(100, 1000));
    for (let second = 0; second <= samplesKept + 50; ++second) {
      store.apply([worker(second === 20 ? 0 : second * 5, 0)]);
      store.sample(second * 1000);
    }
    const rates = store.rates(1);
    expect(rates?.at.length).toBe(samplesKept);
    expect(Math.min(...(rates?.calls ?? [-1]))).toBeGreaterThanOrEqual(0);
    store.beginSnapshot(readInfo({}), 0);
    store.endSnapshot();
    store.sample(1e6);
    expect(store.rates(1)).toBeNull();
  });
});

describe("filters", () => {
  const jobs = [
    readJob({ id: "1", spec: { name: "Gravity", command: { argv: ["run", "--fast"] } }, host: "node01", state: "JOB_RUNNING", running_ms: "1000" }),
    readJob({ id: "12", spec: { name: "fit", command: { argv: ["run"] } }, host: "desk", state: "JOB_FAILED", running_ms: "1000", ended_ms: "9000", exit: { message: "killed by signal 11" } }),
    readJob({ id: "3", spec: { name: "fit", command: { argv: ["(x[" ] } }, state: "JOB_QUEUED" }),
  ];
  const ids = (view: Partial<View>) => selectJobs(jobs, { ...all, ...view }).map(({ id }) => id);
  it("every word counts, in any case, as it is written", () => {
    expect(ids({ text: "GRAVITY" })).toEqual([1]);
    expect(ids({ text: " run  node01 " })).toEqual([1]);
    expect(ids({ text: "run nowhere" })).toEqual([]);
    expect(ids({ text: "signal 11" })).toEqual([12]);
    expect(ids({ text: "(x[" })).toEqual([3]);
    expect(ids({ text: "#12" })).toEqual([12]);
    expect(ids({ text: "#1" })).toEqual([1]);
    expect(matcher("  ")(jobs[0]!)).toBe(true);
  });
  it("groups and orders", () => {
    expect(ids({ group: "waiting" })).toEqual([3]);
    expect(ids({})).toEqual([12, 3, 1]);
    expect(ids({ down: false })).toEqual([1, 3, 12]);
    expect(ids({ sort: "state" })).toEqual([12, 1, 3]);       // what needs a look first
    expect(ids({ sort: "time" })).toEqual([1, 12, 3]);
    expect(ids({ sort: "name", down: false })).toEqual([1, 3, 12]);
  });
  it("ten thousand jobs are chosen and sorted without a pause that one sees", () => {
    const many = Array.from({ length: 10_000 }, (_, i) => readJob({ id: String(i), spec: { command: { argv: ["mc_run", String(i)] } }, state: "JOB_FINISHED" }));
    const start = performance.now();
    expect(selectJobs(many, { ...all, text: "mc_run 99" }).length).toBeGreaterThan(100);
    expect(performance.now() - start).toBeLessThan(3000);
  });
});
