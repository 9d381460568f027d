import { clock, elapsed } from "../format";
import type { Store } from "../store";

export function Header({ store, now }: { store: Store; now: number }) {
  const { info, live } = store;
  return (
    <header class="top">
      <a class="brand" href="#/"><img src="/icon.svg" alt="" width="26" height="26" /><h1>Flotilla</h1></a>
      {info && (
        <dl class="facts">
          <div><dt>host</dt><dd>{info.host}</dd></div>
          <div><dt>daemon</dt><dd title={`process ${info.pid}, since ${clock(info.startedMs, now)}`}>
            pid {info.pid}, up {elapsed(now - info.startedMs)}</dd></div>
          <div><dt>build</dt><dd>{info.build}</dd></div>
        </dl>
      )}
      <span class={`presence ${live.state}`} role="status">
        <i aria-hidden="true" />
        {live.state === "live" ? "live"
          : live.state === "connecting" ? "connecting…"
          : live.state === "reconnecting" ? `reconnecting… (${elapsed(now - live.sinceMs)})`
          : "not let in"}
      </span>
    </header>
  );
}

// Above the page while what it shows is not the present.
export function Notice({ store, now }: { store: Store; now: number }) {
  const { live } = store;
  if (live.state === "refused") return <p class="notice bad" role="alert">{live.message}.</p>;
  if (live.state === "reconnecting" && now - live.sinceMs > 1500)
    return (
      <p class="notice" role="alert">
        The daemon does not answer since {clock(live.sinceMs, now)}. What you see is from then; the page goes on by itself when it
        is back. <code>flotilla daemon status</code> says how it is; <code>flotilla web</code> gives a fresh link.
      </p>
    );
  return null;
}
