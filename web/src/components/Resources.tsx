import { ago, clock } from "../format";
import type { Resource } from "../model";
import type { Store } from "../store";
import { Command, Empty } from "./Empty";
import { HubMark } from "./State";

export function Resources({ store, now }: { store: Store; now: number }) {
  const resources = [...store.resources.values()].sort((a, b) => Number(a.location !== "") - Number(b.location !== "") || (a.name < b.name ? -1 : 1));
  const remote = resources.some((resource) => resource.location !== "");
  return (
    <section id="resources" class="card" aria-labelledby="resources-title">
      <h2 id="resources-title">Resources</h2>
      <ul class="rows">
        {resources.map((resource) => <Row key={resource.name} resource={resource} now={now} />)}
      </ul>
      {!remote && store.ready && (
        <Empty command="flotilla resource add desk --location me@desk.example.org">
          {resources.length === 0 ? "No resources are known." : "Only this machine so far."} Any machine that you reach by ssh can join;
          nothing needs to be installed there.
        </Empty>
      )}
    </section>
  );
}

function Row({ resource, now }: { resource: Resource; now: number }) {
  const local = resource.location === "" && resource.driver === "local";
  const details = [
    resource.location,
    resource.gateway && `through ${resource.gateway}`,
    resource.hosts.length > 0 && `${resource.hosts.length} ${resource.hosts.length === 1 ? "node" : "nodes"} behind it`,
    resource.transport === "openssh" && "by the system's ssh",
    resource.hub === "connected" && resource.hubHost && `hub on ${resource.hubHost}`,
    resource.hub === "connected" && resource.roundTripUs > 0 && `${(resource.roundTripUs / 1000).toFixed(1)} ms away`,
  ].filter(Boolean);
  const troubled = resource.hub === "failed" || resource.hub === "unreachable";
  return (
    <li class={`row ${troubled ? "troubled" : ""}`}>
      <div class="line">
        <strong>{resource.name}</strong>
        <HubMark state={resource.hub} local={local} />
        {resource.hubSinceMs > 0 && !local && <time title={clock(resource.hubSinceMs, now)}>{ago(resource.hubSinceMs, now)}</time>}
      </div>
      {details.length > 0 && <div class="line quiet">{details.join(" · ")}</div>}
      {resource.hub === "uploading" && (
        <progress max={1} value={resource.uploadFraction} aria-label={`agent sent to ${resource.name}`} />
      )}
      {resource.hubMessage && resource.hub !== "connected" && <p class={troubled ? "reason" : "quiet"}>{resource.hubMessage}</p>}
      {resource.hub === "failed" && <Command text={`flotilla resource test ${resource.name}`} />}
    </li>
  );
}
