import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { clock, count, duration, elapsed } from "../format";
import { type Job, hasEnded, note } from "../model";
import { type JobGroup, type SortKey, type Store, type View, jobGroups } from "../store";
import { Empty } from "./Empty";
import { JobMark } from "./State";

const rowHeight = 30;      // px, as in style.css
const spareRows = 12;      // drawn beyond what is seen, so that scrolling shows no gap

export const whereText = (job: Job): string =>
  job.host ? `${job.host} (pilot ${job.pilot})` : job.pilot ? `pilot ${job.pilot}` : job.label ? `for '${job.label}'` : "";

// Only the rows that are in sight are in the document: ten thousand jobs cost as much as thirty.
export function Jobs({ store, now, view, setView, selected, select }: {
  store: Store; now: number; view: View; setView: (view: View) => void;
  selected: number | null; select: (id: number | null) => void;
}) {
  const jobs = store.listJobs(view);
  const counters = store.counters();
  const box = useRef<HTMLDivElement>(null);
  const field = useRef<HTMLInputElement>(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);

  useLayoutEffect(() => {
    const element = box.current;
    if (!element) return;
    const watcher = new ResizeObserver(() => setHeight(element.clientHeight));
    watcher.observe(element);
    return () => watcher.disconnect();
  }, [store.jobs.size === 0]);

  // "/" goes to the filter from anywhere.
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target instanceof HTMLInputElement || event.target instanceof HTMLTextAreaElement) return;
      event.preventDefault();
      field.current?.focus();
      field.current?.scrollIntoView({ block: "nearest" });
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);

  const first = Math.max(0, Math.floor(top / rowHeight) - spareRows);
  const shown = jobs.slice(first, first + Math.ceil(height / rowHeight) + 2 * spareRows);
  const chosenAt = selected === null ? -1 : jobs.findIndex((job) => job.id === selected);

  const go = (index: number) => {
    const at = Math.max(0, Math.min(jobs.length - 1, index));
    const job = jobs[at];
    const element = box.current;
    if (!job || !element) return;
    select(job.id);
    const head = rowHeight;
    if (at * rowHeight < element.scrollTop) element.scrollTop = at * rowHeight;
    else if ((at + 1) * rowHeight > element.scrollTop + element.clientHeight - head)
      element.scrollTop = (at + 1) * rowHeight - element.clientHeight + head;
  };
  const page = Math.max(1, Math.floor(height / rowHeight) - 2);
  const moves: Record<string, () => number> = {
    ArrowDown: () => chosenAt + 1, ArrowUp: () => (chosenAt < 0 ? 0 : chosenAt - 1),
    PageDown: () => chosenAt + page, PageUp: () => chosenAt - page, Home: () => 0, End: () => jobs.length - 1,
  };
  const onKey = (event: KeyboardEvent) => {
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    go(move());
  };
  const sortBy = (sort: SortKey) => setView({ ...view, sort, down: view.sort === sort ? !view.down : sort !== "name" && sort !== "where" });
  const head = (sort: SortKey, title: string) => (
    <span role="columnheader" aria-sort={view.sort !== sort ? "none" : view.down ? "descending" : "ascending"}>
      <button type="button" class="plain" onClick={() => sortBy(sort)}>{title}{view.sort === sort && <i>{view.down ? " ▾" : " ▴"}</i>}</button>
    </span>
  );
  const countOf = (group: JobGroup): number => (group === "all" ? store.jobs.size : counters[group]);

  return (
    <section id="jobs" class="card" aria-labelledby="jobs-title">
      <div class="tools">
        <h2 id="jobs-title">Jobs</h2>
        <div class="chips" role="group" aria-label="state">
          {jobGroups.map((group) => (
            <button key={group} type="button" aria-pressed={view.group === group} onClick={() => setView({ ...view, group })}>
              {group} <small>{count(countOf(group))}</small>
            </button>
          ))}
        </div>
        <input ref={field} type="search" value={view.text} placeholder="filter:  name, host, #12, words of a reason   ( / )" aria-label="filter jobs by text"
          onInput={(event) => setView({ ...view, text: event.currentTarget.value })}
          onKeyDown={(event) => {
            if (event.key === "ArrowDown" || event.key === "Enter") {
              event.preventDefault();
              box.current?.focus();
              go(chosenAt < 0 ? 0 : chosenAt);
            }
          }} />
        <span class="quiet shown" role="status">{view.text.trim() || view.group !== "all" ? `${jobs.length.toLocaleString("en")} shown` : ""}</span>
      </div>
      {store.jobs.size === 0 ? store.ready && (
        <Empty command="flotilla run -- hostname">No jobs yet. Run any command on a pilot:</Empty>
      ) : (
        <div class="jobs" ref={box} tabIndex={0} role="grid" aria-label="jobs" aria-rowcount={jobs.length + 1}
          aria-activedescendant={chosenAt >= first && chosenAt < first + shown.length ? `job-${selected}` : undefined}
          onScroll={(event) => setTop(event.currentTarget.scrollTop)} onKeyDown={onKey}>
          <div class="job head" role="row">
            {head("id", "Job")}{head("state", "State")}{head("name", "Name")}<span role="columnheader" class="number">Slots</span>
            {head("where", "Where")}<span role="columnheader">Since</span>{head("time", "Time")}<span role="columnheader">Command, or why</span>
          </div>
          <div class="space" style={{ height: `${jobs.length * rowHeight}px` }}>
            <div class="window" style={{ transform: `translateY(${first * rowHeight}px)` }}>
              {shown.map((job, i) => (
                <Row key={job.id} job={job} at={first + i} now={now} chosen={job.id === selected} select={select} />
              ))}
            </div>
          </div>
          {jobs.length === 0 && <p class="none">No job fits. <button type="button" class="link" onClick={() => setView({ ...view, group: "all", text: "" })}>Show all</button></p>}
        </div>
      )}
      {store.omittedJobs > 0 && (
        <p class="quiet">{store.omittedJobs.toLocaleString("en")} older jobs are not shown here; <code>flotilla job list</code> has them.</p>
      )}
    </section>
  );
}

function Row({ job, at, now, chosen, select }: { job: Job; at: number; now: number; chosen: boolean; select: (id: number) => void }) {
  const why = note(job);
  const since = job.endedMs || job.runningMs || job.queuedMs || job.submittedMs;
  const time = job.runningMs === 0 ? (hasEnded(job.state) ? "" : elapsed(now - job.submittedMs))
    : job.endedMs > 0 ? duration(job.endedMs - job.runningMs) : elapsed(now - job.runningMs);
  const bad = job.state === "failed";
  const tell = why !== "" && job.state !== "finished" && job.state !== "running";
  return (
    <div id={`job-${job.id}`} class={`job ${job.state}${chosen ? " chosen" : ""}`} role="row" aria-rowindex={at + 2} aria-selected={chosen}
      onClick={() => select(job.id)}>
      <span role="gridcell">{job.id}</span>
      <span role="gridcell"><JobMark job={job} /></span>
      <span role="gridcell" title={job.name}>{job.name}</span>
      <span role="gridcell" class="number">{job.slots}</span>
      <span role="gridcell" title={whereText(job)}>{whereText(job)}</span>
      <span role="gridcell">{since > 0 && clock(since, now)}</span>
      <span role="gridcell" class={job.runningMs === 0 ? "quiet" : ""} title={job.runningMs === 0 && time ? "waits" : undefined}>{time}</span>
      {tell ? <span role="gridcell" class={bad ? "reason" : "quiet"} title={why}>{why}</span>
        : <code role="gridcell" title={job.command}>{job.command}</code>}
    </div>
  );
}
