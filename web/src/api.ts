// The daemon's HTTP API (daemon/monitor/README.md): the stream of events into the store, and what is asked for by hand.
import { type JobDetail, readChanges, readDetail, readInfo } from "./model";
import type { Store } from "./store";

export class ApiError extends Error {
  constructor(readonly status: number, message: string, readonly hint: string) { super(message); }
}

async function get(path: string, signal?: AbortSignal): Promise<Response> {
  const response = await fetch(path, { signal: signal ?? null, cache: "no-store" });
  if (response.ok) return response;
  let message = `the daemon answered ${response.status}`;
  let hint = "";
  try {
    const { error } = (await response.json()) as { error?: { message?: string; hint?: string } };
    message = error?.message ?? message;
    hint = error?.hint ?? "";
  } catch { /* not ours: the status says enough */ }
  throw new ApiError(response.status, message, hint);
}

export async function fetchJob(id: number, signal?: AbortSignal): Promise<JobDetail> {
  return readDetail(await (await get(`/api/v1/jobs/${id}`, signal)).json());
}

export async function fetchOutput(id: number, stream: 1 | 2, tail: number, signal?: AbortSignal): Promise<string> {
  return (await get(`/api/v1/jobs/${id}/output?stream=${stream}&tail=${tail}`, signal)).text();
}

const retryAfterMs = 2000;       // when the browser itself has given up on the stream

// Keeps the store up to date until the returned function is called.
export function watch(store: Store): () => void {
  let source: EventSource | null = null;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let stopped = false;

  const open = () => {
    source = new EventSource("/api/v1/events");
    const on = (name: string, what: (data: Record<string, unknown>) => void) =>
      source?.addEventListener(name, (event) => {
        what(JSON.parse((event as MessageEvent<string>).data) as Record<string, unknown>);
      });
    on("snapshot", (data) => store.beginSnapshot(readInfo(data["info"]), Number(data["omitted_jobs"] ?? 0)));
    on("snapshot_end", () => {
      store.endSnapshot();
      store.setLive({ state: "live" });
    });
    on("resumed", (data) => {
      store.resumed(readInfo(data["info"]));
      store.setLive({ state: "live" });
    });
    on("changes", (data) => store.apply(readChanges(data)));
    source.onerror = () => {
      if (stopped) return;
      store.setLive({ state: "reconnecting", sinceMs: Date.now() });
      // Cut connections are dialled again by the browser; after an answer other than 200 it has given up.
      if (source?.readyState === EventSource.CLOSED) void askWhy();
    };
  };
  // An EventSource does not tell what was answered.
  const askWhy = async () => {
    const asked = new AbortController();
    try {
      await get("/api/v1/events", asked.signal);
    } catch (error) {
      if (error instanceof ApiError && [401, 421, 503].includes(error.status))
        store.setLive({ state: "refused", message: error.hint ? `${error.message}; ${error.hint}` : error.message });
    } finally {
      asked.abort();             // taken this time: its place is for the stream
    }
    clearTimeout(timer);
    if (!stopped) timer = setTimeout(open, retryAfterMs);
  };
  open();
  return () => {
    stopped = true;
    clearTimeout(timer);
    source?.close();
  };
}
