// A pretender of the daemon's page server (daemon/monitor), with invented but plausible data that moves.
//   node test/mock_server.mjs [--port N] [--jobs N] [--empty] [--still]
// Serves web/dist and the API with the same headers. Used by the tests and while the page is worked on.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const dist = join(fileURLToPath(new URL(".", import.meta.url)), "..", "dist");
const types = { ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml" };
const headers = {
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
};

// A random number generator of our own: the same data in each run.
function generator(seed) {
  return () => {
    seed = (seed * 1664525 + 1013904223) >>> 0;
    return seed / 2 ** 32;
  };
}

export function exampleState({ jobs = 400, now = Date.now() } = {}) {
  const random = generator(7);
  const pick = (list) => list[Math.floor(random() * list.length)];
  const s = (ms) => String(Math.round(ms));
  const resources = [
    { spec: { name: "local", driver: "local" }, created_ms: s(now - 9e7) },
    { spec: { name: "desk", location: "anna@desk.strw.example", driver: "ssh" }, hub_state: "HUB_CONNECTED", hub_host: "desk",
      hub_build: "0.1.0+4f2a9c11d0e3", hub_since_ms: s(now - 5.2e6), round_trip_us: "840" },
    { spec: { name: "hpc", location: "avdberg@login.hpc.example", driver: "ssh", gateway: "desk", hosts: ["node01", "node02", "node03", "node04"] },
      hub_state: "HUB_CONNECTED", hub_host: "login2", hub_build: "0.1.0+4f2a9c11d0e3", hub_since_ms: s(now - 3.1e6), round_trip_us: "14200" },
    { spec: { name: "lab", location: "anna@lab7.example", driver: "ssh", transport: "openssh" }, hub_state: "HUB_UNREACHABLE",
      hub_message: "the connection to anna@lab7.example was lost (connection timed out); being tried again, next in 2 s", hub_since_ms: s(now - 62e3) },
    { spec: { name: "cluster-b", location: "vdb@b.example:2222", driver: "ssh" }, hub_state: "HUB_FAILED", hub_since_ms: s(now - 3.6e5),
      hub_message: "vdb@b.example:2222 refused every way to log in that was tried (publickey, keyboard-interactive); run 'flotilla resource test cluster-b'" },
    { spec: { name: "annex", location: "anna@annex.example", driver: "ssh" }, hub_state: "HUB_UPLOADING", upload_fraction: 0.43,
      hub_message: "sending the agent: 1.9 of 4.4 MB", hub_since_ms: s(now - 2e3) },
  ];
  const node = (index, host, slots, used, more = {}) =>
    ({ index, host, slots, slots_used: used, connected: true, processors: slots, load: used * 0.97, ...more });
  const pilots = [
    { id: "1", spec: { resource: "local" }, state: "PILOT_RUNNING", nodes: [node(0, "laptop", 8, 3)], slots: 8, slots_used: 3,
      submitted_ms: s(now - 5.3e6), starting_ms: s(now - 5.3e6), running_ms: s(now - 5.3e6), jobs_running: 3, jobs_done: "212" },
    { id: "2", spec: { resource: "desk", label: "gas" }, state: "PILOT_RUNNING", nodes: [node(0, "desk", 32, 16)], slots: 32, slots_used: 16,
      submitted_ms: s(now - 5.1e6), starting_ms: s(now - 5.1e6), running_ms: s(now - 5.1e6), ends_at_ms: s(now + 4.4e6), jobs_running: 1, jobs_done: "34" },
    { id: "4", spec: { resource: "hpc", node_count: 4, label: "gravity" }, state: "PILOT_RUNNING",
      nodes: [node(0, "node01", 16, 16), node(1, "node02", 16, 9), node(2, "node03", 16, 0),
        { index: 3, host: "node04", slots: 0, message: "ssh: connect to host node04 port 22: No route to host (exit code 255 on login2)" }],
      slots: 48, slots_used: 25, submitted_ms: s(now - 3e6), starting_ms: s(now - 3e6), running_ms: s(now - 2.99e6), ends_at_ms: s(now + 1.1e7),
      jobs_running: 7, jobs_done: "150" },
    { id: "5", spec: { resource: "lab" }, state: "PILOT_UNREACHABLE", message: "the link to lab is cut since a minute; its jobs go on there, their state is not known",
      nodes: [node(0, "lab7", 4, 2, { connected: false, message: "behind a link that is cut" })], slots: 4, slots_used: 2, submitted_ms: s(now - 2e6), running_ms: s(now - 2e6), jobs_running: 2, jobs_done: "4" },
    { id: "6", spec: { resource: "hpc", node_count: 1, label: "big" }, state: "PILOT_FAILED", submitted_ms: s(now - 9e5), ended_ms: s(now - 8.9e5),
      message: "no pilot could be started on node05: sh: 1: module: not found (exit code 127)" },
    { id: "3", spec: { resource: "desk" }, state: "PILOT_FINISHED", message: "stopped by the user", submitted_ms: s(now - 5.1e6), running_ms: s(now - 5.1e6), ended_ms: s(now - 5e6), jobs_done: "3" },
  ];
  const list = [];
  const programs = [["python3", "fit_lightcurve.py", "--star"], ["./mc_run", "--seed"], ["/opt/bin/reduce", "-q", "frame"], ["sh", "-c", "make -j4 && ./run"]];
  const places = [["laptop", 1, 0], ["desk", 2, 0], ["node01", 4, 0], ["node02", 4, 1]];
  let id = 0;
  const add = (job) => list.push({ id: String(++id), attempt: 1, ...job });
  for (let i = 0; i < jobs; ++i) {
    const argv = [...pick(programs), String(1000 + i)];
    const [host, pilot, index] = pick(places);
    const start = now - 4e6 + (3.6e6 * i) / jobs;
    const length = 400 + 9e4 * random() ** 3;
    const luck = random();
    const state = luck < 0.93 ? "JOB_FINISHED" : luck < 0.98 ? "JOB_FAILED" : "JOB_CANCELED";
    const ends = {
      JOB_FINISHED: { kind: "EXITED", message: "" },
      JOB_FAILED: pick([
        { kind: "EXITED", code: 1, host, message: `command ${argv[0]} on ${host} ended with exit code 1` },
        { kind: "SIGNALED", signal: 11, host, core_dumped: true, message: `command ${argv[0]} on ${host} was killed by signal 11 (SIGSEGV)` },
        { kind: "TIME_LIMIT", host, message: `command ${argv[0]} on ${host} was ended at its time limit of 10 min` },
        { kind: "PILOT_LOST", host, message: `node ${host} of pilot ${pilot} is gone: it was switched off or its pilot was killed` }]),
      JOB_CANCELED: { kind: "CANCELED_BY_USER", message: "canceled by the user" },
    };
    add({ spec: { name: i % 3 ? "" : `step-${i}`, command: { argv }, processes: pick([1, 1, 1, 4]) }, state, pilot: String(pilot), node: index, host, pid: 2000 + i,
      exit: ends[state], submitted_ms: s(start - 800), queued_ms: s(start - 799), dispatched_ms: s(start - 5), running_ms: s(start), ended_ms: s(start + length),
      stdout_bytes: s(200 + random() * 4e4), stderr_bytes: state === "JOB_FAILED" ? "310" : "0" });
  }
  const running = (spec, place, since, more = {}) =>
    add({ spec, state: "JOB_RUNNING", host: place[0], pilot: String(place[1]), node: place[2], pid: 40000 + id,
      folder: `/tmp/fl-1000-3b9d50c1/j/${id + 1}`, submitted_ms: s(now - since - 90), queued_ms: s(now - since - 89), dispatched_ms: s(now - since - 40), running_ms: s(now - since), ...more });
  const channel = (calls, out, into) => ({ calls: s(calls), bytes_to_worker: s(out), bytes_from_worker: s(into), calls_per_s: 0, bytes_per_s: 0 });
  running({ name: "gravity", worker: { executable: "gravity_worker", args: ["--softening", "0.001"] }, label: "gravity" }, places[2], 1.9e6, { connected: true, channel: channel(7.4e6, 9.1e8, 2.2e9) });
  running({ name: "hydro", worker: { executable: "fi_worker", mpi: true }, processes: 16, label: "gas" }, places[1], 1.2e6, { connected: true, channel: channel(4.1e4, 3.3e10, 3.1e10) });
  running({ name: "stars", worker: { executable: "star_worker.py" } }, places[0], 1.9e6, { connected: true, channel: channel(2.1e5, 1.2e7, 1.3e7) });
  running({ name: "radiative", worker: { executable: "mocassin_worker" }, threads: 4, label: "lab" }, ["lab7", 5, 0], 9e5, { connected: true, pilot_unreachable: true, channel: channel(910, 5e6, 7e7) });
  add({ spec: { name: "tree", worker: { executable: "bonsai_worker" }, label: "gravity" }, state: "JOB_FAILED", pilot: "4", node: 1, host: "node02", pid: 991,
    exit: { kind: "SIGNALED", signal: 11, host: "node02", core_dumped: true, message: "worker bonsai_worker on node02 was killed by signal 11 (SIGSEGV) in its call 1,204" },
    submitted_ms: s(now - 6e5), queued_ms: s(now - 6e5), dispatched_ms: s(now - 6e5), running_ms: s(now - 599e3), ended_ms: s(now - 3.2e5), channel: channel(1204, 3e6, 9e6), stderr_bytes: "742" });
  add({ spec: { name: "sph", worker: { executable: "gadget_worker", mpi: true }, processes: 64, label: "gas" }, state: "JOB_FAILED",
    exit: { kind: "START_FAILED", host: "desk", message: "worker gadget_worker could not be started on desk: mpiexec: there are not enough slots available (exit code 1)" },
    submitted_ms: s(now - 2e5), queued_ms: s(now - 2e5), dispatched_ms: s(now - 2e5), ended_ms: s(now - 199e3), pilot: "2", host: "desk", stderr_bytes: "520" });
  for (let i = 0; i < 6; ++i) running({ command: { argv: ["./mc_run", "--seed", String(9000 + i)] } }, places[2 + (i % 2)], 4e4 + 7e3 * i, { stdout_bytes: "18400" });
  running({ command: { argv: ["bash", "-l"], terminal: true }, no_slots: true }, places[1], 2e5);
  for (let i = 0; i < 9; ++i)
    add({ spec: { name: `wide-${i}`, processes: 24, command: { argv: ["./big", "<script>alert(1)</script>", "& \"quotes\""] }, label: "gravity" }, state: "JOB_QUEUED",
      message: "waits for 24 free slots on one node; the largest node with the label 'gravity' has 16, see 'flotilla job why'", submitted_ms: s(now - 7e4 + i), queued_ms: s(now - 7e4 + i) });
  return { resources, pilots, jobs: list };
}

export function emptyState({ now = Date.now() } = {}) {
  return { resources: [{ spec: { name: "local", driver: "local" }, created_ms: String(now) }], pilots: [], jobs: [] };
}

// Options: state, port (0 = any), token ("" = everybody is let in). Returns what a test needs to play the daemon.
export async function startMock({ state = exampleState(), port = 0, token = "" } = {}) {
  const startedMs = Date.now();
  const watchers = new Set();
  const jobs = new Map(state.jobs.map((job) => [job.id, job]));
  const resources = new Map(state.resources.map((resource) => [resource.spec.name, resource]));
  const pilots = new Map(state.pilots.map((pilot) => [pilot.id, pilot]));
  const log = [];
  const requests = [];
  let version = 0;
  let refusing = false;
  const info = () => ({ build: "0.1.0+4f2a9c11d0e3", protocol: 1, pid: process.pid, host: "laptop", instance: "3b9d50c1e2f4a596",
    started_ms: String(startedMs - 5.3e6), socket: "/tmp/fl-1000-3b9d50c1/daemon.sock", resident_bytes: "23000000" });
  const event = (name, data, id) => `${id === undefined ? "" : `id: ${id}\n`}event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
  const everything = () => [
    ...[...resources.values()].map((resource) => ({ resource })), ...[...pilots.values()].map((pilot) => ({ pilot })), ...[...jobs.values()].map((job) => ({ job }))];

  function change(...changes) {
    for (const one of changes) {
      if (one.job) jobs.set(one.job.id, one.job);
      if (one.pilot) pilots.set(one.pilot.id, one.pilot);
      if (one.resource) resources.set(one.resource.spec.name, one.resource);
      if (one.pilot_removed) pilots.delete(one.pilot_removed);
      if (one.resource_removed) resources.delete(one.resource_removed);
    }
    version += 1;
    log.push([version, changes]);
    if (log.length > 500) log.shift();
    for (const response of watchers) response.write(event("changes", changes, `mock.${version}`));
  }

  const json = (response, status, body) => {
    response.writeHead(status, { ...headers, "Content-Type": "application/json" });
    response.end(JSON.stringify(body));
  };
  const error = (response, status, code, message, hint = "") => json(response, status, { error: { code, message, hint } });

  const server = createServer(async (request, response) => {
    const url = new URL(request.url, "http://localhost");
    requests.push(request.url);
    if (url.pathname === "/" && url.searchParams.get("token") === token && token !== "") {
      response.writeHead(303, { ...headers, Location: "/", "Set-Cookie": `flotilla=${token}; HttpOnly; SameSite=Strict; Path=/` });
      return response.end();
    }
    if (refusing || (token !== "" && !(request.headers.cookie ?? "").includes(`flotilla=${token}`)))
      return error(response, 401, "PERMISSION_DENIED", "this browser has not been let in", "run 'flotilla web' and open the link that it prints");
    if (url.pathname === "/api/v1/info") return json(response, 200, info());
    if (url.pathname === "/api/v1/events") {
      response.writeHead(200, { ...headers, "Content-Type": "text/event-stream" });
      response.write("retry: 300\n");
      const last = Number(/^mock\.(\d+)$/.exec(request.headers["last-event-id"] ?? "")?.[1] ?? NaN);
      if (last <= version && (log.length === 0 || log[0][0] <= last + 1)) {
        response.write(event("resumed", { id: `mock.${version}`, info: info() }));
        for (const [at, changes] of log) if (at > last) response.write(event("changes", changes, `mock.${at}`));
      } else {
        response.write(event("snapshot", { id: `mock.${version}`, info: info(), omitted_jobs: 0 }));
        const all = everything();
        for (let i = 0; i < all.length; i += 256) response.write(event("changes", all.slice(i, i + 256)));
        response.write(event("snapshot_end", {}, `mock.${version}`));
      }
      watchers.add(response);
      request.on("close", () => watchers.delete(response));
      return undefined;
    }
    const found = /^\/api\/v1\/jobs\/(\d+)(\/output)?$/.exec(url.pathname);
    if (found) {
      const job = jobs.get(found[1]);
      if (!job) return error(response, 404, "NOT_FOUND", `there is no job ${found[1]}`);
      if (found[2]) {
        response.writeHead(200, { ...headers, "Content-Type": "text/plain; charset=utf-8" });
        const tail = Number(url.searchParams.get("tail") ?? 65536);
        const name = url.searchParams.get("stream") === "2" ? "warning: <b>not bold</b> & escaped" : "step";
        const size = Number(url.searchParams.get("stream") === "2" ? job.stderr_bytes ?? 0 : job.stdout_bytes ?? 0);
        const lines = Array.from({ length: Math.ceil(size / 60) }, (_, i) => `${name} ${i}: energy error ${(1e-9 * (i + 1)).toExponential(3)}, ${i * 7} calls`);
        return response.end(lines.join("\n").slice(0, size).slice(-tail));
      }
      return json(response, 200, job.state === "JOB_FAILED"
        ? { ...job, spec: { ...job.spec, env: { OMP_PROC_BIND: "" } }, exit: { ...job.exit, stderr_tail: "reading initial conditions… 4096 particles\ntree depth 21 exceeded\nSegmentation fault (core dumped)\n<img src=x onerror=alert(1)>" } }
        : job);
    }
    if (url.pathname.startsWith("/api/")) return error(response, 404, "NOT_FOUND", "there is nothing at this address of the API");
    const path = normalize(url.pathname === "/" ? "/index.html" : url.pathname);
    try {
      const content = await readFile(join(dist, path));
      response.writeHead(200, { ...headers, "Content-Type": types[extname(path)] ?? "application/octet-stream" });
      response.end(content);
    } catch {
      error(response, 404, "NOT_FOUND", "there is no such page");
    }
    return undefined;
  });
  await new Promise((resolve, reject) => server.on("error", reject).listen(port, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}/${token ? `?token=${token}` : ""}`,
    port: server.address().port,
    jobs, pilots, resources, requests, change,
    // Cuts every stream; the browser dials again.
    cut() { for (const response of [...watchers]) response.destroy(); },
    refuse(on) { refusing = on; },
    watchers: () => watchers.size,
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

// Lets the workers work and jobs come and go.
export function animate(mock) {
  const random = generator(99);
  let next = Math.max(0, ...[...mock.jobs.keys()].map(Number));
  let tick = 0;
  return setInterval(() => {
    tick += 1;
    const changes = [];
    for (const job of mock.jobs.values()) {
      if (job.state !== "JOB_RUNNING" || !job.channel || job.pilot_unreachable) continue;
      const pace = { gravity: [2100, 120, 300], hydro: [12, 8e5, 7.4e5], stars: [tick % 40 < 20 ? 90 : 2, 60, 62] }[job.spec.name];
      if (!pace) continue;
      const calls = Math.round(pace[0] * (0.7 + 0.6 * random()));
      const add = (field, by) => String(Number(job.channel[field]) + Math.round(by));
      changes.push({ job: { ...job, channel: { calls: add("calls", calls), bytes_to_worker: add("bytes_to_worker", calls * pace[1]),
        bytes_from_worker: add("bytes_from_worker", calls * pace[2]), calls_per_s: calls * 2, bytes_per_s: calls * 2 * (pace[1] + pace[2]) } } });
    }
    if (tick % 3 === 0) {
      const now = Date.now();
      next += 1;
      const job = { id: String(next), attempt: 1, spec: { command: { argv: ["./mc_run", "--seed", String(next)] } }, state: "JOB_RUNNING", host: "laptop", pilot: "1", pid: 50000 + next,
        submitted_ms: String(now - 8), queued_ms: String(now - 7), dispatched_ms: String(now - 4), running_ms: String(now), stdout_bytes: "0" };
      changes.push({ job });
      const earlier = mock.jobs.get(String(next - 5));
      if (earlier?.state === "JOB_RUNNING" && !earlier.channel)
        changes.push({ job: { ...earlier, state: "JOB_FINISHED", ended_ms: String(now), stdout_bytes: "4200", exit: { kind: "EXITED" } } });
    }
    if (changes.length > 0) mock.change(...changes);
  }, 500);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const value = (name, fallback) => {
    const at = process.argv.indexOf(name);
    return at < 0 ? fallback : Number(process.argv[at + 1]);
  };
  const state = process.argv.includes("--empty") ? emptyState() : exampleState({ jobs: value("--jobs", 400) });
  const mock = await startMock({ state, port: value("--port", 8790) });
  if (!process.argv.includes("--still")) animate(mock);
  console.log(mock.url);
}
