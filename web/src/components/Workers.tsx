import { bytes, count, duration, elapsed } from "../format";
import { type Job, hasEnded, note } from "../model";
import type { Rates, Store } from "../store";
import { Empty } from "./Empty";
import { Sparkline } from "./Sparkline";
import { JobMark } from "./State";
import { whereText } from "./Jobs";

const mostEnded = 8;         // all are in the jobs table

export function Workers({ store, now, selected, select }: {
  store: Store; now: number; selected: number | null; select: (id: number) => void;
}) {
  const all = store.workers();
  const up = all.filter((job) => !hasEnded(job.state));
  const ended = all.filter((job) => hasEnded(job.state));
  const shown = [...up, ...ended.slice(0, mostEnded)];
  return (
    <section id="workers" class="card" aria-labelledby="workers-title">
      <h2 id="workers-title">Code workers {all.length > 0 && <small>{up.length} up, {ended.length.toLocaleString("en")} ended</small>}</h2>
      {shown.length > 0 ? (
        <div class="scroll">
          <table>
            <thead>
              <tr><th>Job</th><th>State</th><th>Worker</th><th>Where</th><th>Time</th><th class="number">Calls</th>
                <th class="number">Calls/s</th><th>Last minute</th><th class="number">To worker</th><th class="number">From worker</th></tr>
            </thead>
            <tbody>
              {shown.map((job) => (
                <Row key={job.id} job={job} now={now} rates={store.rates(job.id)} chosen={job.id === selected} select={select} />
              ))}
            </tbody>
          </table>
        </div>
      ) : store.ready && (
        <Empty command="./scripts/demo">
          No code workers yet. A script starts them and calls them as if they were local; the example couples two of them.
        </Empty>
      )}
      {ended.length > mostEnded && <p class="quiet">Older ones are in the table of jobs.</p>}
    </section>
  );
}

function Row({ job, now, rates, chosen, select }: {
  job: Job; now: number; rates: Rates | null; chosen: boolean; select: (id: number) => void;
}) {
  const running = job.state === "running" && !job.unreachable;
  const last = (series: number[] | undefined, fallback: number): number => series?.at(-1) ?? fallback;
  const callsPerS = last(rates?.calls, job.channel?.callsPerS ?? 0);
  const reason = job.state === "failed" || job.unreachable || !running ? note(job) : "";
  const channel = job.channel;
  return (
    <>
      <tr class={`pick ${chosen ? "chosen" : ""} ${job.state}`} onClick={() => select(job.id)}>
        <td><button type="button" class="plain" onClick={() => select(job.id)} aria-label={`details of job ${job.id}`}>{job.id}</button></td>
        <td><JobMark job={job} />{running && !job.connected && <span class="quiet"> connecting</span>}</td>
        <td title={job.command}><strong>{job.name}</strong>{job.mpi && <span class="quiet"> MPI × {job.processes}</span>}
          {!job.mpi && job.threads > 1 && <span class="quiet"> {job.threads} threads</span>}</td>
        <td>{whereText(job)}</td>
        <td>{job.runningMs === 0 ? "" : job.endedMs > 0 ? duration(job.endedMs - job.runningMs) : elapsed(now - job.runningMs)}</td>
        <td class="number">{channel ? channel.calls.toLocaleString("en") : ""}</td>
        <td class="number">{running && channel ? count(callsPerS) : ""}</td>
        <td>{running && channel && <Sparkline values={rates?.calls ?? []} label={`calls per second of job ${job.id} in the last minute`} />}</td>
        <td class="number">{channel && <Flow total={channel.bytesOut} rate={running ? last(rates?.out, 0) : null} />}</td>
        <td class="number">{channel && <Flow total={channel.bytesIn} rate={running ? last(rates?.in, 0) : null} />}</td>
      </tr>
      {reason && (
        <tr class={`under ${job.state}`} onClick={() => select(job.id)}><td /><td colSpan={9} class={job.state === "failed" ? "reason" : "quiet"}>{reason}</td></tr>
      )}
    </>
  );
}

function Flow({ total, rate }: { total: number; rate: number | null }) {
  return <>{bytes(total)}{rate !== null && <span class="quiet rate">{bytes(rate)}/s</span>}</>;
}
