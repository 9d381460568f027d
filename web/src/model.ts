// The things that the page shows, and how they are read from the API's JSON (protobuf's mapping: 64-bit numbers are
// strings, defaults are left out). Everything that comes in is text of others: it is only ever shown as text.

export type JobState = "submitted" | "queued" | "dispatched" | "running" | "finished" | "failed" | "canceled";
export type PilotState = "submitted" | "starting" | "running" | "unreachable" | "draining" | "finished" | "failed";
export type HubState =
  | "none" | "connecting" | "authenticating" | "uploading" | "starting" | "connected" | "unreachable" | "failed";

export interface Info {
  build: string; host: string; pid: number; startedMs: number; instance: string; residentBytes: number; socket: string;
  stateDir: string; logFile: string;
}

export interface Resource {
  name: string; location: string; driver: string; gateway: string; transport: string; hosts: string[];
  hub: HubState; hubMessage: string; hubHost: string; hubBuild: string; hubSinceMs: number;
  uploadFraction: number; roundTripUs: number;
}

export interface PilotNode {
  index: number; host: string; slots: number; used: number; connected: boolean; message: string; load: number;
  processors: number;
}

export interface Pilot {
  id: number; resource: string; label: string; nodeCount: number; state: PilotState; message: string;
  nodes: PilotNode[]; slots: number; used: number;
  submittedMs: number; startingMs: number; runningMs: number; endedMs: number; endsAtMs: number;
  jobsRunning: number; jobsDone: number;
}

export interface Channel {
  calls: number; bytesIn: number; bytesOut: number;   // out = to the worker
  callsPerS: number; bytesPerS: number;
}

export interface Job {
  id: number; name: string; kind: "command" | "worker"; command: string; label: string; slots: number; mpi: boolean;
  processes: number; threads: number;
  state: JobState; attempt: number; pilot: number; node: number; host: string; pid: number; folder: string;
  message: string; reason: string; exitKind: string; exitCode: number; signal: number;
  submittedMs: number; queuedMs: number; dispatchedMs: number; runningMs: number; endedMs: number;
  stdoutBytes: number; stderrBytes: number; unreachable: boolean; connected: boolean;
  prefilled: boolean;      // dispatched, and waits at its pilot for a free slot
  channel: Channel | null;
  search: string;          // lower case, what the text filter looks at
}

// What only the details panel asks for.
export interface JobDetail extends Job {
  stderrTail: string; workingFolder: string; variables: string[]; argv: string[];
  timeLimitMs: number; coreDumped: boolean;
}

type Json = Record<string, unknown>;

const object = (value: unknown): Json =>
  value !== null && typeof value === "object" && !Array.isArray(value) ? (value as Json) : {};
const list = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);
const text = (value: unknown): string => (typeof value === "string" ? value : "");
const flag = (value: unknown): boolean => value === true;
const number = (value: unknown): number => {
  const parsed = typeof value === "number" ? value : typeof value === "string" ? Number(value) : 0;
  return Number.isFinite(parsed) ? parsed : 0;
};
const strings = (value: unknown): string[] => list(value).map(text);
// "JOB_RUNNING" -> "running"
const word = (value: unknown, prefix: string, fallback: string): string => {
  const name = text(value);
  return (name.startsWith(prefix) ? name.slice(prefix.length) : name || fallback).toLowerCase();
};

export function readInfo(value: unknown): Info {
  const json = object(value);
  return {
    build: text(json["build"]), host: text(json["host"]), pid: number(json["pid"]), startedMs: number(json["started_ms"]),
    instance: text(json["instance"]), residentBytes: number(json["resident_bytes"]), socket: text(json["socket"]),
    stateDir: text(json["state_dir"]), logFile: text(json["log_file"]),
  };
}

export function readResource(value: unknown): Resource {
  const json = object(value);
  const spec = object(json["spec"]);
  const location = text(spec["location"]);
  return {
    name: text(spec["name"]), location, driver: text(spec["driver"]) || (location ? "ssh" : "local"),
    gateway: text(spec["gateway"]), transport: text(spec["transport"]), hosts: strings(spec["hosts"]),
    hub: word(json["hub_state"], "HUB_", "none") as HubState, hubMessage: text(json["hub_message"]),
    hubHost: text(json["hub_host"]), hubBuild: text(json["hub_build"]), hubSinceMs: number(json["hub_since_ms"]),
    uploadFraction: number(json["upload_fraction"]), roundTripUs: number(json["round_trip_us"]),
  };
}

export function readPilot(value: unknown): Pilot {
  const json = object(value);
  const spec = object(json["spec"]);
  return {
    id: number(json["id"]), resource: text(spec["resource"]) || "local", label: text(spec["label"]),
    nodeCount: number(spec["node_count"]) || 1, state: word(json["state"], "PILOT_", "submitted") as PilotState,
    message: text(json["message"]),
    nodes: list(json["nodes"]).map((entry) => {
      const node = object(entry);
      return {
        index: number(node["index"]), host: text(node["host"]), slots: number(node["slots"]),
        used: number(node["slots_used"]), connected: flag(node["connected"]), message: text(node["message"]),
        load: number(node["load"]), processors: number(node["processors"]),
      };
    }),
    slots: number(json["slots"]), used: number(json["slots_used"]),
    submittedMs: number(json["submitted_ms"]), startingMs: number(json["starting_ms"]),
    runningMs: number(json["running_ms"]), endedMs: number(json["ended_ms"]), endsAtMs: number(json["ends_at_ms"]),
    jobsRunning: number(json["jobs_running"]), jobsDone: number(json["jobs_done"]),
  };
}

