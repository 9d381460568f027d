import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, fetchJob, fetchOutput } from "../api";
import { bytes, clock, duration, elapsed, plural } from "../format";
import { type Job, type JobDetail, hasEnded, note } from "../model";
import type { Store } from "../store";
import { Chart } from "./Chart";
import { Command } from "./Empty";
import { JobMark } from "./State";

const tailBytes = 32 * 1024;
const outputEveryMs = 1500;     // while the job runs and the panel is open

export function JobPanel({ store, id, now, close }: { store: Store; id: number; now: number; close: () => void }) {
  const known = store.jobs.get(id);
  const [detail, setDetail] = useState<JobDetail | null>(null);
  const [failure, setFailure] = useState("");
  const about = detail?.id === id ? detail : null;
  const job: Job | null = known ?? about;

  // Asked for again when the job has moved on.
  useEffect(() => {
    const abort = new AbortController();
    setFailure("");
    fetchJob(id, abort.signal).then(setDetail).catch((error: unknown) => {
      if (!abort.signal.aborted) setFailure(textOf(error));
    });
    return () => abort.abort();
  }, [id, known?.state, known?.attempt, store.live.state === "live"]);

  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key === "Escape") close();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [close]);

  const rates = store.rates(id);
  return (
    <aside class="panel" aria-labelledby="panel-title">
      <div class="panel-head">
        <h2 id="panel-title">Job {id}{job && <> · {job.name}</>}</h2>
        {job && <JobMark job={job} />}
        <button type="button" class="close" onClick={close} aria-label="close details" title="close (Esc)">×</button>
      </div>
      {!job && <p class={failure ? "reason" : "quiet"}>{failure || "asking the daemon…"}</p>}
      {job && (
        <>
          {note(job) && <p class={job.state === "failed" ? "reason big" : "big quiet"}>{note(job)}</p>}
          {about?.stderrTail && job.state === "failed" && (
            <figure><figcaption>its last words on stderr</figcaption><pre class="text">{about.stderrTail}</pre></figure>
          )}
          <Moments job={job} now={now} />
          <pre class="text command-line">{job.command}</pre>
          <Facts job={job} about={about} />
          {job.channel && (
            <>
              <h3>Channel</h3>
              <p class="quiet">{job.channel.calls.toLocaleString("en")} calls, {bytes(job.channel.bytesOut)} to the worker, {bytes(job.channel.bytesIn)} from it</p>
              {rates && rates.at.length > 1 && <Chart rates={rates} />}
            </>
          )}
          <Output key={id} job={job} />
        </>
      )}
    </aside>
  );
}

const textOf = (error: unknown): string =>
  error instanceof ApiError ? [error.message, error.hint].filter(Boolean).join("; ") : "the daemon does not answer";

function Moments({ job, now }: { job: Job; now: number }) {
  const steps = [
    ["submitted", job.submittedMs], ["waiting", job.queuedMs], [job.prefilled ? "sent to its pilot" : "starting", job.dispatchedMs], ["running", job.runningMs],
    [hasEnded(job.state) ? job.state : "ended", job.endedMs],
  ] as const;
  const reached = steps.filter(([, at]) => at > 0);
  return (
    <ol class="moments">
      {reached.map(([name, at], i) => {
        const next = reached[i + 1]?.[1];
        return (
          <li key={name}>
            <b>{name}</b><time>{clock(at, now)}</time>
            <span class="quiet">{next !== undefined ? duration(next - at) : hasEnded(job.state) ? "" : `for ${elapsed(now - at)}`}</span>
          </li>
        );
      })}
    </ol>
  );
}

function Facts({ job, about }: { job: Job; about: JobDetail | null }) {
  const ended = job.exitKind === "exited" ? `exit code ${job.exitCode}`
    : job.exitKind === "signaled" ? `signal ${job.signal}${about?.coreDumped ? ", core dumped" : ""}` : "";
  const facts: [string, string][] = [
    ["where", job.host ? `${job.host}, node ${job.node} of pilot ${job.pilot}` : job.label ? `a pilot with the label or resource '${job.label}'` : ""],
    ["process", job.pid > 0 ? String(job.pid) : ""],
    ["folder", job.folder || about?.workingFolder || ""],
    ["slots", job.slots === 0 ? "none" : job.processes > 1 || job.threads > 1 ? `${job.slots} = ${plural(job.processes, "process", "processes")} × ${plural(job.threads, "thread")}` : "1"],
    ["attempt", job.attempt > 1 ? String(job.attempt) : ""],
    ["time limit", about && about.timeLimitMs > 0 ? duration(about.timeLimitMs) : ""],
    ["ended with", ended],
    ["own variables", about ? about.variables.join(", ") : ""],
  ];
  return (
    <dl class="facts-list">
      {facts.filter(([, value]) => value !== "").map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}
    </dl>
  );
}

function Output({ job }: { job: Job }) {
  const [stream, setStream] = useState<1 | 2>(job.state === "failed" && job.stdoutBytes === 0 ? 2 : 1);
  const [text, setText] = useState<string | null>(null);
  const [failure, setFailure] = useState("");
  const view = useRef<HTMLPreElement>(null);
  const atEnd = useRef(true);
  const total = stream === 1 ? job.stdoutBytes : job.stderrBytes;
  const over = hasEnded(job.state);

  useEffect(() => {
    const abort = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const ask = () => {
      fetchOutput(job.id, stream, tailBytes, abort.signal).then((got) => {
        setText(got);
        setFailure("");
      }).catch((error: unknown) => {
        if (!abort.signal.aborted) setFailure(textOf(error));
      }).finally(() => {
        if (!over && !abort.signal.aborted) timer = setTimeout(ask, outputEveryMs);
      });
    };
    ask();
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [job.id, stream, over, over ? total : 0]);

  useEffect(() => {
    if (view.current && atEnd.current) view.current.scrollTop = view.current.scrollHeight;
  }, [text]);

  const tab = (number: 1 | 2, name: string, size: number) => (
    <button type="button" role="tab" aria-selected={stream === number} onClick={() => {
      if (stream === number) return;
      setText(null);
      setFailure("");
      atEnd.current = true;
      setStream(number);
    }}>{name} {size > 0 && <small>{bytes(size)}</small>}</button>
  );
  return (
    <section class="output" aria-label="output">
      <div class="tabs" role="tablist">
        {tab(1, "stdout", job.stdoutBytes)}{tab(2, "stderr", job.stderrBytes)}
      </div>
      {failure ? <p class="quiet">{failure}</p>
        : text === null ? <p class="quiet">…</p>
        : text === "" ? <p class="quiet">{over ? "It wrote nothing here." : "Nothing written yet."}</p>
        : <pre class="text tail" ref={view} tabIndex={0} onScroll={(event) => {
            const element = event.currentTarget;
            atEnd.current = element.scrollHeight - element.scrollTop - element.clientHeight < 24;
          }}>{text.length >= tailBytes - 4 || total > tailBytes ? "…\n" : ""}{text}</pre>}
      <Command text={`flotilla job logs ${job.id}${over ? "" : " -f"}`} />
    </section>
  );
}
