import { describe, expect, it } from "vitest";
import { note, readChanges, readDetail, readInfo, readJob, readPilot, readResource } from "../../src/model";
import { exampleState } from "../mock_server.mjs";

describe("what comes from the API", () => {
  it("a worker, with protobuf's numbers as strings and defaults left out", () => {
    const job = readJob({
      id: "12", spec: { name: "gravity", processes: 2, threads: 3, worker: { executable: "/opt/my code/gw", args: ["-x", "a'b"], mpi: true } },
      state: "JOB_RUNNING", pilot: "4", host: "node01", running_ms: "1700000000000",
      channel: { calls: "9007199254740991", bytes_to_worker: "10", calls_per_s: 2.5 },
    });
    expect(job).toMatchObject({
      id: 12, kind: "worker", slots: 6, state: "running", pilot: 4, mpi: true, runningMs: 1_700_000_000_000, endedMs: 0,
      command: "'/opt/my code/gw' -x 'a'\\''b'",
      channel: { calls: 9007199254740991, bytesOut: 10, bytesIn: 0, callsPerS: 2.5 },
    });
  });
  it("nothing at all is a job that was submitted", () => {
    expect(readJob({})).toMatchObject({ id: 0, name: "job", kind: "command", state: "submitted", slots: 1, channel: null });
    expect(readPilot({})).toMatchObject({ resource: "local", nodeCount: 1, state: "submitted", nodes: [] });
    expect(readResource({})).toMatchObject({ driver: "local", hub: "none", hosts: [] });
    expect(readInfo({})).toMatchObject({ host: "", pid: 0 });
  });
  it("whatever comes, nothing throws", () => {
    for (const value of [null, undefined, 1, "x", [], [null], { spec: 3 }, { spec: { command: "x" } }, { id: {}, exit: [], nodes: 7 }, { channel: "x" }]) {
      expect(() => [readJob(value), readPilot(value), readResource(value), readInfo(value), readDetail(value), readChanges(value)]).not.toThrow();
      expect(readJob(value).id).toBe(0);
    }
  });
  it("a newer daemon's changes and states are passed over or shown as they are", () => {
    expect(readChanges([{ allocation: {} }, { job: { id: "1", state: "JOB_HIBERNATED" } }])).toMatchObject([
      { kind: "job", value: { id: 1, state: "hibernated" } }]);
  });
  it("names a job by its name, else by its program", () => {
    expect(readJob({ spec: { command: { argv: ["/usr/bin/python3", "x.py"] } } }).name).toBe("python3");
    expect(readJob({ spec: { name: "fit", command: { argv: ["x"] } } }).name).toBe("fit");
  });
  it("jobs beside others take no slot", () => {
    expect(readJob({ spec: { beside_job: "3", command: { argv: ["ls"] } } }).slots).toBe(0);
    expect(readJob({ spec: { no_slots: true, command: { argv: ["sh"] } } }).slots).toBe(0);
  });
  it("says why", () => {
    expect(note(readJob({ state: "JOB_QUEUED", message: "waits for slots" }))).toBe("waits for slots");
    expect(note(readJob({ state: "JOB_FAILED", message: "m", exit: { message: "killed by signal 11" } }))).toBe("killed by signal 11");
    expect(note(readJob({ state: "JOB_FAILED", message: "refused" }))).toBe("refused");
    expect(note(readJob({ state: "JOB_RUNNING", pilot_unreachable: true }))).toContain("cannot be reached");
    const ahead = readJob({ state: "JOB_DISPATCHED", prefilled: true, pilot_unreachable: true, message: "it waits at pilot 3; the link to it is cut" });
    expect(ahead.prefilled).toBe(true);
    expect(note(ahead)).toContain("it waits at pilot 3");
  });
  it("details: the tail of stderr and the names of variables", () => {
    expect(readDetail({ id: "1", spec: { env: { B: "", A: "" }, time_limit_ms: "60000" }, exit: { stderr_tail: "boom", core_dumped: true } }))
      .toMatchObject({ stderrTail: "boom", variables: ["A", "B"], timeLimitMs: 60_000, coreDumped: true });
  });
  it("the pretender's state is read without loss", () => {
    const state = exampleState({ jobs: 50 });
    const changes = readChanges([...state.resources.map((resource) => ({ resource })), ...state.pilots.map((pilot) => ({ pilot })), ...state.jobs.map((job) => ({ job }))]);
    expect(changes.length).toBe(state.resources.length + state.pilots.length + state.jobs.length);
    expect(new Set(changes.flatMap((change) => (change.kind === "job" ? [change.value.id] : []))).size).toBe(state.jobs.length);
  });
});
