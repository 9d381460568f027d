import { ago, clock, elapsed, plural } from "../format";
import { type Pilot, hasEnded } from "../model";
import type { Store } from "../store";
import { Bar } from "./Bar";
import { Empty } from "./Empty";
import { PilotMark } from "./State";

const mostNodes = 64;           // of one pilot; further ones are counted
const mostEnded = 20;
const failureShownMs = 3_600_000;   // a failure stays in sight for an hour

export function Pilots({ store, now }: { store: Store; now: number }) {
  const pilots = [...store.pilots.values()].sort((a, b) => b.id - a.id);
  const inSight = pilots.filter((pilot) => !hasEnded(pilot.state) || (pilot.state === "failed" && now - pilot.endedMs < failureShownMs));
  const ended = pilots.filter((pilot) => !inSight.includes(pilot));
  const any = pilots.some((pilot) => !hasEnded(pilot.state));
  return (
    <section id="pilots" class="card" aria-labelledby="pilots-title">
      <h2 id="pilots-title">Pilots</h2>
      <ul class="rows">{inSight.map((pilot) => <Row key={pilot.id} pilot={pilot} now={now} />)}</ul>
      {!any && store.ready && (
        <Empty command="flotilla pilot start local">No pilot is up. A pilot offers the slots of a resource to your jobs.</Empty>
      )}
      {ended.length > 0 && (
        <details>
          <summary>{plural(ended.length, "ended pilot")}</summary>
          <ul class="rows">{ended.slice(0, mostEnded).map((pilot) => <Row key={pilot.id} pilot={pilot} now={now} />)}</ul>
          {ended.length > mostEnded && <p class="quiet">and {ended.length - mostEnded} before; see <code>flotilla pilot list --ended</code></p>}
        </details>
      )}
    </section>
  );
}

function Row({ pilot, now }: { pilot: Pilot; now: number }) {
  const over = hasEnded(pilot.state);
  const troubled = pilot.state === "failed" || pilot.state === "unreachable";
  const nodes = pilot.nodes.slice(0, mostNodes);
  return (
    <li class={`row ${troubled ? "troubled" : ""}`}>
      <div class="line">
        <strong>#{pilot.id}</strong>
        <span>{pilot.resource}</span>
        {pilot.label && pilot.label !== pilot.resource && <span class="label" title="label">{pilot.label}</span>}
        <PilotMark state={pilot.state} />
        {over ? <time title={clock(pilot.endedMs, now)}>{pilot.endedMs > 0 && ago(pilot.endedMs, now)}</time>
          : <span class="quiet end">{lifeTime(pilot, now)}</span>}
      </div>
      {pilot.message && pilot.state !== "running" && <p class={troubled ? "reason" : "quiet"}>{pilot.message}</p>}
      {!over && (
        <div class="line quiet">
          {pilot.slots > 0 ? `${pilot.used} of ${plural(pilot.slots, "slot")} in use` : plural(pilot.nodeCount, "node") + " asked for"}
          {" · "}{plural(pilot.jobsRunning, "job")} running · {pilot.jobsDone.toLocaleString("en")} done
        </div>
      )}
      {!over && nodes.length > 0 && (
        <ul class="nodes">
          {nodes.map((node) => (
            <li key={node.index} class={node.connected ? "" : "away"}>
              <span class="host" title={node.connected
                ? `${node.host}: load ${node.load.toFixed(1)} on ${plural(node.processors, "processor")}` : node.message}>
                {node.host || `node ${node.index}`}</span>
              {node.connected || node.slots > 0
                ? <><Bar used={node.used} all={node.slots} label={node.host || `node ${node.index}`} /><span class="use">{node.used}/{node.slots}</span></>
                : null}
              {!node.connected && <span class="reason">{node.message || "not there"}</span>}
            </li>
          ))}
          {pilot.nodes.length > mostNodes && <li class="quiet">and {pilot.nodes.length - mostNodes} more</li>}
        </ul>
      )}
    </li>
  );
}

function lifeTime(pilot: Pilot, now: number): string {
  if (pilot.endsAtMs > 0) return pilot.endsAtMs > now ? `ends in ${elapsed(pilot.endsAtMs - now)}` : "its time is up";
  if (pilot.runningMs > 0) return `up ${elapsed(now - pilot.runningMs)}`;
  return `for ${elapsed(now - (pilot.startingMs || pilot.submittedMs))}`;
}
