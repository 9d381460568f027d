import { count } from "../format";
import type { JobGroup, Store } from "../store";
import { Bar } from "./Bar";

export function Tiles({ store, show }: { store: Store; show: (group: JobGroup) => void }) {
  const counters = store.counters();
  const slots = store.slots();
  const resources = [...store.resources.values()];
  const troubled = resources.filter((resource) => resource.hub === "failed" || resource.hub === "unreachable").length;
  return (
    <ul class="tiles">
      <li><a href="#resources"><b>{resources.length}</b><span>{resources.length === 1 ? "resource" : "resources"}</span>
        {troubled > 0 && <em>{troubled} in trouble</em>}</a></li>
      <li><a href="#pilots"><b>{slots.pilots}</b><span>{slots.pilots === 1 ? "pilot" : "pilots"} running</span></a></li>
      <li><a href="#pilots"><b>{slots.used}<small>/{slots.all}</small></b><span>slots in use</span>
        <Bar used={slots.used} all={slots.all} label="all pilots" cells={false} /></a></li>
      <li><a href="#workers"><b>{counters.workers}</b><span>{counters.workers === 1 ? "worker" : "workers"} up</span></a></li>
      {(["running", "waiting", "finished", "failed"] as const).map((group) => (
        <li key={group}>
          <button type="button" class={`${group}${counters[group] > 0 ? " some" : ""}`} title={counters[group].toLocaleString("en")}
            onClick={() => show(group)}>
            <b>{count(counters[group])}</b><span>jobs {group}</span>
          </button>
        </li>
      ))}
    </ul>
  );
}