const quote = (word: string): string => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
const lastPart = (path: string): string => path.slice(path.lastIndexOf("/") + 1);

export function readJob(value: unknown): Job {
  const json = object(value);
  const spec = object(json["spec"]);
  const exit = object(json["exit"]);
  const isWorker = "worker" in spec;
  const worker = object(spec["worker"]);
  const argv = isWorker ? [text(worker["executable"]), ...strings(worker["args"])] : strings(object(spec["command"])["argv"]);
  const processes = number(spec["processes"]) || 1;
  const threads = number(spec["threads"]) || 1;
  const stats = json["channel"] === undefined ? null : object(json["channel"]);
  const job: Job = {
    id: number(json["id"]), name: text(spec["name"]) || lastPart(argv[0] ?? "") || "job",
    kind: isWorker ? "worker" : "command", command: argv.map(quote).join(" "), label: text(spec["label"]),
    slots: flag(spec["no_slots"]) || number(spec["beside_job"]) > 0 ? 0 : processes * threads,
    mpi: flag(worker["mpi"]), processes, threads,
    state: word(json["state"], "JOB_", "submitted") as JobState, attempt: number(json["attempt"]),
    pilot: number(json["pilot"]), node: number(json["node"]), host: text(json["host"]), pid: number(json["pid"]),
    folder: text(json["folder"]), message: text(json["message"]), reason: text(exit["message"]),
    exitKind: word(exit["kind"], "EXIT_", "none"), exitCode: number(exit["code"]), signal: number(exit["signal"]),
    submittedMs: number(json["submitted_ms"]), queuedMs: number(json["queued_ms"]),
    dispatchedMs: number(json["dispatched_ms"]), runningMs: number(json["running_ms"]), endedMs: number(json["ended_ms"]),
    stdoutBytes: number(json["stdout_bytes"]), stderrBytes: number(json["stderr_bytes"]),
    unreachable: flag(json["pilot_unreachable"]), prefilled: flag(json["prefilled"]), connected: flag(json["connected"]),
    channel: stats && {
      calls: number(stats["calls"]), bytesOut: number(stats["bytes_to_worker"]), bytesIn: number(stats["bytes_from_worker"]),
      callsPerS: number(stats["calls_per_s"]), bytesPerS: number(stats["bytes_per_s"]),
    },
    search: "",
  };
  job.search = [job.id, job.name, job.command, job.label, job.host, note(job), job.state].join("\n").toLowerCase();
  return job;
}

export function readDetail(value: unknown): JobDetail {
  const json = object(value);
  const spec = object(json["spec"]);
  const exit = object(json["exit"]);
  const worker = object(spec["worker"]);
  return {
    ...readJob(value),
    stderrTail: text(exit["stderr_tail"]), workingFolder: text(spec["working_folder"]),
    variables: Object.keys(object(spec["env"])).sort(),
    argv: "worker" in spec ? [text(worker["executable"]), ...strings(worker["args"])] : strings(object(spec["command"])["argv"]),
    timeLimitMs: number(spec["time_limit_ms"]), coreDumped: flag(exit["core_dumped"]),
  };
}

// One line on why it waits or how it ended.
export function note(job: Job): string {
  if (job.prefilled) return job.message;
  if (job.unreachable) return "its pilot cannot be reached; this is the last that is known";
  if (hasEnded(job.state)) return job.reason || job.message;
  return job.message;
}

export const hasEnded = (state: JobState | PilotState): boolean =>
  state === "finished" || state === "failed" || state === "canceled";
export const isWaiting = (state: JobState): boolean => state === "submitted" || state === "queued" || state === "dispatched";

export type Change =
  | { kind: "resource"; value: Resource } | { kind: "pilot"; value: Pilot } | { kind: "job"; value: Job }
  | { kind: "resource_removed"; name: string } | { kind: "pilot_removed"; id: number };

// What this page does not know (a newer daemon) is passed over.
export function readChanges(value: unknown): Change[] {
  const changes: Change[] = [];
  for (const entry of list(value)) {
    const json = object(entry);
    if ("resource" in json) changes.push({ kind: "resource", value: readResource(json["resource"]) });
    else if ("pilot" in json) changes.push({ kind: "pilot", value: readPilot(json["pilot"]) });
    else if ("job" in json) changes.push({ kind: "job", value: readJob(json["job"]) });
    else if ("resource_removed" in json) changes.push({ kind: "resource_removed", name: text(json["resource_removed"]) });
    else if ("pilot_removed" in json) changes.push({ kind: "pilot_removed", id: number(json["pilot_removed"]) });
  }
  return changes;
}
