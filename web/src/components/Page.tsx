import { useState } from "preact/hooks";
import { useNow, useSelectedJob, useStore } from "../hooks";
import type { JobGroup, Store, View } from "../store";
import { Header, Notice } from "./Header";
import { JobPanel } from "./JobPanel";
import { Jobs } from "./Jobs";
import { Pilots } from "./Pilots";
import { Resources } from "./Resources";
import { Tiles } from "./Tiles";
import { Workers } from "./Workers";

export function Page({ store }: { store: Store }) {
  useStore(store);
  const now = useNow();
  const [selected, select] = useSelectedJob();
  const [view, setView] = useState<View>({ group: "all", text: "", sort: "id", down: true });
  const show = (group: JobGroup) => {
    setView({ ...view, group, text: "" });
    document.getElementById("jobs")?.scrollIntoView({ block: "start", behavior: "smooth" });
  };
  const stale = store.live.state === "reconnecting" || store.live.state === "refused";
  return (
    <div class={`frame${selected !== null ? " with-panel" : ""}${stale ? " stale" : ""}`}>
      <Header store={store} now={now} />
      <main>
        <Notice store={store} now={now} />
        {!store.ready && !stale && <p class="quiet loading">asking the daemon…</p>}
        {store.ready && (
          <>
            <Tiles store={store} show={show} />
            <div class="pair">
              <Resources store={store} now={now} />
              <Pilots store={store} now={now} />
            </div>
            <Workers store={store} now={now} selected={selected} select={select} />
            <Jobs store={store} now={now} view={view} setView={setView} selected={selected} select={select} />
          </>
        )}
      </main>
      {selected !== null && store.ready && <JobPanel store={store} id={selected} now={now} close={() => select(null)} />}
    </div>
  );
}
